"""Nested plain values -> a checked recipe, and the checks across fields."""

from __future__ import annotations

import math
import re
import urllib.parse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from resnet_cifar.config import synonyms
from resnet_cifar.config.diff import field_paths, flatten
from resnet_cifar.config.errors import FILE_NAME, UserError, check_name, did_you_mean, renamed
from resnet_cifar.config.schema import Phase, Recipe, Track

_ADAPTER = TypeAdapter(Recipe)


def parse(values: dict[str, Any]) -> Recipe:
    """A checked recipe from nested plain values (from YAML or the command line).

    Raises UserError for the first unknown field, wrong type or impossible value, with the field's path.
    """
    try:
        recipe = _ADAPTER.validate_python(values)
    except ValidationError as error:
        raise UserError(_sentence(error, values)) from None
    for path, value in flatten(recipe).items():
        if isinstance(value, str):
            check_name(path, value, FILE_NAME)
        if path in ("data.source", "model.name", "model.init_from"):
            _check_home(path, value)
    check_across(recipe)
    return recipe


def _check_home(path: str, value: str) -> None:
    try:
        Path(value.removeprefix("local-dir:")).expanduser()
    except RuntimeError:
        raise UserError(
            f"{path} cannot be {value!r}: there is no such user or home directory; write the whole path"
        ) from None


def check_across(recipe: Recipe) -> None:
    """Raises UserError where fields contradict each other."""
    batch, unit = recipe.batch_size, row_unit(recipe)
    if batch % unit:
        raise UserError(
            f"batch_size {batch} is not a multiple of {unit} (whole groups of model.ghost_batch_size "
            f"{recipe.model.ghost_batch_size}, even for Mixup's pairs): use {nearest_multiples(batch, unit)}"
        )
    if recipe.micro_batch == "auto":
        if recipe.model.norm_rows is None and recipe.model.batchnorm == "batch":
            raise UserError(
                "micro_batch auto needs model.ghost_batch_size, or BatchNorm would see whatever fits the device: set "
                "model.ghost_batch_size to 32"
            )
    elif recipe.micro_batch > batch:
        raise UserError(f"micro_batch {recipe.micro_batch} is larger than batch_size {batch}: lower it, or set 0")
    data = recipe.data
    if recipe.refit_steps and data.overfit_images:
        raise UserError(
            f"refit_steps {recipe.refit_steps} trains on the validation images too, and data.overfit_images "
            f"{data.overfit_images} validates on the images it trains on: set one of them to 0"
        )
    if recipe.refit_steps or not (data.validation_fraction or data.splits.validation or data.overfit_images):
        needed = "needs a validation split: set data.validation_fraction or data.splits.validation, or"
        if recipe.refit_steps:
            needed = f"needs a validation split, which refit_steps {recipe.refit_steps} trains on: set"
        if recipe.early_stopping.patience:
            raise UserError(f"early_stopping.patience {recipe.early_stopping.patience} {needed} patience to 0")
        if recipe.evaluate.select_by != "accuracy":
            raise UserError(f"evaluate.select_by {recipe.evaluate.select_by} {needed} select_by to accuracy")
    if recipe.data.sampling == recipe.loss.class_weights == "balanced":
        raise UserError(
            "loss.class_weights balanced and data.sampling balanced both correct for class sizes: set one of them to "
            "its default (none, uniform)"
        )
    _check_track(recipe.track)
    if not recipe.phases and recipe.model.head.init != "probe":
        raise UserError(
            "phases is empty, so nothing would be trained: add one, such as --phases.0.epochs 20 --phases.0.lr 0.001, "
            "or set model.head.init to probe"
        )
    for index, phase in enumerate(recipe.phases):
        _check_phase(f"phases.{index}", phase, recipe)


def _check_track(track: Track) -> None:
    if track.log_model and not {"wandb", "mlflow"} & {*track.trackers.split(",")}:
        raise UserError(
            f"track.log_model needs a tracker that stores models, and track.trackers is {track.trackers}: add wandb or "
            "mlflow to it, or set log_model to False"
        )
    address = urllib.parse.urlsplit(track.notify)
    if "@" in address.netloc or address.query or address.fragment or address.hostname == "hooks.slack.com":
        raise UserError(  # without the value: this line ends up in a job's log
            "track.notify holds a secret, which recipe.yaml would keep: set a variable to that address and name it, as "
            "env:VARIABLE or slack:VARIABLE"
        )
    if track.notify == "wandb" and "wandb" not in track.trackers.split(","):
        raise UserError(f"track.notify wandb needs W&B, and track.trackers is {track.trackers}: add wandb to it")
    if track.notify_accuracy and not track.notify:
        raise UserError(
            f"track.notify_accuracy {track.notify_accuracy:g} has nobody to tell: set track.notify, such as wandb"
        )


def _check_phase(path: str, phase: Phase, recipe: Recipe) -> None:
    warmup = f"{path}.warmup_epochs {phase.warmup_epochs:g}"
    if recipe.model.head.pool == "flatten" and phase.image_size not in (None, recipe.data.image_size):
        raise UserError(
            f"{path}.image_size {phase.image_size}: model.head.pool flatten takes images of one size, "
            f"data.image_size {recipe.data.image_size}; leave it null, or use another pool"
        )
    if phase.warmup_epochs > phase.epochs:
        raise UserError(f"{warmup} is longer than the phase's {phase.epochs:g} epochs: lower it")
    if phase.schedule == "one-cycle" and phase.warmup_epochs:
        raise UserError(f"{warmup}: one-cycle has its own warm-up; set it to 0")
    if phase.power != 1 and phase.schedule != "polynomial":
        raise UserError(
            f"{path}.power {phase.power:g} belongs to schedule polynomial, not to {phase.schedule}: set "
            f"{path}.schedule to polynomial, or remove power"
        )


def row_unit(recipe: Recipe) -> int:
    """Rows that must stay together: whole ghost batches and whole Mixup pairs."""
    return math.lcm(2, recipe.model.norm_rows or 1)


def nearest_multiples(number: int, unit: int) -> str:
    """The multiples of `unit` around `number`, as `A or B`."""
    return " or ".join(str(size) for size in (number // unit * unit, -(-number // unit) * unit) if size)


def _example_under(path: str, value: Any) -> str:
    """An example of a field under `path`: with the value, if it is what others give there (`model: resnet18`)."""
    found = synonyms.meaning(path, field_paths())
    if found and found.target.startswith(f"{path}.") and value is not None and _fits(found.target, value):
        return f"`{synonyms.as_yaml(found.target, value)}`"
    return next((name for name in field_paths() if name.startswith(path + ".")), "phases.0.lr")


_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
_NO = ("false", "no", "none", "null", "off", "0", "")
_FRACTIONS = {"data.splits.validation": "data.validation_fraction", "data.splits.test": "data.test_fraction"}
_SWITCHED_OFF = {"precision": "no", "track.trackers": "none"}  # where a field's default would leave it on


def unknown_field(
    shown: str, name: str, value: Any, known: Sequence[str], write: Callable[[str, Any], str], what: str = "field"
) -> str:
    """The sentence for an unknown field or option: what is called so elsewhere is answered with its name here.

    `shown`, `name`: as it was given, and as the path of a field; `value`: the one given, if any; `known`: fields and
    options; `write`: writes one of them, with a value or without.
    """
    start = f"unknown {what} {shown}"
    if now := renamed(name, known):
        return f"{start}: it is now called {now}"
    found = synonyms.meaning(name, known)
    if found is not None and found.answer:
        return f"{start}: {found.answer}"
    target = re.sub(r"^phases\.\d+", "phases.0", found.target) if found else ""
    if target not in (*known, *synonyms.OPTIONS):
        return f"{start}{did_you_mean(name, known) or '; --help lists all'}"
    target, is_off = found.target, str(value).lower() in _NO
    if (fraction := _FRACTIONS.get(target)) and value is not None and _fits(fraction, value):
        target = fraction
    if target in synonyms.OPTIONS and target not in known:
        return f"{start}: it is no field of a recipe, but an option of train.py: {synonyms.as_flag(target, value)}"
    if found.value is not None and value is not None and is_off:
        return f"{start}: " + (
            f"use {write(target, _SWITCHED_OFF[target])}" if target in _SWITCHED_OFF else "remove it"
        )
    keeps = found.keeps_value and value is not None and (target in synonyms.OPTIONS or _fits(target, value))
    return f"{start}: use {write(target, value if keeps else found.value)}{found.note}"


def _fits(path: str, value: Any) -> bool:
    """Whether the field takes the value, or each end of a range and each choice of a list, as tune searches them."""
    for word in re.split(r"\.\.|,", value) if isinstance(value, str) else [value]:
        nested: Any = word
        for part in reversed(path.split(".")):
            nested = [{"epochs": 1, "lr": 1} | nested] if part.isdigit() else {part: nested}
        try:
            _ADAPTER.validate_python(nested)
        except ValidationError:
            return False
    return True


def _in_recipe(values: dict[str, Any], loc: tuple[Any, ...]) -> Callable[[str, Any], str]:
    """How a field is written in the recipe `values`, instead of what is at `loc`."""

    def write(path: str, value: Any) -> str:
        *parents, last = path.split(".")
        if parents[:1] == ["phases"] and "phases" in values:
            return synonyms.as_yaml(last, value) + ("" if loc[0] == "phases" else f" in {'.'.join(parents)}")
        if parents[:1] == ["phases"]:  # both are required; the file may have more of a phase's fields at its top
            phase = {"epochs": 20, "lr": 0.02}
            for name, given in values.items():
                found = synonyms.meaning(name, field_paths())
                if found and found.target.startswith("phases.0.") and _fits(found.target, given):
                    phase[found.target.removeprefix("phases.0.")] = given
            return synonyms.as_yaml("phases", [phase | {last: "..." if value is None else value}])
        return synonyms.as_yaml(path, value)

    return write


def _sentence(error: ValidationError, values: dict[str, Any]) -> str:
    problems = error.errors()
    # A field under an unknown name is also missing under its own.
    problem = next((each for each in problems if each["type"] in _UNKNOWN), problems[0])
    path = ".".join(str(part) for part in problem["loc"] if part not in ("int", "float", "none"))
    if problem["type"] in _UNKNOWN:
        groups = {name.split(".", 1)[0] for name in field_paths()}
        known, value = [*sorted(groups), *field_paths()], problem["input"]
        if isinstance(value, dict) and value and not renamed(path, known):  # `training: {epochs: 3}`
            (key, value), *_ = value.items()
            path = f"{path}.{key}"
        return unknown_field(path, path, value, known, _in_recipe(values, problem["loc"]))
    if problem["type"] == "missing":
        return f"{path} is missing: give it a value"
    if path == "phases":
        example = "- {epochs: 20, lr: 0.02}"
        return f"phases cannot be {problem['input']!r}: it should be a list of at least one phase, such as `{example}`"
    reasons = {
        "bool_parsing": "it should be True or False",
        "bool_type": "it should be True or False",
        "dataclass_type": f"it should have fields under it, such as {_example_under(path, problem['input'])}",
    }
    message = problem["msg"].replace("Input should", "it should").removeprefix("Value error, ")
    reason = reasons.get(problem["type"], message)
    value = "what it is set to" if path == "track.notify" else repr(problem["input"])  # a secret, perhaps
    return f"{path} cannot be {value}: {reason}"
