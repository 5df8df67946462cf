"""The page on which a person corrects the predictions that a model is least certain of, and the CSV of their labels.

Training reads the CSV in the folder of the images: see `data.sources.label_csv`.
"""

from __future__ import annotations

# ruff: noqa: PTH100
import csv
import glob
import hashlib
import itertools
import json
import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from resnet_cifar.atomic_io import atomic_write
from resnet_cifar.config.errors import UserError, check_name, printable
from resnet_cifar.data.sources import csv_table, image_io
from resnet_cifar.data.sources.base import shorten
from resnet_cifar.data.sources.image_io import Decoding
from resnet_cifar.data.sources.image_tree import is_image_file
from resnet_cifar.data.sources.walk import is_hidden
from resnet_cifar.evaluation.classify_files import ImageFile, ImageFiles
from resnet_cifar.reporting import html_page
from resnet_cifar.reporting.dataset_report.samples import thumbnail

LABELS = "labels.csv"  # beside the images, where training finds it
_COLUMNS = ("file", "label", "probability", "uncertainty")
_SHOWN = 10  # classes per image: as many as digit keys
_SIDES = ((1000, 256), (2**31, 128))  # longest side of the images, by their number on the page
_CHUNK = 64  # images in memory
_DIGITS = 4  # decimals of probabilities


def uncertainty(probabilities: Tensor) -> Tensor:
    """1 minus the margin between the two most probable classes: [n, classes] -> [n], from 0 to 1.

    The label of an image with a small margin settles the decision between two classes ("best versus second best", Joshi
    et al. 2009); entropy also counts how the remaining probability is spread over classes that nobody would choose.
    """
    if probabilities.shape[1] < 2:
        return 1 - probabilities.amax(1)
    best, second = probabilities.topk(2).values.unbind(1)
    return 1 - (best - second)


def ranking(found: Sequence[Tensor | None]) -> list[int]:
    """The images from the most uncertain to the most certain one, then those that cannot be read (None)."""
    read = [row for row, probabilities in enumerate(found) if probabilities is not None]
    values = uncertainty(torch.stack([found[row] for row in read])).tolist() if read else []
    ranked = [row for row, _ in sorted(zip(read, values, strict=True), key=lambda pair: -pair[1])]  # a stable sort
    return ranked + [row for row, probabilities in enumerate(found) if probabilities is None]


@dataclass(frozen=True)
class Pool:
    """The images to review. `folder`: of all images, where LABELS belongs; `names`: of each image below it.

    `labeled`: name -> label of the images in the LABELS that is there already. They are not reviewed again.
    """

    folder: str
    names: list[str]
    labeled: dict[str, str]

    @property
    def source(self) -> str:
        """The folder to train on, which an archive has to be unpacked into."""
        return self.folder if Path(self.folder).is_dir() else Path(self.folder).stem.removesuffix(".tar")

    @property
    def command(self) -> str:
        """Trains on the corrected labels. The column is named: folders of images are not classes here."""
        return f"python train.py --data.source {shlex.quote(self.source)} --data.columns.label label"


def read_pool(paths: Sequence[str], files: Sequence[ImageFile]) -> Pool:
    """`paths`: what was named on the command line; `files`: the images found there. Raises UserError."""
    archives = list(dict.fromkeys(file.path for file in files if file.member))
    if archives and (len(archives) > 1 or not all(file.member for file in files)):
        raise UserError(
            f"--review: {archives[0]} and other images have no folder in common: unpack it, or review it alone"
        )
    roots = [_root(word) for word in paths]
    common = roots[0] if len(roots) == 1 else os.path.relpath(os.path.commonpath(map(os.path.abspath, roots)))
    folder = archives[0] if archives else str(common)
    check_name("--review: the folder", folder)
    start = os.path.abspath(folder)
    names = [os.path.relpath(os.path.abspath(file.name), start) for file in files]
    labeled = _read_labels(Path(folder) / LABELS)
    if labeled.keys() >= set(names):
        raise UserError(f"--review: {Path(folder) / LABELS} labels all {len(names)} images already: add images")
    return Pool(folder, names, labeled)


def _root(word: str) -> Path:
    """The directory that a word of the command line names, or that holds its files."""
    path = Path(word)
    if path.is_dir():
        return path
    path = path.parent
    while glob.has_magic(str(path)) and not path.exists():
        path = path.parent
    return path


def _read_labels(file: Path) -> dict[str, str]:
    if not file.is_file():
        return {}
    table = csv_table.parse(file.read_bytes(), file.name, str(file))
    if missing := [name for name in _COLUMNS[:2] if name not in table.columns]:
        raise UserError(
            f"--review: {file} has no column {missing[0]!r}, so the new labels cannot be added: rename its columns to "
            "file and label, or move it elsewhere"
        )
    files = (name.removeprefix("./") for name in table.values("file"))
    return {name: label for name, label in zip(files, table.values("label"), strict=True) if name and label}


def _is_listable(name: str) -> bool:
    """Whether training finds an image by its name in a CSV: see `label_csv` and `image_tree`."""
    *folders, file = PurePosixPath(name).parts
    is_text = "\\" not in name and name.encode(errors="ignore").decode() == name
    return is_text and is_image_file(file) and not any(map(is_hidden, folders))


def _cell(name: str) -> str:
    """A name as a cell: training strips spaces around cells."""
    return name if name == name.strip() else f"./{name}"


@dataclass(frozen=True)
class Review:
    """What was written: `images` on a page of `nbytes`, `listed` ones in the CSV; `left_out`: names of no use there."""

    images: int
    nbytes: int
    listed: int
    left_out: str


def write(
    page: Path,
    labels: Path,
    pool: Pool,
    ranked: Sequence[tuple[int, Tensor]],
    images: ImageFiles,
    classes: tuple[str, ...],
    model: str,
    decoding: Decoding,
    limit: int,
) -> Review:
    """Writes the page of the first `limit` images, and the CSV file `labels` of all.

    `ranked`: row of `pool` and `images` and class probabilities, the most uncertain first. Raises UserError.
    """
    todo = [(row, values) for row, values in ranked if pool.names[row] not in pool.labeled]
    left_out = shorten(printable(pool.names[row]) for row, _ in todo if not _is_listable(pool.names[row]))
    todo = [(row, values) for row, values in todo if _is_listable(pool.names[row])]
    shown = todo[:limit]
    side = next(side for count, side in _SIDES if len(shown) <= count)
    pixels = (images[row] for row, _ in shown)
    data = {
        "classes": classes,
        "labeled": [[_cell(name), label] for name, label in pool.labeled.items()],
        "images": [
            {"file": _cell(pool.names[row]), "url": url, **_likely(values)}
            for (row, values), url in zip(shown, _thumbnails(pixels, side, decoding), strict=True)
        ],
    }
    data["key"] = hashlib.sha256(json.dumps(data).encode()).hexdigest()[:16]
    text = html_page.render(
        "review.html",
        data=data,
        pool=pool,
        model=model,
        count=len(todo),
        left_out=left_out,
        labels=LABELS,
        predicted=labels.name,
    )
    try:
        _write_labels(labels, todo, pool, classes)
        html_page.write_page(page, text)
    except OSError as error:
        raise UserError(f"--review {page} cannot be written ({error.strerror}): name another file") from None
    return Review(len(shown), len(text.encode()), len(todo), left_out)


def _likely(probabilities: Tensor) -> dict[str, list[Any]]:
    """The most probable classes and their probabilities."""
    values, labels = probabilities.topk(min(_SHOWN, len(probabilities)))
    return {"top": labels.tolist(), "p": [round(value, _DIGITS) for value in values.tolist()]}


def _thumbnails(images: Iterable[Any], side: int, decoding: Decoding) -> Iterator[str]:
    """data: URLs of whole images, with the value range of the training images."""
    as_shown = Decoding(value_range=decoding.value_range)

    def small(image: Any) -> str:
        return thumbnail(image_io.to_rgb(image, as_shown), side, quality=75, subsampling=2)  # half of the bytes

    with ThreadPoolExecutor() as threads:
        while chunk := list(itertools.islice(images, _CHUNK)):
            yield from threads.map(small, chunk)


def _write_labels(file: Path, rows: Sequence[tuple[int, Tensor]], pool: Pool, classes: tuple[str, ...]) -> None:
    """The predicted label of every image, then the earlier labels."""
    with atomic_write(file, flush=False) as aside, aside.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(_COLUMNS)
        for row, values in rows:
            numbers = (values.max(), uncertainty(values[None])[0])
            label = classes[int(values.argmax())]
            writer.writerow([_cell(pool.names[row]), label, *(round(number.item(), 6) for number in numbers)])
        writer.writerows([_cell(name), label, "", ""] for name, label in pool.labeled.items())
