"""One self-contained HTML page from a template: light and dark, on a phone and on paper, and nothing from a network."""

from __future__ import annotations

import base64
import io
import secrets
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

_TEMPLATES = Path(__file__).with_name("templates")


def render(template: str, **values: Any) -> str:
    """The text of `template`, a file in templates/ that extends base.html; a value that it lacks is an error of ours.

    Values are escaped, so that a class called `<b>` is shown as it is called.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["picture"] = picture
    return environment.get_template(template).render(**values)


def write(file: Path, text: str) -> None:
    """Writes aside and renames, so that a browser that reloads sees the old or the new page."""
    aside = file.with_name(f"{file.name}.writing-{secrets.token_hex(4)}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(file)


def picture(image: np.ndarray) -> str:
    """A data: address that holds the image, uint8 [height, width, 3], as PNG."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
