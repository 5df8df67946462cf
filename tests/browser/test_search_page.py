"""The page of `resnet-cifar tune` in a browser, of a search with trials that ended in every way."""

from __future__ import annotations

from pathlib import Path

import pytest
from simulated_search import search

from resnet_cifar.reporting import search_report


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("search")
    search_report.write(search(home), home)
    return home / "index.html"


@pytest.mark.parametrize("phone", [False, True])
def test_the_page_fits_the_screen_and_asks_for_nothing(browser, page: Path, phone: bool) -> None:
    opened = browser.open(page, phone=phone, dark=phone)
    opened.check_fits()
    opened.check_quiet()
    names = [chart.get_attribute("aria-label") for chart in opened.page.locator("svg[role=img]").all()]
    assert names == ["history", "importance", "parallel coordinates", "phases.0.lr", "optimizer.name", "batch_size"]
    assert opened.page.get_by_role("row", name="ended early").count() == 1
    hidden = [link.get_attribute("href") for link in opened.page.locator("nav a").all()]
    assert all(opened.page.locator(target).count() == 1 for target in hidden)
