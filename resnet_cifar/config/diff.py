"""A recipe as nested and flat plain values, its fingerprint, and the differences between two recipes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from resnet_cifar.config.schema import Recipe

# These may differ between two attempts at one run; with early stopping, evaluations may not.
_NOT_DECISIVE = ("track.", "checkpoint.", "rank_timeout", "refit_of", "data.storage", "evaluate.every_epochs")
_NO_DEFAULT = object()


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Nested plain values for YAML and JSON; `parse` reads them back."""
    return _plain(dataclasses.asdict(recipe))


def flatten(recipe: Recipe) -> dict[str, Any]:
    """Field path -> value, e.g. {"phases.0.lr": 0.1, ...}."""
    return dict(_leaves(to_dict(recipe), ""))


def fingerprint(recipe: Recipe) -> str:
    """Eight hex digits of the fields that decide the result and differ from their defaults.

    A field that is added later therefore leaves the names of existing runs as they are.
    """
    defaults = flatten(Recipe())
    for name in ("epochs", "lr"):
        del defaults[f"phases.0.{name}"]  # every phase states them
    chosen = {
        path: value
        for path, value in _decisive(recipe).items()
        if value != defaults.get(re.sub(r"^phases\.\d+", "phases.0", path), _NO_DEFAULT)
    }
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:8]


def differences(ours: Recipe, theirs: Recipe) -> list[str]:
    """The decisive fields that differ, as `field: theirs, not ours`."""
    decisive = _decisive(ours).keys() | _decisive(theirs).keys()
    fields = differing_fields([ours, theirs], absent="absent")
    return [f"{path}: {b}, not {a}" for path, (a, b) in sorted(fields.items()) if path in decisive]


def differing_fields(
    recipes: Sequence[Recipe], ignored: tuple[str, ...] = (), absent: Any = "-"
) -> dict[str, list[Any]]:
    """Field path -> its value in each recipe, for the fields that differ and do not begin with one of `ignored`."""
    values = [flatten(recipe) for recipe in recipes]
    paths = dict.fromkeys(path for each in values for path in each if not path.startswith(ignored))  # an ordered set
    differing = [path for path in paths if any(each.get(path) != values[0].get(path) for each in values)]
    return {path: [each.get(path, absent) for each in values] for path in differing}


def recipe_key(recipe: Recipe) -> str:
    """The same for recipes that differ at most in their seed and in what does not decide the result."""
    return fingerprint(dataclasses.replace(recipe, seed=0))


def varying_fields(recipes: Sequence[Recipe]) -> dict[str, list[Any]]:
    """Field path -> its value in each recipe, for the decisive fields other than the seed that differ."""
    decisive = {path for recipe in recipes for path in _decisive(recipe)} - {"seed"}
    return {path: values for path, values in differing_fields(recipes).items() if path in decisive}


def _decisive(recipe: Recipe) -> dict[str, Any]:
    ignored = _NOT_DECISIVE[:-1] if recipe.early_stopping.patience else _NOT_DECISIVE
    return {path: value for path, value in flatten(recipe).items() if not path.startswith(ignored)}


def field_paths() -> list[str]:
    """The fields of a recipe with one phase."""
    return list(flatten(Recipe()))


def _plain(value: Any) -> Any:
    """The same with lists for tuples."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list) and value and isinstance(value[0], dict):  # phases; other lists are values
        items = list(enumerate(value))
    else:
        yield path, value
        return
    for key, each in items:
        yield from _leaves(each, f"{path}.{key}" if path else str(key))
