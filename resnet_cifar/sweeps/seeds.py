"""Trains a recipe with several seeds: each seed in a process and a run directory of its own, one after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnet_cifar.checkpoints.run_dir import RunDir
from resnet_cifar.config.schema import Recipe
from resnet_cifar.sweeps.launcher import Launcher, finished


def train_seeds(home: Path, seeds: Sequence[int], recipe: Recipe, words: Sequence[str], launch: str) -> dict[int, str]:
    """Trains the seeds that are not finished; returns each state: `finished`, `failed`, `killed`,
    `interrupted`, `not run`.

    `words`: the command line of train.py without --seed and --run. Raises UserError if a directory belongs to another
    recipe, before any seed is trained.
    """
    runs = {seed: run_dir(home, seed) for seed in seeds}
    done = {seed: finished(run, dataclasses.replace(recipe, seed=seed)) is not None for seed, run in runs.items()}
    states: dict[int, str] = {}
    launcher = Launcher(launch)
    launcher.share_group(home.resolve().name, "seeds")
    for seed, run in runs.items():
        if launcher.stopped or "interrupted" in states.values():
            states[seed] = "not run"
        elif done[seed]:
            print(f"== seed {seed} is finished: {run.path}", flush=True)
            states[seed] = "finished"
        else:
            print(f"== seed {seed}: {run.path}", flush=True)
            states[seed] = launcher.run(run, [*words, "--seed", str(seed)])
    return states


def summarize(home: Path, states: dict[int, str], recipe: Recipe) -> dict[str, Any]:
    """Each seed's state and results, and the spread of the results over the finished seeds."""
    from resnet_cifar.reporting.seed_stats import metrics_of, spread

    names = metrics_of(recipe)
    seeds: dict[str, dict[str, Any]] = {}
    for seed, state in states.items():
        run = run_dir(home, seed)
        result = (run.result() or {}) if state == "finished" else {}
        metrics = {name: result[name] for name in names if name in result}
        seeds[str(seed)] = {"state": state, "run": run.path.name, **metrics}
    values = {name: [seed[name] for seed in seeds.values() if name in seed] for name in names}
    return {"seeds": seeds, "spread": {name: spread(numbers) for name, numbers in values.items() if numbers}}


def run_dir(home: Path, seed: int) -> RunDir:
    """The run directory of a seed."""
    return RunDir(home / f"seed-{seed}")
