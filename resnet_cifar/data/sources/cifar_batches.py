"""CIFAR-10 and CIFAR-100 as published and as downloaded by torchvision: a folder of pickles, or its .tar.gz.

The folder is cifar-10-batches-py or cifar-100-python, or one that contains it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Data
from resnet_cifar.data.sources import archives
from resnet_cifar.data.sources.base import SourceData, Split
from resnet_cifar.data.sources.unpickle import text, unpickle
from resnet_cifar.data.sources.walk import file_stamps

FIELDS = ("columns",)


@dataclass(frozen=True)
class _Set:
    """One of the two data sets. `name`: its class in torchvision, which knows the checksums of the published files.

    `nbytes`: sizes of the published files. `order`: of the training files in the published archive and the hub's copy.
    """

    name: str
    folder: str
    train: tuple[str, ...]
    test: str
    meta: str
    nbytes: dict[str, int]
    order: tuple[str, ...]

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.train, self.test, self.meta)


_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
_SIZES = dict(zip(_BATCHES, (31035704, 31035320, 31035999, 31035696, 31035623), strict=True))
_SETS = (
    _Set(
        "CIFAR10",
        "cifar-10-batches-py",
        _BATCHES,
        "test_batch",
        "batches.meta",
        {**_SIZES, "test_batch": 31035526},
        tuple(f"data_batch_{number}" for number in (4, 3, 2, 5, 1)),
    ),
    _Set("CIFAR100", "cifar-100-python", ("train",), "test", "meta", {"train": 155249918}, ("train",)),
)


def recognizes(folder: Path) -> bool:
    """Whether the folder holds such files, or contains such a folder or its archive."""
    return bool(_locations(folder))


def recognizes_archive(archive: archives.Archive, _place: Path) -> bool:
    """Whether an archive holds such files."""
    names = {PurePosixPath(name).name for name in archive.sizes}
    return any({kind.train[0], kind.meta} & names for kind in _SETS)


def identity(data: Data) -> str:
    """Path, size and modification time of every file."""
    source = Path(data.source).expanduser()
    return f"pickles {' '.join(map(file_stamps, _locations(source) if source.is_dir() else [source]))}"


def read(data: Data) -> SourceData:
    """Both splits; CIFAR-100 has its fine labels unless data.columns.label names others. Raises UserError."""
    source = Path(data.source).expanduser()
    locations = _locations(source)
    if len(locations) > 1:
        raise UserError(
            f"data.source {data.source!r} contains {' and '.join(location.name for location in locations)}: name one"
        )
    if not locations[0].is_dir():
        with archives.open_archive(locations[0], data) as archive:
            return read_archive(archive, locations[0], data)
    kind = _identify({path.name for path in locations[0].iterdir()}, data)
    with archives.user_errors(f"data.source {data.source!r}"):
        return _source_data(kind, {name: (locations[0] / name).read_bytes() for name in kind.files}, data)


def read_archive(archive: archives.Archive, _place: Path, data: Data) -> SourceData:
    """As `read`, from an archive. Raises UserError."""
    members: dict[str, str] = {}
    for member in archive.sizes:
        if members.setdefault(PurePosixPath(member).name, member) != member:
            raise UserError(f"data.source {data.source!r} holds {PurePosixPath(member).name} twice: remove one")
    kind = _identify(set(members), data)
    spool = archive.extract([members[name] for name in kind.files])
    return _source_data(kind, {name: spool.read(members[name]) for name in kind.files}, data)


def _source_data(kind: _Set, files: dict[str, bytes], data: Data) -> SourceData:
    if data.columns.image:
        raise UserError(f"data.columns.image {data.columns.image!r} does not apply to CIFAR pickles: remove it")
    is_published = _is_published(kind, files, data)
    loaded = {name: _unpickle(files.pop(name), name, data) for name in kind.files}
    label = _label_key(loaded[kind.test], data)
    try:
        classes = tuple(text(name) for name in loaded[kind.meta][f"{label.removesuffix('s')}_names"])
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"data.source {data.source!r}: {kind.meta} does not name the classes: download it again"
        ) from None
    train = [_arrays(loaded.pop(name), name, label, data) for name in (kind.order if is_published else kind.train)]
    images, labels = (np.concatenate(parts) for parts in zip(*train, strict=True))
    test = Split("test", *_arrays(loaded[kind.test], kind.test, label, data))
    return SourceData(Split("train", images, labels), test, classes)


def _locations(folder: Path) -> list[Path]:
    """The folder itself if it holds batches, else the folders of batches in it or, without these, archives."""
    if any((folder / kind.train[0]).is_file() and (folder / kind.meta).is_file() for kind in _SETS):
        return [folder]
    inside = [folder / kind.folder for kind in _SETS if (folder / kind.folder).is_dir()]
    packed = ("cifar-10-python.tar.gz", "cifar-100-python.tar.gz")
    return inside or [folder / name for name in packed if (folder / name).is_file()]


def _identify(names: set[str], data: Data) -> _Set:
    for kind in _SETS:
        if missing := [name for name in kind.files if name not in names]:
            if len(missing) < len(kind.files):
                raise UserError(
                    f"data.source {data.source!r} lacks {', '.join(missing)} of {kind.name}: download it again"
                )
            continue
        return kind
    raise UserError(
        f"data.source {data.source!r} contains no pickles of CIFAR-10 or CIFAR-100 (data_batch_1, ... or train, test "
        "and meta): download it again"
    )


def _is_published(kind: _Set, files: dict[str, bytes], data: Data) -> bool:
    """Whether these are the published files. Raises UserError if one has the published size but another checksum."""
    import torchvision

    known = getattr(torchvision.datasets, kind.name)
    matching = 0
    for name, md5 in known.train_list + known.test_list:
        if len(files[name]) == kind.nbytes.get(name):
            matching += 1
            if hashlib.md5(files[name], usedforsecurity=False).hexdigest() != md5:
                raise UserError(
                    f"data.source {data.source!r}: {name} is damaged (it has the size of the published file but "
                    f"another checksum): download it again from {known.url}"
                )
    return matching == len(kind.nbytes)


def _unpickle(content: bytes, name: str, data: Data) -> dict[str, Any]:
    with archives.user_errors(f"data.source {data.source!r}: {name}"):
        return unpickle(content)


def _label_key(batch: dict[str, Any], data: Data) -> str:
    """The key of the labels in the files; data.columns.label may omit the s, as the hub's copy does."""
    known = [key for key in ("labels", "fine_labels", "coarse_labels") if key in batch]
    wanted = data.columns.label
    if wanted and wanted not in known and f"{wanted}s" not in known:
        raise UserError(
            f"data.columns.label {wanted!r} is not one of the labels {known} of data.source {data.source!r}"
        )
    if not known:
        raise UserError(f"data.source {data.source!r} has no labels, only {sorted(batch)}: download it again")
    return next((key for key in known if wanted in (key, key.removesuffix("s"))), known[0])


def _arrays(batch: dict[str, Any], name: str, label: str, data: Data) -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8 [n, 32, 32, 3], and labels, int64 [n], of a file whose rows hold one channel after the other."""
    images = batch.get("data")
    if not (isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.shape[1:] == (3072,)):
        found = f"{images.dtype} of the shape {list(images.shape)}" if isinstance(images, np.ndarray) else "no array"
        raise UserError(
            f"data.source {data.source!r}: the data of {name} is {found}, not uint8 [n, 3072]: download it again"
        )
    try:
        labels = np.array(batch[label], dtype=np.int64)
    except (KeyError, TypeError, ValueError, OverflowError):
        labels = np.array([])
    if labels.shape != (len(images),):
        raise UserError(
            f"data.source {data.source!r}: {name} has {len(images)} images and {labels.size} {label} that are "
            "integers: download it again"
        )
    return np.ascontiguousarray(images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels
