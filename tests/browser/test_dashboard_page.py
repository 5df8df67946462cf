"""The local dashboard in a browser: as a file, and served while runs go on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import reported

from resnet_cifar.cli.dashboard_server import DashboardServer, report_address
from resnet_cifar.reporting.dashboard.view import Dashboard, relative_link


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    reported.finish(tmp_path / "runs" / "done")
    reported.start(tmp_path / "runs" / "going", 25, **{"phases.1.lr": "0.01"})
    return tmp_path / "runs"


@pytest.fixture
def served(runs: Path) -> Iterator[str]:
    with DashboardServer(Dashboard([runs], report_address), 0, 0.05, 1) as server:
        yield f"http://127.0.0.1:{server.server_port}/"


@pytest.mark.parametrize("phone", [False, True])
def test_the_file_draws_every_chart_and_fits_the_screen(browser: Any, runs: Path, phone: bool) -> None:
    page, file = Dashboard([runs / "done", runs / "going"], relative_link(runs / "page.html")), runs / "page.html"
    file.write_text(page.page(page.look()), encoding="utf-8")
    opened = browser.open(file, phone=phone, dark=phone)
    opened.check_fits()
    opened.check_quiet()
    charts = opened.page.locator("figure svg")
    assert charts.count() == 6  # loss, accuracy, macro F1, throughput, learning rate, one searched field
    assert opened.page.locator("figure svg:has(path), figure svg:has(circle)").count() == 6
    loss = charts.nth(0)
    assert loss.locator(".interruption").count() == 4 and loss.locator(".best").count() == 2
    assert (
        loss.locator(".interruption title").all_text_contents()[0].startswith("done: interrupted at step 14 (SIGTERM)")
    )
    assert "Seeds" not in opened.page.locator("nav a:visible").all_inner_texts()
    loss.hover(position={"x": loss.bounding_box()["width"] - 13, "y": 100})
    assert opened.page.locator(".tip").inner_text().splitlines()[0] == "step 40"
    opened.page.click("text=epoch")
    opened.page.click("#legend button:has-text('done')")
    assert loss.locator(".interruption").count() == 2
    loss.hover(position={"x": loss.bounding_box()["width"] - 13, "y": 100})
    assert opened.page.locator(".tip").inner_text().splitlines()[0] == "epoch 2.5"
    opened.page.reload()
    assert loss.locator(".interruption").count() == 2, (
        "what was chosen is chosen after the file has loaded itself again"
    )


def test_the_served_page_changes_in_place_while_runs_go_on(browser: Any, runs: Path, served: str) -> None:
    opened = browser.open(served)
    page = opened.page
    page.click("summary")  # closes the predictions
    page.evaluate("scrollTo(0, 300)")
    page.evaluate("window.kept = [...document.querySelectorAll('li b, svg, details')]")
    with (runs / "going" / "metrics.jsonl").open("a") as stream:
        stream.writelines(json.dumps(reported.row(step)) + "\n" for step in range(26, 34))
    page.wait_for_selector("text=33 of 40")
    assert page.evaluate("window.kept.every(each => each.isConnected)"), "nothing was replaced"
    assert page.evaluate("scrollY") == 300 and not page.evaluate("document.querySelector('details').open")
    reported.start(runs / "new", 22)
    page.wait_for_selector("#legend button:has-text('new')")
    assert page.locator(".runs li").count() == 3
    interruptions = page.locator("figure svg").first.locator(".interruption")
    interruptions.nth(5).wait_for(state="attached")
    assert interruptions.count() == 6
    opened.check_quiet()


def test_the_page_says_when_the_connection_is_lost(browser: Any, runs: Path) -> None:
    with DashboardServer(Dashboard([runs], report_address), 0, 0.05, 1) as server:
        page = browser.open(f"http://127.0.0.1:{server.server_port}/").page
        page.wait_for_selector("text=2 runs")
    page.wait_for_selector("text=The connection is lost")
