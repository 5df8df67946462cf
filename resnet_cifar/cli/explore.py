"""Writes a page about a source's images: `python -m resnet_cifar.cli.explore SOURCE [--recipe NAME] [--FIELD VALUE ...]`.

It reads them as training does, from the same cache and with the recipe's splits and augmentations.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_cifar.cli.entry import run_main
from resnet_cifar.cli.looking import explore_command
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Recipe

if TYPE_CHECKING:
    from resnet_cifar.reporting.dataset_report.near_duplicates import Duplicates
    from resnet_cifar.reporting.dataset_report.pixel_stats import Statistics
    from resnet_cifar.reporting.dataset_report.source_metadata import Originals

_MARK = "written by resnet-cifar explore"  # stands in the page, in its template


def main(arguments: list[str]) -> None:
    """Writes the page and prints where it is and the most important of what it found. Raises UserError."""
    command, recipe = explore_command(arguments)
    file = _place(command.out, command.source)

    from resnet_cifar.data.sources import hf_hub

    images_only = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, pretrained=False))
    hf_hub.settle_offline(images_only)

    from resnet_cifar.reporting import html_page

    values, said = _look(recipe)
    shown = shlex.join(["python", "-m", "resnet_cifar.cli.explore", *arguments])
    text = html_page.render("explore.html", command=shown, recipe_name=command.recipe, **values)
    try:
        html_page.write_page(file, text)
    except OSError as error:
        raise UserError(f"--out {file} cannot be written ({error.strerror}): name another file") from None
    for name, value in said:
        print(f"{name:<12} {value}")
    print(f"{'page':<12} {file} ({len(text.encode()) / 1e6:.1f} MB)", flush=True)


def _place(out: str, source: str) -> Path:
    """Where the page goes. Raises UserError where it cannot, or where something else would be overwritten."""
    name = re.sub(r"[^\w.-]+", "-", _name(source)).strip("-.")
    file = Path(out or f"explore-{name or 'source'}.html")
    if file.is_dir():
        raise UserError(f"--out {file} is a folder: name a file, such as {file / 'explore.html'}")
    if not file.parent.is_dir():
        raise UserError(f"--out {file}: there is no folder {file.parent}: make it, or name another file")
    if file.exists() and _MARK not in file.read_text(encoding="utf-8", errors="replace"):
        raise UserError(f"--out {file} is there and is no page of this command: name another file")
    return file


def _name(source: str) -> str:
    """What a source is called for short."""
    return Path(source).expanduser().resolve().stem


def _look(recipe: Recipe) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The values of the page's template, and lines for the terminal: name and value. Raises UserError."""
    import torch

    from resnet_cifar.data import image_data
    from resnet_cifar.reporting.dataset_report import charts, near_duplicates, page_context, pixel_stats, samples
    from resnet_cifar.reporting.dataset_report.augmentation_preview import Training

    data = image_data.load(image_data.prepare(recipe.data), recipe, torch.device("cpu"))
    training = Training(data, recipe)  # early, for what it may refuse
    parts = page_context.parts(data, recipe)
    trained_on = [images for name, images in parts.items() if name != "test"]
    shown = samples.shown_classes(data.train.labels.numpy(), len(data.classes))
    found = pixel_stats.measure(trained_on, shown)
    doubled = near_duplicates.find_duplicates(parts)
    pictures, why_not = _originals(recipe)
    values = {
        "source": recipe.data.source,
        "name": _name(recipe.data.source),
        "classes": data.classes,
        "parts": {name: len(images) for name, images in parts.items()},
        "size": data.train.size,
        "fingerprint": data.fingerprint,
        "remarks": data.remarks,
        "recipe": recipe,
        "statistics": found,
        "balance": page_context.balance(parts, data.classes),
        "grid": page_context.grid(data.train, shown, data.classes, found),
        "histograms": charts.channel_histograms(found.histograms),
        "cut_off": charts.clipped_values(found.histograms),
        "copies": page_context.duplicates(doubled, parts, data.classes),
        "originals": page_context.originals(pictures, recipe.data.source) if pictures else None,
        "why_no_originals": why_not,
        "augmented": page_context.augmented(training, data, shown),
        "augment_fields": dataclasses.asdict(recipe.augment).items(),
    }
    return values, _said(values, found, doubled)


def _originals(recipe: Recipe) -> tuple[list[Originals], str]:
    """The headers of the source's pictures, or why it cannot be read now, though its decoded images are cached."""
    from resnet_cifar.data.sources.registry import find_source
    from resnet_cifar.reporting.dataset_report.source_metadata import survey

    try:
        contents = find_source(recipe.data.source).read(recipe.data)
    except UserError as mistake:
        return [], str(mistake)
    return [survey(split) for split in (contents.train, contents.test) if split is not None], ""


def _said(values: dict[str, Any], found: Statistics, doubled: Duplicates) -> list[tuple[str, str]]:
    height, width = values["size"]
    counts = ", ".join(f"{count:,} {name}" for name, count in values["parts"].items())
    mean, std = (", ".join(f"{value:.4f}" for value in three) for three in (found.mean, found.std))
    kinds = [pair.kind for pair in doubled.pairs]
    doubt = " (doubtful: too many pictures look alike, see the page)" if doubled.unreliable else ""
    tested = doubled.elsewhere.get("test", 0)
    lines = [
        ("images", f"{counts}; {len(values['classes']):,} classes, stored at {width}x{height}"),
        ("mean", f"{mean} (of {found.images:,} images that are not tested on)"),
        ("std", std),
        ("copies", f"{len(kinds):,} pairs; {tested:,} test images have one in training or validation{doubt}"),
    ]
    if kinds.count("labels"):
        lines.append(("labels", f"{kinds.count('labels'):,} of these pairs have two labels"))
    return lines + [("remark", remark) for remark in values["remarks"]]


if __name__ == "__main__":
    sys.exit(run_main(main))
