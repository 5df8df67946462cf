"""Runs the trials of a hyperparameter search, each in a process and a run directory of its own.

Trials are compared by the validation metric evaluate.select_by; train.py also evaluates the test split at its end, but
nothing here reads that result. study.json holds all trials, best.yaml the best recipe.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import itertools
import json
import math
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_cifar.atomic_io import read_json, write_json
from resnet_cifar.checkpoints.run_dir import RunDir
from resnet_cifar.config.diff import fingerprint
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import write_recipe
from resnet_cifar.config.rerun import how_to_resume
from resnet_cifar.config.schema import METRIC_NAMES, metric_score
from resnet_cifar.sweeps import search_space
from resnet_cifar.sweeps.launcher import Launcher, finished
from resnet_cifar.sweeps.search_space import Choices, SearchSpace

if TYPE_CHECKING:
    from resnet_cifar.sweeps.study import Outcome, Study, Trial

_STATES = ("finished", "ended early", "diverged", "failed", "running")  # in the order of the table
_MAX_FAILURES = 3  # consecutive failed trials, after which a mistake is likelier than bad luck
_MAX_KILLS = 3  # of one trial by the same process, without progress
_REWRITTEN = 60  # seconds after which the summary of a search under way is out of date
_DIVERGED = re.compile(r"the loss of step \d+ is not finite|fp16 overflowed")  # messages of training


def open_study(
    space: SearchSpace, recipe: str, run: str, prune: int, launch: str, parallel: int = 0
) -> tuple[Study, Launcher]:
    """The study in the directory `run` [runs/RECIPE-tune-<8 hex digits>], new or resumed. Raises UserError."""
    _check(space)
    launcher = Launcher(launch)

    from resnet_cifar.sweeps.study import Study, settings

    digest = hashlib.sha256(json.dumps([fingerprint(space.recipe), settings(space, prune)]).encode()).hexdigest()
    home = Path(run or Path("runs") / f"{Path(recipe).stem}-tune-{digest[:8]}")
    launcher.share_group(home.resolve().name, "tune")
    return Study(home, space, prune, parallel), launcher


def download(space: SearchSpace) -> None:
    """Downloads and decodes the images and weights of all trials into this machine's caches. Raises UserError."""
    from resnet_cifar.training import preflight

    _check(space)
    named = {
        path: found.words
        for path, found in space.ranges.items()
        if path.startswith(("model.", "data.")) and isinstance(found, Choices)
    }
    needed = {}
    for words in itertools.product(*named.values()):
        with contextlib.suppress(UserError):  # of choices that contradict each other
            recipe = space.recipe_of(dict(zip(named, words, strict=True)))
            needed[recipe.model, recipe.data] = recipe
    for recipe in needed.values():
        preflight.download(recipe)


def _check(space: SearchSpace) -> None:
    """Raises UserError if nothing is searched, or if trials cannot be compared."""
    recipe = space.recipe
    if not space.ranges:
        raise UserError("tune needs a range: --phases.0.lr 1e-4..1e-1, or choices, --optimizer.name sgd,adamw,lamb")
    if recipe.refit_steps:
        raise UserError(f"refit_steps {recipe.refit_steps} leaves no images to compare trials on: set it to 0")
    if recipe.data.overfit_images:
        raise UserError(
            f"data.overfit_images {recipe.data.overfit_images} validates on the images it trains on: set it to 0"
        )
    if not (recipe.data.validation_fraction or recipe.data.splits.validation):
        raise UserError(
            "data.validation_fraction 0 leaves no images to compare trials on, and the test split is not for that: set "
            "it to 0.1"
        )
    if importlib.util.find_spec("optuna") is None:
        raise UserError("tune needs the package optuna: pip install -e '.[tune]'")
    named = {path: found for path, found in space.ranges.items() if path in ("model.name", "optimizer.name")}
    if named:
        from resnet_cifar.training import preflight

        for path, found in named.items():
            section, field = path.split(".")
            for word in found.words:
                replaced = dataclasses.replace(getattr(recipe, section), **{field: word})
                preflight.check_names(dataclasses.replace(recipe, **{section: replaced}))


def run_trials(study: Study, recipe: str, trials: int, launcher: Launcher) -> str:
    """Runs trials until there are `trials`. Returns `interrupted`, the reason why the search ended early, or ``."""
    failures, shown, written = 0, "", time.monotonic()

    def pause(reason: str) -> bool:
        nonlocal shown
        if reason != shown:
            print(f"== waiting: {reason}", flush=True)
        shown = reason
        return launcher.pause()

    while not launcher.stopped and (trial := study.take(trials, pause)):
        print(f"== trial {trial.number}: {'  '.join(f'{p} {short(v)}' for p, v in trial.values.items())}", flush=True)
        outcome = _known_outcome(study, trial)
        if outcome is None:
            print(f"   tail -f {trial.log}", flush=True)
            outcome = _run_trial(study, trial, launcher)
            if outcome is None:
                return "interrupted"
            failures = failures + 1 if outcome.state == "failed" else 0
        if not study.record(trial, outcome):
            print(f"== trial {trial.number} was taken over by another process", flush=True)
            continue
        name, value = METRIC_NAMES[study.select_by], _value(study, outcome)
        reached = "" if value is None else f", validation {name} {value:.4f}"
        print(f"== trial {trial.number} {outcome.state}{reached}{outcome.why and f': {outcome.why}'}", flush=True)
        if failures == _MAX_FAILURES:
            return f"{failures} trials in a row failed, see above: fix the cause, then {how_to_resume()} to resume"
        if time.monotonic() - written > _REWRITTEN:
            summarize(study, recipe)
            written = time.monotonic()
    return "interrupted" if launcher.stopped else ""


def _known_outcome(study: Study, trial: Trial) -> Outcome | None:
    """The outcome of a trial that need not run: its values contradict each other, or repeat those of another trial."""
    from resnet_cifar.sweeps.study import Outcome, earlier

    try:
        study.space.recipe_of(trial.values)
    except UserError as error:
        return Outcome("failed", why=str(error))
    return earlier(trial, study.first)


def _run_trial(study: Study, trial: Trial, launcher: Launcher) -> Outcome | None:
    """Starts or resumes the trial; its outcome, or None if it was interrupted."""
    from resnet_cifar.sweeps.study import Outcome, pruned_at

    def pruned() -> int | None:
        return pruned_at(_scores(study, trial.run), trial.before, study.prune) if study.prune else None

    end, why, log_start = "finished", "", trial.log.stat().st_size if trial.log.exists() else 0
    if finished(trial.run, study.space.recipe_of(trial.values)) is None and pruned() is None:
        end, why = _train(study, trial, launcher, lambda: pruned() is not None)
    scores = _scores(study, trial.run)
    if (index := pruned()) is not None:  # later results are ignored, so that the moment of looking decides nothing
        return Outcome("ended early", scores=scores[: index + 1], why=f"below the median at evaluation {index + 1}")
    if end == "finished":
        best = metric_score(trial.run.result(), study.select_by)
        if not math.isfinite(best):
            return Outcome("diverged", why="the validation loss is not finite")
        return Outcome("finished", best, scores)
    if end == "interrupted":
        return None
    why = why or _error_message(trial.log, log_start)
    return Outcome("diverged" if _DIVERGED.match(why) else "failed", why=why)


def _train(study: Study, trial: Trial, launcher: Launcher, should_end: Callable[[], bool]) -> tuple[str, str]:
    """Starts or resumes training; how that ended (see `Launcher.run`), and why if the log does not say it.

    Killed training is resumed: a machine that shuts down may kill it before this process, which proves nothing about
    the trial.
    """
    words = [f"--{path}={word}" for path, word in search_space.words(trial.values).items()]
    began: list[int] = []  # the steps from which killed attempts had begun
    with trial.log.open("ab") as log:
        while True:
            end = launcher.run(trial.run, ["--recipe", str(study.base), *words], log, should_end)
            if end != "killed" or should_end() or not study.owns(trial):
                return end, ""
            began.append((read_json(trial.run.path / "status.json") or {}).get("step", 0))
            if began[-_MAX_KILLS:] == [began[-1]] * _MAX_KILLS:
                return end, f"killed {_MAX_KILLS} times after step {began[-1]}, perhaps for lack of memory"


def _scores(study: Study, run: RunDir) -> list[float]:
    """The results of the evaluations so far, except the last step's, after which there is nothing to end."""
    file, status = run.path / "metrics.jsonl", read_json(run.path / "status.json")
    lines = file.read_text().split("\n")[:-1] if file.is_file() and status else []  # the last line may be incomplete
    rows = [json.loads(line) for line in lines]
    evaluated = [row for row in rows if "val/accuracy" in row and row["step"] < status["steps"]]
    return [metric_score(row, study.select_by) for row in evaluated]


def _value(study: Study, outcome: Outcome) -> float | None:
    """The validation metric of a finished trial, with its own sign."""
    return -outcome.best if outcome.best is not None and study.select_by == "loss" else outcome.best


def _error_message(log: Path, start: int) -> str:
    """The error, or else the last line, that a failed trial printed after byte `start` of its log."""
    text = log.read_bytes()[start:].decode(errors="replace")
    found = re.findall(r"^error: (.*)$", text, re.MULTILINE) or re.findall(r"^.*\S.*$", text, re.MULTILINE)
    return found[-1].strip() if found else "it ended without a message"


def short(value: Any) -> str:
    """A searched value with four significant digits."""
    return value if isinstance(value, str) else f"{value:.4g}"


def summarize(study: Study, recipe: str, is_ending: bool = False) -> dict[str, Any]:
    """All trials and the number of the best one; written to study.json, and the best recipe to best.yaml.

    Also writes the page index.html, unless `is_ending`: a cluster gives few seconds to a process that it has signaled,
    and drawing takes some. Raises UserError.
    """
    from resnet_cifar.reporting import search_report

    with study.locked():  # several processes may end at the same moment
        found, importance = study.trials(), study.importance()
        metric = f"val/{study.select_by}"
        trials = [
            {"state": outcome.state, metric: _value(study, outcome), "why": outcome.why, "values": values}
            for values, outcome in found
        ]
        order = ranking([outcome for _, outcome in found])
        first = next(iter(order), None)
        best = first if first is not None and trials[first]["state"] == "finished" else None
        summary = {
            "recipe": recipe,
            "ranges": {path: str(searched) for path, searched in study.space.ranges.items()},
            "prune": study.prune,
            "parallel": study.parallel,
            "metric": metric,
            "best": best,
            "ranking": order,
            "importance": importance,
            "trials": trials,
        }
        try:
            write_json(study.home / "study.json", summary)
            if best is not None:
                write_recipe(study.space.recipe_of(trials[best]["values"]), study.home / "best.yaml")
            if not is_ending:
                search_report.write(summary, study.home)
        except OSError as error:
            raise UserError(
                f"{study.home} cannot be written ({error.strerror}): free space, then {how_to_resume()}"
            ) from None
    return summary


def ranking(outcomes: Sequence[Outcome]) -> list[int]:
    """The numbers of the trials, best first; of equal ones the earlier first."""
    return sorted(
        range(len(outcomes)),
        key=lambda number: (_STATES.index(outcomes[number].state), -(outcomes[number].best or 0.0), number),
    )
