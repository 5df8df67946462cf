"""YAML -> recipe -> overrides from the command line -> checked recipe. Imports nothing heavy.

One validator (pydantic, see validation.py) reads command-line words and YAML values alike, so both give the same error
message for the same mistake.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from resnet_cifar.atomic_io import atomic_write
from resnet_cifar.config.diff import field_paths, to_dict
from resnet_cifar.config.errors import UserError, did_you_mean
from resnet_cifar.config.schema import Recipe
from resnet_cifar.config.validation import parse


def recipe_names() -> list[str]:
    """The shipped recipes."""
    return sorted(path.name.removesuffix(".yaml") for path in _shipped().iterdir() if path.name.endswith(".yaml"))


def read_recipe(name: str, overrides: dict[str, str] | None = None) -> Recipe:
    """The shipped recipe or YAML file `name`, with `overrides` (field path -> word). Raises UserError."""
    return with_overrides(read_yaml(name), overrides)


def with_overrides(values: dict[str, Any], overrides: dict[str, str] | None) -> Recipe:
    """The recipe of nested plain values, with `overrides` (field path -> word). Raises UserError."""
    if "data.source" in (overrides or {}) and isinstance(values.get("data"), dict):
        described = ("config_name", "revision", "splits", "columns")  # describe the source that is overridden
        values = {**values, "data": {name: value for name, value in values["data"].items() if name not in described}}
    for path, word in (overrides or {}).items():
        _set(values, path, word)
    recipe = parse(values)
    source = Path(recipe.data.source).expanduser()
    if recipe.data.source != "synthetic" and source.exists():  # a run directory must mean the same from anywhere
        values = to_dict(recipe)
        values["data"]["source"] = str(source.resolve())
        recipe = parse(values)
    return recipe


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Writes the recipe as YAML that `--recipe PATH` reads back to the same values; atomically."""
    with atomic_write(path) as aside:
        aside.write_text(yaml.safe_dump(to_dict(recipe), sort_keys=False))


def _shipped() -> Any:
    return resources.files("resnet_cifar.config") / "recipes"


def read_yaml(name: str) -> dict[str, Any]:
    """The nested values of the shipped recipe or YAML file `name`. Raises UserError."""
    is_file = Path(name).suffix in (".yaml", ".yml") or Path(name).is_file()
    file = Path(name) if is_file else _shipped() / f"{name}.yaml"
    if Path(name).is_dir() and not file.is_file():
        raise UserError(f"recipe {name!r} is a folder: name a YAML file, such as {Path(name) / 'recipe.yaml'} of a run")
    if not file.is_file():
        known = recipe_names()
        hint = did_you_mean(Path(name).stem, known) or "; name a YAML file or a shipped recipe"
        raise UserError(f"there is no recipe {name!r}{hint} (shipped: {', '.join(known)})")
    try:
        with file.open(encoding="utf-8") as stream:
            values = yaml.load(stream, _Yaml)
    except OSError as error:
        raise UserError(f"{name} cannot be read ({error.strerror}): use another recipe") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{name} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{name} holds no fields: a recipe is YAML such as `batch_size: 256`")
    return values


class _Yaml(yaml.SafeLoader):
    """Refuses duplicate keys, of which PyYAML would silently use the last."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                place = key.start_mark
                raise UserError(f"{place.name}, line {place.line + 1}: {key.value} is given twice: keep one of them")
            seen.add(key.value)
        return node


def recipe_summary(name: str) -> str:
    """The first comment of a shipped recipe."""
    return (_shipped() / f"{name}.yaml").read_text().splitlines()[0].removeprefix("# ")


def is_digits(word: str) -> bool:
    """Whether the word is a whole number in plain digits."""
    return word.isascii() and word.isdigit()


def is_field(path: str) -> bool:
    """Whether `path`, such as phases.1.lr, is a field of a recipe."""
    parts = path.split(".")
    return ".".join("0" if is_digits(part) else part for part in parts) in field_paths()


def _set(values: dict[str, Any], path: str, word: str) -> None:
    *parents, last = path.split(".")
    here: Any = values
    for part, following in zip(parents, [*parents, last][1:], strict=True):
        new: Any = [] if is_digits(following) else {}
        if isinstance(here, list):
            if int(part) > len(here):
                raise UserError(
                    f"--{path} skips a phase: the recipe has {len(here)}, so the next is phases.{len(here)}"
                )
            if int(part) == len(here):
                here.append(new)
            place: Any = int(part)
        else:
            place = part
            here.setdefault(part, new)
        if here[place] is None:  # `data:` with nothing under it
            here[place] = new
        if not isinstance(here[place], type(new)):
            raise UserError(f"--{path} has no place in the recipe: {part} cannot be {here[place]!r}")
        here = here[place]
    here[last] = word
