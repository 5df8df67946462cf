"""data/sources/label_csv.py: pictures labeled by CSV files beside them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from read_sources import arrays, read, sentence

from resnet_cifar.config.schema import Columns, SplitNames
from resnet_cifar.data.sources import parquet_folder
from resnet_cifar.data.sources.registry import find_source

FOUR = "".join(f"{number}.png,{'ab'[number % 2]}\n" for number in range(4))


def pictures(folder: Path, count: int = 4, seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(arrays(count, seed=seed)):
        Image.fromarray(picture).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return pictures(tmp_path / "photos" / "pictures").parent


@pytest.mark.parametrize(
    "text",
    [
        f"file,label\n{FOUR}",
        FOUR,  # no header
        "kind,photo\n" + "".join(f"{'ab'[n % 2]},pictures/{n}.png\n" for n in range(4)),
        "photo;kind\n" + "".join(f"./pictures\\{n}.png;{'ab'[n % 2]}\n" for n in range(4)),
        ",Image_ID,Class,width\n" + "".join(f"{n},{n},{'ab'[n % 2]},{n + 9}\n" for n in range(4)),  # written by pandas
        "\ufefffile\tlabel\r\n" + "".join(f'"/home/x/photos/pictures/{n}.png"\t{"ab"[n % 2]}\r\n' for n in range(4)),
    ],
)
def test_columns_and_files_are_found(text: str, root: Path) -> None:
    (root / "labels.csv").write_bytes(text.encode())
    found = read(root)
    assert (found.classes, found.labels["train"].tolist()) == (("a", "b"), [0, 1, 0, 1])
    np.testing.assert_array_equal(found.images["train"], arrays(4))
    assert "labels are read from the column" in found.decoded.remarks[0]


def test_a_table_may_have_any_name_and_belongs_to_a_folder(root: Path) -> None:
    """metadata.csv is read by `datasets` if it has the column that this library requires."""
    (root / "metadata.csv").write_text(f"file,label\n{FOUR}")
    assert read(root).labels["train"].tolist() == [0, 1, 0, 1]
    assert f"is a file that is not read by itself: name its folder, '{root}'" in sentence(root / "metadata.csv")
    (root / "metadata.csv").write_text(f"file_name,label\n{FOUR}")
    assert find_source(str(root)) is parquet_folder


def test_rows_give_the_order_and_numbers_are_labels(root: Path) -> None:
    (root / "pictures" / "labels.csv").write_text("file,label\n3.png,10\n0.png,9\n1.png,10\n")
    found = read(root)
    assert (found.classes, found.labels["train"].tolist()) == (("9", "10"), [1, 0, 1])
    np.testing.assert_array_equal(found.images["train"], arrays(4)[[3, 0, 1]])
    assert found.decoded.remarks == (
        "labels are read from the column 'label' of pictures/labels.csv, file names from 'file'",
        "not used: images that no CSV lists: 'pictures/2.png'",
    )


def test_ambiguous_columns_are_named_and_can_be_chosen(root: Path) -> None:
    rows = "".join(f"{n}.png,{n}.png,{'ab'[n % 2]},{'xxyy'[n]}\n" for n in range(4))
    (root / "labels.csv").write_text(f"left,right,shape,color\n{rows}")
    assert "labels.csv has the columns ['left', 'right', 'shape', 'color'], several of which name images" in sentence(
        root
    )
    said = sentence(root, columns=Columns(image="left"))
    assert "['right', 'shape', 'color'] holds the labels is not clear: name it with --data.columns.label" in said
    found = read(root, columns=Columns(image="left", label="color"))
    assert (found.classes, found.labels["train"].tolist()) == (("x", "y"), [0, 0, 1, 1])
    assert "not used: the columns 'right', 'shape'" in found.decoded.remarks[0]
    assert "has no column 'hue' (data.columns.label)" in sentence(root, columns=Columns(label="hue"))
    (root / "labels.csv").write_text("number,label\n17,a\n18,b\n")
    assert "none of which names the images: name it with --data.columns.image" in sentence(root)


def test_several_files_or_a_column_name_the_splits(root: Path) -> None:
    shutil.rmtree(root / "pictures")
    for seed, (name, count) in enumerate((("train", 4), ("val", 2), ("test", 3))):
        pictures(root / name, count, seed)
        rows = "".join(f"{number}.png,{'ab'[number % 2]}\n" for number in range(count))
        (root / f"{name}_labels.csv").write_text(f"file,label\n{rows}")
    found = read(root)
    assert found.decoded.names == {"train": "train", "validation": "validation", "test": "test"}
    for seed, role in enumerate(("train", "validation", "test")):
        np.testing.assert_array_equal(found.images[role], arrays(len(found.images[role]), seed=seed))
    for name in ("train", "val", "test"):
        (root / f"{name}_labels.csv").unlink()
        shutil.rmtree(root / name)
    pictures(root / "pictures")
    words = ("train", "train", "dev", "train")
    rows = "".join(f"pictures/{n}.png,{'ab'[n % 2]},{words[n]}\n" for n in range(4))
    (root / "all.csv").write_text(f"file,label,split\n{rows}")
    found = read(root)
    assert {role: labels.tolist() for role, labels in found.labels.items()} == {"train": [0, 1, 1], "validation": [0]}
    for name in ("one", "two"):
        (root / f"{name}.csv").write_text(f"file,label\npictures/0.png,a\npictures/1.png,{name}\n")
    (root / "all.csv").unlink()
    assert "has the splits ['one', 'two'], none called train" in sentence(root)
    assert read(root, splits=SplitNames(train="two")).classes == ("a", "two")


def test_a_column_of_splits_is_used_in_every_file(tmp_path: Path) -> None:
    """And beside a file that names another split; two files with one split have to be told apart."""
    pictures(tmp_path, 9)
    rows = "".join(f"{n}.png,{'ab'[n % 2]},{'train' if n < 4 else 'val'}\n" for n in range(6))
    (tmp_path / "train.csv").write_text(f"file,label,split\n{rows}")
    (tmp_path / "test.csv").write_text("file,label\n6.png,a\n7.png,b\n8.png,a\n")
    found = read(tmp_path)
    assert {role: len(labels) for role, labels in found.labels.items()} == {"train": 4, "validation": 2, "test": 3}
    assert "of train.csv, file names from 'file', splits from 'split'" in " ".join(found.decoded.remarks)
    (tmp_path / "val.csv").write_text("file,label\n8.png,a\n")
    said = "has the splits ['test.csv', 'train.csv: train', 'train.csv: validation', 'val.csv'], none called train"
    assert said in sentence(tmp_path)
    named = SplitNames(train="train.csv: train", validation="val.csv")
    assert read(tmp_path, splits=named).decoded.names == {"train": "train.csv: train", "validation": "val.csv"}


def test_names_of_published_splits_are_known_and_others_are_refused(root: Path) -> None:
    """FER2013 has a public and a private test split; a typing error must not make test images training images."""
    for words, expected in (
        (("Training", "Training", "PublicTest", "PrivateTest"), {"train": 2, "validation": 1, "test": 1}),
        (("train", "train", "train", "train"), {"train": 4}),
        (("0", "1", "2", "0"), {"train": 4}),  # folds, which are not splits
    ):
        rows = "".join(f"{n}.png,{'ab'[n % 2]},{word}\n" for n, word in enumerate(words))
        (root / "labels.csv").write_text(f"file,label,Usage\n{rows}")
        assert {role: len(labels) for role, labels in read(root).labels.items()} == expected
    for odd in ("", "tset"):
        rows = "".join(f"{n}.png,{'ab'[n % 2]},{('train', 'train', 'test', odd)[n]}\n" for n in range(4))
        (root / "labels.csv").write_text(f"file,label,split\n{rows}")
        said = f"labels.csv: the column 'split' has {odd!r} beside 'test', 'train': write train, validation or test in"
        assert said in sentence(root)
        assert len(read(root, columns=Columns(label="split"), skip_broken=True).classes) == 2 + bool(odd)


@pytest.mark.parametrize("label", ["", "-1"])
def test_a_split_without_labels_is_not_used(label: str, root: Path) -> None:
    rows = "".join(f"{n}.png,{'ab'[n] if n < 2 else label},{'train' if n < 2 else 'test'}\n" for n in range(4))
    (root / "labels.csv").write_text(f"file,label,split\n{rows}")
    found = read(root)
    assert {role: labels.tolist() for role, labels in found.labels.items()} == {"train": [0, 1]}
    assert "not used: the splits 'test' (has no labels)" in found.decoded.remarks


def test_an_image_in_two_splits_is_refused(tmp_path: Path) -> None:
    pictures(tmp_path, 8)
    for name, numbers in (("train", range(5)), ("test", range(3, 8))):
        rows = "".join(f"{n}.png,{'ab'[n % 2]}\n" for n in numbers)
        (tmp_path / f"{name}.csv").write_text(f"file,label\n{rows}")
    said = "2 images are listed in 'train' and in 'test' ('3.png', '4.png'): remove each from one of them"
    assert said in sentence(tmp_path)
    (tmp_path / "test.csv").unlink()
    (tmp_path / "train.csv").write_text("file,label,split\n0.png,a,train\n1.png,b,train\n./0.png,a,test\n")
    assert "1 image is listed in 'train' and in 'test' ('0.png'): remove each from one of them" in sentence(tmp_path)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("0.png,a\n1.png,b\n0.png,b\n", "line 4: '0.png' is 'b', and 'a' in a line before: keep one of the rows"),
        ("0.png,a\n1.png,b\n9.png,b\n", "1 of the images in labels.csv do not exist ('9.png'); restore them or remove"),
        ("0.png,a\n1.png,b\n,b\n", "line 4: the column 'file' is empty: correct the row"),
        ("0.png,a\n1.png,\n2.png,b\n", "1 label is not among the 2 classes"),
        ("0.png,a\n1.png,-1\n2.png,b\n", "1 label is not among the 2 classes"),
    ],
)
def test_unusable_rows_are_named(rows: str, said: str, root: Path) -> None:
    (root / "labels.csv").write_text(f"file,label\n{rows}")
    assert said.replace("is not among", "is not one of") in sentence(root)
    if "9.png" in rows or "1.png,\n" in rows:
        assert "skipped (data.skip_broken)" in read(root, skip_broken=True).decoded.remarks[-1]


def test_names_that_fit_several_images_are_refused(root: Path) -> None:
    pictures(root / "more")
    (root / "labels.csv").write_text(f"file,label\n{FOUR}")
    assert "line 2: '0.png' can be 'more/0.png', 'pictures/0.png': write its path from the folder" in sentence(root)
    (root / "more" / "labels.csv").write_text(f"file,label\n{FOUR}")
    (root / "labels.csv").unlink()
    found = read(root, columns=Columns(label="label"))
    assert "not used: images that no CSV lists: 'pictures/0.png', 'pictures/1.png'" in found.decoded.remarks[1]


def test_class_folders_and_a_table_that_differs_are_refused(tmp_path: Path) -> None:
    for name in ("cats", "dogs"):
        pictures(tmp_path / name, 2)
    (tmp_path / "labels.csv").write_text("file,label\ncats/0.png,x\ncats/1.png,x\ndogs/0.png,y\ndogs/1.png,x\n")
    said = sentence(tmp_path)
    assert "class folders and labels.csv, whose column 'label' labels the images otherwise" in said
    assert "use the CSV with --data.columns.label label" in said
    assert read(tmp_path, columns=Columns(label="label")).labels["train"].tolist() == [0, 0, 1, 0]
    (tmp_path / "labels.csv").write_text("file,label\ncats/0.png,cats\ncats/1.png,cats\ndogs/0.png,dogs\n")
    beside = ("not used: files that are not images by their names: 1 .csv ('labels.csv')",)
    assert read(tmp_path).decoded.remarks == beside
    for text in (
        "caf\xe9,x\n",
        "a,b\n1,2,3\n",
        "id,score\n0,0.3\n1,0.4\n",
    ):  # Latin-1, a longer row, and ambiguous names
        (tmp_path / "labels.csv").write_bytes(text.encode("latin-1"))
        assert read(tmp_path).decoded.remarks == beside, "what does not concern class folders stops nobody"
