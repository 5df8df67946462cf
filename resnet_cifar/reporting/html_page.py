"""One self-contained HTML page from a template: light and dark, on a phone and on paper, and nothing from a network."""

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
    """The text of `template`, a file in templates/; a value that it lacks is an error of ours.

    In HTML values are escaped, so that a class called `<b>` is shown as it is called. A page extends base.html.
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


def write(file: Path, text: str) -> None:
    """Writes aside and renames, so that a browser that reloads sees the old or the new page."""
    with atomic_write(file, flush=False) as temporary:
        temporary.write_text(text, encoding="utf-8")


def picture(image: np.ndarray) -> str:
    """A data: address that holds the image, uint8 [height, width, 3], as PNG."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG", optimize=True)
    return address(stream.getvalue(), "png")


def address(content: bytes, kind: str) -> str:
    """A data: address that holds a picture's file of this kind: `png`, `jpeg` or `svg+xml`."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
