"""Search spaces from words of the command line: `1e-4..1e-1`, `sgd,adamw,lamb`. Imports nothing heavy."""

from __future__ import annotations

import itertools
import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from resnet_cifar.config.diff import to_dict
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import is_digits, read_recipe, with_overrides
from resnet_cifar.config.schema import Recipe

# Trials are compared on the same validation images, evaluated equally often; fields that do not influence the result
# are not searched either.
_FIXED = ("seed", "data.", "evaluate.", "track.", "checkpoint.", "rank_timeout", "deterministic")
_SEARCHABLE = ("data.image_size", "data.interpolation", "data.normalize", "data.sampling")
_NUMBER = r"([-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)"
_RANGE = re.compile(rf"{_NUMBER}\.\.{_NUMBER}")
_DECADE = 10.0
_COMBINATIONS = 1000
_INVALID = object()
_Candidates = dict[str, tuple[str, ...]]  # field -> the ends of its range, or its choices


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; whole numbers if they are `int`."""

    low: float
    high: float

    @property
    def is_log(self) -> bool:
        """Whether it is searched on a log scale: floats above 0 that span a factor of ten or more."""
        return isinstance(self.low, float) and 0 < _DECADE * self.low <= self.high

    def __str__(self) -> str:
        kind = "on a log scale" if self.is_log else "linear" if isinstance(self.low, float) else "whole numbers"
        return f"{self.low} to {self.high}, {kind}"


@dataclass(frozen=True)
class Choices:
    """One of several values, as words of the command line."""

    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"one of {'; '.join(self.words)}"


@dataclass(frozen=True)
class SearchSpace:
    """`ranges`: the searched fields; `recipe`: all other fields, with some valid values of the searched ones."""

    recipe: Recipe
    ranges: dict[str, Range | Choices]

    def recipe_of(self, values: dict[str, Any]) -> Recipe:
        """The recipe with `values` of the searched fields. Raises UserError if they contradict each other."""
        return with_overrides(to_dict(self.recipe), words(values))


def words(values: dict[str, Any]) -> dict[str, str]:
    """Values of searched fields as words of the command line, exact to the last bit."""
    return {path: value if isinstance(value, str) else repr(value) for path, value in values.items()}


def read(name: str, overrides: dict[str, str]) -> SearchSpace:
    """The search space of recipe `name` with `overrides`: field -> value, LOW..HIGH or choices. Raises UserError.

    A word that is valid for its field is a value, even with commas (a list), except in fields that accept any text,
    where commas separate choices. Choices that contain commas are separated by semicolons.
    """
    candidates = {path: found for path, word in overrides.items() if (found := _candidates(path, word))}
    fixed = {path: word for path, word in overrides.items() if path not in candidates}
    recipe = _check_candidates(name, fixed, candidates)
    ranges = {path: _range(path, overrides[path], found) for path, found in candidates.items()}
    for path, found in ranges.items():
        if isinstance(found, Range) and isinstance(found.low, int):
            _check_between(name, fixed, candidates, path, found)
    return SearchSpace(recipe, ranges)


def _candidates(path: str, word: str) -> tuple[str, ...] | None:
    """The ends of a range, or the choices; None if the word is a value. Raises UserError."""
    value = _parse(path, word)
    found = _RANGE.fullmatch(word).groups() if _RANGE.fullmatch(word) and value is _INVALID else None
    is_value = value is not _INVALID and _parse(path, "any text") is _INVALID
    if not found and (";" in word or ("," in word and not is_value)):
        found = tuple(part.strip() for part in word.split(";" if ";" in word else ","))
    if path.startswith(_FIXED) and path not in _SEARCHABLE:
        if found and value is _INVALID and _INVALID not in [_parse(path, part) for part in found]:
            raise UserError(
                f"--{path} {word} cannot be searched, trials are compared on the same seed, images and evaluations: "
                "give one value"
            )
        return None
    if found is None and value is _INVALID and ".." in word:
        raise _invalid(path, word)
    return found


def _range(path: str, word: str, ends: tuple[str, ...]) -> Range | Choices:
    if not _RANGE.fullmatch(word):
        if len(set(ends)) < len(ends):
            raise UserError(f"--{path} cannot be {word!r}: a choice is listed twice, name it once")
        return Choices(ends)
    low, high = (_parse(path, end) for end in ends)
    if not isinstance(low, int | float) or low >= high:  # a list of one number is not a number
        raise _invalid(path, word)
    return Range(low, high)


def _invalid(path: str, word: str) -> UserError:
    return UserError(
        f"--{path} cannot be {word!r}: it should be a value, a range LOW..HIGH such as 1e-4..1e-1, or choices such as "
        "16,32,64"
    )


def _check_candidates(name: str, fixed: dict[str, str], candidates: _Candidates) -> Recipe:
    """Some valid recipe. Raises UserError if an end or a choice is invalid with every candidate of the other fields."""
    found = None
    for path, words_ in candidates.items():
        others = [[(other, word) for word in theirs] for other, theirs in candidates.items() if other != path]
        for word in words_:
            combinations = itertools.islice(itertools.product(*others), _COMBINATIONS)
            recipe = _first_valid(name, ({**fixed, path: word, **dict(rest)} for rest in combinations))
            found = found or recipe
    return found or read_recipe(name, fixed)


def _check_between(name: str, fixed: dict[str, str], candidates: _Candidates, path: str, range_: Range) -> None:
    """Raises UserError if only some numbers in the range are valid, such as multiples of model.ghost_batch_size."""
    try:
        _check_candidates(name, fixed, {**candidates, path: (str(range_.low + 1),)})
    except UserError as error:
        raise UserError(
            f"--{path} {range_.low}..{range_.high} contains invalid numbers ({error}): give choices, such as "
            f"{range_.low},{range_.high}"
        ) from None


def _first_valid(name: str, attempts: Iterator[dict[str, str]]) -> Recipe:
    """The first valid recipe; if there is none, raises the first attempt's UserError."""
    first = None
    for overrides in attempts:
        try:
            return read_recipe(name, overrides)
        except UserError as error:
            first = first or error
    raise first


def _parse(path: str, word: str) -> Any:
    """The field's value of the word, or _INVALID."""
    kind: Any = Recipe
    for part in path.split("."):
        is_place = is_digits(part)  # phases.0
        kind = typing.get_args(kind)[0] if is_place else typing.get_type_hints(kind, include_extras=True)[part]
    try:
        return TypeAdapter(kind).validate_python(word)
    except ValidationError:
        return _INVALID
