"""The base of every page: self-contained, escaped, and loud where a value is missing."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import jinja2
import numpy as np
import pytest
from PIL import Image

from resnet_cifar.reporting import html_page


@pytest.fixture
def templates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "base.html").write_text((Path(html_page.__file__).with_name("templates") / "base.html").read_text())
    monkeypatch.setattr(html_page, "_TEMPLATES", tmp_path)
    return tmp_path


def test_a_page_asks_no_network_and_escapes_names(templates: Path) -> None:
    (templates / "one.html").write_text('{% extends "base.html" %}{% block main %}{{ name }}{% endblock %}')
    text = html_page.render("one.html", name="<script>alert(1)</script>")
    assert "&lt;script&gt;alert(1)" in text
    assert "<script>" not in text
    assert "default-src 'none'" in text
    assert "http://" not in text and "https://" not in text


def test_names_in_markdown_stay_as_they_are(templates: Path) -> None:
    (templates / "one.md").write_text("{{ name }}\n")
    assert html_page.render("one.md", name="a & b") == "a & b\n"


def test_a_value_that_is_missing_is_an_error(templates: Path) -> None:
    (templates / "one.html").write_text('{% extends "base.html" %}{% block main %}{{ lost }}{% endblock %}')
    with pytest.raises(jinja2.UndefinedError, match="lost"):
        html_page.render("one.html")


def test_a_picture_is_the_image_to_the_pixel() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    head, _, code = html_page.image_url(image).partition(",")
    assert head == "data:image/png;base64"
    assert np.array_equal(np.array(Image.open(io.BytesIO(base64.b64decode(code)))), image)


def test_a_page_is_replaced_whole(tmp_path: Path) -> None:
    file = tmp_path / "index.html"
    html_page.write_page(file, "é1")
    html_page.write_page(file, "é2")
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]
    assert file.read_text(encoding="utf-8") == "é2"


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "index.html").mkdir()
    with pytest.raises(OSError):
        html_page.write_page(tmp_path / "index.html", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]
