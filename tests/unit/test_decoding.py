"""data/decode.py: pictures become arrays in files, and every one that cannot is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Value
from PIL import Image
from read_sources import arrays, both, encoded, in_memory, sentence, split_of

from resnet_cifar.config.schema import SplitNames
from resnet_cifar.data.decoding import ArrayFile, format_indices
from resnet_cifar.data.sources import image_io

ABC = ClassLabel(names=["a", "b", "c"])
FIX = "; fix or remove them, or skip them with --data.skip_broken True"
UNREADABLE = {
    "nonsense": {"bytes": b"not a picture", "path": None},
    "empty": {"bytes": b"", "path": None},
    "truncated": {"bytes": encoded(arrays(1)[0])["bytes"][:70], "path": None},
    "null": None,
    "file that is gone": {"bytes": None, "path": "/nowhere/a.png"},
}


@pytest.fixture
def four() -> list[dict[str, Any]]:
    return [encoded(array) for array in arrays(4)]


@pytest.mark.parametrize("labels", [(ABC, [0, 1, 2, 0]), (Value("int64"), [0, 1, 2, 0])], ids=["named", "whole"])
@pytest.mark.parametrize("kind", UNREADABLE)
def test_an_image_that_does_not_decode_is_named_by_split_and_index(kind: str, labels: Any, four: list[Any]) -> None:
    good = split_of(four, label=(ABC, [0, 1, 2, 0]))
    bad = split_of([*four[:2], UNREADABLE[kind], four[3]], label=labels)
    where = "2 (/nowhere/a.png)" if "gone" in kind else "2"
    assert sentence(both(bad, good)) == f"data.source 'x/y': 1 image does not decode (train {where})" + FIX
    assert sentence(both(good, bad)) == f"data.source 'x/y': 1 image does not decode (test {where})" + FIX


def test_all_broken_images_and_labels_of_all_splits_are_named() -> None:
    """300 images are more than are decoded at a time."""
    rows = [encoded(array) for array in arrays(300)]
    labels = [row % 3 for row in range(300)]
    for row in (5, 130, 131, 132, 299):
        rows[row] = UNREADABLE["nonsense"]
    labels[8] = labels[9] = -1
    train = split_of(rows, label=(ABC, labels))
    test = split_of([rows[0], rows[5]], label=(ABC, [0, 1]))
    assert sentence(both(train, test)) == (
        "data.source 'x/y': 6 images do not decode (train 5, 130-132, 299; test 1) and 2 labels are not among the 3 "
        "classes (train 8-9)" + FIX
    )


def test_files_are_named_and_neighbours_without_one_are_a_range() -> None:
    assert format_indices({3: "", 4: "", 5: "", 9: "", 10: "a.png", 11: "b.png"}) == "3-5, 9, 10 (a.png), 11 (b.png)"


def test_broken_images_are_skipped_on_request_and_reported() -> None:
    pixels = arrays(300)
    rows, labels = [encoded(array) for array in pixels], [row % 3 for row in range(300)]
    rows[5], labels[150], labels[151] = UNREADABLE["nonsense"], -1, 7
    train = split_of(rows, label=(Value("int64"), labels))
    test = split_of(rows[:2], label=(Value("int64"), [0, 1]))
    assert "2 labels" not in sentence(both(train, test))  # 7 is a class like others
    labels[151] = -3
    found = in_memory(both(split_of(rows, label=(Value("int64"), labels)), test), skip_broken=True)
    kept = np.delete(np.arange(300), [5, 150, 151])
    np.testing.assert_array_equal(found.images["train"], pixels[kept])
    assert found.labels["train"].tolist() == (kept % 3).tolist()
    assert found.decoded.left_out == {"train": [5, 150, 151]}
    assert found.decoded.remarks == (
        "skipped (data.skip_broken): 1 image does not decode (train 5) and 2 labels are not among the 3 classes "
        "(train 150-151)",
    )


def test_heic_images_are_named_with_the_package_that_reads_them(
    four: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_io, "READS_HEIC", False)
    heic = {"bytes": b"\0\0\0\x18ftypheic" + bytes(64), "path": "a.HEIC"}
    label = (ABC, [0, 1, 2, 0])
    train, test = split_of([heic, *four[1:3], UNREADABLE["nonsense"]], label=label), split_of(four, label=label)
    assert sentence(both(train, test)) == (
        "data.source 'x/y': 2 images do not decode (train 0 (a.HEIC), 3), 1 of them HEIC (needs `pip install "
        "pillow-heif`)" + FIX
    )
    assert "no usable image of ['a'] in train, 2 images do not" in sentence(both(train, test), skip_broken=True)


@pytest.mark.filterwarnings("error::RuntimeWarning")  # what becomes of NaN as a whole number depends on the machine
@pytest.mark.parametrize(
    ("feature", "train", "test", "where"),
    [
        (ABC, [0, -1, 2, 0], [0, 1, 2, 0], "(train 1)"),  # -1: `datasets` for "no label"
        (Value("int64"), [0, 1, 0, 1], [0, 1, 2, 0], "(test 2)"),
        (Value("int64"), [0, 1, 0, -5], [0, 1, 1, 0], "(train 3)"),
        (ABC, [0, 1, None, 0], [0, 1, 2, 0], "(train 2)"),
        (Value("int64"), [0, 1, None, 0], [0, 1, 1, 0], "(train 2)"),
        (Value("string"), ["x", None, "y", ""], ["x", "y", "y", "z"], "(train 1, 3; test 3)"),
    ],
)
def test_a_label_without_a_class_is_named_by_split_and_index(
    feature: Any, train: list[Any], test: list[Any], where: str, four: list[Any]
) -> None:
    text = sentence(both(split_of(four, label=(feature, train)), split_of(four, label=(feature, test))))
    assert f"the {3 if feature is ABC else 2} classes {where}" in text


def test_images_of_one_size_are_kept_and_others_are_resized(four: list[Any]) -> None:
    label = (ABC, [0, 1, 2, 0])
    same = in_memory(both(split_of(four, label=label)), image_size=12)
    assert (same.decoded.size, same.decoded.side, same.decoded.remarks) == ((6, 8), 0, ())
    tall = encoded(arrays(1, height=30, width=20)[0])
    for train, test in (([*four[:3], tall], four), (four, [*four[:3], tall])):  # in one split, or between the two
        loaded = both(split_of(train, label=label), split_of(test, label=label))
        found = in_memory(loaded, image_size=12)
        assert {array.shape[1:] for array in found.images.values()} == {(12, 12, 3)}
        assert found.decoded.side == 12
        assert "several sizes" in found.decoded.remarks[0]
        asked = in_memory(loaded, image_size=12, decode_size=10)
        assert (asked.decoded.size, asked.decoded.side, asked.decoded.remarks) == ((10, 10), 0, ())


def test_a_split_without_images_or_labels_is_refused(four: list[Any]) -> None:
    good = split_of(four, label=(ABC, [0, 1, 2, 0]))
    empty = in_memory(both(good, good.select([])))
    assert (list(empty.images), empty.decoded.remarks) == (["train"], ("not used: the splits 'test' (is empty)",))
    said = sentence(both(good, good.select([])), splits=SplitNames(test="test"))
    assert said == "data.splits.test 'test' is empty: name another, or remove it"
    assert "the split train is empty" in sentence(both(good.select([]), good))
    none = split_of(four, label=(ABC, [-1] * 4))
    assert "no label of train is one of the 3 classes" in sentence(both(none, good))
    broken = split_of([UNREADABLE["nonsense"]] * 4, label=(ABC, [0, 1, 2, 0]))
    assert "no image of train decodes" in sentence(both(broken, good), skip_broken=True)
    broken = split_of([UNREADABLE["nonsense"], *four[:3]], label=(ABC, [0, -1, -1, -1]))
    assert "no usable image in train" in sentence(both(broken, good), skip_broken=True)


def test_each_image_is_decoded_once(four: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels are read without the pictures: a set of large ones would take its time."""
    opened = 0
    original = Image.open

    def counting(*arguments: Any, **options: Any) -> Image.Image:
        nonlocal opened
        opened += 1
        return original(*arguments, **options)

    monkeypatch.setattr(Image, "open", counting)
    in_memory(both(split_of(four, label=(Value("int64"), [0, 1, 2, 0]))))
    assert opened == 8


@pytest.mark.parametrize("parts", [[1], [3, 1, 200], [128] * 9])
def test_a_file_that_grows_is_what_numpy_saves(parts: list[int], tmp_path: Path) -> None:
    whole = arrays(sum(parts))
    file = ArrayFile(tmp_path / "grown.npy")
    for part in np.split(whole, np.cumsum(parts)[:-1]):
        file.append(part)
    file.close()
    np.save(tmp_path / "saved.npy", whole)
    assert (tmp_path / "grown.npy").read_bytes() == (tmp_path / "saved.npy").read_bytes()
