"""An .npz file of arrays: images [n, h, w] or [n, h, w, c], uint8 or uint16, and labels [n]."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Data
from resnet_cifar.data.sources.base import SourceData, Split, encode_labels, file_stamps

FIELDS = ("columns",)
# The names of Keras, MedMNIST and many scripts.
_NAMES = (
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_images", "train_labels", "test_images", "test_labels"),
    ("images", "labels", "", ""),
    ("x", "y", "", ""),
)


def identity(data: Data) -> str:
    """Path, size and modification time of the file."""
    return f"npz {file_stamps(Path(data.source))}"


def read(data: Data) -> SourceData:
    """The arrays in the file. Raises UserError."""
    try:
        # Pickled objects could execute code.
        with np.load(Path(data.source).expanduser(), allow_pickle=False) as arrays:
            return _source_data(arrays, data)
    except UserError:
        raise
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"data.source {data.source!r} cannot be read ({error}): save plain arrays with np.savez"
        ) from None


def _source_data(arrays: np.lib.npyio.NpzFile, data: Data) -> SourceData:
    x, y, x_test, y_test = _choose(arrays.files, data)
    has_test = x_test in arrays.files and y_test in arrays.files
    images = {name: _images(arrays[name], name, data) for name in (x, x_test)[: 1 + has_test]}
    labels = {name: _labels(arrays[name], name, data) for name in (y, y_test)[: 1 + has_test]}
    for image, label in zip(images, labels, strict=True):
        if len(images[image]) != len(labels[label]):
            raise UserError(
                f"data.source {data.source!r} has {len(images[image])} images in {image} and {len(labels[label])} "
                f"labels in {label}: save one label per image"
            )
    classes, train_labels, test_labels = encode_labels(labels[y], labels[y_test] if has_test else None)
    test = Split("test", images[x_test], test_labels) if has_test else None
    return SourceData(Split("train", images[x], train_labels), test, classes)


def _choose(names: list[str], data: Data) -> tuple[str, str, str, str]:
    """The names of the images and labels, and of the test images and labels."""
    wanted = data.columns
    for role, name in (("image", wanted.image), ("label", wanted.label)):
        if name and name not in names:
            raise UserError(
                f"data.columns.{role} {name!r} is not one of the arrays {names} of data.source {data.source!r}"
            )
    for x, y, x_test, y_test in _NAMES:
        if (wanted.image or x) in names and (wanted.label or y) in names:
            return (
                (x, y, x_test, y_test) if wanted == type(wanted)() else (wanted.image or x, wanted.label or y, "", "")
            )
    raise UserError(
        f"data.source {data.source!r} has the arrays {names}: name them x_train, y_train, x_test and y_test, or name "
        "the images with --data.columns.image and the labels with --data.columns.label"
    )


def _images(array: np.ndarray, name: str, data: Data) -> np.ndarray:
    if array.dtype not in (np.uint8, np.uint16):
        raise UserError(f"data.source {data.source!r}: {name} is {array.dtype}: save it as uint8 (0..255) or uint16")
    if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] not in (1, 2, 3, 4)):
        raise UserError(
            f"data.source {data.source!r}: {name} has the shape {list(array.shape)}: save it as [n, height, width] or "
            "[n, height, width, channels]"
        )
    return array


def _labels(array: np.ndarray, name: str, data: Data) -> np.ndarray:
    """Integers or strings, [n]; Keras has [n, 1]."""
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or array.dtype.kind not in "iubU":
        raise UserError(
            f"data.source {data.source!r}: {name} is {array.dtype} of the shape {list(array.shape)}: save one "
            "integer or name per image"
        )
    return array if array.dtype.kind == "U" else array.astype(np.int64)
