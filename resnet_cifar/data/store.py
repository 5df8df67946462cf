"""Decode once, keep as uint8, hold on the device.

A cache entry is a folder of plain .npy files and meta.json with their checksums. It is built in a folder of its own
and renamed into place, so that no lock is needed: who comes second discards. It is read once, in sequence, into memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from resnet_cifar.data import sources, split
from resnet_cifar.data.sources import cache_root
from resnet_cifar.recipe import Mistake, Recipe
from resnet_cifar.run_folder import sha256

_FORMAT = 1
_SPLITS = ("train", "test")


@dataclass(frozen=True)
class ImageSet:
    """Images on a device: uint8 [n, height, width, 3]; labels int64 [n], on the same device.

    `indices` (int64 [n], on the host) says which image of the source's split each one is.
    """

    images: torch.Tensor
    labels: torch.Tensor
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class ImageData:
    """What a run works on. `fingerprint` is a digest of every decoded image and label of the source."""

    train: ImageSet
    validation: ImageSet
    test: ImageSet
    classes: tuple[str, ...]
    fingerprint: str


def ensure(source: str) -> Path:
    """The cache entry of `source`, decoded first if it is not there, and again if it is damaged. Raises Mistake."""
    kind = sources.find(source)
    name = hashlib.sha256(f"{_FORMAT} {kind.identity(source)}".encode()).hexdigest()[:16]
    entry = cache_root() / name
    if entry.is_dir():
        damage = _damage(entry)
        if damage is None:
            return entry
        print(f"the cache entry {entry} is damaged ({damage}): decoding again", file=sys.stderr, flush=True)
        _discard(entry)
    print(f"decoding {source} once, into {entry}", flush=True)
    data = kind.read(source)
    try:
        _write(data, entry)
    except OSError as error:
        raise Mistake(f"the cache {entry.parent} cannot be written ({error}): set RESNET_CIFAR_CACHE") from None
    return entry


def load(entry: Path, recipe: Recipe, device: torch.device) -> ImageData:
    """Reads a cache entry, applies `data.limit` and the validation cut, and puts the images on `device`."""
    meta = json.loads((entry / "meta.json").read_text())
    images = {name: np.load(entry / f"{name}-images.npy") for name in _SPLITS}
    labels = {name: np.load(entry / f"{name}-labels.npy") for name in _SPLITS}
    chosen = split.choose(labels["train"], labels["test"], len(meta["classes"]), recipe)

    def resident(name: str, rows: np.ndarray) -> ImageSet:
        everything = len(rows) == len(labels[name]) and bool((rows == np.arange(len(rows))).all())
        pixels = images[name] if everything else images[name][rows]
        return ImageSet(torch.from_numpy(pixels).to(device), torch.from_numpy(labels[name][rows]).to(device), rows)

    return ImageData(
        train=resident("train", chosen.train),
        validation=resident("train", chosen.validation),
        test=resident("test", chosen.test),
        classes=tuple(meta["classes"]),
        fingerprint=meta["fingerprint"],
    )


def _write(data: sources.Splits, entry: Path) -> None:
    building = Path(tempfile.mkdtemp(prefix=f"{entry.name}.building-", dir=entry.parent))
    try:
        checksums = {}
        for name in _SPLITS:
            for kind, array in (("images", data.images[name]), ("labels", data.labels[name])):
                file = building / f"{name}-{kind}.npy"
                np.save(file, array)
                checksums[file.name] = sha256(file)
        classes = list(data.classes)
        fingerprint = _fingerprint(checksums, classes)
        meta = {"format": _FORMAT, "classes": classes, "checksums": checksums, "fingerprint": fingerprint}
        (building / "meta.json").write_text(json.dumps(meta, indent=1))
        building.chmod(0o755)  # mkdtemp's folders are private; a cache is shared
        try:
            building.rename(entry)
        except OSError:
            if not entry.is_dir():
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _damage(entry: Path) -> str | None:
    """What is wrong with a cache entry, or None."""
    try:
        meta = json.loads((entry / "meta.json").read_text())
        for name, checksum in meta["checksums"].items():
            if sha256(entry / name) != checksum:
                return f"{name} has changed"
        same = _fingerprint(meta["checksums"], meta["classes"]) == meta["fingerprint"]
        return None if same else "meta.json has changed"
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        return f"{type(error).__name__}: {error}"


def _fingerprint(checksums: dict[str, str], classes: list[str]) -> str:
    return hashlib.sha256(json.dumps([checksums, classes]).encode()).hexdigest()[:16]


def _discard(entry: Path) -> None:
    aside = Path(tempfile.mkdtemp(prefix=f"{entry.name}.damaged-", dir=entry.parent))
    with contextlib.suppress(FileNotFoundError):  # another process may have discarded it first
        entry.rename(aside / "entry")  # at once: nobody may read a folder that is half deleted
    shutil.rmtree(aside, ignore_errors=True)
