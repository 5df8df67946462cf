"""The section about exported files in a model card, and their comparison as text."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resnet_cifar.data.sources import image_io
from resnet_cifar.reporting import html_page, model_card

ONNX, INT8, PT2, TIMM = "model.onnx", "model-int8.onnx", "model.pt2", "model.safetensors"
FILES = {ONNX: "ONNX", INT8: "ONNX, int8", PT2: "torch.export", TIMM: "timm"}
_HEADING = "## Exported files"


def lines(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(file, how it compares), of export.json."""
    line = "{} equal argmax, largest difference {}, accuracy {}, {} images/s, {} MB"
    return [(name, line.format(*_values(found, facts["images"]))) for name, found in facts["files"].items()]


def _values(found: Mapping[str, Any], images: int) -> list[str]:
    rate = found["images_per_second"]
    return [
        f"{images - len(found['differing']):,} of {images:,}",
        f"{found['largest_difference']:.2g}",
        f"{found['accuracy']:.4f}",
        f"{rate:,.0f}" if rate else "-",
        f"{found['bytes'] / 1e6:,.1f}",
    ]


def render(model: Path, facts: Mapping[str, Any]) -> str:
    """The card of the exported `model` (a directory in timm's format), followed by a section about the exported files.

    `facts`: the content of export.json.
    """
    card = model / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    preprocess = json.loads((model / "config.json").read_text())["preprocess"]
    section = html_page.render(
        "export_card.md",
        heading=_HEADING,
        rows=[[f"`{name}` ({FILES[name]})", *_values(each, facts["images"])] for name, each in facts["files"].items()],
        facts=facts,
        decode=inspect.getsource(image_io.decode),
        decoded=model_card.decoding_call(preprocess),
    )
    return f"{text.partition(_HEADING)[0].rstrip()}\n\n{section}".lstrip()
