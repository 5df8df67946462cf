"""The eval command: a trained model's scores on its own images, or on any others of its classes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resnet_cifar.cli.scoring import EvalCommand, target_recipe
from resnet_cifar.config.diff import flatten
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Recipe
from resnet_cifar.data import image_data
from resnet_cifar.data.image_data import ImageData
from resnet_cifar.data.preprocess import Preprocess
from resnet_cifar.data.sampling import bn_indices
from resnet_cifar.distributed.context import DistributedContext
from resnet_cifar.evaluation import loaded_model, metrics, results_io
from resnet_cifar.evaluation import target as targets
from resnet_cifar.evaluation.loaded_model import LoadedModel
from resnet_cifar.evaluation.predict import Predictions, fit_temperature_on_validation, precise_bn, predict
from resnet_cifar.evaluation.target import Target
from resnet_cifar.reporting import artifacts
from resnet_cifar.reporting.console import Screen

_DIGITS = 6  # of a digest that tells settings apart
_SIGHT = ("image_size", "interpolation", "normalize")  # how images are seen, not which


def evaluate(command: EvalCommand, recipe: Recipe) -> None:
    """Scores `command.target` on a split, prints the scores and writes them. Raises UserError."""
    target = targets.find_target(Path(command.target))
    own = target_recipe(target)
    before = flatten(own)
    changed = {path: value for path, value in flatten(recipe).items() if before.get(path) != value}
    context = DistributedContext(recipe.precision)
    recipe = dataclasses.replace(recipe, precision=context.precision)
    screen = Screen(shown=context.is_main)
    model = loaded_model.load_model(target, recipe, context)
    entry = context.run_on_main(lambda: str(image_data.prepare(recipe.data)), per_node=True)
    data = image_data.load(Path(entry), recipe, context.device)
    is_foreign = "data.source" in changed and model.fingerprint != data.fingerprint
    if is_foreign and command.split == "test" and "data.test_fraction" not in changed:
        # Nothing of it has been trained on: where it has no test split, all of it is one.
        recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, test_fraction=1.0))
        data = image_data.load(Path(entry), recipe, context.device)
    images = data.test if command.split == "test" else data.validation
    if not len(images):
        raise UserError("--split validation is empty, no images were held out (data.validation_fraction 0): take test")
    places = class_places(data.classes, model.classes, recipe.data.source)
    images = dataclasses.replace(images, labels=torch.tensor(places, device=context.device)[images.labels])

    if model.fingerprint != data.fingerprint or not len(data.train):
        model.check_fresh()
    elif not model.is_fresh:
        rows = bn_indices(recipe.seed, len(data.train))
        precise_bn(context, model.plain, data.train, model.preprocess, rows)

    stopwatch = Stopwatch(context.device)
    predictions = predict(context, model.model, images, model.preprocess, stopwatch)
    speed = stopwatch.images_per_second(len(images))
    flipped = (
        predict(context, model.model, images, Mirrored(**vars(model.preprocess))) if command.tta == "flip" else None
    )
    temperature, origin = _temperature(context, model, data, own, recipe)
    is_other = model.fingerprint not in (None, data.fingerprint)
    changed |= {"fingerprint": data.fingerprint} if is_other else {}
    name = file_name(command, target, model.name, changed)
    folder = Path(command.out) if command.out else target.results
    if context.is_main:
        found = {
            **results_io.evaluation_facts(command.split, recipe, data.fingerprint, model.name),
            **metrics.full(*predictions, model.classes, temperature),
            **({} if flipped is None else {"flip": metrics.overall(*mean(predictions, flipped))}),
            "throughput": {"images_per_second": speed, "processes": context.size, "device": context.describe()},
        }
        if is_other:
            screen.warn("these are not the images that the model was trained on, or they have changed since")
        try:
            extra = None if flipped is None else flipped.logits
            written = results_io.write_results(folder, name, found, *predictions, images.indices, extra)
        except OSError as error:
            raise UserError(
                f"{folder} cannot be written ({error.strerror}), and the scores were {results_io.summary_line(found)}: "
                "make it writable, or name another with --out"
            ) from None
        _show(screen, found, origin, model.remark)
        artifacts.save_example_images(folder, name, predictions, images, temperature, screen.warn)
    context.close()  # the other processes need not wait for the page
    if context.is_main:
        page = artifacts.write_report(folder, name, screen.warn)
        screen.say("written: " + ", ".join(map(str, filter(None, (*written, page)))))


def class_places(classes: Sequence[str], known: Sequence[str], source: str) -> list[int]:
    """For each of a source's classes its place in the head of a model that knows `known`, by name. Raises UserError."""
    places = {name: place for place, name in enumerate(known)}
    lacking = [name for name in classes if name not in places]
    if lacking:
        raise UserError(
            f"data.source {source!r} has classes that the head lacks: {_short(lacking)}; it knows {_short(known)}: "
            "take a source whose classes are among these, in any order"
        )
    return [places[name] for name in classes]


class Mirrored(Preprocess):
    """What the network sees of the mirror images."""

    def __call__(self, images: Tensor, size: int | None = None) -> Tensor:
        """As of an Preprocess."""
        return super().__call__(images.flip(2), size)


def mean(plain: Predictions, flipped: Predictions) -> Predictions:
    """Flip test-time augmentation: the mean of an image's and its mirror image's logits (Jordan 2024, airbench)."""
    return Predictions((plain.logits + flipped.logits) / 2, plain.labels)


class Stopwatch:
    """Times a `predict` as its `check_stop`, without its first batch, which warms up (and compiles)."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._batches, self._began = device, 0, 0.0

    def __call__(self) -> None:
        """Before each batch."""
        self._batches += 1
        if self._batches == 2:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            self._began = time.perf_counter()

    def images_per_second(self, images: int) -> float | None:
        """Of all processes together, when `predict` has just returned; None where there was one batch a process."""
        if self._batches < 2:
            return None
        timed = images * (self._batches - 1) / self._batches
        return round(timed / (time.perf_counter() - self._began), 1)


def file_name(command: EvalCommand, target: Target, weights: str, changed: dict[str, Any]) -> str:
    """NAME of eval-NAME.json: `results_name`, and what `changed` since training (by a digest) and flips besides."""
    parts = [loaded_model.results_name(target, command.split, weights)]
    if "data.source" in changed:
        parts.append(re.sub(r"\W+", "-", Path(changed["data.source"]).name).strip("-"))
    if changed:
        parts.append(hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:_DIGITS])
    if command.tta != "none":
        parts.append(command.tta)
    return "-".join(parts)


def _temperature(
    context: DistributedContext, model: LoadedModel, data: ImageData, own: Recipe, recipe: Recipe
) -> tuple[float | None, str]:
    """(the temperature, where it is from or why there is none): fitted on images that are known to be held out only."""
    as_trained = dataclasses.replace(recipe.data, **{name: getattr(own.data, name) for name in _SIGHT})
    if model.fingerprint == data.fingerprint and as_trained == own.data:
        fitted = fit_temperature_on_validation(context, model.model, data, model.preprocess)
        return fitted, "fitted on the validation split" if fitted else "none: no images held out, or no optimum on them"
    if model.temperature is None:
        return None, "none: none was fitted before, and these images may not be held out"
    return model.temperature, "fitted before"


def _show(screen: Screen, found: dict[str, Any], origin: str, remark: str | None) -> None:
    if remark:
        screen.warn(remark)
    title = f"{found['split']} split of {found['source']}, {found['checkpoint']}: {results_io.summary_line(found)}"
    screen.table(title, results_io.class_lines(found))
    if absent := [name for name, values in found["classes"].items() if not values["images"]]:
        screen.say(f"without images here: {_short(absent)}")
    if "flip" in found:
        screen.say(f"beside it, with flips (mean of two logits): {results_io.summary_line(found['flip'])}")
    if found["temperature"]:
        origin = f"{found['temperature']:.4f} ({origin}): calibration error {found['calibration_error_scaled']:.4f}"
    screen.say(f"temperature: {origin}")
    if speed := found["throughput"]["images_per_second"]:
        where = "{processes} x {device}".format(**found["throughput"])
        screen.say(f"{speed:,.0f} images/s on {where}: resized, scored and gathered, without the first batch")


def _short(classes: Sequence[str]) -> str:
    return ", ".join(classes[:3]) + f", ... ({len(classes)})" * (len(classes) > 3)
