"""data/sources/kaggle.py: the competition's folder and archives become what the hub's layout would, in that order."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import layouts
import numpy as np
import pytest
from read_sources import read, sentence

from resnet_cifar.config.schema import Columns, Data
from resnet_cifar.data import prepared_data
from resnet_cifar.data.sources import kaggle
from resnet_cifar.data.sources.registry import find_source

NOISE = np.random.default_rng(0)
IMAGES, LABELS = NOISE.integers(0, 256, (23, 32, 32, 3), dtype=np.uint8), NOISE.permutation(np.arange(23) % 10)

Build = Callable[[Path, Path], Path]
# Each makes, of `layouts.kaggle`'s folder, another form of it in an empty folder.
FORMS: dict[str, Build] = {
    "folder": lambda unpacked, work: unpacked,
    "zip": lambda unpacked, work: layouts.zipped(work / "a.zip", unpacked),
    "zip, not packed": lambda unpacked, work: layouts.zipped(work / "a.zip", unpacked, zipfile.ZIP_STORED),
    "zip of a folder": lambda unpacked, work: layouts.zipped(work / "a.zip", unpacked.parent),
    "7z": lambda unpacked, work: layouts.seven_zipped(work / "a.7z", unpacked),
    "7z of a folder": lambda unpacked, work: layouts.seven_zipped(work / "a.7z", unpacked.parent),
    "competition": lambda unpacked, work: layouts.competition(work / "c", unpacked),
    "train.7z": lambda unpacked, work: layouts.competition(work / "c", unpacked) / "train.7z",
    "7z of 7z": lambda unpacked, work: layouts.seven_zipped(work / "a.7z", layouts.competition(work / "c", unpacked)),
    "download": lambda unpacked, work: layouts.download(work / "cifar-10.zip", unpacked, work / "c"),
}


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    return layouts.kaggle(tmp_path / "unpacked" / "cifar-10", IMAGES, LABELS)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RESNET_CIFAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def fingerprint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the same images in the hub's layout."""
    root = tmp_path_factory.mktemp("hub")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", root / "datasets")
        patch.setenv("RESNET_CIFAR_CACHE", str(root / "cache"))
        return fingerprint_of(layouts.hub(root / "hub", (IMAGES, LABELS), None))


def fingerprint_of(source: Path, **data: Any) -> str:
    entry = prepared_data.prepare(Data(source=str(source), **data))
    return json.loads((entry / "meta.json").read_text())["fingerprint"]


def table(folder: Path, rows: str) -> None:
    (folder / "trainLabels.csv").write_text(rows)


def files(*roots: Path) -> set[Path]:
    return {path for root in roots for path in root.rglob("*") if path.is_file()}


@pytest.mark.real_data
@pytest.mark.proof_only
def test_all_60000_real_images_are_the_same_from_every_source(real_data: Path, tmp_path: Path, cache: Path) -> None:
    """An hour's quarter, most of which packs the .7z archives."""
    found = read(real_data)
    train, test = ((found.images[role], found.labels[role]) for role in ("train", "test"))
    batches = layouts.pickles(tmp_path / "torchvision", train, test)
    whole = fingerprint_of(real_data)
    assert {fingerprint_of(batches), fingerprint_of(layouts.tarball(tmp_path / "a.tar.gz", batches))} == {whole}
    unpacked = layouts.kaggle(tmp_path / "unpacked", *train)
    (tmp_path / "work").mkdir()
    forms = [FORMS[name](unpacked, tmp_path / "work") for name in ("folder", "zip", "7z", "download")]
    assert len({fingerprint_of(form) for form in (*forms, tmp_path / "work" / "c")}) == 1
    entry = prepared_data.prepare(Data(source=str(forms[-1])))
    for kind in ("images", "labels"):
        file = f"train-{kind}.npy"
        assert (entry / file).read_bytes() == (prepared_data.prepare(Data(source=str(real_data))) / file).read_bytes()


@pytest.mark.parametrize("numbers", [False, True], ids=["names", "numbers"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_entry_as_the_hub_and_leaves_no_files(
    form: str, numbers: bool, tmp_path: Path, cache: Path, fingerprint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """23 pictures: 10 comes after 9 and not after 1; those in test/ do not decode and must not be tried."""
    unpacked = layouts.kaggle(tmp_path / "unpacked" / "cifar-10", IMAGES, LABELS, numbers=numbers)
    for name in ("work", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    source = FORMS[form](unpacked, tmp_path / "work")
    before = files(tmp_path)
    assert fingerprint_of(source) == fingerprint
    (entry,) = cache.iterdir()
    turns = set(tmp_path.glob("temporary/resnet-cifar-*/*"))  # by which processes wait for each other
    assert files(tmp_path) - before - turns == set(entry.iterdir())
    remarks = json.loads((entry / "meta.json").read_text())["remarks"]
    said = "labels 0 to 9 are interpreted as CIFAR-10's, airplane to truck: write others as names"
    assert remarks == ["not used: the images in test, which have no labels", *([said] if numbers else [])]


def test_nothing_is_left_when_reading_is_killed(unpacked: Path, work: Path, tmp_path: Path, run: Any) -> None:
    """Half of the pictures have come, and the process ends as if killed: what is kept has no name."""
    source = FORMS["download"](unpacked, work)
    code = f"""
import os
from resnet_cifar.data.sources import archive
from resnet_cifar.config.schema import Data
from resnet_cifar.data.sources.archives.spool import MemberSpool
begin = MemberSpool.begin
def dies(kept, name):
    if name == "train/12.png":
        kept.flush()
        assert kept.size("train/11.png") or kept.size("train/9.png")
        os.kill(os.getpid(), 9)
    begin(kept, name)
MemberSpool.begin = dies
archive.read(Data(source={str(source)!r}))
"""
    for name in ("cache", "temporary"):
        (tmp_path / name).mkdir()
    env = {"RESNET_CIFAR_CACHE": str(tmp_path / "cache"), "TMPDIR": str(tmp_path / "temporary")}
    assert run("-c", code, env=env).returncode == -9
    assert files(tmp_path / "cache", tmp_path / "temporary") == set()


def test_archives_hold_what_other_systems_leave_in_them(
    unpacked: Path, work: Path, fingerprint: str, cache: Path
) -> None:
    for name in ("__MACOSX/train/._1.png", "train/._1.png", "train/.DS_Store", "train/Thumbs.db", "logo.png"):
        (unpacked / name).parent.mkdir(parents=True, exist_ok=True)
        (unpacked / name).write_bytes(b"left")
    for form in ("folder", "zip", "7z", "zip of a folder"):
        assert fingerprint_of(FORMS[form](unpacked, work)) == fingerprint
    competition = layouts.competition(work / "c", unpacked)
    (competition / "logo.png").write_bytes(b"no picture of the set")
    assert fingerprint_of(layouts.zipped(work / "b.zip", competition)) == fingerprint


def test_an_archive_of_images_only_uses_the_labels_next_to_it(unpacked: Path, work: Path) -> None:
    shutil.copy(unpacked / "trainLabels.csv", work)
    for name, pack in (("train.zip", layouts.zipped), ("train.7z", layouts.seven_zipped)):
        assert read(pack(work / name, unpacked / "train")).labels["train"].tolist() == LABELS.tolist()
        assert find_source(str(work)) is kaggle
        assert read(work).labels["train"].tolist() == LABELS.tolist()
    (work / "trainLabels.csv").unlink()
    said = "contains no trainLabels.csv, and there is none next to it: download it from the competition"
    for source in (work / "train.7z", work / "train.zip", work):
        assert said in sentence(source)


def test_unpacked_images_take_precedence_over_their_archive(unpacked: Path) -> None:
    (unpacked / "train.7z").write_bytes(b"not looked at")
    assert len(read(unpacked).labels["train"]) == 23


def test_only_the_competitions_own_test_folder_is_named(unpacked: Path, tmp_path: Path) -> None:
    assert read(unpacked).decoded.remarks == ("not used: the images in test, which have no labels",)
    shutil.rmtree(unpacked / "test")
    unpacked.parent.rename(tmp_path / "test")
    assert read(tmp_path / "test" / "cifar-10").decoded.remarks == ()


def test_images_in_a_folder_may_be_links(unpacked: Path, work: Path) -> None:
    """As in a folder of class folders; a link that leads nowhere is a picture that does not decode."""
    (unpacked / "train" / "3.png").rename(work / "elsewhere.png")
    (unpacked / "train" / "3.png").symlink_to(work / "elsewhere.png")
    np.testing.assert_array_equal(read(unpacked).images["train"], IMAGES)
    (work / "elsewhere.png").unlink()
    assert "1 image does not decode (train 2 (train/3.png))" in sentence(unpacked)


@pytest.mark.parametrize("form", ["folder", "zip", "7z", "download"])
def test_broken_and_unlabeled_images_are_named_by_their_files(form: str, unpacked: Path, work: Path) -> None:
    (unpacked / "train" / "4.png").write_bytes(b"no picture")
    (unpacked / "train" / "6.png").write_bytes(b"")
    rows = (unpacked / "trainLabels.csv").read_text().splitlines()
    rows[9] = "9,"
    table(unpacked, "\n".join(rows[:-1]))  # 23 has no row, 9 no label
    source = FORMS[form](unpacked, work)
    inner = "train.7z/" if form == "download" else ""
    said = (
        f"2 images do not decode (train 3 ({inner}train/4.png), 5 ({inner}train/6.png)) and 2 labels are not among the "
        f"10 classes (train 8 ({inner}train/9.png), 22 ({inner}train/23.png))"
    )
    assert said in sentence(source)
    found = read(source, skip_broken=True)
    kept = np.delete(np.arange(23), [3, 5, 8, 22])
    np.testing.assert_array_equal(found.images["train"], IMAGES[kept])
    assert found.decoded.left_out == {"train": [3, 5, 8, 22]}


@pytest.mark.parametrize("form", ["folder", "zip", "7z"])
def test_labels_without_images_are_named(form: str, unpacked: Path, work: Path) -> None:
    for number in (3, 10, 11, 12):
        (unpacked / "train" / f"{number}.png").unlink()
    source = FORMS[form](unpacked, work)
    said = "4 of the ids in trainLabels.csv have no image in train/ (3, 10-12)"
    assert f"{said}; restore them or remove their rows" in sentence(source)
    found = read(source, skip_broken=True)
    np.testing.assert_array_equal(found.images["train"], np.delete(IMAGES, [2, 9, 10, 11], axis=0))
    assert found.decoded.remarks[1:] == (f"skipped (data.skip_broken): {said}",)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("id,label\n1,cat\n2,dog\n1,cat\n2,dog\n10,cat\n2,dog\n", "two rows or more of the ids 1-2: keep one of each"),
        ("image,kind\n1,cat\n", "has the columns ['image', 'kind'], none of them 'id'"),
        ("id,kind\n1,cat\n", "has the columns ['id', 'kind'], none of them 'label'"),
        ("id|label\n1|cat\n", "has the columns ['id|label'], none of them 'id'"),
        ("", "has the columns [], none of them 'id'"),
        ("id,label\n1,cat\n,dog\n", "line 3: no id: correct the row"),
        ("id,label\n1,cat\n2,dog,spotted\n", "line 3: too many columns: correct the row"),
        ('id,label\n1,"cat\n2,dog\n', "cannot be read (unexpected end of data)"),
        ("id,label\n", "no label of train is one of the 0 classes"),
    ],
)
def test_an_unusable_table_is_refused(rows: str, said: str, unpacked: Path) -> None:
    table(unpacked, rows)
    assert said in sentence(unpacked)


def test_tables_of_other_programs_are_read(unpacked: Path) -> None:
    """Excel's mark and ends of lines, spaces, quotes, names of files for ids, columns in another order and more."""
    rows = [f'"{layouts.CIFAR10[label]}", {number}.png ,x' for number, label in enumerate(LABELS, start=1)]
    table(unpacked, "\ufeffLabel, ID,more\r\n" + "\r\n".join([*rows[::-1], "", ""]))
    assert read(unpacked).labels["train"].tolist() == LABELS.tolist()
    table(unpacked, "image,level,label\n" + "".join(f"{n},{(n - 1) % 3},x\n" for n in range(1, 24)))
    found = read(unpacked, columns=Columns(image="image", label="level"))
    assert (found.classes, found.labels["train"].tolist()) == (("0", "1", "2"), [n % 3 for n in range(23)])
    assert "none of them 'kind'" in sentence(unpacked, columns=Columns(image="image", label="kind"))
    (unpacked / "trainLabels.csv").write_bytes("id,label\n1,Bär\n".encode("latin1"))
    assert "save it as CSV in UTF-8" in sentence(unpacked)


def test_ids_are_in_the_order_of_their_numbers_and_then_of_their_names(unpacked: Path) -> None:
    names = ["9", "10", "100", "b", "a", "007"]
    for path in (unpacked / "train").iterdir():
        path.unlink()
    for name, image in zip(names, IMAGES, strict=False):
        (unpacked / "train" / f"{name}.png").write_bytes(layouts.png(image))
    table(unpacked, "id,label\n" + "".join(f"{name},{'xy'[len(name) % 2]}\n" for name in names))
    order = [names.index(name) for name in ("007", "9", "10", "100", "a", "b")]
    np.testing.assert_array_equal(read(unpacked).images["train"], IMAGES[order])
    (unpacked / "train" / "9.jpg").write_bytes(b"")
    (unpacked / "train" / "a.bmp").write_bytes(b"")
    assert "contains two images each for the ids 9, a: keep one of each" in sentence(unpacked)


def test_numbers_of_other_sets_are_names(tmp_path: Path) -> None:
    """Of ten classes but not of CIFAR-10's size, or of its size but not ten classes."""
    small = layouts.kaggle(tmp_path / "small", IMAGES[:, :28, :28], LABELS, numbers=True)
    few = layouts.kaggle(tmp_path / "few", IMAGES, LABELS % 9, numbers=True)
    assert read(small).classes == tuple("0123456789")
    assert read(few).classes == tuple("012345678")


def test_other_folders_are_not_recognized_as_kaggle(unpacked: Path) -> None:
    assert find_source(str(unpacked)) is kaggle
    (unpacked / "train" / "cats").mkdir()
    for path in (unpacked / "train").glob("*.png"):
        path.rename(unpacked / "train" / "cats" / path.name)
    assert find_source(str(unpacked)).__name__.endswith("image_folder")
    shutil.rmtree(unpacked / "train")
    (unpacked / "train").mkdir()
    assert "contains no images in train/" in sentence(unpacked)


def test_only_what_is_read_decides_the_identity(unpacked: Path, work: Path) -> None:
    """300,000 images of the test folder are not even looked at."""
    competition = layouts.competition(work / "c", unpacked)
    for source, watched, ignored in (
        (unpacked, ("trainLabels.csv", "train/5.png"), ("test/2.png", "sampleSubmission.csv")),
        (competition, ("trainLabels.csv", "train.7z"), ("test.7z",)),
        (competition / "train.7z", ("../trainLabels.csv", "."), ()),
    ):
        data = Data(source=str(source))
        for time, name in enumerate((*watched, *ignored)):
            first = find_source(data.source).identity(data)
            os.utime(os.path.normpath(source / name), ns=(time, time + len(str(source))))
            assert (find_source(data.source).identity(data) != first) == (name in watched), name
