"""`resnet-cifar predict TARGET PATH ... [--json]`: classifies image files with a trained model."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_cifar.cli.parser import parse
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Recipe
from resnet_cifar.distributed.launcher_env import check_launcher
from resnet_cifar.evaluation import model_location

if TYPE_CHECKING:
    from torch import Tensor

UNREADABLE = 3  # the exit code if some images cannot be read and the others are classified
_SHOWN = 3  # classes per image in the table


@dataclass(frozen=True)
class PredictOptions:
    """Classify images with a trained model; prints classes and probabilities in the order given."""

    target: str
    """A run directory (its best checkpoint), a checkpoint (RUN/checkpoints/step-...), or a model in timm's format."""
    paths: tuple[str, ...]
    """Image files, and directories that are searched for images in sorted order."""
    json: bool = False
    """Print one JSON object per line instead of the table."""


def parse_arguments(arguments: list[str]) -> tuple[PredictOptions, Recipe]:
    """The options and the target's recipe. Exits after --help; raises UserError."""
    usage = "resnet-cifar predict TARGET PATH ... [--json] [--precision bf16]"
    options, overrides = parse(PredictOptions, usage, arguments, fields=("precision", "data."))
    for path in options.paths:
        if not Path(path).exists():
            raise UserError(f"{path}: there is no such file or directory")
    return options, model_location.recipe(model_location.find_target(Path(options.target)), overrides)


def main(arguments: list[str]) -> None:
    """Classifies the images. Raises UserError."""
    parsed = parse_arguments(arguments)
    check_launcher()
    classify_images(*parsed)


def classify_images(options: PredictOptions, recipe: Recipe) -> None:
    """Prints classes and probabilities of every image. Raises UserError, or SystemExit (3) if some cannot be read."""
    from resnet_cifar.data.sources.image_io import unreadable_reason
    from resnet_cifar.distributed.context import DistributedContext
    from resnet_cifar.evaluation import loaded_model
    from resnet_cifar.evaluation.classify_files import class_probabilities, image_files
    from resnet_cifar.reporting.console import Screen, track

    target = model_location.find_target(Path(options.target))
    context = DistributedContext(recipe.precision)
    recipe = dataclasses.replace(recipe, precision=context.precision)
    screen = Screen(shown=context.is_main and not options.json)
    files = json.loads(context.run_on_main(lambda: json.dumps(image_files(options.paths))))
    model = loaded_model.load_model(target, recipe, context)
    model.check_fresh()
    bar = partial(track, description="classifying", shown=context.is_main)
    found = class_probabilities(context, model, files, bar)
    if context.is_main and options.json:
        _print_json(files, found, model.classes)
    if model.remark:
        screen.warn(model.remark)
    calibration = f"temperature {model.temperature:.4f}" if model.temperature else "not calibrated"
    title = f"{len(files)} images classified by {model.name}, with probabilities ({calibration})"
    rows = zip(files, found, strict=True)
    screen.table(title, [(_printable(file), _top(row, model.classes) or unreadable_reason(file)) for file, row in rows])
    context.close()
    unreadable = sum(row is None for row in found)
    if unreadable and context.is_main:  # a launcher ends the other processes when one fails
        print(f"error: {unreadable} of {len(files)} images cannot be read", file=sys.stderr, flush=True)
        raise SystemExit(UNREADABLE)


def _print_json(files: Sequence[str], found: Sequence[Tensor | None], classes: tuple[str, ...]) -> None:
    from resnet_cifar.data.sources.image_io import unreadable_reason

    for file, row in zip(files, found, strict=True):
        found_in = {"error": unreadable_reason(file)} if row is None else as_json(row.tolist(), classes)
        print(json.dumps({"file": file, **found_in}))


def as_json(row: Sequence[float], classes: Sequence[str]) -> dict[str, Any]:
    """An image's class probabilities [classes] as `predict --json` and `serve` answer them."""
    probabilities = dict(zip(classes, (round(value, 6) for value in row), strict=True))
    best = classes[max(range(len(row)), key=row.__getitem__)]
    return {"label": best, "probability": probabilities[best], "probabilities": probabilities}


def _top(row: Tensor | None, classes: tuple[str, ...]) -> str:
    if row is None:
        return ""
    values, indices = row.topk(min(_SHOWN, len(classes)))
    return ", ".join(f"{classes[i]} {value:.4f}" for value, i in zip(values.tolist(), indices.tolist(), strict=True))


def _printable(file: str) -> str:
    """A file name that is not UTF-8, with replacement characters."""
    return os.fsencode(file).decode("utf-8", "replace")
