"""The explore page as a person opens it: of odd pictures with a planted copy, of a thousand classes, of real images."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_cifar.cli import explore
from resnet_cifar.data.sources import synthetic
from resnet_cifar.reporting.dataset_report import charts

SMALL = ["--model.name", "test_resnet", "--model.pretrained", "False", "--data.image_size", "48"]
MOST_BYTES = 5_000_000


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of several sizes, modes and formats; one picture is mirrored in test, as another class."""
    root = tmp_path_factory.mktemp("odd") / "odd pictures"
    drawn, labels = synthetic.draw("train", 400)
    for number, label in enumerate((0, 4)):
        for split in ("train", "test"):
            folder = root / split / ["disc <b>", "cross"][number]
            folder.mkdir(parents=True)
            for n, image in enumerate(
                drawn[labels == label][:12] if split == "train" else drawn[labels == label][20:26]
            ):
                picture = Image.fromarray(image).resize((60 + 5 * n, 90 - 3 * n))
                picture = picture.convert("L" if n % 3 == 0 else "RGB")
                picture.save(folder / f"{n}.{'png' if n % 2 else 'jpg'}")
    planted = Image.open(root / "train" / "cross" / "1.png")
    planted.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(root / "test" / "disc <b>" / "planted.png")
    return root


@pytest.fixture(scope="module")
def odd_page(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("pages") / "odd.html"
    explore.main([str(pictures), *SMALL, "--out", str(file)])
    return file


@pytest.mark.parametrize("phone", [False, True])
def test_it_is_quiet_and_fits(browser, odd_page: Path, phone: bool) -> None:
    opened = browser.open(odd_page, phone=phone)
    opened.page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    opened.check_quiet()
    opened.check_fits()
    assert opened.page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")


def test_it_says_what_was_planted(browser, odd_page: Path) -> None:
    page = browser.open(odd_page).page
    labels = page.locator(".pairs.labels li").first
    assert set(labels.locator(".label").all_inner_texts()) == {"disc <b>", "cross"}
    places = labels.locator(".place").all_inner_texts()  # the first may lie in train or validation
    assert [place.split()[1] for place in places] == ["1", "12"] and places[1] == "test 12"
    assert labels.locator(".file").all_inner_texts() == ["train/cross/1.png", "test/disc <b>/planted.png"]
    assert "mirrored" in labels.locator(".how").inner_text()
    text = page.locator("main").inner_text()
    assert "Widths range from 60 to 115 pixels, heights from 57 to 90" in text
    assert page.locator(".balance tbody tr").count() == 2
    assert page.locator(".views .class").count() == 2


def test_it_is_dark_where_the_screen_is(browser, odd_page: Path) -> None:
    def colors(dark: bool) -> list[str]:
        opened = browser.open(odd_page, dark=dark)
        words = "svg text"
        ink = opened.page.evaluate(f"getComputedStyle(document.querySelector('{words}')).fill")
        paper = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
        return [ink, paper]

    def brightness(color: str) -> int:
        return sum(map(int, re.findall(r"\d+", color)[:3]))

    ink, paper = map(brightness, colors(dark=False))
    dark_ink, dark_paper = map(brightness, colors(dark=True))
    assert ink < paper and dark_ink > dark_paper


def test_the_same_command_makes_the_same_page(pictures: Path, odd_page: Path) -> None:
    before = odd_page.read_text()
    explore.main([str(pictures), *SMALL, "--out", str(odd_page)])
    assert odd_page.read_text() == before


def test_a_thousand_classes_of_large_pictures(browser, tmp_path: Path) -> None:
    """Noise, which no format makes small."""
    labels = np.repeat(np.arange(1000), 4)
    images = np.random.default_rng(0).integers(0, 256, (4000, 41, 41, 3), dtype=np.uint8)
    np.savez(tmp_path / "many.npz", x_train=images, y_train=labels, x_test=images[::4], y_test=labels[::4])
    file = tmp_path / "many.html"
    explore.main([str(tmp_path / "many.npz"), *SMALL, "--data.validation_fraction", "0", "--out", str(file)])
    assert file.stat().st_size < MOST_BYTES
    opened = browser.open(file, phone=True)
    opened.check_quiet()
    opened.check_fits()
    assert "920 more classes are not shown" in opened.page.locator("main").inner_text()
    assert opened.page.locator(".balance tbody tr").count() == 1000


def test_the_labels_of_sizes_do_not_overlap(browser, tmp_path: Path) -> None:
    """From sizes in which a decade has room for some labels only, to those of panoramas and of single pixels."""
    sizes = [(40, 60, 400, 500), (8, 9000, 6000, 40), (1, 1, 65535, 3), (20000, 1000, 100, 1000), (9, 70, 99, 60)]
    drawn = [charts.image_sizes(Counter({(a, b): 5, (c, d): 1})) for a, b, c, d in sizes]
    (tmp_path / "sizes.html").write_text("".join(f"<div style='width: 440px'>{svg}</div>" for svg in drawn))
    boxes = """[...document.querySelectorAll("svg")].map(svg => [...svg.querySelectorAll("text")].map(
        text => [text.textContent, text.getBoundingClientRect()]).map(([t, b]) => [t, b.x, b.y, b.right, b.bottom]))"""
    for labels in browser.open(tmp_path / "sizes.html").page.evaluate(boxes):
        assert len(labels) >= 4, labels
        for (one, x, y, right, bottom), (other, *box) in itertools.combinations(labels, 2):
            assert right < box[0] or box[2] < x or bottom < box[1] or box[3] < y, (one, other)


@pytest.mark.proof_only
@pytest.mark.real_data
@pytest.mark.parametrize("dark", [False, True])
def test_the_real_images(browser, real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture, dark: bool) -> None:
    file = tmp_path / "cifar10.html"
    explore.main([str(real_data), "--recipe", "scratch", "--out", str(file)])
    assert "mean         0.491" in capsys.readouterr().out
    assert file.stat().st_size < MOST_BYTES
    opened = browser.open(file, dark=dark, phone=dark)
    opened.check_quiet()
    opened.check_fits()
