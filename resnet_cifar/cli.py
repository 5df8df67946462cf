"""YAML -> recipe -> overrides from the command line -> checked recipe. Imports nothing heavy.

One validator (pydantic, in recipe.py) reads words of the command line and values of YAML alike, so both give the same
sentence for the same mistake.
"""

from __future__ import annotations

import math
import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from resnet_cifar.recipe import LocalMistake, Mistake, Recipe, field_paths, flat, nearest, parse, to_dict


def recipe_names() -> list[str]:
    """The shipped recipes."""
    return sorted(path.name.removesuffix(".yaml") for path in _shipped().iterdir() if path.name.endswith(".yaml"))


def read_recipe(name: str, overrides: dict[str, str] | None = None) -> Recipe:
    """The shipped recipe or YAML file `name`, with `overrides` (field path -> word). Raises Mistake."""
    return with_overrides(read_yaml(name), overrides)


def with_overrides(values: dict[str, Any], overrides: dict[str, str] | None) -> Recipe:
    """The recipe of nested plain values, with `overrides` (field path -> word). Raises Mistake."""
    if "data.source" in (overrides or {}) and isinstance(values.get("data"), dict):
        described = ("name", "splits", "columns")  # of the source that is overridden
        values = {**values, "data": {name: value for name, value in values["data"].items() if name not in described}}
    for path, word in (overrides or {}).items():
        _set(values, path, word)
    recipe = parse(values)
    source = Path(recipe.data.source).expanduser()
    if recipe.data.source != "synthetic" and source.exists():  # a run folder must mean the same from anywhere
        values = to_dict(recipe)
        values["data"]["source"] = str(source.resolve())
        recipe = parse(values)
    return recipe


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Writes the recipe as YAML that `--recipe PATH` reads back to the same values."""
    path.write_text(yaml.safe_dump(to_dict(recipe), sort_keys=False))


def run(main: Callable[[list[str]], None]) -> int:
    """Runs `main` on the command line; the user's mistakes end in one sentence, from one process, and exit code 2."""
    try:
        try:
            main(sys.argv[1:])
        finally:
            sys.stdout.flush()
    except LocalMistake as mistake:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            several_nodes = os.environ.get("WORLD_SIZE") != os.environ.get("LOCAL_WORLD_SIZE")
            print(f"error: {_who() if several_nodes else ''}{mistake}", file=sys.stderr, flush=True)
        return 2
    except Mistake as mistake:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {mistake}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print("\nstopped: the same command starts again", file=sys.stderr, flush=True)
        return 130
    except BrokenPipeError:  # `train.py --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int("torch" in sys.modules)  # training that broke off is no success
    except Exception:
        if "RANK" in os.environ:
            print(f"{_who()}this went wrong:", file=sys.stderr, flush=True)
        raise
    return 0


def _who() -> str:
    """`rank 3 on node2: `, as the launcher numbers this process."""
    return f"rank {os.environ['RANK']} on {socket.gethostname()}: "


def _shipped() -> Any:
    return resources.files("resnet_cifar") / "recipes"


def read_yaml(name: str) -> dict[str, Any]:
    """The nested values of the shipped recipe or YAML file `name`. Raises Mistake."""
    is_file = Path(name).suffix in (".yaml", ".yml") or Path(name).is_file()
    file = Path(name) if is_file else _shipped() / f"{name}.yaml"
    if not file.is_file():
        raise Mistake(f"there is no recipe {name!r}{nearest(name, recipe_names())}; --recipe list shows all")
    try:
        with file.open() as stream:
            values = yaml.load(stream, _Yaml)
    except OSError as error:
        raise Mistake(f"{name} cannot be read ({error.strerror}): name another recipe") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Mistake(f"{name} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise Mistake(f"{name} holds no fields: a recipe is YAML such as `batch_size: 256`")
    return values


class _Yaml(yaml.SafeLoader):
    """Refuses a key that is given twice, of which PyYAML would silently take the last."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                place = key.start_mark
                raise Mistake(f"{place.name}, line {place.line + 1}: {key.value} is given twice: keep one of them")
            seen.add(key.value)
        return node


def first_line(name: str) -> str:
    """What the shipped recipe says of itself."""
    return (_shipped() / f"{name}.yaml").read_text().splitlines()[0].removeprefix("# ")


def split(
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
                raise Mistake(f"--{name} takes no value: leave {value!r} away")
            own[name] = True
            continue
        if name in numbers:
            follows = not equals and words and is_number(words[0])
            own[name] = value if equals else words.popleft() if follows else numbers[name]
            continue
        if name not in (*values, *lists) and not _is_field(name):
            mend = nearest(name, [*values, *flags, *lists, *numbers, *field_paths()]) or "; --help shows all"
            raise Mistake(f"unknown field --{name}{mend}")
        if not equals:
            if not words or words[0].startswith("--"):
                raise Mistake(f"--{name} needs a value, for example --{name} {_example(name)}")
            value = words.popleft()
        if name in lists:
            own[name] = (*own.get(name, ()), value)
            while words and not equals and not words[0].startswith("-"):
                own[name] += (words.popleft(),)
            continue
        (own if name in values else overrides)[name] = value
    return own, overrides, rest


def is_number(word: str) -> bool:
    """Whether the word is a whole number, written in plain digits."""
    return word.isascii() and word.isdigit()


def _is_field(path: str) -> bool:
    parts = path.split(".")
    return ".".join("0" if is_number(part) else part for part in parts) in field_paths()


def positive(name: str, word: str) -> float:
    """The number that `--NAME WORD` gives, above 0. Raises Mistake."""
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise Mistake(f"--{name} cannot be {word!r}: it should be a number above 0")
    return value


def count(name: str, word: str) -> int:
    """The whole number that `--NAME WORD` gives, above 0. Raises Mistake."""
    if not (is_number(word) and int(word)):
        raise Mistake(f"--{name} cannot be {word!r}: it should be a whole number above 0")
    return int(word)


def _example(path: str) -> Any:
    if path in ("extend", "max_minutes", "profile", "older_than", "trials", "prune"):
        return 10
    if path in ("images", "seeds"):
        return {"images": "FOLDER", "seeds": "0..4"}[path]
    if path == "model.head.widths":
        return "128,64"
    return flat(Recipe()).get(".".join("0" if is_number(part) else part for part in path.split(".")), "NAME")


def _set(values: dict[str, Any], path: str, word: str) -> None:
    *parents, last = path.split(".")
    here: Any = values
    for part, following in zip(parents, [*parents, last][1:], strict=True):
        new: Any = [] if is_number(following) else {}
        if isinstance(here, list):
            if int(part) > len(here):
                raise Mistake(f"--{path} skips a phase: the recipe has {len(here)}, so the next is phases.{len(here)}")
            if int(part) == len(here):
                here.append(new)
            place: Any = int(part)
        else:
            place = part
            here.setdefault(part, new)
        if here[place] is None:  # `data:` with nothing under it
            here[place] = new
        if not isinstance(here[place], type(new)):
            raise Mistake(f"--{path} has no place in the recipe: {part} cannot be {here[place]!r}")
        here = here[place]
    here[last] = word


def say(text: str) -> None:
    """Prints it, from one process."""
    if os.environ.get("RANK", "0") == "0":
        print(text)
