"""review_page.py: the order of a review; training reads its CSV with exactly its labels, whatever the names."""

from __future__ import annotations

import csv
import json
import os
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnet_cifar.cli import predict
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Columns, Data
from resnet_cifar.data.sources.image_io import AS_IS
from resnet_cifar.data.sources.registry import find_source
from resnet_cifar.evaluation.classify_files import ImageFiles, find_images
from resnet_cifar.reporting import review_page
from resnet_cifar.reporting.review_page import Review, ranking, read_pool, uncertainty

CLASSES = ("cat, or dog", 'disc "b"', "</script><b>")
HOSTILE = (
    'a "quote".png',
    "<script>alert(1)<.png",
    "a,b;c\td.png",
    " leading.png",
    "ü é 猫.png",
    "$(x)`y`.png",
    "'=1+1.png",
    "same.png",
    "day/same.png",
    "day/other/same.png",
    "same.jpg",
    "same.jpg.png",
    "-.png",
    "line\nbreak\r.png",
    "\n.png",
)
UNLISTABLE = ("back\\slash.png", "\udcff.png", "game.tga", "__cache/a.png")


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `new` in the working directory."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate((*HOSTILE, *UNLISTABLE)):
        file = tmp_path / "new" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), (9 * number, 0, 0)).save(file)
    return tmp_path / "new"


def probabilities(count: int, seed: int = 0) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(seed).dirichlet(np.ones(len(CLASSES)), count))


def review(*words: str, limit: int = 5000, name: str = "review") -> tuple[Review, list[dict[str, str]], dict]:
    """What was written of the images that `words` name, the rows of the CSV, and the data of the page."""
    images = ImageFiles(find_images(words))
    images.extract(range(len(images)))
    found = list(probabilities(len(images)))
    ranked = [(row, found[row]) for row in ranking(found)]
    page, labels = Path(f"{name}.html"), Path(f"{name}-labels.csv")
    done = review_page.write(
        page, labels, read_pool(words, images.files), ranked, images, CLASSES, "runs/mine", AS_IS, limit
    )
    with labels.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines, strict=True))
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text("utf-8"))
    return done, rows, json.loads(data)


def as_trained(source: str) -> dict[str, str]:
    """file -> label of every image that training gets."""
    data = Data(source=source, columns=Columns(label="label"))
    read = find_source(source).read(data)
    assert read.test is None and read.validation is None
    files = [os.path.relpath(image, source) for image in read.train.images]
    return dict(zip(files, (read.classes[label] for label in read.train.labels), strict=True))


def test_uncertainty_is_one_minus_the_margin() -> None:
    values = probabilities(200, seed=3)
    expected = [1 - (ordered[-1] - ordered[-2]) for ordered in np.sort(values.numpy(), axis=1)]
    np.testing.assert_allclose(uncertainty(values).numpy(), expected, atol=1e-15)
    assert uncertainty(torch.tensor([[0.5, 0.5], [1.0, 0.0]])).tolist() == [1, 0]
    assert uncertainty(torch.ones(2, 1)).tolist() == [0, 0]


def test_the_order_is_by_uncertainty_ties_by_name_and_unreadable_ones_last() -> None:
    shares = [0.9, 0.5, None, 0.6, 0.5, None, 0.99]
    found = [None if share is None else torch.tensor([share, 1 - share]) for share in shares]
    assert ranking(found) == [1, 4, 3, 0, 6, 2, 5]
    assert ranking([None, None]) == [0, 1]


def test_training_reads_the_csv_with_exactly_its_labels(pool: Path) -> None:
    done, rows, data = review("new")
    assert (done.images, done.listed) == (len(HOSTILE), len(HOSTILE))
    assert [row["file"] for row in rows] == [image["file"] for image in data["images"]]
    assert [float(row["uncertainty"]) for row in rows] == sorted((float(r["uncertainty"]) for r in rows), reverse=True)
    for row, image in zip(rows, data["images"], strict=True):
        assert row["label"] == CLASSES[image["top"][0]]
        assert float(row["probability"]) == pytest.approx(image["p"][0], abs=1e-4)
    Path("review-labels.csv").rename("new/labels.csv")
    assert as_trained("new") == {row["file"].removeprefix("./"): row["label"] for row in rows}
    assert set(as_trained("new")) == set(HOSTILE)


def test_names_that_training_does_not_find_are_left_out_and_named(pool: Path) -> None:
    done, rows, _ = review("new")
    assert not {row["file"] for row in rows} & set(UNLISTABLE)
    for said in ("back\\slash.png", "\\udcff.png", "game.tga", "__cache/a.png"):
        assert said in done.left_out and said in Path("review.html").read_text("utf-8")
    # With any of them in the CSV, training would refuse or miss it.
    for name in UNLISTABLE:
        rows = f"file,label\nsame.png,a\nday/same.png,b\n{name},b\n"
        (pool / "labels.csv").write_text(rows, encoding="utf-8", errors="surrogateescape")
        with pytest.raises(UserError, match=r"do not exist|cannot be read"):
            as_trained("new")


def test_labels_of_an_earlier_round_are_kept_and_not_reviewed_again(pool: Path) -> None:
    with (pool / "labels.csv").open("w", newline="") as lines:
        csv.writer(lines).writerows(
            [("label", "file"), ("x", "./day/same.png"), ("y", "same.png"), ("y", "./ leading.png")]
        )
    done, rows, data = review("new", name="second")
    assert done.listed == len(HOSTILE) - 3
    assert data["labeled"] == [["day/same.png", "x"], ["same.png", "y"], ["./ leading.png", "y"]]
    assert [(row["file"], row["label"]) for row in rows[-3:]] == [tuple(pair) for pair in data["labeled"]]
    assert not {"day/same.png", "same.png"} & {image["file"] for image in data["images"]}


def test_the_page_holds_the_most_uncertain_images_and_the_csv_all(pool: Path) -> None:
    done, rows, data = review("new", limit=4)
    assert (done.images, done.listed) == (4, len(HOSTILE))
    assert [image["file"] for image in data["images"]] == [row["file"] for row in rows[:4]]
    assert "These are 4 of 15 images" in Path("review.html").read_text("utf-8")
    assert data["key"] != review("new", limit=5, name="other")[2]["key"]


@pytest.mark.parametrize(
    ("words", "folder", "first"),
    [
        (("new",), "new", "day/same.png"),
        (("new/day",), "new/day", "same.png"),
        (("new/**/*.png",), "new", "day/same.png"),
        (("new/day/same.png", "new/same.jpg"), "new", "day/same.png"),
        (("new/day/same.png",), "new/day", "same.png"),
        (("day.zip",), "day.zip", "day/same.png"),
        (("d*.zip",), "day.zip", "day/same.png"),
    ],
)
def test_names_are_relative_to_the_folder_of_all_images(
    pool: Path, words: tuple[str, ...], folder: str, first: str
) -> None:
    with zipfile.ZipFile("day.zip", "w") as archive:
        archive.write("new/day/same.png", "day/same.png")
    found = read_pool(words, find_images(words))
    assert found.folder == folder and first in found.names
    assert found.source == folder.removesuffix(".zip")
    assert found.command == f"python train.py --data.source {found.source} --data.columns.label label"


def test_a_folder_that_no_command_can_name_is_a_sentence(pool: Path) -> None:
    folder = pool.rename("new\udcff")
    with pytest.raises(UserError, match=r"--review: the folder 'new.*' is not UTF-8: rename it"):
        read_pool(["new\udcff"], find_images([folder.name]))


def test_an_archive_is_reviewed_with_names_that_fit_the_unpacked_one(pool: Path) -> None:
    with zipfile.ZipFile("day.zip", "w") as archive:
        for name in ("day/same.png", "day/other/same.png", "same.jpg"):
            archive.write(f"new/{name}", name)
    _, rows, _ = review("day.zip")
    with zipfile.ZipFile("day.zip") as archive:
        archive.extractall("day")
    Path("review-labels.csv").rename("day/labels.csv")
    assert as_trained("day") == {row["file"]: row["label"] for row in rows} and len(rows) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--review", "review"), "--review review: a page is named .html, such as --review review.html"),
        (("--review", "no/a.html"), "--review no/a.html: there is no directory no: create it, or name another page"),
        (("--review", "there.html"), "--review there.html: there.html exists, perhaps with corrections: name another"),
        (("--review", "a.html"), "--review a.html: a-labels.csv exists, perhaps with corrections: name another page"),
        (("--json", "--csv"), "--json and --csv are two formats of one output: remove one of them"),
        (("--review-images", "0"), "--review-images cannot be '0': it should be a whole number above 0"),
    ],
)
def test_what_cannot_be_written_is_a_sentence_and_nothing_is_lost(
    pool: Path, words: tuple[str, ...], said: str
) -> None:
    for name in ("there.html", "a-labels.csv"):
        Path(name).write_text("mine")
    with pytest.raises(UserError) as caught:
        predict.parse_arguments(["runs/mine", "new", *words])
    assert str(caught.value).startswith(said)
    assert Path("there.html").read_text() == Path("a-labels.csv").read_text() == "mine"
