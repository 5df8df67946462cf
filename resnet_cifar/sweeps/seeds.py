"""Trains a recipe under several seeds: `python -m resnet_cifar.sweeps.seeds RECIPE --seeds 0..4 [--FIELD VALUE ...]`.

Each seed is a start of train.py in a process of its own, one after the other, in a run folder named after the seed: the
same command goes on where it was. What they reached goes into seeds.json beside their folders.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from resnet_cifar.atomic_io import write_json
from resnet_cifar.checkpoints.run_dir import RunDir
from resnet_cifar.cli.entry import run_main
from resnet_cifar.cli.repeating import SeedsCommand, seed_numbers, seeds_command
from resnet_cifar.config.diff import fingerprint
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Recipe
from resnet_cifar.distributed.signals import EXIT_RESUBMIT
from resnet_cifar.sweeps.launcher import Launcher, finished

_SCORES = ("val/accuracy", "test/accuracy")


def main(arguments: list[str]) -> None:
    """Trains the seeds that are not finished and says what all reached. Ends with 1 where one failed, 75 if stopped."""
    command, recipe, words = seeds_command(arguments)
    seeds = seed_numbers(command.seeds)
    name = f"{Path(command.recipe).stem}-seeds-{fingerprint(dataclasses.replace(recipe, seed=0))}"
    home = Path(command.run) if command.run else Path("runs") / name
    runs = {seed: RunDir(home / f"seed-{seed}") for seed in seeds}
    for seed, run in runs.items():  # before any of them is trained
        finished(run, dataclasses.replace(recipe, seed=seed))
    states = _train(command, recipe, runs, words)
    _tell(home, _summary(runs, states), recipe=command.recipe, changes=words)
    if {"interrupted", "not run"} & set(states.values()):
        print("stopped: the same command goes on where it was", file=sys.stderr, flush=True)
        raise SystemExit(EXIT_RESUBMIT)
    if failed := [str(seed) for seed, state in states.items() if state == "failed"]:
        print(f"error: seed {', '.join(failed)} failed, and said why above", file=sys.stderr, flush=True)
        raise SystemExit(1)


def _train(command: SeedsCommand, recipe: Recipe, runs: dict[int, RunDir], words: list[str]) -> dict[int, str]:
    """How each seed has ended: `finished`, `failed`, `interrupted` or, after that, `not run`."""
    states: dict[int, str] = {}
    starts = Launcher(command.launch)
    for seed, run in runs.items():
        if starts.stopped or "interrupted" in states.values():
            states[seed] = "not run"
        elif finished(run, dataclasses.replace(recipe, seed=seed)):
            print(f"== seed {seed} is finished: {run.path}", flush=True)
            states[seed] = "finished"
        else:
            print(f"== seed {seed}: {run.path}", flush=True)
            states[seed] = starts.run(run, ["--recipe", command.recipe, *words, "--seed", str(seed)])
    return states


def _summary(runs: dict[int, RunDir], states: dict[int, str]) -> dict[str, Any]:
    """Each seed's state and scores, and the spread of the scores over the finished ones."""
    from resnet_cifar.reporting.seed_stats import spread

    seeds: dict[str, dict[str, Any]] = {}
    for seed, run in runs.items():
        result = run.result() or {}
        scores = {name: result[name] for name in _SCORES if name in result and states[seed] == "finished"}
        seeds[str(seed)] = {"state": states[seed], "run": run.path.name, **scores}
    values = {name: [facts[name] for facts in seeds.values() if name in facts] for name in _SCORES}
    return {"seeds": seeds, "spread": {name: spread(scores) for name, scores in values.items() if scores}}


def _tell(home: Path, summary: dict[str, Any], **asked: Any) -> None:
    """Prints the summary and, where a seed has finished, writes it to seeds.json. Raises UserError."""
    from rich.console import Console
    from rich.table import Table

    from resnet_cifar.reporting.seed_stats import summary_line

    table = Table("seed", "state", *_SCORES, box=None, pad_edge=False, header_style="bold")
    for seed, facts in summary["seeds"].items():
        table.add_row(seed, facts["state"], *(f"{facts[name]:.4f}" if name in facts else "-" for name in _SCORES))
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    for name, found in summary["spread"].items():
        console.print(summary_line(name, found), markup=False)
    if not summary["spread"]:
        return
    try:
        write_json(home / "seeds.json", {**asked, **summary})
    except OSError as error:
        raise UserError(f"{home} cannot be written ({error.strerror}): make room, the same command writes it") from None
    console.print(f"written to {home / 'seeds.json'}", markup=False)


if __name__ == "__main__":
    sys.exit(run_main(main))
