"""A run's page, as a person opens it: by mouse, by keyboard, in the dark, on a phone and on paper."""

from __future__ import annotations

import html
import io
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import reported
from PIL import Image

from resnet_cifar.reporting import comparison_report, gallery, prediction_arrays, run_report, style
from resnet_cifar.reporting.comparison_table import read_runs

SHOWN = "#examples li:not([hidden])"
CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.fixture(scope="session")
def figures() -> Path:
    """Where what the proof has measured is kept."""
    return Path(__file__).parents[2] / "benchmarks" / "results" / "proof-report-cpu.json"


def without_figures(patch: pytest.MonkeyPatch) -> None:
    """Those beside a page take most of its time, and no browser opens them."""
    patch.setattr(style, "save", lambda *_: None)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = [f"{'no_break_in_a_name' * 5}/{n}.png" for n in range(240)]
    folder = reported.finish(tmp_path_factory.mktemp("pages") / "run", count=240, file_names=names)
    with pytest.MonkeyPatch.context() as patch:
        without_figures(patch)
        run_report.write_run_report(folder)
    return folder


@pytest.fixture(scope="module")
def index(run: Path) -> Path:
    return run / "report" / "index.html"


@pytest.fixture(scope="module")
def confusion(run: Path) -> np.ndarray:
    return np.array(json.loads((run / "eval-test.json").read_text())["confusion"])


def mistake(confusion: np.ndarray) -> tuple[int, int]:
    """The largest cell that is wrong."""
    actual, predicted = np.unravel_index((confusion * (1 - np.eye(len(confusion)))).argmax(), confusion.shape)
    return int(actual), int(predicted)


def test_the_page_is_quiet_and_fits(browser: Any, index: Path) -> None:
    for options in ({}, {"phone": True}, {"dark": True}):
        opened = browser.open(index, **options)
        opened.check_quiet()
        opened.check_fits()
        assert opened.page.evaluate("document.querySelectorAll('#examples img').length") > 100
        assert opened.page.evaluate("[...document.images].every(image => image.naturalWidth === 8)")


def test_clicking_a_cell_shows_its_pictures_and_clearing_shows_all_again(
    browser: Any, index: Path, confusion: np.ndarray
) -> None:
    page = browser.open(index).page
    before = page.locator(SHOWN).count()
    assert page.locator("#clear").is_hidden()
    actual, predicted = mistake(confusion)
    page.locator(f'.confusion td button[data-a="{actual}"][data-p="{predicted}"]').click()
    shown = page.locator(SHOWN)
    names = reported.CLASSES
    assert shown.count() >= 1
    assert {(each.get_attribute("data-a"), each.get_attribute("data-p")) for each in shown.all()} == {
        (str(actual), str(predicted))
    }
    count = confusion[actual, predicted]
    said = page.locator("#status").text_content()
    assert said == f"{names[actual]} predicted as {names[predicted]}: {shown.count()} of {count} images."
    assert page.locator('[aria-pressed="true"]').count() == 1
    page.locator("#clear").click()
    assert page.locator(SHOWN).count() == before
    assert page.locator("#clear").is_hidden()
    page.locator('[data-view="right"]').click()
    assert page.locator(f"{SHOWN} b.wrong").count() == 0 and page.locator(f"{SHOWN} b.right").count() > 0


def test_every_cell_has_pictures(browser: Any, index: Path, confusion: np.ndarray) -> None:
    page = browser.open(index).page
    script = f"""cells => cells.map(cell => {{
        cell.click();
        return document.querySelectorAll("{SHOWN}").length;
    }})"""
    shown = page.locator(".confusion td button").evaluate_all(script)
    assert len(shown) == (confusion > 0).sum()
    assert min(shown) >= 1 and page.locator("#empty").is_hidden()


def test_a_cell_whose_pictures_are_gone_says_so(
    browser: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_figures(monkeypatch)
    shutil.copytree(run, tmp_path / "run")
    file = tmp_path / "run" / "report" / "pictures-test.npz"
    kept = gallery.load_images(file)
    np.savez_compressed(file, index=kept.index[:1], images=kept.images[:1])
    page = browser.open(run_report.write_run_report(tmp_path / "run")).page
    page.locator(".beside ol button").first.click()
    assert page.locator("#empty").is_visible()
    assert "None of these images was stored" in page.locator("#empty").text_content()


def test_the_matrix_is_one_stop_of_tab_and_arrows_and_enter_do_the_rest(browser: Any, index: Path) -> None:
    page = browser.open(index).page
    assert page.locator('.confusion button[tabindex="0"]').count() == 1
    page.locator("#shares").focus()
    page.keyboard.press("Tab")
    focused = "document.activeElement.dataset"
    assert page.evaluate(f"[{focused}.a, {focused}.p]") == ["0", "0"]
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    cell = page.evaluate(f"[{focused}.a, {focused}.p]")
    assert cell == ["1", "1"]
    page.keyboard.press("Enter")
    assert {each.get_attribute("data-a") for each in page.locator(SHOWN).all()} == {"1"}
    assert page.evaluate("document.activeElement.id") == "status", "a screen reader says what is shown"
    page.keyboard.press("Escape")
    assert page.locator("#clear").is_hidden()
    assert page.evaluate(f"[{focused}.a, {focused}.p]") == cell, "back where it was"


def test_the_stop_of_tab_is_the_cell_that_was_clicked(browser: Any, index: Path) -> None:
    page = browser.open(index).page
    page.locator('.confusion td button[data-a="1"][data-p="1"]').click()
    page.keyboard.press("Escape")
    stops = page.locator('.confusion button[tabindex="0"]')
    assert stops.evaluate_all("found => found.map(each => [each.dataset.a, each.dataset.p])") == [["1", "1"]]


def test_in_a_notebooks_frame_links_scroll_and_do_not_lead_away(browser: Any, index: Path, tmp_path: Path) -> None:
    from playwright.sync_api import expect  # it may lack, as a browser may

    frame = f'<iframe srcdoc="{html.escape(index.read_text())}" sandbox="allow-scripts" style="height: 700px"></iframe>'
    (tmp_path / "notebook.html").write_text(f"<!doctype html><meta charset=utf-8>{frame}")
    page = browser.open(tmp_path / "notebook.html").page
    framed = page.frames[1]
    expect(framed.locator("#classes")).not_to_be_in_viewport()
    framed.locator('nav a[href="#classes"]').click()
    expect(framed.locator("#classes")).to_be_in_viewport()
    assert framed.url == "about:srcdoc" and framed.locator("#classes").count() == 1
    assert framed.locator('a[href^="figures/"]').count() == 0, "what lies beside the page is not there"
    framed.evaluate("document.execCommand = () => false")
    framed.locator("[data-copy]").first.click()
    expect(framed.locator("[data-copy]").first).to_have_text("select and copy")


def test_ten_classes_of_a_thousand_images_fit_on_a_phone(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_figures(monkeypatch)
    reported.score(tmp_path, "test", count=10_000, classes=CIFAR)
    page = browser.open(run_report.write_evaluation_page(tmp_path, "test"), phone=True).page
    box = "(() => {const box = document.querySelector('.class-metrics').parentElement; return %s})()"
    assert page.evaluate(box % "box.scrollWidth - box.clientWidth") == 0
    assert page.evaluate(box % "[box.tabIndex, box.getAttribute('role')]") == [0, "region"]


def test_counts_become_shares(browser: Any, index: Path) -> None:
    page = browser.open(index).page
    cell = page.locator(".confusion td button").first
    counted = cell.inner_text()
    page.locator("#shares").click()
    assert counted.isdigit() and "." in cell.inner_text()


def test_it_is_dark_where_the_system_is(browser: Any, index: Path) -> None:
    def brightness(page: Any, selector: str, what: str) -> float:
        color = page.evaluate(f"getComputedStyle(document.querySelector('{selector}')).{what}")
        return sum(float(part) for part in color[color.index("(") + 1 : -1].split(",")[:3]) / 3

    light, dark = browser.open(index).page, browser.open(index, dark=True).page
    assert brightness(light, "body", "backgroundColor") > 240
    assert brightness(dark, "body", "backgroundColor") < 60
    for words in (".panels svg text", ".diagram svg text"):
        assert brightness(light, words, "fill") < 110, "in the charts too"
        assert brightness(dark, words, "fill") > 150


def test_on_paper_it_is_light_without_buttons_and_with_its_matrix(browser: Any, index: Path) -> None:
    page = browser.open(index, dark=True).page
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("nav").is_hidden() and page.locator("#shares").is_hidden()
    assert page.locator(".confusion td button").first.is_visible()
    assert page.locator(SHOWN).count() > 10


def test_a_command_is_copied(browser: Any, index: Path) -> None:
    page = browser.open(index).page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("[data-copy]").nth(1).click()
    page.locator("[data-copy]").nth(1).filter(has_text="copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()").startswith("python eval.py ")


def test_pages_of_many_classes_of_a_run_on_its_way_and_of_two_runs_are_quiet_and_fit(
    browser: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_figures(monkeypatch)
    many = reported.finish(tmp_path / "many", count=800, classes=[f"class {n}" for n in range(100)], side=64)
    pages = [
        run_report.write_run_report(many),
        run_report.write_run_report(reported.start(tmp_path / "begun", steps=15).path),
    ]
    pages.append(
        comparison_report.write_comparison(read_runs([run, many, tmp_path / "begun"]), tmp_path / "compare.html")
    )
    for file in pages:
        for options in ({}, {"phone": True}):
            opened = browser.open(file, **options)
            opened.check_quiet()
            opened.check_fits()
    page = browser.open(pages[0]).page
    page.locator(".pairs button").first.click()
    assert page.locator(SHOWN).count() >= 1


@pytest.fixture(scope="module")
def ten_thousand(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose predictions at the real test images are drawn by lot, and whose images are the real ones."""
    folder = reported.finish(tmp_path_factory.mktemp("real") / "run", count=10_000, classes=CIFAR, side=32)
    table = pyarrow.parquet.read_table(next((real_data / "plain_text").glob("test-*.parquet")))
    encoded = table["img"].combine_chunks().field("bytes")

    def read(rows: np.ndarray) -> np.ndarray:
        return np.stack([np.asarray(Image.open(io.BytesIO(encoded[row].as_py())).convert("RGB")) for row in rows])

    logits, labels, index, _ = prediction_arrays.read_predictions(folder / "predictions-test.parquet")
    gallery.save_images(
        folder / "report" / "pictures-test.npz",
        prediction_arrays.from_logits(logits, labels, index, 1.25),
        (32, 32),
        read,
    )
    return folder


def children_seconds() -> float:
    """CPU time of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.real_data
def test_ten_thousand_images_make_a_page_of_less_than_five_megabytes(
    browser: Any, ten_thousand: Path, record: Callable[..., None]
) -> None:
    began, spent = time.perf_counter(), children_seconds()
    words = [sys.executable, "-m", "resnet_cifar", "report", ten_thousand]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    seconds, cpu_seconds = time.perf_counter() - began, children_seconds() - spent
    assert done.returncode == 0, done.stderr
    index = ten_thousand / "report" / "index.html"
    assert 1_000_000 < index.stat().st_size < 5_000_000
    opened = browser.open(index)
    opened.check_quiet()
    assert opened.page.locator("#examples li").count() == gallery.MAX_IMAGES
    found = {"seconds": round(seconds, 1), "cpu_seconds": round(cpu_seconds, 1), "bytes": index.stat().st_size}
    record("report of 10,000 test images, with imports", **found)
