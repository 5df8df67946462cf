"""What was run, and how it is run again: read from a run folder, in words for a person."""

from __future__ import annotations

import shlex
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from resnet_cifar.atomic_io import read_json
from resnet_cifar.config.diff import flatten
from resnet_cifar.config.loading import read_recipe, recipe_names
from resnet_cifar.config.schema import Recipe
from resnet_cifar.reporting.console import duration

_DEFAULT = "finetune"
_UNSAID = ("track.",)  # decides nothing of the run


class Difference(NamedTuple):
    """A field in which a run differs from the default recipe, or from the one that its command names."""

    field: str
    ours: str
    named: str
    default: str


def named_recipe(environment: dict[str, Any]) -> str | None:
    """The shipped recipe that the last start's command named; None where it named a file, or is not known."""
    words = str(environment.get("command", "")).replace("=", " ").split()
    if not words:
        return None
    given = [value for word, value in pairwise(words) if word == "--recipe"]
    name = given[-1] if given else _DEFAULT
    return name if name in recipe_names() else None


def differences(recipe: Recipe, named: str | None) -> list[Difference]:
    """The fields of `recipe` that are not as in the default recipe, or not as in the recipe `named`."""
    ours, default = flatten(recipe), flatten(read_recipe(_DEFAULT))
    theirs = flatten(read_recipe(named)) if named else default
    paths = [path for path in dict.fromkeys([*ours, *theirs, *default]) if not path.startswith(_UNSAID)]
    return [
        Difference(path, *(_word(values, path) for values in (ours, theirs, default)))
        for path in paths
        if len({_word(values, path) for values in (ours, theirs, default)}) > 1
    ]


def facts(environment: dict[str, Any]) -> list[tuple[str, str]]:
    """Versions, hardware, command and data of the last start; what an old run does not say is left out."""
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
        "versions": ", ".join(f"{name} {version}" for name, version in packages.items()),
        "python": environment.get("python"),
    }
    return [(name, str(value)) for name, value in found.items() if value]


class Start(NamedTuple):
    """One start of a run, as a line of a table."""

    number: int
    began: str
    steps: str
    took: str
    end: str


def starts(run: Path) -> list[dict[str, Any]]:
    """The starts of attempts.json, the last of which may be running; none for a run of before there was such a file."""
    return (read_json(run / "attempts.json") or {}).get("attempts", [])


def starts_in_words(kept: list[dict[str, Any]], status: dict[str, Any]) -> list[Start]:
    """`kept`: those of attempts.json; `status`: status.json, by which one that runs, or was killed, was last heard of."""
    lines = []
    for start in kept:
        if "state" in start:
            ended, step, end = start["ended"], start["step"], start["state"]
            end += f" ({start['why']})" if start.get("why") else ""
        else:
            ended, step = status.get("time", start["began"]), status.get("step", start["from_step"])
            state = status.get("state")
            end = "running when last heard of, or killed" if state == "running" else state or "not known"
        lines.append(
            Start(
                start["attempt"],
                time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(start["began"])),
                f"{start['from_step']:,} to {step:,}",
                duration(max(0.0, ended - start["began"])),
                end,
            )
        )
    return lines


def commands(run: Path, environment: dict[str, Any]) -> list[tuple[str, str]]:
    """(what, command), to be copied: run it again, score it, label pictures, load the model."""
    processes = environment.get("world_size") or 1
    launch = f"accelerate launch --num_processes {processes} " if processes > 1 else "python "
    folder = shlex.quote(str(run))
    again = f"{launch}train.py --recipe {shlex.quote(str(run / 'recipe.yaml'))} --run {shlex.quote(f'{run}-again')}"
    found = [("train it again", again), ("score it", f"python eval.py {folder}")]
    if (run / "model").is_dir():
        found.append(("label pictures", f"python eval.py {folder} --images FOLDER"))
        load = f"timm.create_model({'local-dir:' + str(run / 'model')!r}, pretrained=True)"
        found.append(("load the model", f"import resnet_cifar, timm; model = {load}"))
    return [*found, ("write this page", f"resnet-cifar report {folder}")]


def _word(values: dict[str, Any], path: str) -> str:
    return str(values[path]) if path in values else "-"
