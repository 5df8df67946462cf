"""An .npz file of arrays: images [n, h, w] or [n, h, w, c], uint8 or uint16, and labels [n], of one split or more."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Columns, Data
from resnet_cifar.data.sources.base import SourceData, Split, encode_labels, is_label, shorten
from resnet_cifar.data.sources.walk import file_stamps

FIELDS = ("columns",)
# The names of Keras, MedMNIST and many scripts.
_ROLES = ("train", "validation", "test")
_NAMES = (
    (("x_train", "y_train"), ("x_val", "y_val"), ("x_test", "y_test")),
    (("x_train", "y_train"), ("x_valid", "y_valid"), ("x_test", "y_test")),
    (("train_images", "train_labels"), ("val_images", "val_labels"), ("test_images", "test_labels")),
    (("images", "labels"),),
    (("x", "y"),),
)


def identity(data: Data) -> str:
    """Path, size and modification time of the file."""
    return f"npz {file_stamps(Path(data.source))}"


def read(data: Data) -> SourceData:
    """The arrays in the file. Raises UserError."""
    try:
        # Pickled objects could execute code.
        arrays = np.load(Path(data.source).expanduser(), allow_pickle=False)
        if isinstance(arrays, np.ndarray):
            raise ValueError("it is a .npy file of one array")
        with arrays:
            return _source_data(arrays, data)
    except UserError:
        raise
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"data.source {data.source!r} cannot be read ({error}): save plain arrays with np.savez"
        ) from None


def _source_data(arrays: np.lib.npyio.NpzFile, data: Data) -> SourceData:
    names = _choose(arrays.files, data)
    images = {role: _images(arrays[x], x, data) for role, (x, _) in names.items()}
    labels = {role: _labels(arrays[y], y, data) for role, (_, y) in names.items()}
    for role, (x, y) in names.items():
        if len(images[role]) != len(labels[role]):
            raise UserError(
                f"data.source {data.source!r} has {len(images[role])} images in {x} and {len(labels[role])} "
                f"labels in {y}: save one label per image"
            )
    unlabeled = [role for role, own in labels.items() if role != "train" and len(own) and not is_label(own).any()]
    labels = {role: own for role, own in labels.items() if role not in unlabeled}
    classes, encoded = encode_labels(*labels.values())
    splits = {role: Split(role, images[role], own) for role, own in zip(labels, encoded, strict=True)}
    unused = [repr(name) for name in arrays.files if name not in {name for pair in names.values() for name in pair}]
    remarks = [f"not used: the splits {role!r} (has no labels)" for role in unlabeled]
    remarks += [f"not used: the arrays {shorten(unused)}"] if unused else []
    return SourceData(splits["train"], splits.get("test"), classes, tuple(remarks), splits.get("validation"))


def _choose(names: list[str], data: Data) -> dict[str, tuple[str, str]]:
    """The names of the images and labels of each split."""
    wanted = data.columns
    for role, name in (("image", wanted.image), ("label", wanted.label)):
        if name and name not in names:
            raise UserError(
                f"data.columns.{role} {name!r} is not one of the arrays {names} of data.source {data.source!r}"
            )
    fitting = []
    for pairs in _NAMES:
        (x, y), *_ = pairs
        if (wanted.image or x) in names and (wanted.label or y) in names:
            if wanted != Columns():
                return {"train": (wanted.image or x, wanted.label or y)}
            found = zip(_ROLES, pairs, strict=False)
            fitting.append({role: pair for role, pair in found if set(pair) <= set(names)})
    if fitting:
        return max(fitting, key=len)
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
