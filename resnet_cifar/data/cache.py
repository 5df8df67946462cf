"""The cache of decoded data sets: one directory per entry, with .npy files, file_names.json if the images come from
files, and meta.json, which holds their checksums.

An entry is built in a directory of its own and renamed into place, so no lock is needed: the loser of a race deletes
its copy. The modification time of the directory is when the entry was last used, that of its files when it was created.
"""

from __future__ import annotations

import contextlib
import errno
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
from resnet_cifar.cache_folder import artifacts_root, cache_root
from resnet_cifar.config.errors import UserError

_FORMAT = 3
FILE_NAMES = "file_names.json"  # per split the file names of its images; not part of the fingerprint
# Other files are never deleted, not even where the cache's folder is one in which W&B keeps runs.
_ENTRY_NAME = re.compile(r"[0-9a-f]{16}(\.(building|damaged)-.+)?|new\.building-.+")
_ARTIFACT_NAME = re.compile(r"[\w.-]+-v\d+-[0-9a-f]{8}(\.(?:building|damaged)-.+)?")


@dataclass(frozen=True)
class Entry:
    """An entry of the cache. `meta`: its meta.json, empty if it is unusable (incomplete, or from another version), or
    only the `source` of an artifact of W&B; `created` and `last_used`: seconds since 1970.
    """

    path: Path
    meta: dict[str, Any]
    nbytes: int
    created: float
    last_used: float


@contextlib.contextmanager
def write_errors() -> Iterator[None]:
    """Turns errors of writing into the cache, such as a full disk, into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the cache {cache_root()} cannot be written ({error.strerror or error}): make room "
            "(`resnet-cifar cache` lists and clears its entries), or set RESNET_CIFAR_CACHE"
        ) from None


def in_bytes(nbytes: int) -> str:
    """`3 kB` or `2.4 MB`."""
    return f"{nbytes / 1e3:,.0f} kB" if nbytes < 1e6 else f"{nbytes / 1e6:,.1f} MB"


def check_space(nbytes: int) -> None:
    """Raises UserError if the cache's disk has less room than this."""
    with write_errors():
        free = shutil.disk_usage(cache_root()).free
        if nbytes > free:
            needed = f"{os.strerror(errno.ENOSPC)}: {in_bytes(nbytes)} are needed and {in_bytes(free)} are free"
            raise OSError(errno.ENOSPC, needed)


@contextlib.contextmanager
def new_entry() -> Iterator[Path]:
    """A directory to build an entry in; it is deleted at the end unless it was published."""
    with write_errors():
        folder = Path(tempfile.mkdtemp(prefix="new.building-", dir=cache_root()))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def entry_path(key: str) -> Path:
    """The directory of the entry with this key."""
    return cache_root() / hashlib.sha256(f"{_FORMAT} {key}".encode()).hexdigest()[:16]


def publish(built: Path, entry: Path, classes: tuple[str, ...], facts: dict[str, Any]) -> None:
    """Renames a directory of arrays to `entry`. `facts` are added to meta.json; their `images` names the splits."""
    with write_errors():
        files = [built / f"{role}-{kind}.npy" for role in facts["images"] for kind in ("images", "labels")]
        files += [built / FILE_NAMES] if (built / FILE_NAMES).is_file() else []
        checksums = {file.name: sha256(file) for file in files}
        fingerprint = _fingerprint(checksums, classes)
        meta = {"format": _FORMAT, "classes": classes, "checksums": checksums, "fingerprint": fingerprint, **facts}
        (built / "meta.json").write_text(json.dumps(meta, indent=1))
        built.chmod(0o755)  # mkdtemp's directories are private; a cache is shared
        try:
            built.rename(entry)
        except OSError:
            if not entry.is_dir():
                raise


def find_damage(entry: Path) -> str | None:
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


def discard(entry: Path) -> None:
    """Deletes an entry atomically: no reader sees a directory that is half deleted. Raises UserError."""
    renamed = entry.with_name(f"{entry.name}.damaged-{secrets.token_hex(4)}")  # needs no room on a full disk
    with write_errors(), contextlib.suppress(FileNotFoundError):  # another process may have discarded it first
        entry.rename(renamed)
        shutil.rmtree(renamed)


def list_entries() -> list[Entry]:
    """All entries and artifacts of W&B, including incomplete ones of killed processes, the most recently used first."""
    folders = [path for path in cache_root().iterdir() if path.is_dir() and _ENTRY_NAME.fullmatch(path.name)]
    entries = [_entry(folder, _read_meta(folder)) for folder in folders]
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for path in artifacts_root().iterdir():
            if (found := _ARTIFACT_NAME.fullmatch(path.name)) and path.is_dir():
                entries.append(_entry(path, {} if found[1] else {"source": "wandb"}))
    return sorted(filter(None, entries), key=lambda entry: -entry.last_used)


def _read_meta(folder: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        loaded = json.loads((folder / "meta.json").read_text())
        return loaded if loaded["format"] == _FORMAT else {}
    return {}


def _entry(folder: Path, meta: dict[str, Any]) -> Entry | None:
    """None if another process renames or deletes the folder meanwhile."""
    try:
        files = [file.stat() for file in folder.rglob("*") if file.is_file()]
        used = folder.stat().st_mtime
    except FileNotFoundError:
        return None
    return Entry(folder, meta, sum(file.st_size for file in files), min([used, *(f.st_mtime for f in files)]), used)


def _fingerprint(checksums: dict[str, str], classes: list[str] | tuple[str, ...]) -> str:
    """Of the images, labels and classes: renaming files does not change it."""
    arrays = {name: checksum for name, checksum in checksums.items() if name != FILE_NAMES}
    return hashlib.sha256(json.dumps([arrays, classes]).encode()).hexdigest()[:16]
