"""Renders self-contained HTML pages from templates: no network requests, light and dark, phone and print."""

from __future__ import annotations

import base64
import functools
import io
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from resnet_cifar.atomic_io import atomic_write

_TEMPLATES = Path(__file__).with_name("templates")


def render(template: str, **values: Any) -> str:
    """The text of `template`, a file in templates/. A missing value raises jinja2.UndefinedError.

    HTML is escaped, so a class named `<b>` shows its name. Pages extend base.html.
    """
    return _environment(_TEMPLATES).get_template(template).render(**values)


@functools.cache
def _environment(folder: Path) -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=jinja2.select_autoescape(),  # .html, and not .md
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def write_page(file: Path, text: str) -> None:
    """Writes the page atomically: a browser that reloads sees the old or the new one."""
    with atomic_write(file, flush=False) as aside:
        aside.write_text(text, encoding="utf-8")


def image_url(image: np.ndarray, kind: str = "png", **options: Any) -> str:
    """A data: URL of uint8 [height, width, 3], encoded by Pillow as `kind` with `options`."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind, optimize=True, **options)
    return data_url(stream.getvalue(), kind)


def data_url(content: bytes, kind: str) -> str:
    """A data: URL of an encoded image; `kind`: `png`, `jpeg` or `svg+xml`."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
