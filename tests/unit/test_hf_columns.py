"""data/sources/columns.py, folder.py and saved.py: data sets of `datasets` become arrays, or one sentence."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Value
from datasets import Image as ImageFeature
from read_sources import arrays, both, encoded, in_memory, read, sentence, split_of

from resnet_cifar.config.schema import Columns, Data, SplitNames
from resnet_cifar.data.sources import parquet_folder

ABC = ClassLabel(names=["a", "b", "c"])
REAL_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture
def four() -> list[dict[str, Any]]:
    return [encoded(array) for array in arrays(4)]


def test_cifar_10s_columns_become_arrays() -> None:
    train, test = arrays(5), arrays(3, seed=1)
    found = in_memory(
        both(
            split_of([encoded(a) for a in train], label=(ABC, [0, 2, 1, 0, 2])),
            split_of([encoded(a) for a in test], label=(ABC, [1, 1, 0])),
        )
    )
    np.testing.assert_array_equal(found.images["train"], train)
    np.testing.assert_array_equal(found.images["test"], test)
    assert found.labels["train"].tolist() == [0, 2, 1, 0, 2]
    assert found.labels["test"].tolist() == [1, 1, 0]
    assert found.labels["test"].dtype == np.int64
    assert found.classes == ("a", "b", "c")


def test_cifar_100_uses_its_fine_labels(four: list[Any]) -> None:
    fine = ClassLabel(names=[f"fine {i}" for i in range(7)])
    split = split_of(four, coarse_label=(ABC, [0, 1, 2, 0]), fine_label=(fine, [6, 5, 4, 3]))
    found = in_memory(both(split))
    assert found.labels["train"].tolist() == [6, 5, 4, 3]
    assert len(found.classes) == 7


def test_a_column_called_label_precedes_one_with_more_classes(four: list[Any]) -> None:
    kinds = {"patient": (ABC, [0, 1, 2, 0]), "label": (ClassLabel(names=["benign", "malignant"]), [1, 0, 0, 1])}
    assert in_memory(both(split_of(four, **kinds))).classes == ("benign", "malignant")


def test_whole_numbers_without_names_are_their_own_names(four: list[Any]) -> None:
    found = in_memory(both(split_of(four, image="picture", label=(Value("int32"), [2, 0, 1, 2]))))
    assert found.classes == ("0", "1", "2")
    assert found.labels["train"].tolist() == [2, 0, 1, 2]


@pytest.mark.parametrize("name", ["validation", "valid"])
def test_a_validation_split_is_used_as_such(name: str, four: list[Any]) -> None:
    train = split_of(four, label=(ABC, [0, 1, 2, 0]))
    splits = {name: split_of(four[:1], label=(ABC, [2])), "test": split_of(four[:1], label=(ABC, [1]))}
    found = in_memory(DatasetDict(train=train, extra=train, **splits))
    assert {role: labels.tolist()[:1] for role, labels in found.labels.items()} == {
        "train": [0],
        "validation": [2],
        "test": [1],
    }
    assert found.decoded.remarks == ("not used: the splits 'extra'",)
    assert list(in_memory(DatasetDict({"train": train, name: splits[name]})).images) == ["train", "validation"]
    named = in_memory(DatasetDict({"train": train, name: splits[name]}), splits=SplitNames(test=name))
    assert named.decoded.names == {"train": "train", "test": name}
    swapped = in_memory(DatasetDict(train=train, **splits), splits=SplitNames(validation="test"))
    assert swapped.decoded.names == {"train": "train", "validation": "test"}
    assert swapped.decoded.remarks == (f"not used: the splits '{name}'",)


def test_a_test_split_without_labels_is_not_used(four: list[Any]) -> None:
    """ImageNet's and Kaggle's are such: a part of the training images is cut off."""
    train = split_of(four, label=(ABC, [0, 1, 2, 0]))
    hidden = split_of(four, label=(ABC, [-1, -1, -1, -1]))
    found = in_memory(DatasetDict(train=train, test=hidden, validation=train.select([1, 2])))
    assert list(found.images) == ["train", "validation"]
    assert found.decoded.remarks == ("not used: the splits 'test' (has no labels)",)
    assert list(in_memory(DatasetDict(train=train, test=hidden)).images) == ["train"]
    assert list(in_memory(DatasetDict(train=train, test=hidden.remove_columns("label"))).images) == ["train"]
    named = {"splits": SplitNames(test="test")}
    assert "data.splits.test 'test' has no labels" in sentence(DatasetDict(train=train, test=hidden), **named)


@pytest.mark.parametrize("names", [["train"], ["full"], ["train", "unsupervised"], ["Training"]])
def test_without_a_test_split_there_is_none(names: list[str], four: list[Any]) -> None:
    split = split_of(four, label=(ABC, [0, 1, 2, 0]))
    found = in_memory(DatasetDict(dict.fromkeys(names, split)))
    assert list(found.images) == ["train"]
    assert found.labels["train"].tolist() == [0, 1, 2, 0]


def test_splits_of_other_names_can_be_named(four: list[Any]) -> None:
    split = split_of(four, label=(ABC, [0, 1, 2, 0]))
    loaded = DatasetDict(fold1=split, fold2=split.select([1, 2]), fold3=split)
    assert sentence(loaded) == (
        "data.source 'x/y' has the splits ['fold1', 'fold2', 'fold3'], none called train: name them with "
        "--data.splits.train, --data.splits.validation and --data.splits.test"
    )
    found = in_memory(loaded, splits=SplitNames(train="fold1", test="fold2"))
    assert (len(found.labels["train"]), found.labels["test"].tolist()) == (4, [1, 2])
    assert list(in_memory(loaded, splits=SplitNames(train="fold2")).images) == ["train"]
    assert sentence(loaded, splits=SplitNames(train="fold4")) == (
        "data.splits.train 'fold4' is not one of the splits ['fold1', 'fold2', 'fold3'] of data.source 'x/y'"
    )
    assert "is also the training split" in sentence(loaded, splits=SplitNames(train="fold1", test="fold1"))


def test_a_missing_label_column_error_lists_the_columns(four: list[Any]) -> None:
    text = sentence(both(split_of(four, breed=(Value("string"), ["w", "x", "y", "z"]))))
    assert "has the columns ['img', 'breed']" in text
    assert "--data.columns.label" in text


def test_a_column_that_is_not_found_can_be_named(four: list[Any]) -> None:
    split = split_of(
        four, breed=(Value("string"), ["pug", "beagle", "pug", "poodle"]), mask=(ImageFeature(), four[::-1])
    )
    text = sentence(both(split), columns=Columns(label="breed"))
    assert "2 image columns" in text
    assert "--data.columns.image" in text
    found = in_memory(both(split), columns=Columns(image="mask", label="breed"))
    assert found.classes == ("beagle", "poodle", "pug")  # sorted
    assert found.labels["train"].tolist() == [2, 0, 2, 1]
    np.testing.assert_array_equal(found.images["train"], arrays(4)[::-1])


@pytest.mark.parametrize(("role", "other"), [("image", "label"), ("label", "image")])
def test_a_missing_column_is_refused(role: str, other: str, four: list[Any]) -> None:
    columns = Columns(**{role: "nothing", other: {"image": "img", "label": "label"}[other]})
    text = sentence(both(split_of(four, label=(ABC, [0, 1, 2, 0]))), columns=columns)
    assert text == f"data.columns.{role} 'nothing' is not one of the columns ['img', 'label'] of data.source 'x/y'"


@pytest.mark.parametrize("role", ["image", "label"])
def test_a_column_of_another_type_is_refused(role: str, four: list[Any]) -> None:
    split = split_of(four, label=(ABC, [0, 1, 2, 0]), weight=(Value("float32"), [0.1, 0.2, 0.3, 0.4]))
    assert f"data.columns.{role} 'weight'" in sentence(both(split), columns=Columns(**{role: "weight"}))


def test_numbers_with_gaps_and_strings_become_sorted_classes(four: list[Any]) -> None:
    found = in_memory(both(split_of(four, label=(Value("int64"), [7, 3, 100, 7]))))
    assert (found.classes, found.labels["train"].tolist()) == (("3", "7", "100"), [1, 0, 2, 1])
    found = in_memory(both(split_of(four, label=(Value("string"), ["b", "a", "b", "a"]))))
    assert (found.classes, found.labels["train"].tolist()) == (("a", "b"), [1, 0, 1, 0])


def test_class_names_in_another_order_in_the_test_split_are_matched_by_name(four: list[Any]) -> None:
    train = split_of(four, label=(ABC, [0, 1, 2, 0]))
    test = split_of(four, label=(ClassLabel(names=["c", "b", "a"]), [0, 1, 2, 0]))
    assert in_memory(both(train, test)).labels["test"].tolist() == [2, 1, 0, 2]


def test_names_in_the_test_split_are_matched_with_the_class_names_of_the_training_split(four: list[Any]) -> None:
    train = split_of(four, label=(ABC, [0, 1, 2, 0]))
    test = both(train, split_of(four, label=(Value("string"), ["c", "b", "d", None])))
    assert in_memory(test, skip_broken=True).labels["test"].tolist() == [2, 1]
    assert "2 labels are not among the 3 classes (test 2-3)" in sentence(test)


@pytest.mark.parametrize("kind", [ABC, Value("int64"), Value("string")])
def test_labels_of_another_type_in_the_test_split_are_refused(kind: Any, four: list[Any]) -> None:
    train = split_of(four, label=(kind, ["a", "b"] * 2 if kind == Value("string") else [0, 1, 0, 1]))
    for other, values in ((Value("float32"), [0.6, 1.2, None, 0]), (Value("timestamp[s]"), [0, 1, 0, 1])):
        said = "the column 'label' of its splits differs in type: convert one of them"
        assert said in sentence(both(train, split_of(four, label=(other, values))))


def test_images_written_to_parquet_by_other_programs_are_found(four: list[Any]) -> None:
    """Without the description of `datasets` the column is a struct of bytes and path."""
    bare = Dataset.from_dict({"image": four, "label": [0, 1, 0, 1]})
    np.testing.assert_array_equal(in_memory(both(bare)).images["train"], arrays(4))
    raw = Dataset.from_dict({"data": [row["bytes"] for row in four], "label": [0, 1, 0, 1]})
    np.testing.assert_array_equal(in_memory(both(raw), columns=Columns(image="data")).images["train"], arrays(4))


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
    found = read(in_folder)
    np.testing.assert_array_equal(found.images["train"], arrays(4))
    np.testing.assert_array_equal(found.images["test"], arrays(2, seed=1))
    assert found.labels["test"].tolist() == [2, 1]
    assert found.classes == ("a", "b", "c")


def test_the_splits_of_a_folder_have_their_roles_and_other_files_are_named(in_folder: Path) -> None:
    """`datasets` takes files whose names tell a split, and says nothing about the other ones."""
    shutil.copy(in_folder / "test-00000.parquet", in_folder / "validation-00000.parquet")
    (in_folder / "more").mkdir()
    shutil.copy(in_folder / "test-00000.parquet", in_folder / "more" / "old.parquet")
    (in_folder / "README.md").write_text("")
    found = read(in_folder)
    assert found.decoded.names == {"train": "train", "validation": "validation", "test": "test"}
    assert found.decoded.remarks == ("not used: the files 'more/old.parquet'",)
    (in_folder / "test-00000.parquet").unlink()
    assert read(in_folder).decoded.names == {"train": "train", "validation": "validation"}


def test_a_folders_identity_changes_with_its_files_and_not_with_the_way_it_is_written(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def identity(name: str) -> str:
        return parquet_folder.identity(Data(source=name))

    first = identity(str(in_folder))
    monkeypatch.chdir(in_folder.parent)
    assert identity("pictures") == first
    file = in_folder / "test-00000.parquet"
    stamp = file.stat().st_mtime_ns
    os.utime(file, ns=(stamp, stamp + 1))
    touched = identity(str(in_folder))
    assert touched != first
    shutil.copy(file, in_folder / "test-00001.parquet")
    assert identity(str(in_folder)) not in (first, touched)


def test_a_file_replaced_by_one_with_the_same_time_of_change_is_read_again(in_folder: Path) -> None:
    """The cache of `datasets` itself looks at the time only."""
    file = in_folder / "train-00000.parquet"
    before = file.stat().st_mtime_ns
    assert len(read(in_folder).images["train"]) == 4
    split_of([encoded(a) for a in arrays(6, seed=2)], label=(ABC, [0, 1, 2] * 2)).to_parquet(file)
    os.utime(file, ns=(before, before))
    np.testing.assert_array_equal(read(in_folder).images["train"], arrays(6, seed=2))


@pytest.mark.parametrize("content", [None, b"no parquet"])
def test_a_folder_without_a_data_set_is_refused(content: bytes | None, tmp_path: Path) -> None:
    if content:
        (tmp_path / "train-00000.parquet").write_bytes(content)
    assert "has an unknown layout" in sentence(tmp_path)


# A folder of save_to_disk


@pytest.mark.parametrize("single", [False, True])
def test_what_save_to_disk_wrote_is_read(single: bool, in_folder: Path, tmp_path: Path) -> None:
    train = split_of([encoded(a) for a in arrays(4)], label=(ABC, [0, 1, 2, 0]))
    test = split_of([encoded(a) for a in arrays(2, seed=1)], label=(ABC, [2, 1]))
    (train if single else both(train, test)).save_to_disk(tmp_path / "saved")
    ours, theirs = read(tmp_path / "saved"), read(in_folder)
    assert list(ours.images) == (["train"] if single else ["train", "test"])
    assert ours.classes == theirs.classes
    for role in ours.images:
        np.testing.assert_array_equal(ours.images[role], theirs.images[role])
        np.testing.assert_array_equal(ours.labels[role], theirs.labels[role])


def test_a_damaged_saved_folder_is_refused(tmp_path: Path) -> None:
    split_of([encoded(a) for a in arrays(4)], label=(ABC, [0, 1, 2, 0])).save_to_disk(tmp_path / "saved")
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:100])
    assert "write it again with save_to_disk" in sentence(tmp_path / "saved")
    arrow.unlink()
    assert "write it again with save_to_disk" in sentence(tmp_path / "saved")


@pytest.mark.real_data
def test_the_real_folder_holds_60000_images(real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    found = read(real_data)
    assert found.images["train"].shape == (50_000, 32, 32, 3)
    assert found.images["test"].shape == (10_000, 32, 32, 3)
    assert list(found.classes) == REAL_CLASSES
    assert np.bincount(found.labels["train"]).tolist() == [5000] * 10
    assert np.bincount(found.labels["test"]).tolist() == [1000] * 10
    assert found.images["train"].std() > 40
