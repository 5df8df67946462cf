"""Mistakes of `resnet-cifar scale` and of plans that use its measurements, with the remedies."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path

import prepared
import pytest
from advice import advice, numbered, parsed
from making import Prepare
from prepared import both
from simulated_cluster import results

from resnet_cifar.cli import scale
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.sweeps import scaling
from resnet_cifar.training import scaling_results
from resnet_cifar.training.plan import Plan


def under_launcher(words: str) -> Callable[[Path], object]:
    """The words of `scale`, checked in one of two processes that torch's launcher has started."""

    def check(home: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(os.environ, "TORCHELASTIC_RUN_ID", "a run")
            scale.parse_arguments(shlex.split(words))

    return check


def started(words: str, processes: str) -> Callable[[Path], object]:
    """What is checked before processes are started."""

    def check(home: Path) -> None:
        options, recipe, _ = scale.parse_arguments([*shlex.split(words), "--processes", processes])
        scaling.check(recipe, scale.process_counts(options.processes), Path(options.out))

    return check


def planned(
    file: str, model: str = "resnet50", precision: str = "bf16", processes: int = 2, batch_size: int = 256
) -> Callable[[Path], object]:
    """A plan with the measurements of a file."""
    values = {"model.name": model, "precision": precision, "batch_size": str(batch_size)}
    plan = Plan(read_recipe("scratch", values), 45_000, 1)
    return lambda home: scaling_results.describe(scaling_results.read(home / file), Path(file), plan, processes)


def measured(folder: str, recipe: str = "scratch") -> Prepare:
    """FOLDER/scaling.json of a simulated cluster."""

    def prepare(home: Path, trained: Path) -> None:
        (home / folder).mkdir()
        (home / folder / "scaling.json").write_text(json.dumps(results(read_recipe(recipe), (1, 2))))

    return prepare


def measured_again(folder: str, **facts: str) -> Callable[[Path], object]:
    """Measurements of another device or precision, added to FOLDER."""

    def add(home: Path) -> None:
        recipe = read_recipe("scratch")
        kept = scaling_results.read_kept(home / folder, recipe)
        world = results(recipe, (1,))["worlds"]["1"]
        scaling_results.add(kept, {**world, **facts}, recipe, 0.0)

    return add


# fmt: off
SCALING = [
    advice("processes twice", parsed("scale", "--launched --processes 1,2"), parsed("scale", "--launched"),
        parsed("scale", "--processes 1,2")),
    advice("scaling behind a launcher", under_launcher("--recipe debug"), parsed("scale", "--recipe debug"),
        under_launcher("--recipe debug --launched")),
    advice("scaling without a step", parsed("scale", "--recipe probe"), parsed("scale", "--recipe debug")),
    advice("scaling into a file", parsed("scale", "--out notes/a"), parsed("scale", "--out other"),
        prepare=prepared.file("notes")),
    advice("scaling beside another page", parsed("scale", "--out site"), parsed("scale", "--out other"),
        prepare=prepared.file("site/index.html", "<p>my site")),
    advice("no number of processes", started("--recipe scratch", "1,two"), started("--recipe scratch", "1,2,4")),
    advice("processes that do not divide the batch", started("--recipe scratch", "1,3"),
        numbered(r"or (\d+)$", lambda home, number: started(f"--recipe scratch --batch_size {number}", "3")(home))),
    advice("measurements of another recipe", started("--recipe scratch --batch_size 512 --out out", "1"),
        started("--recipe scratch --batch_size 512 --out other", "1"), prepare=measured("out")),
    advice("measurements on other devices", measured_again("out", device="another"),
        measured_again("other", device="another"), prepare=measured("out")),
    advice("measurements in two precisions", measured_again("out", precision="no"),
        measured_again("other", precision="no"), prepare=measured("out")),
    advice("a plan from nothing", planned("out/scaling.json"), (measured("out"), planned("out/scaling.json"))),
    advice("a plan from another file", planned("notes/a.json"), planned("out/scaling.json"),
        prepare=both(prepared.file("notes/a.json", "{}"), measured("out"))),
    advice("a plan from another model", planned("out/scaling.json", "resnet18"), planned("out/scaling.json"),
        prepare=measured("out")),
    advice("a plan in another precision", planned("out/scaling.json", precision="no"), planned("out/scaling.json"),
        prepare=measured("out")),
    advice("a plan from an earlier version", planned("old/scaling.json"), planned("out/scaling.json"),
        prepare=both(
            prepared.file("old/scaling.json", '{"worlds": {"1": {"plan": {}}}, "model": {}}'), measured("out"))),
    advice("a plan far beyond the measurements", planned("out/scaling.json", processes=256, batch_size=8192),
        planned("out/scaling.json", processes=128, batch_size=8192), prepare=measured("out")),
    advice("scaling without a plan", parsed("train", "--recipe debug --scaling out/scaling.json"),
        parsed("train", "--recipe debug --scaling out/scaling.json --dry-run")),
    advice("devices without scaling", parsed("train", "--recipe debug --dry-run --scaling-devices 8"),
        parsed("train", "--recipe debug --dry-run --scaling-devices 8 --scaling out/scaling.json")),
]
# fmt: on
