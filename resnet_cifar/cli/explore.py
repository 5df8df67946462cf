"""`resnet-cifar explore SOURCE [--recipe NAME] [--FIELD VALUE ...]`: writes a page about a data source's images.

It reads them as training does, from the same cache and with the recipe's splits and augmentations.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_cifar.cli.parser import check_page, parse
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.config.schema import Recipe

if TYPE_CHECKING:
    from resnet_cifar.reporting.dataset_report.image_headers import Originals
    from resnet_cifar.reporting.dataset_report.near_duplicates import Duplicates
    from resnet_cifar.reporting.dataset_report.pixel_stats import Statistics


@dataclass(frozen=True)
class ExploreOptions:
    """Write a page about a source's images: class balance, samples, pixel statistics, duplicates and augmentations."""

    source: str
    """As data.source: a dataset on the Hub, a directory, a file, or `synthetic`."""
    recipe: str = "finetune"
    """The shipped recipe or YAML file whose splits and augmentations are used."""
    out: str = ""
    """The page [default: explore-NAME.html, named after the source]."""


def parse_arguments(arguments: list[str]) -> tuple[ExploreOptions, Recipe]:
    """The options and the recipe. Exits after --help; raises UserError."""
    usage = "resnet-cifar explore SOURCE [--recipe NAME|FILE] [--FIELD VALUE ...]"
    options, overrides = parse(ExploreOptions, usage, arguments, fields=("",))
    if "data.source" in overrides:
        raise UserError(
            f"--data.source {overrides['data.source']} and {options.source} both name the source: remove one of them"
        )
    return options, read_recipe(options.recipe, {"data.source": options.source, **overrides})


def main(arguments: list[str]) -> None:
    """Writes the page and prints its path and the main findings. Raises UserError."""
    options, recipe = parse_arguments(arguments)
    file = _output_file(options.out, options.source)

    from resnet_cifar.data.sources.registry import go_offline_if_unreachable

    images_only = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, pretrained=False))
    go_offline_if_unreachable(images_only)

    from resnet_cifar.reporting import html_page

    values, summary = _analyze(recipe)
    command = shlex.join(["resnet-cifar", "explore", *arguments])
    text = html_page.render("explore.html", command=command, recipe_name=options.recipe, **values)
    try:
        html_page.write_page(file, text)
    except OSError as error:
        raise UserError(f"--out {file} cannot be written ({error.strerror}): name another file") from None
    for name, value in summary:
        print(f"{name:<12} {value}")
    print(f"{'page':<12} {file} ({len(text.encode()) / 1e6:.1f} MB)", flush=True)


def _output_file(out: str, source: str) -> Path:
    """The file to write. Raises UserError if it cannot be, or if it holds something else."""
    name = re.sub(r"[^\w.-]+", "-", _name(source)).strip("-.")
    file = Path(out or f"explore-{name or 'source'}.html")
    if file.is_dir():
        raise UserError(f"--out {file} is a directory: name a file, such as {file / 'explore.html'}")
    if not file.parent.is_dir():
        raise UserError(f"--out {file}: there is no directory {file.parent}: create it, or name another file")
    check_page(file, "explore")
    return file


def _name(source: str) -> str:
    """A short name of the source."""
    return Path(source).expanduser().resolve().stem


def _analyze(recipe: Recipe) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The values of the page's template, and (name, value) lines for the terminal. Raises UserError."""
    import torch

    from resnet_cifar.data import prepared_data
    from resnet_cifar.reporting.dataset_report import charts, near_duplicates, page_context, pixel_stats, samples
    from resnet_cifar.reporting.dataset_report.augmentation_preview import Training
    from resnet_cifar.training import preflight
    from resnet_cifar.training.plan import Plan

    recipe = preflight.resolve(recipe)
    data = prepared_data.load(prepared_data.prepare(recipe.data), recipe, torch.device("cpu"))
    # Early, for what they may refuse.
    plan = Plan(recipe, data.epoch_images, 1, class_counts=data.class_counts().get("train", {}))
    training = Training(data, recipe, plan.image_size)
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
        "origins": data.origins,
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
    return values, _summary(values, found, doubled)


def _originals(recipe: Recipe) -> tuple[list[Originals], str]:
    """Metadata of the source's image files, or why it cannot be read now although its decoded images are cached."""
    from resnet_cifar.data.sources.registry import find_source
    from resnet_cifar.reporting.dataset_report.image_headers import survey

    try:
        contents = find_source(recipe.data.source).read(recipe.data)
    except UserError as mistake:
        return [], str(mistake)
    return [survey(split) for split in contents.splits.values()], ""


def _summary(values: dict[str, Any], found: Statistics, doubled: Duplicates) -> list[tuple[str, str]]:
    height, width = values["size"]
    counts = ", ".join(f"{count:,} {name}" for name, count in values["parts"].items())
    mean, std = (", ".join(f"{value:.4f}" for value in three) for three in (found.mean, found.std))
    kinds = [pair.kind for pair in doubled.pairs]
    doubt = " (doubtful: too many images look alike, see the page)" if doubled.unreliable else ""
    tested = doubled.elsewhere.get("test", 0)
    lines = [
        ("images", f"{counts}; {len(values['classes']):,} classes, stored at {width}x{height}"),
        ("splits", values["origins"]),
        ("mean", f"{mean} (of {found.images:,} training and validation images)"),
        ("std", std),
        ("copies", f"{len(kinds):,} pairs; {tested:,} test images have one in training or validation{doubt}"),
    ]
    if kinds.count("labels"):
        lines.append(("labels", f"{kinds.count('labels'):,} of these pairs have two labels"))
    return lines + [("remark", remark) for remark in values["remarks"]]
