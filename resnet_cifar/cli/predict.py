"""`resnet-cifar predict TARGET PATH ...`: classifies image files with a trained model."""

from __future__ import annotations

import csv
import dataclasses
import glob
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_cifar.cli.parser import parse
from resnet_cifar.config.errors import UserError, printable
from resnet_cifar.config.schema import Recipe
from resnet_cifar.distributed.launcher_env import check_launcher
from resnet_cifar.evaluation import model_location

if TYPE_CHECKING:
    from torch import Tensor

    from resnet_cifar.evaluation.classify_files import ImageFiles
    from resnet_cifar.evaluation.loaded_model import LoadedModel
    from resnet_cifar.reporting.review_page import Pool

INPUT_FIELDS = ("data.image_size", "data.interpolation", "data.normalize")  # what prediction reads of `data`
UNREADABLE = 3  # the exit code if some images cannot be read and the others are classified
_SHOWN = 3  # classes per image in the table
_DIGITS = 6  # decimals of probabilities in JSON and CSV


@dataclass(frozen=True)
class PredictOptions:
    """Classify images with a trained model; prints classes and probabilities in the order given."""

    target: str
    """A run directory (its best checkpoint), a checkpoint (RUN/checkpoints/step-...), a model in timm's format, or
    wandb:ENTITY/PROJECT/NAME:ALIAS."""
    paths: tuple[str, ...]
    """Image files; directories and archives (.zip, .7z, .tar, .tar.gz), which are searched for images in sorted order;
    and patterns in quotes, such as "photos/**/*.jpg"."""
    json: bool = False
    """Print one JSON object per line instead of the table."""
    csv: bool = False
    """Print CSV instead of the table: file, label, probability, one column per class, error."""
    review: str = ""
    """Sort by uncertainty; write this HTML page, on which labels are corrected, and PAGE-labels.csv beside it."""
    review_images: int = 5000
    """Images on the page, the most uncertain ones; PAGE-labels.csv lists all."""


def parse_arguments(arguments: list[str]) -> tuple[PredictOptions, Recipe]:
    """The options and the target's recipe. Exits after --help; raises UserError."""
    usage = "resnet-cifar predict TARGET PATH ... [--json|--csv] [--review PAGE.html] [--precision bf16]"
    options, overrides = parse(PredictOptions, usage, arguments, fields=("precision", *INPUT_FIELDS))
    if options.json and options.csv:
        raise UserError("--json and --csv are two formats of one output: remove one of them")
    if options.review:
        _check_page(Path(options.review))
    check_paths(options.paths)
    return options, model_location.recipe(model_location.find_target(Path(options.target)), overrides)


def check_paths(paths: Sequence[str], option: str = "") -> None:
    """Raises UserError for a word that is neither a file or directory nor a pattern that matches one."""
    for word in paths:
        if not Path(word).exists() and next(glob.iglob(word, recursive=True), None) is None:  # noqa: PTH207
            pattern = ", and it matches none" if glob.has_magic(word) else ""
            raise UserError(f"{option}{word}: there is no such file or directory{pattern}")


def _labels_file(page: Path) -> Path:
    return page.with_name(f"{page.stem}-labels.csv")


def _check_page(page: Path) -> None:
    """Raises UserError if the page or its CSV cannot be written, or would replace corrections."""
    if page.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--review {page}: a page is named .html, such as --review {page.name or 'review'}.html")
    if not page.parent.is_dir():
        raise UserError(f"--review {page}: there is no directory {page.parent}: create it, or name another page")
    for file in (page, _labels_file(page)):
        if file.exists():
            raise UserError(
                f"--review {page}: {file} exists, perhaps with corrections: name another page, or move the file"
            )


def main(arguments: list[str]) -> None:
    """Classifies the images. Raises UserError."""
    parsed = parse_arguments(arguments)
    check_launcher()
    classify_images(*parsed)


def classify_images(options: PredictOptions, recipe: Recipe) -> None:
    """Prints classes and probabilities of every image. Raises UserError, or SystemExit (3) if some cannot be read."""
    from resnet_cifar.distributed.context import DistributedContext
    from resnet_cifar.evaluation import loaded_model
    from resnet_cifar.evaluation.classify_files import ImageFile, ImageFiles, class_probabilities, find_images, share
    from resnet_cifar.reporting import review_page
    from resnet_cifar.reporting.console import Screen, track

    target = model_location.find_target(Path(options.target))
    context = DistributedContext(recipe.precision)
    recipe = dataclasses.replace(recipe, precision=context.precision)
    found = json.loads(context.run_on_main(lambda: json.dumps(find_images(options.paths))))
    images = ImageFiles([ImageFile(*each) for each in found])
    pool = review_page.read_pool(options.paths, images.files) if options.review else None
    model = loaded_model.load_model(target, recipe, context)
    model.check_fresh()
    context.run_on_main(lambda: images.extract(range(len(images))) or "")  # checks all archives, for one sentence
    images.extract(share(context, len(images)))
    bar = partial(track, description="classifying", shown=context.is_main)
    found = class_probabilities(context, model, images, bar)
    order = review_page.ranking(found) if pool else range(len(images))
    if context.is_main and options.json:
        _print_json(images, found, order, model.classes)
    elif context.is_main and options.csv:
        _print_csv(images, found, order, model.classes)
    screen = Screen(shown=context.is_main and not (options.json or options.csv))
    if model.remark:
        screen.warn(model.remark)
    calibration = f"temperature {model.temperature:.4f}" if model.temperature else "not calibrated"
    title = f"{len(images)} images classified by {model.name}, with probabilities ({calibration})"
    rows = ((images.files[row].name, _top(found[row], model.classes) or images.unreadable_reason(row)) for row in order)
    screen.table(title, [(_printable(name), text) for name, text in rows] if context.is_main else [])
    if pool:
        written = context.run_on_main(lambda: _write_review(options, pool, images, found, order, model))
        if context.is_main:
            print(written, file=sys.stderr if options.json or options.csv else sys.stdout, flush=True)
    context.close()
    unreadable = sum(row is None for row in found)
    if unreadable and context.is_main:  # a launcher ends the other processes when one fails
        print(f"error: {unreadable} of {len(images)} images cannot be read", file=sys.stderr, flush=True)
        raise SystemExit(UNREADABLE)


def _print_json(
    images: ImageFiles, found: Sequence[Tensor | None], order: Sequence[int], classes: tuple[str, ...]
) -> None:
    for row in order:
        values = found[row]
        entry = {"error": images.unreadable_reason(row)} if values is None else as_json(values.tolist(), classes)
        print(json.dumps({"file": images.files[row].name, **entry}))


def as_json(row: Sequence[float], classes: Sequence[str]) -> dict[str, Any]:
    """An image's class probabilities [classes] as `predict --json` and `serve` answer them."""
    probabilities = dict(zip(classes, (round(value, _DIGITS) for value in row), strict=True))
    best = classes[max(range(len(row)), key=row.__getitem__)]
    return {"label": best, "probability": probabilities[best], "probabilities": probabilities}


def _print_csv(
    images: ImageFiles, found: Sequence[Tensor | None], order: Sequence[int], classes: tuple[str, ...]
) -> None:
    writer = csv.writer(sys.stdout)
    writer.writerow(["file", "label", "probability", *classes, "error"])
    for row in order:
        file = images.files[row].name
        if found[row] is None:
            writer.writerow([file, *[""] * (2 + len(classes)), images.unreadable_reason(row)])
            continue
        values = [round(value, _DIGITS) for value in found[row].tolist()]
        writer.writerow([file, classes[int(found[row].argmax())], max(values), *values, ""])


def _write_review(
    options: PredictOptions,
    pool: Pool,
    images: ImageFiles,
    found: Sequence[Tensor | None],
    order: Sequence[int],
    model: LoadedModel,
) -> str:
    """Writes the page and its CSV; returns what to print about them."""
    from resnet_cifar.reporting import review_page

    page = Path(options.review)
    labels = _labels_file(page)
    ranked = [(row, found[row]) for row in order if found[row] is not None]
    done = review_page.write(
        page,
        labels,
        pool,
        ranked,
        images,
        model.classes,
        options.target,
        model.preprocess.decoding,
        options.review_images,
    )
    unpacked = "" if pool.source == pool.folder else f" of the unpacked {pool.folder}"
    kept = f", and {len(pool.labeled)} labels of {Path(pool.folder) / review_page.LABELS}" if pool.labeled else ""
    lines = [
        f"page         {page} ({done.images} of {done.listed} images, {done.nbytes / 1e6:.1f} MB)",
        f"predictions  {labels} ({done.listed} images{kept})",
        f"corrected    {Path(pool.source) / review_page.LABELS}, beside the images{unpacked}",
        f"train        {pool.command}",
    ]
    if done.left_out:
        lines.append(f"warning: not in the review, because training reads no files of such names: {done.left_out}")
    return "\n".join(map(printable, lines))


def _top(row: Tensor | None, classes: tuple[str, ...]) -> str:
    if row is None:
        return ""
    values, indices = row.topk(min(_SHOWN, len(classes)))
    return ", ".join(f"{classes[i]} {value:.4f}" for value, i in zip(values.tolist(), indices.tolist(), strict=True))


def _printable(file: str) -> str:
    """A file name with escapes for control characters, and replacement characters for what is not UTF-8."""
    return printable(os.fsencode(file).decode("utf-8", "replace"))
