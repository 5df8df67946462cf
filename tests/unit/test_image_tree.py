"""data/sources/image_tree.py, walk.py and archive.py: folders and archives of images; what is not read is named."""

from __future__ import annotations

import os
import shutil
import socket
import tarfile
from collections.abc import Callable
from pathlib import Path

import layouts
import numpy as np
import pytest
from PIL import Image
from read_sources import arrays, read, sentence

from resnet_cifar.config.schema import Data, SplitNames
from resnet_cifar.data.sources import walk as walking
from resnet_cifar.data.sources.registry import find_source
from resnet_cifar.data.sources.walk import walk


def plant(root: Path, count: int, *classes: str, seed: int = 0) -> Path:
    """ROOT/CLASS/0.png, ...; every picture is another one."""
    for label, name in enumerate(classes or ("cats", "dogs")):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number, picture in enumerate(arrays(count, seed=100 * seed + label)):
            Image.fromarray(picture).save(root / name / f"{number}.png")
    return root


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """ROOT/train, ROOT/val and ROOT/test with class folders."""
    for seed, (name, count) in enumerate((("train", 4), ("val", 2), ("test", 3))):
        plant(tmp_path / "three" / name, count, seed=seed)
    return tmp_path / "three"


# Splits


def test_every_split_has_its_role_and_what_is_unused_is_named(three: Path) -> None:
    assert read(three).decoded.names == {"train": "train", "validation": "val", "test": "test"}
    assert read(three).decoded.remarks == ()
    plant(three / "more", 2)
    plant(three / "valid", 1, "cats")
    (three / "old").mkdir()
    Image.fromarray(arrays(1)[0]).save(three / "train" / "loose.png")
    Image.fromarray(arrays(1)[0]).save(three / "cover.png")
    (three / "notes.txt").write_text("")
    found = read(three)
    assert found.decoded.names == {"train": "train", "validation": "valid", "test": "test"}
    assert found.decoded.remarks == (
        "not used: the folders 'more', 'old', 'val'",
        "not used: images outside the class folders: 'cover.png', 'train/loose.png'",
        "not used: files that are not images by their names: 1 .txt ('notes.txt')",
    )
    assert read(three, splits=SplitNames(validation="val", test="more")).decoded.names == {
        "train": "train",
        "validation": "val",
        "test": "more",
    }


def test_train_and_val_leave_the_test_split_to_be_cut_off(three: Path) -> None:
    shutil.rmtree(three / "test")
    assert read(three).decoded.names == {"train": "train", "validation": "val"}
    assert read(three, splits=SplitNames(test="val")).decoded.names == {"train": "train", "test": "val"}
    assert "data.splits.validation 'dev' is not one of the splits" in sentence(
        three, splits=SplitNames(validation="dev")
    )
    (three / "val" / "birds").mkdir()
    assert "val has the classes 'birds', which are not among 'cats', 'dogs'" in sentence(three)


def test_splits_without_class_folders_are_not_classes(tmp_path: Path) -> None:
    plant(tmp_path, 2, "train", "test")
    assert "contains images without a class ('test/0.png', 'test/1.png', 'train/0.png', ... (4 in all))" in sentence(
        tmp_path
    )


def test_a_folder_that_contains_everything_is_looked_into(three: Path, tmp_path: Path) -> None:
    three.rename(tmp_path / "inner")
    (tmp_path / "outer" / "middle").mkdir(parents=True)
    (tmp_path / "inner").rename(tmp_path / "outer" / "middle" / "inner")
    assert read(tmp_path / "outer").decoded.names == {"train": "train", "validation": "val", "test": "test"}


def test_what_lies_in_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    plant(tmp_path, 2)
    (tmp_path / "birds").mkdir()
    for name in ("a.CR2", "b.CR2", "c.mov"):
        (tmp_path / "birds" / name).write_bytes(b"")
    assert (
        "the class folders 'birds' of train contain no images, only 2 .CR2, 1 .mov ('birds/a.CR2', 'birds/b.CR2', "
        "'birds/c.mov'): add images to them, or remove them"
    ) in sentence(tmp_path)


# Links and other kinds of files


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("cats/all", ".."),
        ("cats/more", "../dogs"),
        ("cats/self", "self"),
        ("cats/root", "../.."),
        ("cats/x.png", "../dogs/0.png"),
        ("cats/same.png", "0.png"),
        ("birds", "dogs"),
    ],
)
def test_a_link_to_what_is_read_already_adds_nothing(link: str, target: str, tmp_path: Path) -> None:
    root = plant(tmp_path / "photos", 3)
    (root / link).symlink_to(target)
    found = read(root)
    assert found.labels["train"].tolist() == [0, 0, 0, 1, 1, 1]
    assert repr(link) in " ".join(found.decoded.remarks)


def test_many_links_among_folders_are_each_followed_once(tmp_path: Path) -> None:
    """Followed wherever they lead, twelve folders that link to each other are more than 10^8 paths."""
    names = [f"class {number:02}" for number in range(12)]
    root = plant(tmp_path / "photos", 1, *names)
    for name in names:
        for other in names:
            (root / name / f"to {other}").symlink_to(f"../{other}")
    found = read(root)
    assert found.labels["train"].tolist() == list(range(12))
    assert "(144 in all)" in found.decoded.remarks[0]


def test_links_to_other_places_are_read_once(tmp_path: Path) -> None:
    """Class folders of one disk, and splits of links to images that lie beside them."""
    store = plant(tmp_path / "store", 3)
    (tmp_path / "photos").mkdir()
    for name in ("cats", "dogs"):
        (tmp_path / "photos" / name).symlink_to(store / name)
    (tmp_path / "photos" / "dogs2").symlink_to(store / "dogs")
    found = read(tmp_path / "photos")
    assert (found.classes, found.labels["train"].tolist()) == (("cats", "dogs"), [0, 0, 0, 1, 1, 1])
    assert found.decoded.remarks == ("not used: links to what is read already: 'dogs2'",)
    farm = plant(tmp_path / "farm", 3, "all/cats", "all/dogs")
    for split, numbers in (("train", (0, 1)), ("val", (2,))):
        for name in ("cats", "dogs"):
            (farm / split / name).mkdir(parents=True)
            for number in numbers:
                (farm / split / name / f"{number}.png").symlink_to(f"../../all/{name}/{number}.png")
    found = read(farm)
    assert {role: len(labels) for role, labels in found.labels.items()} == {"train": 4, "validation": 2}
    assert found.decoded.remarks == ("not used: the folders 'all'",)


def test_broken_links_pipes_and_unreadable_folders_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = plant(tmp_path / "photos", 2)
    os.mkfifo(root / "cats" / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(root / "cats")
        server.bind("socket.png")
    assert read(root).decoded.remarks == ("not used: sockets, pipes and devices: 'cats/pipe.png', 'cats/socket.png'",)
    (root / "cats" / "gone.png").symlink_to("/nowhere/a.png")
    assert "1 image does not decode (train 2 (cats/gone.png))" in sentence(root)
    original = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("dogs"):
            raise PermissionError(13, "Permission denied")
        return original(path)

    monkeypatch.setattr(walking.os, "scandir", refuse)
    assert f"the folder '{root}/dogs' cannot be read (Permission denied): make it readable" in sentence(root)


def test_hidden_folders_are_named_unless_tools_leave_them_behind(tmp_path: Path) -> None:
    root = plant(tmp_path / "photos", 1, "cats", "dogs", "__background__", ".git", "__MACOSX")
    found = read(root)
    assert found.classes == ("cats", "dogs")
    assert found.decoded.remarks == ("not used: hidden folders: '__background__'",)


def test_the_identity_covers_linked_folders_and_the_targets_of_skipped_links(tmp_path: Path) -> None:
    root = plant(tmp_path / "photos", 2)
    (root / "cats" / "more").symlink_to("../dogs")
    first = walking.file_stamps(root)
    (root / "cats" / "more").unlink()
    (root / "cats" / "more").symlink_to("..")
    assert walking.file_stamps(root) != first
    assert walk(root).links == ["cats/more"]


# Names


def test_class_names_that_cannot_be_shown_are_refused_and_those_that_look_alike_are_named(tmp_path: Path) -> None:
    root = plant(tmp_path / "photos", 1, "dogs", "chat\udce9")
    assert "the name of class 'chat\\udce9' is not UTF-8: rename it" in sentence(root)
    (root / "chat\udce9").rename(root / "two\nlines")
    assert "class 'two\\nlines' contains a line break or control character: rename it" in sentence(root)
    (root / "two\nlines").rename(root / "Dogs ")
    (root / "dogs" / "0.png").rename(root / "dogs" / "caf\udce9.png")
    assert read(root).decoded.remarks == ("classes whose names look alike: 'Dogs ' and 'dogs'",)
    (root / "dogs" / "caf\udce9.png").write_bytes(b"no picture")
    assert r"1 image does not decode (train 1 (dogs/caf\udce9.png))" in sentence(root)


def test_a_class_in_another_unicode_form_is_told_apart(three: Path) -> None:
    """As a Mac writes it."""
    (three / "train" / "cats").rename(three / "train" / "caf\u00e9")
    (three / "val" / "cats").rename(three / "val" / "cafe\u0301")
    assert "'cafe\\u0301' is another Unicode form of a class: rename it" in sentence(three)


# Archives


def tarred(file: Path, folder: Path) -> Path:
    """A .tar or .tar.gz of what a folder holds."""
    with tarfile.open(file, "w:gz" if file.suffix == ".gz" else "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.add(path, path.name)
    return file


PACK: dict[str, Callable[[Path, Path], Path]] = {
    "a.zip": layouts.zipped,
    "a.7z": layouts.seven_zipped,
    "a.tar": tarred,
    "a.tar.gz": tarred,
}


@pytest.mark.parametrize("layout", ["classes", "splits", "table"])
@pytest.mark.parametrize("name", PACK)
def test_an_archive_is_read_as_the_folder_that_was_packed(name: str, layout: str, three: Path, tmp_path: Path) -> None:
    """With and without a folder that contains everything, with hidden folders and files, and with what a Mac adds."""
    folder = three / "train" if layout == "classes" else three
    if layout == "table":
        folder = plant(tmp_path / "table", 4, "pictures")
        (folder / "labels.csv").write_text("file,label\n" + "".join(f"{n}.png,{'ab'[n % 2]}\n" for n in range(4)))
    plant(folder, 1, "__bg__")
    shutil.copy(folder / "__bg__" / "0.png", max(path for path in folder.iterdir() if path.is_dir()) / "__0.png")
    expected = read(folder)
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "._0.png").write_bytes(b"left by a Mac")
    (tmp_path / "outer").mkdir()
    (tmp_path / "outer" / "._inner").write_bytes(b"left by a Mac")
    shutil.copytree(folder, tmp_path / "outer" / "inner")
    for packed in (folder, tmp_path / "outer"):
        found = read(PACK[name](tmp_path / name, packed))
        assert (found.classes, found.decoded) == (expected.classes, expected.decoded)
        for role, images in expected.images.items():
            np.testing.assert_array_equal(found.images[role], images)
            np.testing.assert_array_equal(found.labels[role], expected.labels[role])


def test_fields_of_other_archives_are_refused(three: Path, tmp_path: Path) -> None:
    file = layouts.zipped(tmp_path / "a.zip", three)
    assert read(file, splits=SplitNames(test="val")).decoded.names == {"train": "train", "test": "val"}
    kaggle = layouts.zipped(tmp_path / "k.zip", layouts.kaggle(tmp_path / "k", arrays(4, 32, 32), [0, 1, 0, 1]))
    assert "data.splits 'x' does not apply" in sentence(kaggle, splits=SplitNames(train="x"))
    (three / "train" / "cats" / "0.png").write_bytes(b"no picture")
    said = sentence(layouts.zipped(tmp_path / "b.zip", three))
    assert "1 image does not decode (train 0 (train/cats/0.png))" in said
    data = Data(source=str(file))
    first = find_source(data.source).identity(data)
    os.utime(file, ns=(1, 1))
    assert find_source(data.source).identity(data) != first
