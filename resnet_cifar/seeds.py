"""Trains a recipe under several seeds: `python -m resnet_cifar.seeds RECIPE --seeds 0..4 [--FIELD VALUE ...]`.

Each seed is a start of train.py in a process of its own, one after the other, in a run folder named after the seed: the
same command goes on where it was. What they reached goes into seeds.json beside their folders.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from resnet_cifar import cli, commands
from resnet_cifar.commands import SeedsCommand
from resnet_cifar.recipe import Mistake, Recipe, fingerprint
from resnet_cifar.run_folder import RunFolder, read_json, write_json
from resnet_cifar.training.interrupts import SIGNALS, TRY_AGAIN

_SCRIPT = Path(__file__).parents[1] / "train.py"
_SCORES = ("val/accuracy", "test/accuracy")


def main(arguments: list[str]) -> None:
    """Trains the seeds that are not finished and says what all reached. Ends with 1 where one failed, 75 if stopped."""
    command, recipe, words = commands.seeds_command(arguments)
    seeds = commands.seed_numbers(command.seeds)
    if not _SCRIPT.is_file():
        raise Mistake(f"{_SCRIPT} is not there, and starts every seed: install with pip install -e from a checkout")
    name = f"{Path(command.recipe).stem}-seeds-{fingerprint(dataclasses.replace(recipe, seed=0))}"
    home = Path(command.run) if command.run else Path("runs") / name
    runs = {seed: RunFolder(home / f"seed-{seed}") for seed in seeds}
    for seed, run in runs.items():  # before any of them is trained
        _finished(run, dataclasses.replace(recipe, seed=seed))
    states = _train(command, recipe, runs, words)
    _tell(home, _summary(runs, states), recipe=command.recipe, changes=words)
    if {"interrupted", "not run"} & set(states.values()):
        print("stopped: the same command goes on where it was", file=sys.stderr, flush=True)
        raise SystemExit(TRY_AGAIN)
    if failed := [str(seed) for seed, state in states.items() if state == "failed"]:
        print(f"error: seed {', '.join(failed)} failed, and said why above", file=sys.stderr, flush=True)
        raise SystemExit(1)


def _finished(run: RunFolder, recipe: Recipe) -> dict[str, Any] | None:
    """The run's result, or None. Raises Mistake where the folder is another recipe's."""
    file = run.path / "recipe.yaml"
    if file.is_file():
        from resnet_cifar.training import beforehand  # timm takes seconds, and a new run does not need it here

        recipe = beforehand.resolved(recipe)
        if recipe.precision == "auto":  # what the launcher made of it is the launcher's to compare
            recipe = dataclasses.replace(recipe, precision=cli.read_recipe(str(file)).precision)
    run.check(recipe)
    return run.finished(recipe)


def _train(command: SeedsCommand, recipe: Recipe, runs: dict[int, RunFolder], words: list[str]) -> dict[int, str]:
    """How each seed has ended: `finished`, `failed`, `interrupted` or, after that, `not run`."""
    states: dict[int, str] = {}
    child = _Child()
    for seed, run in runs.items():
        if child.stopped or "interrupted" in states.values():
            states[seed] = "not run"
        elif _finished(run, dataclasses.replace(recipe, seed=seed)):
            print(f"== seed {seed} is finished: {run.path}", flush=True)
            states[seed] = "finished"
        else:
            print(f"== seed {seed}: {run.path}", flush=True)
            own = ["--recipe", command.recipe, *words, "--seed", str(seed), "--run", str(run.path)]
            states[seed] = _ended(run, child, [*shlex.split(command.launch), str(_SCRIPT), *own])
    return states


def _ended(run: RunFolder, child: _Child, command: Sequence[str]) -> str:
    """Runs the command to its end, and how that was: launchers hide exit codes, so the run folder is asked."""
    began = time.time()
    code = child.run(command)
    if run.result() is not None:
        return "finished"
    status = read_json(run.path / "status.json") or {}
    says_interrupted = status.get("state") == "interrupted" and status["time"] >= began
    return "interrupted" if child.stopped or code == TRY_AGAIN or says_interrupted else "failed"


class _Child:
    """Runs commands one at a time and hands signals on to them; `stopped`: whether there was one."""

    def __init__(self) -> None:
        self.stopped = False
        self._process: subprocess.Popen | None = None
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, self._hand_on)

    def run(self, command: Sequence[str]) -> int:
        """Returns the exit code. Raises Mistake where there is no such command."""
        here = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        try:
            self._process = subprocess.Popen(command, env={**os.environ, "PATH": here})
        except OSError as error:
            raise Mistake(f"--launch {command[0]!r} cannot be started ({error.strerror}): name a launcher") from None
        if self.stopped:  # while it was being started
            self._process.send_signal(signal.SIGTERM)
        return self._process.wait()

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        self.stopped = True
        if self._process is not None:
            self._process.send_signal(number)


def _summary(runs: dict[int, RunFolder], states: dict[int, str]) -> dict[str, Any]:
    """Each seed's state and scores, and the spread of the scores over the finished ones."""
    from resnet_cifar.reporting.spread import spread

    seeds: dict[str, dict[str, Any]] = {}
    for seed, run in runs.items():
        result = run.result() or {}
        scores = {name: result[name] for name in _SCORES if name in result and states[seed] == "finished"}
        seeds[str(seed)] = {"state": states[seed], "run": run.path.name, **scores}
    values = {name: [facts[name] for facts in seeds.values() if name in facts] for name in _SCORES}
    return {"seeds": seeds, "spread": {name: spread(scores) for name, scores in values.items() if scores}}


def _tell(home: Path, summary: dict[str, Any], **asked: Any) -> None:
    """Prints the summary and, where a seed has finished, writes it to seeds.json. Raises Mistake."""
    from rich.console import Console
    from rich.table import Table

    from resnet_cifar.reporting.spread import sentence

    table = Table("seed", "state", *_SCORES, box=None, pad_edge=False, header_style="bold")
    for seed, facts in summary["seeds"].items():
        table.add_row(seed, facts["state"], *(f"{facts[name]:.4f}" if name in facts else "-" for name in _SCORES))
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    for name, found in summary["spread"].items():
        console.print(sentence(name, found), markup=False)
    if not summary["spread"]:
        return
    try:
        write_json(home / "seeds.json", {**asked, **summary})
    except OSError as error:
        raise Mistake(f"{home} cannot be written ({error.strerror}): make room, the same command writes it") from None
    console.print(f"written to {home / 'seeds.json'}", markup=False)


if __name__ == "__main__":
    sys.exit(cli.run(main))
