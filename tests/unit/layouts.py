"""CIFAR-10 as people have it on their disks, built from arrays: torchvision's pickles and Kaggle's folder and archives.

Images are uint8 [n, 32, 32, 3], labels whole numbers [n], `classes` their names.
"""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import py7zr
from PIL import Image

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_QUICK = [{"id": py7zr.FILTER_LZMA2, "preset": 1}]


def hub(folder: Path, train: tuple[Any, Any], test: tuple[Any, Any] | None, classes: Sequence[str] = CIFAR10) -> Path:
    """Parquet files of PNGs, as the hub's copy has them. `train`, `test`: (images, labels)."""
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    features = Features({"img": ImageFeature(), "label": ClassLabel(names=list(classes))})
    folder.mkdir(parents=True)
    for name, split in {"train": train, "test": test}.items():
        if split is not None:
            encoded = [{"bytes": png(image), "path": None} for image in split[0]]
            columns = {"img": encoded, "label": [int(label) for label in split[1]]}
            Dataset.from_dict(columns, features=features).to_parquet(folder / f"{name}-00000-of-00001.parquet")
    return folder


def pickles(
    folder: Path,
    train: tuple[Any, Any],
    test: tuple[Any, Any],
    classes: Sequence[str] = CIFAR10,
    protocol: int | None = None,
) -> Path:
    """FOLDER/cifar-10-batches-py: five batches, a test batch and the names, as Python 2 wrote them or, with a
    protocol, as Python 3 does.
    """
    root = folder / "cifar-10-batches-py"
    root.mkdir(parents=True)
    parts = zip(*(np.array_split(np.asarray(values), 5) for values in train), strict=True)
    batches = {f"data_batch_{number}": part for number, part in enumerate(parts, start=1)} | {"test_batch": test}
    for name, (images, labels) in batches.items():
        rows = np.asarray(images).transpose(0, 3, 1, 2).reshape(len(images), -1)
        files = [f"{name}_s_{row:06}.png" for row in range(len(rows))]
        batch = {"batch_label": name, "labels": [int(label) for label in labels], "data": rows, "filenames": files}
        (root / name).write_bytes(pickled(batch, protocol))
    meta = {"num_cases_per_batch": len(images), "label_names": list(classes), "num_vis": 3072}
    (root / "batches.meta").write_bytes(pickled(meta, protocol))
    (root / "readme.html").write_text("<meta>")
    return root


def tarball(file: Path, folder: Path) -> Path:
    """A .tar.gz of a folder, under its own name."""
    with tarfile.open(file, "w:gz", compresslevel=1) as archive:
        archive.add(folder, folder.name)
    return file


def kaggle(
    folder: Path, images: Any, labels: Iterable[int], classes: Sequence[str] = CIFAR10, numbers: bool = False
) -> Path:
    """train/1.png, ..., trainLabels.csv, test/1.png, ... without labels, sampleSubmission.csv."""
    (folder / "train").mkdir(parents=True)
    (folder / "test").mkdir()
    rows = ["id,label"]
    for number, (image, label) in enumerate(zip(images, labels, strict=True), start=1):
        (folder / "train" / f"{number}.png").write_bytes(png(image))
        rows.append(f"{number},{int(label) if numbers else classes[label]}")
    (folder / "trainLabels.csv").write_text("\n".join(rows) + "\n")
    for number in range(1, 4):
        (folder / "test" / f"{number}.png").write_bytes(b"not to be decoded")
    (folder / "sampleSubmission.csv").write_text("id,label\n1,cat\n2,cat\n3,cat\n")
    return folder


def zipped(file: Path, folder: Path, method: int = zipfile.ZIP_DEFLATED) -> Path:
    """A .zip of what a folder holds."""
    with zipfile.ZipFile(file, "w", method) as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder))
    return file


def seven_zipped(file: Path, folder: Path, password: str | None = None) -> Path:
    """A .7z of what a folder holds, solid."""
    filters = None if password else _QUICK
    with py7zr.SevenZipFile(file, "w", filters=filters, password=password) as archive:
        for path in sorted(folder.iterdir()):
            archive.writeall(path, path.name)
    return file


def competition(folder: Path, unpacked: Path) -> Path:
    """The folder that Kaggle's download unzips to: train.7z, test.7z and the tables. `unpacked`: of `kaggle`."""
    folder.mkdir(parents=True)
    for name in ("train", "test"):
        with py7zr.SevenZipFile(folder / f"{name}.7z", "w", filters=_QUICK) as archive:
            archive.writeall(unpacked / name, name)
    for name in ("trainLabels.csv", "sampleSubmission.csv"):
        (folder / name).write_bytes((unpacked / name).read_bytes())
    return folder


def download(file: Path, unpacked: Path, work: Path) -> Path:
    """Kaggle's cifar-10.zip: a .zip of `competition`, which is built in `work`."""
    return zipped(file, competition(work, unpacked))


def png(image: np.ndarray) -> bytes:
    """Lossless."""
    stream = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def pickled(content: dict[str, Any], protocol: int | None = None) -> bytes:
    """A pickle of Python 3 or, without a protocol, of Python 2: byte strings, and numpy's old names."""
    stream = io.BytesIO()
    if protocol is None:
        _Python2(stream, 2).dump(content)
    else:
        pickle.dump(content, stream, protocol)
    return stream.getvalue()


class _Python2(pickle._Pickler):
    def save_string(self, word: str | bytes) -> None:
        word = word.encode() if isinstance(word, str) else bytes(word)
        short = len(word) < 256
        head = (
            pickle.SHORT_BINSTRING + bytes([len(word)]) if short else pickle.BINSTRING + len(word).to_bytes(4, "little")
        )
        self.write(head + word)
        self.memoize(word)

    def save_global(self, called: Any, name: str | None = None) -> None:
        module = called.__module__.replace("numpy._core", "numpy.core")
        self.write(pickle.GLOBAL + f"{module}\n{called.__name__}\n".encode())
        self.memoize(called)

    dispatch = {**pickle._Pickler.dispatch, str: save_string, bytes: save_string}  # noqa: RUF012
