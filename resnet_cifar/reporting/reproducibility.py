"""Configuration, environment and attempts of a run, and the commands that reproduce it."""

from __future__ import annotations

import shlex
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from resnet_cifar.atomic_io import read_json
from resnet_cifar.config.diff import differing_fields
from resnet_cifar.config.loading import read_recipe, recipe_names
from resnet_cifar.config.schema import Recipe
from resnet_cifar.reporting.console import duration

_DEFAULT = "finetune"
_IGNORED = ("track.",)  # no effect on the result


class Difference(NamedTuple):
    """A field in which a run differs from the default recipe or from the recipe named in its command."""

    field: str
    ours: str
    named: str
    default: str


def named_recipe(environment: dict[str, Any]) -> str | None:
    """The shipped recipe in the command of the last attempt; None if it names a file or a run, or is unknown."""
    words = str(environment.get("command", "")).replace("=", " ").split()
    if not words or "--refit" in words:
        return None
    given = [value for word, value in pairwise(words) if word == "--recipe"]
    name = given[-1] if given else _DEFAULT
    return name if name in recipe_names() else None


def differences(recipe: Recipe, named: str | None) -> list[Difference]:
    """The fields of `recipe` that differ from the default recipe or from the recipe `named`."""
    recipes = [recipe, read_recipe(named or _DEFAULT), read_recipe(_DEFAULT)]
    return [Difference(path, *map(str, values)) for path, values in differing_fields(recipes, _IGNORED).items()]


def environment_rows(environment: dict[str, Any]) -> list[tuple[str, str]]:
    """Versions, hardware, command and data of the last attempt; unknown values are left out."""
    gpus = environment.get("gpus") or []
    threads = f"{environment.get('cpu')}, cores: {environment.get('cores')}, threads: {environment.get('threads')}"
    packages = environment.get("packages") or {}
    found = {
        "command": environment.get("command"),
        "processes": environment.get("world_size"),
        "processor": threads if environment.get("cpu") else None,
        "GPUs": ", ".join(f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus)),
        "CUDA": environment.get("cuda"),
        "system": environment.get("system"),
        "SLURM job": environment.get("job"),
        "commit": environment.get("commit"),
        "images": environment.get("data") and f"fingerprint {environment['data']}",
        "commit of the images": environment.get("data_commit"),
        "versions": ", ".join(f"{name} {version}" for name, version in packages.items()),
        "python": environment.get("python"),
    }
    return [(name, str(value)) for name, value in found.items() if value]


class Attempt(NamedTuple):
    """One attempt at a run, as a row of a table."""

    number: int
    began: str
    steps: str
    took: str
    end: str


def read_attempts(run: Path) -> list[dict[str, Any]]:
    """The attempts in attempts.json, of which the last may be running; empty without that file."""
    return (read_json(run / "attempts.json") or {}).get("attempts", [])


def attempt_rows(attempts: list[dict[str, Any]], status: dict[str, Any]) -> list[Attempt]:
    """Rows of a table. `status`: status.json, the last sign of life of an attempt that is running or was killed."""
    lines = []
    for attempt in attempts:
        if "state" in attempt:
            ended, step, end = attempt["ended"], attempt["step"], attempt["state"]
            end += f" ({attempt['why']})" if attempt.get("why") else ""
        else:
            ended, step = status.get("time", attempt["began"]), status.get("step", attempt["from_step"])
            state = status.get("state")
            end = "running at the last update, or killed" if state == "running" else state or "unknown"
        lines.append(
            Attempt(
                attempt["attempt"],
                time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(attempt["began"])),
                f"{attempt['from_step']:,} to {step:,}",
                duration(max(0.0, ended - attempt["began"])),
                end,
            )
        )
    return lines


def commands(run: Path) -> list[tuple[str, str]]:
    """(title, command) to train again, evaluate, predict, load the model and write the report."""
    folder = shlex.quote(str(run))
    found = [("Train again and compare", f"resnet-cifar reproduce {folder}"), ("Evaluate", f"python eval.py {folder}")]
    if (run / "model").is_dir():
        found.append(("Classify images", f"resnet-cifar predict {folder} PATH"))
        load = f"timm.create_model({'local-dir:' + str(run / 'model')!r}, pretrained=True)"
        found.append(("Load the model", f"import resnet_cifar, timm; model = {load}"))
    return [*found, ("Write this report", f"resnet-cifar report {folder}")]
