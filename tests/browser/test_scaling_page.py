"""The page of `resnet-cifar scale` in a browser, from a simulated cluster."""

from __future__ import annotations

from pathlib import Path

import pytest
from simulated_cluster import results

from resnet_cifar.config.loading import read_recipe
from resnet_cifar.reporting import scaling_report


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("scaling") / "index.html"
    scaling_report.write(results(read_recipe("scratch"), (1, 8, 32), price=2.5), file)
    return file


@pytest.mark.parametrize("phone", [False, True])
def test_the_page_fits_the_screen_and_asks_for_nothing(browser, page: Path, phone: bool) -> None:
    opened = browser.open(page, phone=phone, dark=phone)
    opened.check_fits()
    opened.check_quiet()
    charts = opened.page.locator("svg[role=img]")
    assert charts.count() == 4
    widths = {round(charts.nth(number).bounding_box()["width"]) for number in range(4)}
    assert max(widths) - min(widths) <= 1 and min(widths) > 300
    assert opened.page.get_by_role("row", name="2,048").is_visible()
    hidden = [link.get_attribute("href") for link in opened.page.locator("nav a").all()]
    assert all(opened.page.locator(target).count() == 1 for target in hidden)
