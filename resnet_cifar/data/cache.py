"""Decoded data sets on disk: a folder each, of plain .npy files and meta.json with their checksums.

An entry is built in a folder of its own and renamed into place, so that no lock is needed: who comes second discards.
The folder's time of change says when it was used last, its files' when it was made.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet_cifar.atomic_io import sha256
from resnet_cifar.config.errors import UserError
from resnet_cifar.data.paths import cache_root

_FORMAT = 2
# Whatever else lies in the folder is not ours to clear.
_OURS = re.compile(r"[0-9a-f]{16}(\.(building|damaged)-.+)?|new\.building-.+")


@dataclass(frozen=True)
class Entry:
    """A folder of the cache, as a person reads it. `facts`: its meta.json, empty where it is of no use (half an entry
    that a killed process left, one of another version); `made` and `used`: seconds since 1970.
    """

    path: Path
    facts: dict[str, Any]
    nbytes: int
    made: float
    used: float


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Around what writes into the cache: raises UserError where the disk is full, or not ours to write."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the cache {cache_root()} cannot be written ({error.strerror or error}): make room (python -m "
            "resnet-cifar cache lists and clears it), or set RESNET_CIFAR_CACHE"
        ) from None


@contextlib.contextmanager
def building() -> Iterator[Path]:
    """A folder for an entry to be; what is still there at the end is removed."""
    with writing():
        folder = Path(tempfile.mkdtemp(prefix="new.building-", dir=cache_root()))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def place(key: str) -> Path:
    """The entry of what `key` describes."""
    return cache_root() / hashlib.sha256(f"{_FORMAT} {key}".encode()).hexdigest()[:16]


def keep(built: Path, entry: Path, classes: tuple[str, ...], facts: dict[str, Any]) -> None:
    """Makes a folder of arrays an entry. `facts` go into meta.json; their `images` names the splits."""
    with writing():
        files = [built / f"{role}-{kind}.npy" for role in facts["images"] for kind in ("images", "labels")]
        checksums = {file.name: sha256(file) for file in files}
        fingerprint = _fingerprint(checksums, classes)
        meta = {"format": _FORMAT, "classes": classes, "checksums": checksums, "fingerprint": fingerprint, **facts}
        (built / "meta.json").write_text(json.dumps(meta, indent=1))
        built.chmod(0o755)  # mkdtemp's folders are private; a cache is shared
        try:
            built.rename(entry)
        except OSError:
            if not entry.is_dir():
                raise


def damage(entry: Path) -> str | None:
    """What is wrong with an entry, or None."""
    try:
        meta = json.loads((entry / "meta.json").read_text())
        for name, checksum in meta["checksums"].items():
            if sha256(entry / name) != checksum:
                return f"{name} has changed"
        same = _fingerprint(meta["checksums"], meta["classes"]) == meta["fingerprint"]
        return None if same else "meta.json has changed"
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        return f"{type(error).__name__}: {error}"


def used(entry: Path) -> None:
    """Notes that an entry is used now, where the cache may be written."""
    with contextlib.suppress(OSError):
        os.utime(entry)


def discard(entry: Path) -> None:
    """Removes an entry, at once for whoever reads: nobody may find a folder that is half deleted. Raises UserError."""
    aside = entry.with_name(f"{entry.name}.damaged-{secrets.token_hex(4)}")  # a full disk has no room for a new folder
    with writing(), contextlib.suppress(FileNotFoundError):  # another process may have discarded it first
        entry.rename(aside)
        shutil.rmtree(aside)


def entries() -> list[Entry]:
    """All there are, and what killed processes left of some; the one used last first."""
    folders = [path for path in cache_root().iterdir() if path.is_dir() and _OURS.fullmatch(path.name)]
    return sorted(map(_entry, folders), key=lambda entry: -entry.used)


def _entry(folder: Path) -> Entry:
    facts: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        meta = json.loads((folder / "meta.json").read_text())
        facts = meta if meta["format"] == _FORMAT else facts
    files = [file.stat() for file in folder.rglob("*") if file.is_file()]
    used = folder.stat().st_mtime
    return Entry(folder, facts, sum(file.st_size for file in files), min([used, *(f.st_mtime for f in files)]), used)


def _fingerprint(checksums: dict[str, str], classes: list[str] | tuple[str, ...]) -> str:
    return hashlib.sha256(json.dumps([checksums, classes]).encode()).hexdigest()[:16]
