"""data/sources/image_folder.py and npz.py: folders of images and .npz files give the same data as the hub's layout."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, DatasetDict
from datasets import load_dataset as load
from PIL import Image
from read_sources import Arrays, arrays, both, encoded, in_memory, read, sentence, split_of

from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Columns, Data, SplitNames
from resnet_cifar.data import prepared_data
from resnet_cifar.data.sources import image_folder, npz, parquet_folder
from resnet_cifar.data.sources.registry import find_source

NAMES = ["cats", "dogs"]
LABELS = [0, 1, 1, 0, 1]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RESNET_CIFAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    return tmp_path / "cache"


def same(ours: Arrays, theirs: Arrays) -> bool:
    return ours.classes == theirs.classes and all(
        a.keys() == b.keys() and all(np.array_equal(a[role], b[role]) for role in a)
        for a, b in ((ours.images, theirs.images), (ours.labels, theirs.labels))
    )


def plant(root: Path, pictures: np.ndarray, labels: list[int], ending: str = "png") -> None:
    """ROOT/CLASS/NUMBER.png."""
    for number, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        file = root / NAMES[label] / f"{number}.{ending}"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(file)


@pytest.fixture
def forest(tmp_path: Path) -> Path:
    """ROOT/train/CLASS and ROOT/test/CLASS."""
    plant(tmp_path / "forest" / "train", arrays(5), LABELS)
    plant(tmp_path / "forest" / "test", arrays(3, seed=1), [1, 0, 1])
    return tmp_path / "forest"


@pytest.fixture
def grove(tmp_path: Path) -> Path:
    """ROOT/CLASS."""
    plant(tmp_path / "grove", arrays(5), LABELS)
    return tmp_path / "grove"


def in_hub_layout(root: Path, train: Any, test: Any) -> Path:
    root.mkdir()
    label = ClassLabel(names=NAMES)
    for name, (pictures, labels) in {"train": train, "test": test}.items():
        split = split_of([encoded(picture) for picture in pictures], label=(label, list(labels)))
        split.to_parquet(root / f"{name}-00000.parquet")
    return root


def test_every_kind_of_source_gives_the_same_entry(forest: Path, tmp_path: Path, cache: Path) -> None:
    """Array for array and class for class: the fingerprint is a digest of them."""
    order, test_order = np.argsort(LABELS, kind="stable"), np.argsort([1, 0, 1], kind="stable")  # a tree's is by class
    train = arrays(5)[order], np.array(LABELS)[order]
    test = arrays(3, seed=1)[test_order], np.array([1, 0, 1])[test_order]
    layout = in_hub_layout(tmp_path / "parquet", train, test)
    load(str(layout)).save_to_disk(tmp_path / "saved")
    words = {"y_train": np.array(NAMES)[train[1]], "y_test": np.array(NAMES)[test[1]]}
    np.savez(tmp_path / "arrays.npz", x_train=train[0], x_test=test[0], **words)
    entries = [
        prepared_data.prepare(Data(source=str(tmp_path / name)))
        for name in ("parquet", "forest", "saved", "arrays.npz")
    ]
    assert len(set(entries)) == 4
    first = {file.name: file.read_bytes() for file in entries[0].glob("*.npy")}
    assert len(first) == 4
    for entry in entries[1:]:
        assert {file.name: file.read_bytes() for file in entry.glob("*.npy")} == first
    fingerprints = {prepared_data.json.loads((entry / "meta.json").read_text())["fingerprint"] for entry in entries}
    assert len(fingerprints) == 1


# Folders of pictures


def test_classes_and_images_of_a_folder_are_sorted_by_name(forest: Path) -> None:
    found = read(forest)
    assert found.classes == ("cats", "dogs")
    assert found.labels["train"].tolist() == sorted(LABELS)
    np.testing.assert_array_equal(found.images["train"], arrays(5)[np.argsort(LABELS, kind="stable")])
    assert len(found.labels["test"]) == 3


def test_a_folder_without_splits_is_all_train(grove: Path, forest: Path) -> None:
    found = read(grove)
    assert list(found.images) == ["train"]
    np.testing.assert_array_equal(found.images["train"], read(forest).images["train"])


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    """Vehicles: what lies in it are pictures, not class folders."""
    for number, name in enumerate(("bus", "train")):
        (tmp_path / name).mkdir()
        Image.fromarray(arrays(1, seed=number)[0]).save(tmp_path / name / "a.png")
    assert read(tmp_path).classes == ("bus", "train")


def test_a_folder_may_be_nested_and_contain_other_files(grove: Path) -> None:
    plain = read(grove)
    (grove / "dogs" / "more").mkdir()
    (grove / "dogs" / "1.png").rename(grove / "dogs" / "more" / "1.png")  # below its class
    (grove / ".git" / "x").mkdir(parents=True)
    (grove / "__MACOSX" / "dogs").mkdir(parents=True)
    (grove / "dogs" / "._2.png").write_bytes(b"left by a Mac")
    (grove / "dogs" / ".ipynb_checkpoints").mkdir()
    (grove / "dogs" / ".ipynb_checkpoints" / "1.png").write_bytes((grove / "dogs" / "2.png").read_bytes())
    (grove / "dogs" / "Thumbs.db").write_bytes(b"left by a PC")
    found = read(grove)
    assert (found.classes, sorted(found.labels["train"])) == (plain.classes, sorted(plain.labels["train"]))
    assert found.decoded.remarks == (
        "images of folders inside a class folder belong to the class: 'dogs/more'",
        "not used: files that are not images by their names: 1 .png, 1 .db ('dogs/._2.png', 'dogs/Thumbs.db')",
    )


@pytest.mark.parametrize("name", ["metadata.json", "dogs/metadata.jsonl", "backup.tar", "features.parquet"])
def test_files_of_other_kinds_do_not_change_the_classes(name: str, tmp_path: Path, cache: Path) -> None:
    """In the hub's layout the innermost folder would be the class."""
    root = tmp_path / "photos"
    for number, folder in enumerate(("cats/day1", "cats/day2", "dogs/day1", "dogs/day2")):
        (root / folder).mkdir(parents=True)
        Image.fromarray(arrays(1, seed=number)[0]).save(root / folder / "0.png")
    (root / name).write_text('{"camera": 1}\n')
    found = read(root)
    assert (found.classes, found.labels["train"].tolist()) == (("cats", "dogs"), [0, 0, 1, 1])
    (root / "mice").mkdir()
    assert "the class folders 'mice' of train contain no images: add images to them, or remove them" in sentence(root)
    (root / "metadata.jsonl").write_text('{"file_name": "cats/day1/0.png", "label": "x"}\n')
    assert find_source(str(root)) is parquet_folder


@pytest.mark.parametrize(("train", "role", "name"), [("Training", "test", "Testing"), ("train", "validation", "Val")])
def test_split_folders_of_other_names_are_found(train: str, role: str, name: str, forest: Path) -> None:
    expected = read(forest)
    (forest / "train").rename(forest / train)
    (forest / "test").rename(forest / name)
    found = read(forest)
    assert found.decoded.names == {"train": train, role: name}
    np.testing.assert_array_equal(found.images[role], expected.images["test"])


def test_split_folders_can_be_named(forest: Path) -> None:
    expected = read(forest)
    (forest / "train").rename(forest / "summer")
    (forest / "test").rename(forest / "winter")
    assert same(read(forest, splits=SplitNames(train="summer", test="winter")), expected)
    assert "data.splits.test 'spring'" in sentence(forest, splits=SplitNames(train="summer", test="spring"))


def test_test_images_without_classes_are_not_a_test_split(forest: Path) -> None:
    """Kaggle's test folders are such."""
    for file in list((forest / "test").glob("*/*.png")):
        file.rename(forest / "test" / f"{file.parent.name}-{file.name}")
    for folder in (forest / "test").iterdir():
        if folder.is_dir():
            folder.rmdir()
    assert list(read(forest).images) == ["train"]
    assert "has no class folders" in sentence(forest, splits=SplitNames(test="test"))


def test_missing_parts_of_a_folder_are_reported(forest: Path, tmp_path: Path) -> None:
    (forest / "train" / "empty").mkdir()
    assert "the class folders 'empty' of train contain no images: add images to them, or remove them" in sentence(
        forest
    )
    (forest / "train" / "empty").rmdir()
    (forest / "test" / "birds").mkdir()
    assert "test has the classes 'birds', which are not among 'cats', 'dogs'" in sentence(forest)
    (tmp_path / "flat").mkdir()
    Image.fromarray(arrays(1)[0]).save(tmp_path / "flat" / "a.png")
    assert "put those of each class into a folder named after it" in sentence(tmp_path / "flat")


def test_mixed_image_formats_and_a_broken_image(grove: Path) -> None:
    """PNG, JPEG, WebP, gray, transparent and of several sizes, and one file that is none."""
    wide = arrays(1, 30, 50)[0]
    Image.fromarray(wide).save(grove / "cats" / "wide.JPG")
    Image.fromarray(wide).convert("L").save(grove / "dogs" / "gray.webp")
    Image.fromarray(wide).convert("RGBA").save(grove / "dogs" / "clear.png")
    (grove / "cats" / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    assert sentence(grove, image_size=16) == (
        f"data.source '{grove}': 1 image does not decode (train 2 (cats/broken.jpg)); fix or remove them, or skip "
        "them with --data.skip_broken True"
    )
    found = read(grove, image_size=16, skip_broken=True)
    assert found.images["train"].shape == (8, 16, 16, 3)
    assert "cats/broken.jpg" in found.decoded.remarks[-1]


def test_a_folders_identity_changes_with_its_files(grove: Path) -> None:
    data = Data(source=str(grove))
    first = image_folder.identity(data)
    file = grove / "cats" / "0.png"
    os.utime(file, ns=(1, 1))
    touched = image_folder.identity(data)
    file.rename(grove / "dogs" / "0.png")
    assert len({first, touched, image_folder.identity(data)}) == 3


# Files of arrays

X, Y = arrays(5), np.array(LABELS, dtype=np.uint8)
X_TEST, Y_TEST = arrays(3, seed=1), np.array([1, 0, 1], dtype=np.uint8)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "a.npz"


@pytest.mark.parametrize("style", ["keras", "medmnist", "compressed"])
def test_arrays_of_train_and_test_are_read(style: str, file: Path) -> None:
    names = ("train_images", "train_labels", "test_images", "test_labels")
    names = names if style == "medmnist" else ("x_train", "y_train", "x_test", "y_test")
    save = np.savez_compressed if style == "compressed" else np.savez
    save(file, **dict(zip(names, (X, Y[:, None], X_TEST, Y_TEST), strict=True)))  # Keras' labels are [n, 1]
    found = read(file)
    for role, images, labels in (("train", X, Y), ("test", X_TEST, Y_TEST)):
        np.testing.assert_array_equal(found.images[role], images)
        assert found.labels[role].tolist() == labels.tolist()
    assert found.classes == ("0", "1")


def test_validation_arrays_are_the_validation_split(file: Path) -> None:
    """As in every file of MedMNIST; other arrays are named."""
    names = ("train_images", "train_labels", "val_images", "val_labels", "test_images", "test_labels")
    np.savez(file, **dict(zip(names, (X, Y, X_TEST, Y_TEST, X_TEST[:2], Y_TEST[:2]), strict=True)), weights=X)
    found = read(file)
    assert {role: len(labels) for role, labels in found.labels.items()} == {"train": 5, "validation": 3, "test": 2}
    assert found.decoded.remarks == ("not used: the arrays 'weights'",)


def test_arrays_without_labels_are_not_a_split(file: Path) -> None:
    np.savez(file, x_train=X, y_train=Y, x_test=X_TEST, y_test=np.full(3, -1))
    found = read(file)
    assert list(found.images) == ["train"]
    assert found.decoded.remarks == ("not used: the splits 'test' (has no labels)",)


def test_one_pair_of_arrays_is_all_train(file: Path) -> None:
    np.savez(file, images=X, labels=Y)
    assert list(read(file).images) == ["train"]
    np.savez(file, pictures=X, kinds=Y)
    text = sentence(file)
    assert "has the arrays ['pictures', 'kinds']" in text
    assert "--data.columns.image" in text
    found = read(file, columns=Columns(image="pictures", label="kinds"))
    np.testing.assert_array_equal(found.images["train"], X)
    assert "data.columns.label 'sorts' is not one" in sentence(file, columns=Columns(image="pictures", label="sorts"))


def test_gray_and_16_bit_arrays_become_rgb_bytes(file: Path) -> None:
    gray = np.random.default_rng(0).integers(0, 2**16, (5, 6, 8), dtype=np.uint16)
    for images in (gray, gray[..., None]):
        np.savez(file, x_train=images, y_train=Y)
        expected = np.round(gray / 257)[..., None].repeat(3, 3)
        np.testing.assert_array_equal(read(file).images["train"], expected)


def test_words_are_classes_in_their_order(file: Path) -> None:
    np.savez(file, images=X, labels=np.array(["b", "a", "c", "a", "b"]))
    found = read(file)
    assert (found.classes, found.labels["train"].tolist()) == (("a", "b", "c"), [1, 0, 2, 0, 1])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"x_train": X.astype(np.float32), "y_train": Y}, "x_train is float32: save it as uint8"),
        ({"x_train": X.reshape(5, -1), "y_train": Y}, "x_train has the shape [5, 144]"),
        ({"x_train": np.moveaxis(X, 3, 1), "y_train": Y}, "x_train has the shape [5, 3, 6, 8]"),
        ({"x_train": X, "y_train": Y[:4]}, "5 images in x_train and 4 labels in y_train"),
        ({"x_train": X, "y_train": np.eye(5)}, "y_train is float64 of the shape [5, 5]"),
        ({"x_train": X, "y_train": np.array([None] * 5)}, "cannot be read"),  # pickled
        ({"x_train": X[:0], "y_train": Y[:0]}, "the split train is empty"),
        ({"x_train": X, "y_train": Y, "x_test": X_TEST, "y_test": Y_TEST + 1}, "(test 0, 2)"),
        ({"x_train": X, "y_train": Y, "x_test": X_TEST[:0], "y_test": Y_TEST[:0]}, "the split test is empty"),
        ({"x_train": X, "y_train": np.full(5, -1)}, "no label of train is one of the 0 classes"),
    ],
)
def test_unusable_arrays_are_refused(content: dict[str, np.ndarray], said: str, file: Path) -> None:
    np.savez(file, **content)
    assert said in sentence(file)


def saved(array: np.ndarray) -> bytes:
    """A .npy file."""
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 nothing", b"\x80\x04K\x01.", saved(X)])
def test_a_file_that_is_not_an_archive_is_refused(content: bytes, file: Path) -> None:
    file.write_bytes(content)
    assert "cannot be read" in sentence(file)


def test_a_damaged_archive_is_refused(file: Path) -> None:
    np.savez_compressed(file, x_train=X, y_train=Y)
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 3] ^= 0xFF
    file.write_bytes(whole)
    assert "cannot be read" in sentence(file)


def test_an_archives_identity_changes_with_the_file(file: Path) -> None:
    np.savez(file, images=X, labels=Y)
    first = npz.identity(Data(source=str(file)))
    os.utime(file, ns=(1, 1))
    assert npz.identity(Data(source=str(file))) != first


# All of them


def test_fields_that_do_not_apply_to_a_source_are_refused(grove: Path, file: Path, cache: Path) -> None:
    np.savez(file, images=X, labels=Y)
    for name, data in (
        ("config_name", Data(source=str(grove), config_name="plain_text")),
        ("revision", Data(source=str(grove), revision="main")),
        ("columns", Data(source=str(grove), columns=Columns(label="kind"))),
        ("splits", Data(source=str(file), splits=SplitNames(train="a"))),
        ("columns", Data(source="synthetic", columns=Columns(image="img"))),
    ):
        with pytest.raises(UserError, match=rf"data\.{name} .* does not apply to data\.source"):
            prepared_data.prepare(data)


def test_hub_columns_and_splits_make_entries_of_their_own(tmp_path: Path, cache: Path) -> None:
    label, other = ClassLabel(names=NAMES), ClassLabel(names=["x", "y"])
    pictures = [encoded(picture) for picture in X]
    split = split_of(pictures, label=(label, LABELS), sort=(other, LABELS[::-1]))
    both(split).save_to_disk(tmp_path / "saved")
    data = {"source": str(tmp_path / "saved")}
    entries = {prepared_data.prepare(Data(**data, columns=Columns(label=name))) for name in ("label", "sort")}
    entries |= {
        prepared_data.prepare(Data(**data, splits=SplitNames(train="test"))),
        prepared_data.prepare(Data(**data, decode_size=8)),
    }
    assert len(entries) == 4
    assert in_memory(DatasetDict(train=split)).classes == tuple(NAMES)


@pytest.mark.real_data
def test_real_images_are_the_same_from_every_source(real_data: Path, tmp_path: Path, cache: Path) -> None:
    """2000 of them, with their class names."""
    from datasets import load_dataset

    part = load_dataset("parquet", data_files=str(next(real_data.rglob("test-*.parquet"))), split="train[:2000]")
    DatasetDict(train=part).save_to_disk(tmp_path / "saved")
    found = read(tmp_path / "saved")
    names = np.array(found.classes)[found.labels["train"]]
    np.savez(tmp_path / "a.npz", images=found.images["train"], labels=names)
    assert same(read(tmp_path / "a.npz"), found)
    assert len(found.classes) == 10
    assert find_source(str(real_data)).__name__.endswith("parquet_folder")


def test_a_folder_that_is_a_link_is_watched_too(grove: Path, tmp_path: Path) -> None:
    (grove / "cats").rename(tmp_path / "elsewhere")
    (grove / "cats").symlink_to(tmp_path / "elsewhere")
    data = Data(source=str(grove))
    first = image_folder.identity(data)
    assert len(read(grove).labels["train"]) == 5
    os.utime(tmp_path / "elsewhere" / "0.png", ns=(1, 1))
    assert image_folder.identity(data) != first
