"""data/sources/columns.py and folder.py: data sets of `datasets` become arrays, or one sentence."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from resnet_cifar.data.sources import folder
from resnet_cifar.data.sources.columns import decode
from resnet_cifar.recipe import Mistake

ABC = ClassLabel(names=["a", "b", "c"])
REAL_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def encoded(array: np.ndarray, kind: str = "PNG") -> dict[str, Any]:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind)
    return {"bytes": stream.getvalue(), "path": None}


def arrays(n: int, height: int = 6, width: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def split_of(pictures: list[Any], image: str = "img", **labels: tuple[Any, list[Any]]) -> Dataset:
    """A split in memory; each label column is given as (feature, values)."""
    columns = {image: pictures, **{name: values for name, (_, values) in labels.items()}}
    features = {image: ImageFeature(), **{name: feature for name, (feature, _) in labels.items()}}
    return Dataset.from_dict(columns, features=Features(features))


def both(train: Dataset, test: Dataset | None = None) -> DatasetDict:
    return DatasetDict(train=train, test=train if test is None else test)


@pytest.fixture
def four() -> list[dict[str, Any]]:
    return [encoded(array) for array in arrays(4)]


def sentence(loaded: DatasetDict) -> str:
    with pytest.raises(Mistake) as caught:
        decode(loaded, "x/y")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_cifar_10s_columns_become_arrays() -> None:
    train, test = arrays(5), arrays(3, seed=1)
    found = decode(
        both(
            split_of([encoded(a) for a in train], label=(ABC, [0, 2, 1, 0, 2])),
            split_of([encoded(a) for a in test], label=(ABC, [1, 1, 0])),
        ),
        "x/y",
    )
    np.testing.assert_array_equal(found.images["train"], train)
    np.testing.assert_array_equal(found.images["test"], test)
    assert found.labels["train"].tolist() == [0, 2, 1, 0, 2]
    assert found.labels["test"].tolist() == [1, 1, 0]
    assert found.labels["test"].dtype == np.int64
    assert found.classes == ("a", "b", "c")


def test_of_cifar_100s_labels_the_fine_ones_are_taken(four: list[Any]) -> None:
    fine = ClassLabel(names=[f"fine {i}" for i in range(7)])
    split = split_of(four, coarse_label=(ABC, [0, 1, 2, 0]), fine_label=(fine, [6, 5, 4, 3]))
    found = decode(both(split), "x/y")
    assert found.labels["train"].tolist() == [6, 5, 4, 3]
    assert len(found.classes) == 7


def test_whole_numbers_without_names_are_their_own_names(four: list[Any]) -> None:
    found = decode(both(split_of(four, image="picture", label=(Value("int32"), [2, 0, 1, 2]))), "x/y")
    assert found.classes == ("0", "1", "2")
    assert found.labels["train"].tolist() == [2, 0, 1, 2]


def test_a_grey_picture_becomes_rgb() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (6, 8), dtype=np.uint8)
    found = decode(both(split_of([encoded(grey)], label=(ABC, [1]))), "x/y")
    np.testing.assert_array_equal(found.images["train"][0], np.repeat(grey[..., None], 3, axis=2))


def test_a_picture_with_transparency_or_a_palette_becomes_rgb() -> None:
    rgb = np.full((6, 8, 3), (10, 200, 30), dtype=np.uint8)
    clear = np.concatenate([rgb, np.full((6, 8, 1), 7, dtype=np.uint8)], axis=2)
    stream = io.BytesIO()
    Image.fromarray(rgb).convert("P", palette=Image.Palette.ADAPTIVE).save(stream, "PNG")
    palette = {"bytes": stream.getvalue(), "path": None}
    found = decode(both(split_of([encoded(clear), palette], label=(ABC, [1, 1]))), "x/y")
    np.testing.assert_array_equal(found.images["train"], np.stack([rgb, rgb]))


def test_pictures_may_lie_in_files_of_their_own(tmp_path: Path) -> None:
    array = arrays(1)[0]
    Image.fromarray(array).save(tmp_path / "a.png")
    found = decode(both(split_of([str(tmp_path / "a.png")], label=(ABC, [1]))), "x/y")
    np.testing.assert_array_equal(found.images["train"][0], array)


@pytest.mark.parametrize("name", ["validation", "valid"])
def test_without_a_test_split_the_validation_split_is_the_test(name: str, four: list[Any]) -> None:
    train, held_out = split_of(four, label=(ABC, [0, 1, 2, 0])), split_of(four[:1], label=(ABC, [2]))
    assert decode(DatasetDict({"train": train, name: held_out}), "x/y").labels["test"].tolist() == [2]


def test_the_test_split_wins_over_the_validation_split(four: list[Any]) -> None:
    train = split_of(four, label=(ABC, [0, 1, 2, 0]))
    splits = {name: split_of(four[:1], label=(ABC, [i])) for i, name in ((1, "validation"), (2, "test"))}
    assert decode(DatasetDict(train=train, **splits), "x/y").labels["test"].tolist() == [2]


@pytest.mark.parametrize("names", [["train"], ["test"], ["train", "unsupervised"]])
def test_a_missing_split_is_answered_with_those_there_are(names: list[str], four: list[Any]) -> None:
    split = split_of(four, label=(ABC, [0, 1, 2, 0]))
    assert sentence(DatasetDict(dict.fromkeys(names, split))) == (
        f"data.source 'x/y' has the splits {sorted(names)}: it should have train and test"
    )


def test_a_missing_label_column_is_answered_with_the_columns_there_are(four: list[Any]) -> None:
    assert "has the columns ['img', 'caption']" in sentence(
        both(split_of(four, caption=(Value("string"), ["w", "x", "y", "z"])))
    )


def test_two_image_columns_are_refused(four: list[Any]) -> None:
    assert "should have one image column" in sentence(
        both(split_of(four, label=(ABC, [0, 1, 2, 0]), mask=(ImageFeature(), four)))
    )


UNREADABLE = {
    "nonsense": {"bytes": b"not a picture", "path": None},
    "empty": {"bytes": b"", "path": None},
    "truncated": {"bytes": encoded(arrays(1)[0])["bytes"][:70], "path": None},
    "null": None,
    "file that is gone": {"bytes": None, "path": "/nowhere/a.png"},
}


@pytest.mark.parametrize("labels", [(ABC, [0, 1, 2, 0]), (Value("int64"), [0, 1, 2, 0])], ids=["named", "whole"])
@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_picture_that_does_not_decode_is_named_by_split_and_index(kind: str, labels: Any, four: list[Any]) -> None:
    good = split_of(four, label=(ABC, [0, 1, 2, 0]))
    bad = split_of([*four[:2], UNREADABLE[kind], four[3]], label=labels)
    assert sentence(both(bad, good)) == "x/y train images [2] do not decode: mend or remove them"
    assert sentence(both(good, bad)) == "x/y test images [2] do not decode: mend or remove them"


def test_of_many_broken_pictures_a_few_are_named() -> None:
    bad = split_of([UNREADABLE["nonsense"]] * 9, label=(ABC, [0] * 9))
    assert "images [0, 1, 2, 3, 4] and 4 more do not decode" in sentence(both(bad))


def test_a_picture_of_another_size_is_named_with_both_sizes(four: list[Any]) -> None:
    odd = split_of([*four[:3], encoded(arrays(1, height=10, width=7)[0])], label=(ABC, [0, 1, 2, 0]))
    text = sentence(both(odd))
    assert text == "x/y train image 3 is 7x10 where others are 8x6: resize the images to one size"


def test_a_split_without_pictures_is_refused(four: list[Any]) -> None:
    good = split_of(four, label=(ABC, [0, 1, 2, 0]))
    assert "x/y test holds no images" in sentence(both(good, good.select([])))


@pytest.mark.filterwarnings("error::RuntimeWarning")  # what becomes of NaN as a whole number depends on the machine
@pytest.mark.parametrize(
    ("feature", "train", "test", "where"),
    [
        (ABC, [0, -1, 2, 0], [0, 1, 2, 0], "train images [1]"),  # -1: `datasets` for "no label"
        (Value("int64"), [0, 1, 0, 1], [0, 1, 2, 0], "test images [2]"),
        (Value("int64"), [0, 1, 0, -5], [0, 1, 1, 0], "train images [3]"),
        (ABC, [0, 1, None, 0], [0, 1, 2, 0], "train images [2]"),
        (Value("int64"), [0, 1, None, 0], [0, 1, 1, 0], "train images [2]"),
    ],
)
def test_a_label_without_a_class_is_named_by_split_and_index(
    feature: Any, train: list[Any], test: list[Any], where: str, four: list[Any]
) -> None:
    text = sentence(both(split_of(four, label=(feature, train)), split_of(four, label=(feature, test))))
    assert where in text
    assert "label" in text


def test_labels_are_read_without_decoding_the_pictures_again(four: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each picture once: a set of large pictures would not fit as whole arrays, and takes its time."""
    opened = 0
    original = Image.open

    def counting(*arguments: Any, **options: Any) -> Image.Image:
        nonlocal opened
        opened += 1
        return original(*arguments, **options)

    monkeypatch.setattr(Image, "open", counting)
    decode(both(split_of(four, label=(Value("int64"), [0, 1, 2, 0]))), "x/y")
    assert opened == 8


# A folder in the hub's layout


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with 4 training and 2 test images."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    root = tmp_path / "pictures"
    root.mkdir()
    split_of([encoded(a) for a in arrays(4)], label=(ABC, [0, 1, 2, 0])).to_parquet(root / "train-00000.parquet")
    split_of([encoded(a) for a in arrays(2, seed=1)], label=(ABC, [2, 1])).to_parquet(root / "test-00000.parquet")
    return root


def test_a_folder_of_parquet_files_is_read(in_folder: Path) -> None:
    found = folder.read(str(in_folder))
    np.testing.assert_array_equal(found.images["train"], arrays(4))
    np.testing.assert_array_equal(found.images["test"], arrays(2, seed=1))
    assert found.labels["test"].tolist() == [2, 1]
    assert found.classes == ("a", "b", "c")


def test_a_folders_identity_changes_with_its_files_and_not_with_the_way_it_is_written(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = folder.identity(str(in_folder))
    monkeypatch.chdir(in_folder.parent)
    assert folder.identity("pictures") == first
    file = in_folder / "test-00000.parquet"
    stamp = file.stat().st_mtime_ns
    os.utime(file, ns=(stamp, stamp + 1))
    touched = folder.identity(str(in_folder))
    assert touched != first
    shutil.copy(file, in_folder / "test-00001.parquet")
    assert folder.identity(str(in_folder)) not in (first, touched)


@pytest.mark.parametrize("content", [None, b"no parquet"])
def test_a_folder_that_is_no_data_set_is_a_mistake(content: bytes | None, tmp_path: Path) -> None:
    if content:
        (tmp_path / "train-00000.parquet").write_bytes(content)
    with pytest.raises(Mistake, match="is not in the hub's layout"):
        folder.read(str(tmp_path))


@pytest.mark.real_data
def test_the_real_folder_holds_60000_images(real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    found = folder.read(str(real_data))
    assert found.images["train"].shape == (50_000, 32, 32, 3)
    assert found.images["test"].shape == (10_000, 32, 32, 3)
    assert list(found.classes) == REAL_CLASSES
    assert np.bincount(found.labels["train"]).tolist() == [5000] * 10
    assert np.bincount(found.labels["test"]).tolist() == [1000] * 10
    assert found.images["train"].std() > 40
