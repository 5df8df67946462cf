"""Command lines: a documented dataclass gives a command's options, and `--FIELD VALUE` overrides the recipe.

argparse parses the options; what it reports becomes a UserError.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import math
import re
import textwrap
import typing
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from resnet_cifar.cli.entry import print_once
from resnet_cifar.config import synonyms
from resnet_cifar.config.diff import field_paths, flatten
from resnet_cifar.config.errors import FILE_NAME, UserError, check_name
from resnet_cifar.config.loading import is_digits, is_field, read_recipe
from resnet_cifar.config.schema import Recipe
from resnet_cifar.config.validation import unknown_field

T = TypeVar("T")


def parse(kind: type[T], usage: str, arguments: list[str], fields: tuple[str, ...] = ()) -> tuple[T, dict[str, str]]:
    """The command's options, and overrides of the recipe (field path -> word). Raises UserError; exits after --help.

    `kind`: a dataclass with a docstring below each field. Fields without a default are positional, and one with the
    metadata `positional` that may be left out; a tuple takes one word or more, an option with the metadata `const` one
    word or none. `fields`: prefixes of the recipe's fields that the command accepts; `""` is all.
    """
    parser = _OptionParser(kind, usage, fields)
    words, overrides = parser.split(deque(arguments))
    try:
        found, positionals = parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise UserError(parser.sentence(error)) from None
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in vars(found).items()}
    if values.pop("help", False):
        parser.show_help(
            values.get("recipe") or (positionals[0] if parser.takes_recipe and positionals else "finetune")
        )
    values |= parser.positionals(positionals)
    for name, value in values.items():
        if isinstance(value, str):
            check_name(_flag(name), value, FILE_NAME)
    return kind(**values), overrides


class _HelpFormatter(argparse.HelpFormatter):
    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(super(_HelpFormatter, self)._fill_text(line, width, indent) for line in text.splitlines())


class _OptionParser(argparse.ArgumentParser):
    """argparse's parser of the options; `--recipe-fields` are split off before, positionals are assigned afterwards."""

    def __init__(self, kind: type, usage: str, fields: tuple[str, ...]) -> None:
        super().__init__(
            usage=usage,
            description=kind.__doc__,
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
            add_help=False,
            exit_on_error=False,
            argument_default=argparse.SUPPRESS,
        )
        self._fields = fields
        self._types = typing.get_type_hints(kind)
        self._options = {field.name: field for field in dataclasses.fields(kind) if not _is_positional(field)}
        self._positionals = [field.name for field in dataclasses.fields(kind) if _is_positional(field)]
        self._needed = sum(not _has_default(field) for field in dataclasses.fields(kind))
        self.takes_recipe = self._positionals == ["recipe"]
        docs = dict(_documentation(kind))
        if self._positionals:
            arguments = [f"{name.upper()}: {docs[name]}" for name in self._positionals]
            self.description = "\n".join([" ".join(kind.__doc__.split()), *arguments])
        for name, field in self._options.items():
            text = docs[name].replace("%", "%%")
            if isinstance(field.default, str | int) and field.default:
                text += f" (default: {field.default})"
            self.add_argument(_flag(name), help=text, **self._settings(name))
        self.add_argument("-h", "--help", action="store_true", help="show this page and exit")

    def _settings(self, name: str) -> dict[str, Any]:
        kind = self._types[name]
        if kind is bool:
            return {"action": "store_true"}
        if typing.get_origin(kind) is tuple:
            return {"action": "extend", "nargs": "+", "metavar": self._example(name)}
        if choices := typing.get_args(kind):
            return {"type": _choice(choices), "metavar": "|".join(filter(None, choices))}
        numbers = {int: (positive_integer, "N"), float: (positive_number, "X")}
        convert, metavar = numbers.get(kind, (str, name.upper()))
        return {"type": convert, "metavar": metavar}

    def split(self, words: deque[str]) -> tuple[list[str], dict[str, str]]:
        """The words that are not about the recipe, options spelled with dashes, and the overrides. Raises UserError."""
        rest: list[str] = []
        overrides: dict[str, str] = {}
        while words:
            word = words.popleft()
            if not word.startswith("--"):
                if re.fullmatch("-[a-gi-z]", word):  # of others: here all options are words
                    self._refuse(word, word[1:], words[0] if words else None)
                rest.append(word)
                continue
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            if name in self._options or name == "help":
                const = self._options[name].metadata.get("const") if name in self._options else None
                if const and not equals and not (words and is_digits(words[0])):
                    equals, value = "=", const
                rest.append(_flag(name) + equals + value)
                continue
            if not is_field(name) or not self._fields:
                given = words[0] if words and not words[0].startswith("--") else None
                self._refuse(word.partition("=")[0], name, value if equals else given)
            self._check_changeable(f"--{name}", name)
            if not equals:
                if not words or words[0].startswith("--"):
                    generic = ".".join("0" if is_digits(part) else part for part in name.split("."))
                    default = "128,64" if name == "model.head.hidden_dims" else flatten(Recipe())[generic]
                    raise UserError(f"--{name} needs a value, for example --{name} {default}")
                value = words.popleft()
            overrides[name] = value
        return rest, overrides

    def _check_changeable(self, start: str, name: str) -> None:
        if not name.startswith(self._fields):
            *others, last = (f"--{prefix}" + "*" * prefix.endswith(".") for prefix in self._fields)
            only = f"{', '.join(others)} and {last}" if others else last
            raise UserError(f"{start} cannot be changed here: only {only} can")

    def _refuse(self, word: str, name: str, value: str | None) -> typing.NoReturn:
        known = [_flag(option)[2:] for option in self._options] + (field_paths() if self._fields else [])
        what = "field" if self._fields else "option"
        for positional in self._positionals:
            if synonyms.is_positional(name, positional):
                usage = self.usage.replace("%%", "%")
                raise UserError(f"unknown {what} {word}: {positional.upper()} is given without a flag: {usage}")
        found = synonyms.meaning(name, known)
        if found is not None and self._fields and is_field(found.target):
            self._check_changeable(f"unknown {what} {word}: {found.target}", found.target)
            is_switch = found.value is None and isinstance(flatten(Recipe()).get(found.target), bool)
            value = "True" if is_switch and value is None else value
        raise UserError(unknown_field(word, name, value, known, synonyms.as_flag, what))

    def positionals(self, words: list[str]) -> dict[str, Any]:
        """The positional fields' values. Raises UserError."""
        names, usage = self._positionals, self.usage.replace("%%", "%")
        takes_rest = bool(names) and typing.get_origin(self._types[names[-1]]) is tuple
        if len(words) < self._needed:
            raise UserError(f"{names[len(words)].upper()} is missing: {usage}")
        if len(words) > len(names) and not takes_rest:
            raise UserError(f"{words[len(names)]!r} belongs to no option: {usage}")
        values: list[Any] = words[: len(names)]
        if takes_rest:
            values[-1] = tuple(words[len(names) - 1 :])
        return dict(zip(names, values, strict=False))  # those at the end may be left out

    def sentence(self, error: argparse.ArgumentError) -> str:
        """argparse's error as a sentence with the option, its value and the fix."""
        flag = error.argument_name.split("/")[-1]
        if found := re.fullmatch(r"ignored explicit argument (.*)", error.message):
            return f"{flag} takes no value: remove {found[1]}"
        if error.message.startswith("expected"):
            return f"{flag} needs a value, for example {flag} {self._example(flag[2:].replace('-', '_'))}"
        return f"{flag} {error.message}"

    def _example(self, name: str) -> Any:
        kind = self._types[name]
        if kind in (int, float):
            return 10
        if typing.get_origin(kind) is tuple:
            return "PATH"
        return self._options[name].default or next(filter(None, typing.get_args(kind)), "NAME")

    def show_help(self, recipe: str) -> typing.NoReturn:
        """Prints the options, and below them the recipe's fields with its values; exits."""
        if self._fields:
            docs, is_runs = dict(_documentation(Recipe)), "target" in self._positionals
            recipe_words = "the run's own" if is_runs else recipe
            sections: dict[str, Any] = {}
            for path, value in flatten(read_recipe(recipe)).items():
                if not path.startswith(self._fields):
                    continue
                section = path.split(".")[0] if "." in path else f"fields of the recipe (defaults: {recipe_words})"
                if section not in sections:
                    sections[section] = self.add_argument_group(section, docs.get(section, ""))
                default = recipe_words if is_runs else str(value) or repr(value)
                text = f"{docs[re.sub(r'^phases.[0-9]+', 'phases.0', path)]} (default: {default})"
                sections[section].add_argument(f"--{path}", metavar="", help=text.replace("%", "%%"))
        print_once(self.format_help())
        raise SystemExit(0)


def is_written_by(file: Path, command: str) -> bool:
    """Whether `resnet-cifar COMMAND` has written a file: its pages and tables say so, in reporting/templates."""
    return file.is_file() and f"written by resnet-cifar {command}" in file.read_text("utf-8", errors="replace")


def check_page(file: Path, command: str) -> None:
    """Raises UserError where the page of a command would replace something else."""
    if file.is_file() and not is_written_by(file, command):
        raise UserError(f"--out {file} exists and is not a page of this command: name another file")


def positive_number(word: str) -> float:
    """A number above 0, for argparse."""
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"cannot be {word!r}: it should be a number above 0")
    return value


def positive_integer(word: str) -> int:
    """A whole number above 0, for argparse."""
    if not (is_digits(word) and int(word)):
        raise argparse.ArgumentTypeError(f"cannot be {word!r}: it should be a whole number above 0")
    return int(word)


def _choice(choices: tuple[str, ...]) -> Callable[[str], str]:
    def choose(word: str) -> str:
        if word not in choices or not word:
            raise argparse.ArgumentTypeError(f"cannot be {word!r}: it should be {' or '.join(filter(None, choices))}")
        return word

    return choose


def _is_positional(field: dataclasses.Field) -> bool:
    return not _has_default(field) or "positional" in field.metadata


def _has_default(field: dataclasses.Field) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _documentation(kind: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(path, docstring) of a dataclass's fields and of those below them, from the source."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    docs = {
        field.target.id: " ".join(text.value.value.split())
        for field, text in zip(definition.body, definition.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint, path = hints[field.name], prefix + field.name
        (inner,) = typing.get_args(hint)[:1] if typing.get_origin(hint) is tuple else (hint,)
        is_section = dataclasses.is_dataclass(inner)
        yield path, docs.get(field.name) or (inspect.getdoc(inner) if is_section else "")
        if is_section:
            yield from _documentation(inner, f"{path}." if inner is hint else f"{path}.0.")
