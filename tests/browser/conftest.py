"""Debian's chromium, driven by Playwright: pages are opened as a person opens them, from the disk or a server."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
PHONE = {"width": 390, "height": 844}
# Without these it asks the network for updates, and a test asserts that nothing is asked.
_QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


class Opened:
    """A page, what its console said, and every address that it asked for."""

    def __init__(self, page: Any, address: str) -> None:
        self.page, self.address = page, address
        self.errors: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))
        page.goto(address)

    def check_quiet(self) -> None:
        """No error on the console, and no request but for the page itself, and below its address."""
        assert self.errors == []
        outside = [url for url in self.asked if not url.startswith((self.address, "data:", f"blob:{self.address}"))]
        assert outside == []
        assert self.asked, "the page itself was asked for"

    def check_fits(self) -> None:
        """The page does not scroll sideways."""
        wide, seen = self.page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        assert wide <= seen, f"the page is {wide} px wide on a screen of {seen}"


class Browser:
    """Opens pages, each in a context of its own."""

    def __init__(self, browser: Any) -> None:
        self._browser = browser

    def open(self, page: Path | str, *, dark: bool = False, phone: bool = False) -> Opened:
        """A file or an address on a screen of 1280 px or a phone's."""
        screen = PHONE if phone else {"width": 1280, "height": 900}
        context = self._browser.new_context(viewport=screen, color_scheme="dark" if dark else "light")
        return Opened(context.new_page(), page if isinstance(page, str) else page.as_uri())


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Skips where there is no chromium (Debian: `apt-get install chromium`; others: CHROMIUM=/path/to/it)."""
    if CHROMIUM is None:
        pytest.skip("no chromium here: install it, or name one with CHROMIUM")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=_QUIET)
        yield Browser(running)
        running.close()
