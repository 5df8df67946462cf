"""What a search varies, as words of the command line: `1e-4..1e-1`, `sgd,adamw,lamb`. Imports nothing heavy."""

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

# Trials are compared by their accuracy on the same validation images, scored equally often; what decides nothing is
# not searched either.
_SAME = ("seed", "data.", "evaluate.", "track.", "checkpoint.", "rank_timeout", "deterministic")
_BUT = ("data.image_size", "data.interpolation", "data.normalize")
_NUMBER = r"([-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)"
_RANGE = re.compile(rf"{_NUMBER}\.\.{_NUMBER}")
_DECADE = 10.0
_COMBINATIONS = 1000
_REFUSED = object()
_Ends = dict[str, tuple[str, ...]]  # field -> the ends of its range, or its choices


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included: whole ones where they are `int`."""

    low: float
    high: float

    @property
    def is_log(self) -> bool:
        """Whether it is searched on a log scale: fractions above 0, over a factor of ten or more."""
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
class Search:
    """`ranges`: what is searched, by field; `recipe`: all the rest, with some allowed value of what is searched."""

    recipe: Recipe
    ranges: dict[str, Range | Choices]

    def recipe_of(self, values: dict[str, Any]) -> Recipe:
        """The recipe with `values` of the searched fields. Raises UserError where they contradict each other."""
        return with_overrides(to_dict(self.recipe), words(values))


def words(values: dict[str, Any]) -> dict[str, str]:
    """Values of searched fields as the command line takes them, to the last bit."""
    return {path: value if isinstance(value, str) else repr(value) for path, value in values.items()}


def read(name: str, overrides: dict[str, str]) -> Search:
    """The search of recipe `name` with `overrides`: field -> value, LOW..HIGH or choices. Raises UserError.

    A word that its field takes as it is, is a value, with commas in it too (a list); only in a field that takes any
    text do commas separate choices all the same. Choices with commas in them are separated by semicolons.
    """
    ends = {path: found for path, word in overrides.items() if (found := _ends(path, word))}
    fixed = {path: word for path, word in overrides.items() if path not in ends}
    recipe = _checked(name, fixed, ends)
    ranges = {path: _range(path, overrides[path], found) for path, found in ends.items()}
    for path, found in ranges.items():
        if isinstance(found, Range) and isinstance(found.low, int):
            _check_between(name, fixed, ends, path, found)
    return Search(recipe, ranges)


def _ends(path: str, word: str) -> tuple[str, ...] | None:
    """The ends of a range, or the choices; None where the word is a value. Raises UserError."""
    value = _taken(path, word)
    found = _RANGE.fullmatch(word).groups() if _RANGE.fullmatch(word) and value is _REFUSED else None
    is_value = value is not _REFUSED and _taken(path, "any text") is _REFUSED
    if not found and (";" in word or ("," in word and not is_value)):
        found = tuple(part.strip() for part in word.split(";" if ";" in word else ","))
    if path.startswith(_SAME) and path not in _BUT:
        if found and value is _REFUSED and _REFUSED not in [_taken(path, part) for part in found]:
            raise UserError(
                f"--{path} {word} cannot be searched, trials are compared on one seed's images by the same scores: "
                "give one value"
            )
        return None
    if found is None and value is _REFUSED and ".." in word:
        raise _mistake(path, word)
    return found


def _range(path: str, word: str, ends: tuple[str, ...]) -> Range | Choices:
    if not _RANGE.fullmatch(word):
        if len(set(ends)) < len(ends):
            raise UserError(f"--{path} cannot be {word!r}: a choice stands there twice, name it once")
        return Choices(ends)
    low, high = (_taken(path, end) for end in ends)
    if isinstance(low, str) or low >= high:  # a list of one number is no number
        raise _mistake(path, word)
    return Range(low, high)


def _mistake(path: str, word: str) -> UserError:
    return UserError(
        f"--{path} cannot be {word!r}: it should be a value, a range LOW..HIGH such as 1e-4..1e-1, or choices such as "
        "16,32,64"
    )


def _checked(name: str, fixed: dict[str, str], ends: _Ends) -> Recipe:
    """A recipe of the search. Raises UserError where an end or a choice can have no trial, whatever the other fields."""
    found = None
    for path, candidates in ends.items():
        others = [[(other, word) for word in their] for other, their in ends.items() if other != path]
        for word in candidates:
            combinations = itertools.islice(itertools.product(*others), _COMBINATIONS)
            recipe = _first_taken(name, ({**fixed, path: word, **dict(rest)} for rest in combinations))
            found = found or recipe
    return found or read_recipe(name, fixed)


def _check_between(name: str, fixed: dict[str, str], ends: _Ends, path: str, range_: Range) -> None:
    """Raises UserError where only some numbers between the ends will do, such as multiples of model.ghost_batch_size."""
    try:
        _checked(name, fixed, {**ends, path: (str(range_.low + 1),)})
    except UserError as mistake:
        raise UserError(
            f"--{path} {range_.low}..{range_.high} holds numbers that will not do ({mistake}): give choices, such as "
            f"{range_.low},{range_.high}"
        ) from None


def _first_taken(name: str, attempts: Iterator[dict[str, str]]) -> Recipe:
    """The first recipe without a mistake; where there is none, raises the first one's."""
    first = None
    for overrides in attempts:
        try:
            return read_recipe(name, overrides)
        except UserError as mistake:
            first = first or mistake
    raise first


def _taken(path: str, word: str) -> Any:
    """What the field makes of the word, or _REFUSED."""
    kind: Any = Recipe
    for part in path.split("."):
        if is_digits(part):  # phases.0
            kind = typing.get_args(kind.__origin__)[0]
        else:
            kind = typing.get_type_hints(kind, include_extras=True)[part]
    try:
        return TypeAdapter(kind).validate_python(word)
    except ValidationError:
        return _REFUSED
