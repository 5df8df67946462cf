"""Nested plain values -> a checked recipe, and the checks across fields."""

from __future__ import annotations

import math
from typing import Any

from pydantic import TypeAdapter, ValidationError

from resnet_cifar.config.diff import field_paths, flatten
from resnet_cifar.config.errors import FILE_NAME, UserError, check_name, did_you_mean
from resnet_cifar.config.schema import Recipe

_ADAPTER = TypeAdapter(Recipe)


def parse(values: dict[str, Any]) -> Recipe:
    """A checked recipe from nested plain values (from YAML or the command line).

    Raises UserError for the first unknown field, wrong type or impossible value, with the field's path.
    """
    try:
        recipe = _ADAPTER.validate_python(values)
    except ValidationError as error:
        raise UserError(_sentence(error)) from None
    for path, value in flatten(recipe).items():
        if isinstance(value, str):
            check_name(path, value, FILE_NAME)
    check_across(recipe)
    return recipe


def check_across(recipe: Recipe) -> None:
    """Raises UserError where fields contradict each other."""
    batch, unit = recipe.batch_size, row_unit(recipe)
    if batch % unit:
        raise UserError(
            f"batch_size {batch} is not a multiple of {unit} (whole groups of model.ghost_batch_size "
            f"{recipe.model.ghost_batch_size}, even for Mixup's pairs): use {nearest_multiples(batch, unit)}"
        )
    if recipe.micro_batch == "auto":
        if recipe.model.ghost_batch_size is None:
            raise UserError(
                "micro_batch auto needs model.ghost_batch_size, or BatchNorm would see whatever fits the device: set "
                "model.ghost_batch_size to 32"
            )
    elif recipe.micro_batch > batch:
        raise UserError(f"micro_batch {recipe.micro_batch} is larger than batch_size {batch}: lower it, or set 0")
    data = recipe.data
    if not (data.validation_fraction or data.splits.validation or data.overfit_images):
        needed = "needs a validation split: set data.validation_fraction or data.splits.validation, or"
        if recipe.early_stopping.patience:
            raise UserError(f"early_stopping.patience {recipe.early_stopping.patience} {needed} patience to 0")
        if recipe.evaluate.select_by != "accuracy":
            raise UserError(f"evaluate.select_by {recipe.evaluate.select_by} {needed} select_by to accuracy")
    if recipe.data.sampling == recipe.loss.class_weights == "balanced":
        raise UserError(
            "loss.class_weights balanced and data.sampling balanced both correct for class sizes: set one of them to "
            "its default (none, uniform)"
        )
    for index, phase in enumerate(recipe.phases):
        warmup = f"phases.{index}.warmup_epochs {phase.warmup_epochs:g}"
        if recipe.model.head.pool == "flatten" and phase.image_size not in (None, recipe.data.image_size):
            raise UserError(
                f"phases.{index}.image_size {phase.image_size}: model.head.pool flatten takes images of one size, "
                f"data.image_size {recipe.data.image_size}; leave it null, or use another pool"
            )
        if phase.warmup_epochs > phase.epochs:
            raise UserError(f"{warmup} is longer than the phase's {phase.epochs:g} epochs: lower it")
        if phase.schedule == "one-cycle" and phase.warmup_epochs:
            raise UserError(f"{warmup}: one-cycle has its own warm-up; set it to 0")


def row_unit(recipe: Recipe) -> int:
    """Rows that must stay together: whole ghost batches and whole Mixup pairs."""
    return math.lcm(2, recipe.model.ghost_batch_size or 1)


def nearest_multiples(number: int, unit: int) -> str:
    """The multiples of `unit` around `number`, as `A or B`."""
    return " or ".join(str(size) for size in (number // unit * unit, -(-number // unit) * unit) if size)


def _example_under(path: str) -> str:
    """An example of a field under `path`."""
    return next((name for name in field_paths() if name.startswith(path + ".")), "phases.0.lr")


def _sentence(error: ValidationError) -> str:
    problem = error.errors()[0]
    path = ".".join(str(part) for part in problem["loc"] if part not in ("int", "float", "none"))
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        groups = {name.split(".", 1)[0] for name in field_paths()}
        return f"unknown field {path}{did_you_mean(path, [*sorted(groups), *field_paths()]) or '; --help shows all'}"
    if problem["type"] == "missing":
        return f"{path} is missing: give it a value"
    if path == "phases":
        example = "- {epochs: 20, lr: 0.02}"
        return f"phases cannot be {problem['input']!r}: it should be a list of at least one phase, such as `{example}`"
    reasons = {
        "bool_parsing": "it should be True or False",
        "bool_type": "it should be True or False",
        "dataclass_type": f"it should have fields under it, such as {_example_under(path)}",
    }
    message = problem["msg"].replace("Input should", "it should").removeprefix("Value error, ")
    reason = reasons.get(problem["type"], message)
    return f"{path} cannot be {problem['input']!r}: {reason}"
