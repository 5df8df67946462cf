"""Searches fields of a recipe: `resnet-cifar tune RECIPE --phases.0.lr 1e-4..1e-1 [--FIELD ...] --trials 20`.

Each trial is a start of train.py in a process and a run folder of its own. What counts is the best accuracy on the
validation split; train.py scores the test split at its end, and nothing here reads that. The same command goes on where
it was, and several at once share the trials. What they reached goes into study.json, the best recipe into best.yaml.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_cifar.atomic_io import atomic_write, read_json, write_json
from resnet_cifar.checkpoints.run_dir import RunDir
from resnet_cifar.cli.entry import run_main
from resnet_cifar.cli.repeating import TuneCommand, tune_command
from resnet_cifar.config.diff import fingerprint
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import write_recipe
from resnet_cifar.distributed.signals import EXIT_RESUBMIT
from resnet_cifar.sweeps import search_space
from resnet_cifar.sweeps.launcher import Launcher, finished
from resnet_cifar.sweeps.search_space import Search

if TYPE_CHECKING:
    from rich.table import Table

    from resnet_cifar.sweeps.study import Outcome, Study, Trial

_STATES = ("finished", "ended early", "diverged", "failed", "under way")  # in the order of the table
_IN_A_ROW = 3  # trials that fail one after the other, after which a mistake is likelier than bad luck
_DIVERGED = re.compile(r"the loss of step \d+ is not finite|fp16 overflowed")  # what training/tally.py says


def main(arguments: list[str]) -> None:
    """Trains the trials that are left and says what all reached. Ends with 1 where none did, 75 if stopped."""
    command, overrides = tune_command(arguments)
    search = search_space.read(command.recipe, overrides)
    _check(search)
    starts = Launcher(command.launch)

    from resnet_cifar.sweeps.study import Study, asked

    digest = hashlib.sha256(json.dumps([fingerprint(search.recipe), asked(search, command.prune)]).encode()).hexdigest()
    home = Path(command.run or Path("runs") / f"{Path(command.recipe).stem}-tune-{digest[:8]}")
    study = Study(home, search, command.prune)
    for path, found in search.ranges.items():
        print(f"{path:24} {found}", flush=True)
    end = _train(command, search, study, starts)
    if not _tell(command, search, study):
        end = end or "no trial has finished: see above what each said"
    if end == "interrupted":
        print("stopped: the same command goes on where it was", file=sys.stderr, flush=True)
        raise SystemExit(EXIT_RESUBMIT)
    if end:
        print(f"error: {end}", file=sys.stderr, flush=True)
        raise SystemExit(1)


def _check(search: Search) -> None:
    """Raises UserError where there is nothing to search, or nothing to choose by."""
    recipe = search.recipe
    if not search.ranges:
        raise UserError("tune needs a range: --phases.0.lr 1e-4..1e-1, or choices, --optimizer.name sgd,adamw,lamb")
    if recipe.data.overfit_images:
        raise UserError(
            f"data.overfit_images {recipe.data.overfit_images} validates on the images it trains on: set it to 0"
        )
    if not recipe.data.validation_fraction:
        raise UserError(
            "data.validation_fraction 0 leaves nothing to choose by, which the test split is not for: set it to 0.1"
        )
    if importlib.util.find_spec("optuna") is None:
        raise UserError("tune needs the package optuna: pip install -e '.[tune]'")
    named = {path: found for path, found in search.ranges.items() if path in ("model.name", "optimizer.name")}
    if named:
        from resnet_cifar.training import preflight

        for path, found in named.items():
            section, field = path.split(".")
            for word in found.words:
                chosen = dataclasses.replace(getattr(recipe, section), **{field: word})
                preflight.check_names(dataclasses.replace(recipe, **{section: chosen}))


def _train(command: TuneCommand, search: Search, study: Study, starts: Launcher) -> str:
    """Trains what is left, one trial after the other. Returns `interrupted`, why the search ended, or nothing."""
    failed = 0
    while not starts.stopped and (trial := study.take(command.trials)):
        print(f"== trial {trial.number}: {_words(trial.values)}", flush=True)
        outcome = _known(search, trial, study.first)
        if outcome is None:
            print(f"   tail -f {trial.log}", flush=True)
            outcome = _outcome(command, search, study.base, trial, starts)
            if outcome is None:
                return "interrupted"
            failed = failed + 1 if outcome.state == "failed" else 0
        study.record(trial, outcome)
        reached = "" if outcome.accuracy is None else f", validation accuracy {outcome.accuracy:.4f}"
        print(f"== trial {trial.number} {outcome.state}{reached}{outcome.why and f': {outcome.why}'}", flush=True)
        if failed == _IN_A_ROW:
            return f"{failed} trials in a row failed, and said why above: mend it, and the same command goes on"
    return "interrupted" if starts.stopped else ""


def _known(search: Search, trial: Trial, first: int) -> Outcome | None:
    """How a trial that needs no start ends: its values contradict each other, or it repeats another one."""
    from resnet_cifar.sweeps import study

    try:
        search.recipe_of(trial.values)
    except UserError as mistake:
        return study.Outcome("failed", why=str(mistake))
    return study.earlier(trial, first)


def _outcome(command: TuneCommand, search: Search, base: Path, trial: Trial, starts: Launcher) -> Outcome | None:
    """Starts the trial, or goes on with it, and how it ended; None where it was stopped."""
    from resnet_cifar.sweeps import study

    def hopeless_at() -> int | None:
        return study.hopeless_at(_scores(trial.run), trial.before, command.prune) if command.prune else None

    end, began = "finished", trial.log.stat().st_size if trial.log.exists() else 0
    if finished(trial.run, search.recipe_of(trial.values)) is None and hopeless_at() is None:
        words = [f"--{path}={word}" for path, word in search_space.words(trial.values).items()]
        with trial.log.open("ab") as log:
            words = ["--recipe", str(base), *words]
            end = starts.run(trial.run, words, log, is_hopeless=lambda: hopeless_at() is not None)
    scores = _scores(trial.run)
    if (at := hopeless_at()) is not None:  # whatever came of it after that score: what is seen when decides nothing
        return study.Outcome("ended early", scores=scores[: at + 1], why=f"below the median at score {at + 1}")
    if end == "finished":
        return study.Outcome("finished", trial.run.result()["val/accuracy"], scores)
    if end == "interrupted":
        return None
    why = _sentence(trial.log, began)
    return study.Outcome("diverged" if _DIVERGED.match(why) else "failed", why=why)


def _scores(run: RunDir) -> list[float]:
    """The accuracies on the validation split so far, but for the last step's, after which there is nothing to end."""
    file, status = run.path / "metrics.jsonl", read_json(run.path / "status.json")
    lines = file.read_text().split("\n")[:-1] if file.is_file() and status else []  # a row is being written
    rows = [json.loads(line) for line in lines]
    return [row["val/accuracy"] for row in rows if "val/accuracy" in row and row["step"] < status["steps"]]


def _sentence(log: Path, began: int) -> str:
    """What a start that failed said last."""
    text = log.read_bytes()[began:].decode(errors="replace")
    said = re.findall(r"^error: (.*)$", text, re.MULTILINE) or re.findall(r"^.*\S.*$", text, re.MULTILINE)
    return said[-1].strip() if said else "it ended without a word"


def _words(values: dict[str, Any]) -> str:
    return "  ".join(f"{path} {_short(value)}" for path, value in values.items())


def _short(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def _tell(command: TuneCommand, search: Search, study: Study) -> bool:
    """Prints the trials, the best first, and writes study.json and best.yaml; whether one has finished."""
    from resnet_cifar.reporting.console import listing

    with study.alone():  # several processes end at one moment
        trials, importance = study.trials(), study.importance()
        order = sorted(range(len(trials)), key=lambda number: _rank(number, trials[number][1]))
        best = order[0] if trials and trials[order[0]][1].state == "finished" else None
        try:
            write_json(study.home / "study.json", _summary(command, search, trials, importance, best))
            if best is not None:
                with atomic_write(study.home / "best.yaml", flush=False) as temporary:
                    write_recipe(search.recipe_of(trials[best][0]), temporary)
        except OSError as error:
            raise UserError(
                f"{study.home} cannot be written ({error.strerror}): make room, the same command writes it"
            ) from None
    console = listing()
    console.print(_table(search, trials, order))
    if importance:
        shares = ", ".join(f"{path} {share:.2f}" for path, share in importance.items())
        console.print(f"share in what made the best trials (PED-ANOVA): {shares}", markup=False)
    where = f", and trial {best}'s recipe to {study.home / 'best.yaml'}" if best is not None else ""
    console.print(f"written to {study.home / 'study.json'}{where}", markup=False)
    return best is not None


def _rank(number: int, outcome: Outcome) -> tuple[int, float, int]:
    """The best first; of equal ones the earlier."""
    return _STATES.index(outcome.state), -(outcome.accuracy or 0.0), number


def _summary(
    command: TuneCommand,
    search: Search,
    trials: list[tuple[dict[str, Any], Outcome]],
    importance: dict[str, float],
    best: int | None,
) -> dict[str, Any]:
    return {
        "recipe": command.recipe,
        "ranges": {path: str(found) for path, found in search.ranges.items()},
        "prune": command.prune,
        "best": best,
        "importance": importance,
        "trials": [
            {"state": outcome.state, "val/accuracy": outcome.accuracy, "why": outcome.why, "values": values}
            for values, outcome in trials
        ],
    }


def _table(search: Search, trials: list[tuple[dict[str, Any], Outcome]], order: list[int]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table("trial", "state", "val/accuracy", *search.ranges, box=None, pad_edge=False, header_style="bold")
    for number in order:
        values, outcome = trials[number]
        accuracy = "-" if outcome.accuracy is None else f"{outcome.accuracy:.4f}"
        words = (escape(_short(values[path])) for path in search.ranges)
        table.add_row(str(number), outcome.state, accuracy, *words)
    return table


if __name__ == "__main__":
    sys.exit(run_main(main))
