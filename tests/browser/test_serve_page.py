"""The page of `resnet-cifar serve` as a person uses it: images are dropped or chosen, and labels read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serving import CLASSES, Serving, write_model

for package in ("fastapi", "uvicorn", "prometheus_client", "python_multipart"):
    pytest.importorskip(package)

SCRIPT = "<img src=x onerror=document.title='hacked'>.png"  # a file name


@pytest.fixture(scope="module")
def served(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with Serving(write_model(tmp_path_factory.mktemp("served"), ()) / "model") as serving:
        yield serving
        assert serving.errors() == ""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, draw = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name, size in (("large photograph.jpg", (1200, 800)), ("tiny.png", (32, 32)), (SCRIPT, (90, 120))):
        coarse = Image.fromarray(draw.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(folder / name)
    return sorted(folder.iterdir())


def drop(page: Any, files: list[Path]) -> None:
    """Files are dragged from another program to the middle of the page."""
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": 200, "y": 300, "data": data})


def finish(page: Any) -> None:
    page.wait_for_selector("#clear:not([hidden])")


def check_labels(page: Any, served: Serving, images: list[Path]) -> None:
    """Every card shows what the service answers for its file."""
    form = [("images", (file.name, file.read_bytes())) for file in images]
    expected = served.post(files=form).json()["images"]
    cards = page.locator("#results li").all()
    for card, row in zip(cards, expected, strict=True):
        assert card.locator(".name").inner_text() == row["file"]
        assert card.locator(".label").inner_text() == row["label"]
        shares = [float(text.rstrip("\u00a0%")) for text in card.locator(".bars span").all_inner_texts()]
        assert shares == sorted(shares, reverse=True) and len(shares) == len(CLASSES)
        assert shares[0] == pytest.approx(100 * row["probability"], abs=0.051)
        assert card.locator(".bars dt").first.inner_text() == row["label"]
    assert page.locator("#state").inner_text() == f"{len(images)} images classified."


@pytest.mark.parametrize("phone", [False, True])
def test_three_images_are_dropped_and_labels_read(
    browser: Any, served: Serving, images: list[Path], phone: bool
) -> None:
    opened = browser.open(served.url, phone=phone)
    drop(opened.page, images)
    finish(opened.page)
    check_labels(opened.page, served, images)
    opened.check_quiet()
    opened.check_fits()
    sizes = opened.page.evaluate("[...document.querySelectorAll('.thumb img')].map(image => image.naturalWidth)")
    assert sorted(sizes) == [32, 90, 1200], "thumbnails, and no image of a file's name"
    assert opened.page.title() == "Classify images: test_resnet"
    opened.page.click("#clear")
    assert opened.page.locator("#results li").count() == 0


def test_files_are_chosen_by_keyboard(browser: Any, served: Serving, images: list[Path]) -> None:
    page = browser.open(served.url).page
    choosers: list[Any] = []

    def keep(chooser: Any) -> None:
        choosers.append(chooser)

    page.on("filechooser", keep)
    page.keyboard.press("Tab")
    for _ in range(20):  # Chromium drops a key now and then while a page is new
        page.keyboard.press("Space")
        page.wait_for_timeout(250)
        if choosers:
            break
    assert choosers[0].is_multiple()
    choosers[0].set_files(images)
    finish(page)
    check_labels(page, served, images)


def test_what_cannot_be_classified_says_why(browser: Any, served: Serving, images: list[Path], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    page = browser.open(served.url, phone=True).page
    page.set_input_files("#files", [tmp_path / "notes.txt", images[0]])
    finish(page)
    first, second = page.locator("#results li").all()
    assert first.locator(".label").inner_text() == "Not classified"
    assert first.locator(".problem").inner_text().startswith("it cannot be read as an image: send one of JPEG")
    assert second.locator(".label").inner_text() in CLASSES
    assert page.locator("#state").inner_text() == "1 of 2 images classified."
    page.route("**/predict", lambda route: route.abort())
    page.set_input_files("#files", images[:1])
    page.wait_for_selector("text=The server cannot be reached")
