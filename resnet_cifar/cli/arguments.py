"""TODO."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from resnet_cifar.config.diff import field_paths, flatten
from resnet_cifar.config.errors import UserError, did_you_mean
from resnet_cifar.config.loading import is_digits, is_field
from resnet_cifar.config.schema import Recipe


def split_arguments(
    arguments: list[str],
    values: tuple[str, ...],
    flags: tuple[str, ...],
    lists: tuple[str, ...] = (),
    numbers: Mapping[str, str] = MappingProxyType({}),
) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """The command's own options, overrides of the recipe, and words that belong to no option.

    `values`, `flags`, `lists`: own options of one word, of none, and of all words up to the next option. `numbers`:
    options of one word or none, with the word that none stands for; the next word is theirs where it is a number.
    """
    own: dict[str, Any] = {}
    overrides: dict[str, str] = {}
    rest: list[str] = []
    words = deque(arguments)
    while words:
        word = words.popleft()
        if word in ("-h", "--help"):
            own["help"] = True
            continue
        if not word.startswith("--"):
            rest.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        if name in flags:
            if equals:
                raise UserError(f"--{name} takes no value: leave {value!r} away")
            own[name] = True
            continue
        if name in numbers:
            follows = not equals and words and is_digits(words[0])
            own[name] = value if equals else words.popleft() if follows else numbers[name]
            continue
        if name not in (*values, *lists) and not is_field(name):
            mend = did_you_mean(name, [*values, *flags, *lists, *numbers, *field_paths()]) or "; --help shows all"
            raise UserError(f"unknown field --{name}{mend}")
        if not equals:
            if not words or words[0].startswith("--"):
                raise UserError(f"--{name} needs a value, for example --{name} {_example(name)}")
            value = words.popleft()
        if name in lists:
            own[name] = (*own.get(name, ()), value)
            while words and not equals and not words[0].startswith("-"):
                own[name] += (words.popleft(),)
            continue
        (own if name in values else overrides)[name] = value
    return own, overrides, rest


def positive_number(name: str, word: str) -> float:
    """The number that `--NAME WORD` gives, above 0. Raises UserError."""
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UserError(f"--{name} cannot be {word!r}: it should be a number above 0")
    return value


def positive_integer(name: str, word: str) -> int:
    """The whole number that `--NAME WORD` gives, above 0. Raises UserError."""
    if not (is_digits(word) and int(word)):
        raise UserError(f"--{name} cannot be {word!r}: it should be a whole number above 0")
    return int(word)


def _example(path: str) -> Any:
    if path in ("extend_epochs", "max_minutes", "profile_steps", "older_than", "trials", "prune"):
        return 10
    if path in ("images", "seeds"):
        return {"images": "FOLDER", "seeds": "0..4"}[path]
    if path == "model.head.hidden_dims":
        return "128,64"
    return flatten(Recipe()).get(".".join("0" if is_digits(part) else part for part in path.split(".")), "NAME")
