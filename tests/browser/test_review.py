"""The review page as a person uses it: labels by keyboard, a reload, and the downloaded CSV, which training reads."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnet_cifar.config.schema import Columns, Data
from resnet_cifar.data.sources.image_io import AS_IS
from resnet_cifar.data.sources.registry import find_source
from resnet_cifar.evaluation.classify_files import ImageFiles, find_images
from resnet_cifar.reporting import review_page
from resnet_cifar.reporting.review_page import ranking, read_pool

FEW = ("cat, or dog", 'disc "b"', "</script><b>x</b>")
NAMES = ('a "quote", 1.png', "<script>alert(1)<.png", "line\nbreak.png", "ü.png", *(f"{n:03}.jpg" for n in range(80)))


def write(folder: Path, classes: tuple[str, ...], earlier: str = "") -> Path:
    """A page about images in `folder`/new with random probabilities."""
    noise = np.random.default_rng(0)
    for name in NAMES:
        (folder / "new").mkdir(exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(folder / "new" / name)
    if earlier:
        (folder / "new" / "labels.csv").write_text(earlier)
    images = ImageFiles(find_images([str(folder / "new")]))
    found = list(torch.tensor(noise.dirichlet(np.ones(len(classes)), len(images))))
    ranked = [(row, found[row]) for row in ranking(found)]
    pool = read_pool([str(folder / "new")], images.files)
    page = folder / "review.html"
    review_page.write(page, folder / "review-labels.csv", pool, ranked, images, classes, "runs/mine", AS_IS, 5000)
    return page


def predicted(page: Path) -> list[tuple[str, str]]:
    """file and predicted label of every image, in the order of the review."""
    with page.with_name("review-labels.csv").open(newline="", encoding="utf-8") as lines:
        return [(row["file"], row["label"]) for row in csv.DictReader(lines)]


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return write(tmp_path, FEW)


def press(opened, *keys: str) -> None:
    for key in keys:
        opened.page.keyboard.press(key)


def counts(opened) -> str:
    return opened.page.locator("#counts").inner_text()


def downloaded(opened, folder: Path) -> list[tuple[str, str]]:
    with opened.page.expect_download() as waiting:
        opened.page.click("#download")
    assert waiting.value.suggested_filename == "labels.csv"
    waiting.value.save_as(folder / "labels.csv")
    with (folder / "labels.csv").open(newline="", encoding="utf-8") as lines:
        header, *rows = csv.reader(lines, strict=True)
    assert header == ["file", "label"]
    return [(file, label) for file, label in rows]


@pytest.mark.parametrize("phone", [False, True])
def test_it_is_quiet_and_fits(browser, page: Path, phone: bool) -> None:
    opened = browser.open(page, phone=phone)
    opened.check_fits()
    opened.page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    opened.check_quiet()
    assert opened.page.evaluate("document.querySelector('#picture').naturalWidth") == 80
    assert opened.page.locator("#strip li").count() == 60, "one page of images, of two"
    if phone:  # the picture, its classes and what to do with it are seen at once
        opened.page.evaluate("window.scrollTo(0, 0)")
        box = opened.page.locator("#skip").bounding_box()
        assert box["y"] + box["height"] <= 844


def test_labels_by_keyboard_survive_a_reload_and_are_downloaded(browser, page: Path, tmp_path: Path) -> None:
    opened, rows = browser.open(page), predicted(page)
    assert opened.page.locator("#download").is_disabled()
    press(opened, "Enter")  # keeps the prediction
    press(opened, "ArrowDown", "Enter")  # the class after the predicted one
    press(opened, "s")
    other = 1 + (FEW.index(rows[3][1]) + 1) % 3
    press(opened, str(other), "ArrowRight", "3", "ArrowLeft", "Backspace")  # 3 labels the sixth, which is cleared
    expected = [rows[0], (rows[1][0], FEW[(FEW.index(rows[1][1]) + 1) % 3]), (rows[3][0], FEW[other - 1])]
    assert counts(opened) == f"3 labeled, 1 skipped, {len(NAMES) - 4} left"
    opened.page.reload()
    assert counts(opened) == f"3 labeled, 1 skipped, {len(NAMES) - 4} left"
    assert opened.page.locator("#position").inner_text() == f"5 of {len(NAMES)}", "the first undecided image"
    labels = [button.split("\n")[-1] for button in opened.page.locator("#strip button").all_inner_texts()[:5]]
    assert labels == [expected[0][1], expected[1][1], "skipped", expected[2][1], f"{rows[4][1]}?"]
    assert downloaded(opened, tmp_path) == expected
    opened.check_quiet()


def test_training_reads_every_downloaded_label(browser, page: Path, tmp_path: Path) -> None:
    opened, rows = browser.open(page), predicted(page)
    keys = np.random.default_rng(1).integers(0, 4, len(rows))
    press(opened, *("123s"[key] for key in keys))  # past the first page of images
    assert opened.page.locator("#page").inner_text() == "page 2 of 2"
    found = downloaded(opened, tmp_path / "new")
    assert found == [(file, FEW[key]) for (file, _), key in zip(rows, keys, strict=True) if key < 3]
    data = Data(source=str(tmp_path / "new"), columns=Columns(label="label"))
    read = find_source(data.source).read(data)
    files = [os.path.relpath(image, data.source) for image in read.train.images]
    assert [(file, read.classes[label]) for file, label in zip(files, read.train.labels, strict=True)] == found


def test_filters_show_a_class_and_what_is_left(browser, page: Path) -> None:
    opened, rows = browser.open(page), predicted(page)
    opened.page.select_option("#predicted", "1")
    mine = [file for file, label in rows if label == FEW[1]]
    press(opened, "s", "1")
    titles = opened.page.locator("#strip button").evaluate_all("all => all.map(each => each.title)")
    assert titles == mine[:60]
    opened.page.select_option("#state", "undecided")
    assert opened.page.locator("#position").inner_text() == f"1 of {len(mine) - 2}"
    for state, shown in (("changed", mine[1]), ("skipped", mine[0])):
        opened.page.select_option("#state", state)
        assert opened.page.locator("#file").evaluate("each => each.textContent") == shown
    opened.page.select_option("#predicted", "2")
    assert opened.page.locator("#empty").is_visible() and not opened.page.locator("#stage").is_visible()
    opened.check_quiet()


def test_many_classes_are_offered_by_probability_and_by_name(browser, tmp_path: Path) -> None:
    classes = tuple(f"class {number:03}" for number in range(300))
    page = write(tmp_path, classes, earlier="file,label\n001.jpg,other\n")
    opened, rows = browser.open(page), predicted(page)
    assert rows.pop() == ("001.jpg", "other")
    buttons = opened.page.locator("#choices button span")
    offered = buttons.all_inner_texts()
    assert len(offered) == 10 and offered[0] == rows[0][1]
    press(opened, "3")
    opened.page.select_option("#classes", "299")
    press(opened, "o")
    assert opened.page.evaluate("document.activeElement.id") == "classes"
    assert downloaded(opened, tmp_path) == [(rows[0][0], offered[2]), (rows[1][0], "class 299"), ("001.jpg", "other")]
    opened.check_quiet()


def test_taps_on_a_phone_label_and_clear(browser, page: Path) -> None:
    opened = browser.open(page, phone=True)
    opened.page.locator("#choices button").nth(2).click()
    opened.page.click("#skip")
    opened.page.click("#keep")
    assert counts(opened) == f"2 labeled, 1 skipped, {len(NAMES) - 3} left"
    opened.page.locator("#strip button").first.click()
    opened.page.locator("#choices button").nth(2).click()
    assert counts(opened) == f"1 labeled, 1 skipped, {len(NAMES) - 2} left"
