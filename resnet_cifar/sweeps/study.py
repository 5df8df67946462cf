"""The trials of a search: optuna's journal in a folder that several processes may share, and what it proposes next.

A proposal is a function of the recipe's seed, the trial's number and the trials before it. So where trials run one
after the other, a search makes the same trials again, also when it was killed in between.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from resnet_cifar import rng
from resnet_cifar.atomic_io import atomic_write
from resnet_cifar.checkpoints.run_dir import RunDir
from resnet_cifar.config.diff import differences
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import read_recipe, write_recipe
from resnet_cifar.sweeps.search_space import Choices, Range, Search

optuna.logging.set_verbosity(optuna.logging.WARNING)

_JOURNAL, _LOCKS, _BASE = "journal.log", "locks", "base.yaml"
_FEW = 4  # finished trials under which nothing is said about what mattered


@dataclass(frozen=True)
class Trial:
    """A trial that this process has taken. `before`: all that had been taken before it."""

    number: int
    values: dict[str, Any]
    run: RunDir
    log: Path
    before: list[FrozenTrial]


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: `finished`, `ended early`, `diverged`, `failed`, or not yet: `under way`.

    `accuracy`: the best on the validation split, of a trial that finished. `scores`: accuracies on it that were reached
    on the way, by which hopeless trials are known. `why`: the sentence it failed with, or what else there is to say.
    """

    state: str
    accuracy: float | None = None
    scores: Sequence[float] = ()
    why: str = ""


class Study:
    """A search's folder: base.yaml (what its trials share), journal.log (optuna's), trial-N/ and trial-N.log.

    `first`: the first trial that is new since it was opened.
    """

    def __init__(self, home: Path, search: Search, prune: int) -> None:
        """Makes the folder, or goes on in it. Raises UserError where it holds something else, or cannot be used."""
        self.home, self.base = home, home / _BASE
        self._search, self._prune = search, prune
        self._space = {path: _distribution(found) for path, found in search.ranges.items()}
        self._lock: BinaryIO | None = None  # of the trial that this process trains: others see that it is alive
        names = {path.name for path in home.iterdir()} if home.is_dir() else set()
        if _JOURNAL not in names and names - {_LOCKS}:
            raise UserError(f"--run {home} holds files that are no search: name a new or empty folder")
        try:
            (home / _LOCKS).mkdir(parents=True, exist_ok=True)
            with self.alone():
                self._study = self._open()
                self.first = len(self._study.get_trials(deepcopy=False))
        except OSError as error:
            raise UserError(f"--run {home} cannot be used ({error.strerror}): name another folder") from None

    def take(self, limit: int) -> Trial | None:
        """A trial that a process has left unfinished, or else a new one; None where there are `limit` of them."""
        with self.alone():
            trials = self._study.get_trials(deepcopy=False)
            for trial in trials:
                if trial.state == TrialState.RUNNING and self._hold(trial.number):
                    return self._trial(trial.number, trial.params, trials[: trial.number])
            if len(trials) >= limit:
                return None
            values = propose(trials, self._space, self._search.recipe.seed)
            self._study.add_trial(
                optuna.create_trial(state=TrialState.RUNNING, params=values, distributions=self._space)
            )
            self._hold(len(trials))
            return self._trial(len(trials), values, trials)

    def record(self, trial: Trial, outcome: Outcome) -> None:
        """Keeps how the trial ended, for good."""
        state = {"finished": TrialState.COMPLETE, "failed": TrialState.FAIL}.get(outcome.state, TrialState.PRUNED)
        with self.alone():
            kept = self._study.get_trials(deepcopy=False)[trial.number]
            live = optuna.Trial(self._study, kept._trial_id)
            for number, score in enumerate(outcome.scores):
                if number not in kept.intermediate_values:  # by a process that was killed right here
                    live.report(score, number)
            live.set_user_attr("state", outcome.state)
            live.set_user_attr("why", outcome.why)
            self._study.tell(trial.number, outcome.accuracy, state)
        self._lock.close()

    def trials(self) -> list[tuple[dict[str, Any], Outcome]]:
        """All trials so far, by their number: the searched fields' values, and how it ended."""
        return [(trial.params, _outcome(trial)) for trial in self._study.get_trials(deepcopy=False)]

    def importance(self) -> dict[str, float]:
        """Each field's share in what made the best trials (PED-ANOVA, Watanabe et al. 2023), the largest first.

        Empty where too few trials have finished, or all alike.
        """
        values = [trial.value for trial in self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))]
        if len(values) < _FEW or len(set(values)) == 1:
            return {}
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        return optuna.importance.get_param_importances(self._study, evaluator=evaluator)

    def _open(self) -> optuna.Study:
        file = self.home / _JOURNAL
        recipe = self._search.recipe
        before = read_recipe(str(self.base)) if file.exists() and self.base.exists() else recipe
        try:
            storage = JournalStorage(JournalFileBackend(str(file), JournalFileOpenLock(str(file))))
            study = optuna.create_study(
                storage=storage,
                sampler=optuna.samplers.RandomSampler(),  # which nobody asks: see `propose`
                study_name="tune",
                direction="maximize",
                load_if_exists=True,
            )
        except (ValueError, KeyError):
            raise UserError(f"{file} is damaged: remove its last line, or name another folder with --run") from None
        ours = asked(self._search, self._prune)
        theirs = study.user_attrs.get("asked", ours)
        differing = [
            f"{name}: {theirs.get(name, 'not searched')}, not {ours.get(name, 'a value')}"
            for name in {**ours, **theirs}
            if ours.get(name) != theirs.get(name)
        ]
        if differing := differing or differences(recipe, before):
            what = "; ".join(differing[:6])
            raise UserError(f"--run {self.home} belongs to another search ({what}): name another folder")
        study.set_user_attr("asked", ours)
        with atomic_write(self.base, flush=False) as temporary:  # other processes' trials may be reading it
            write_recipe(recipe, temporary)
        return study

    def _trial(self, number: int, values: dict[str, Any], before: list[FrozenTrial]) -> Trial:
        name = f"trial-{number:03d}"
        return Trial(number, values, RunDir(self.home / name), self.home / f"{name}.log", before)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """While no other process takes or records a trial, or says what all reached."""
        with (self.home / _LOCKS / "study").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _hold(self, number: int) -> bool:
        """Makes the trial this process's, until it is recorded or the process ends; False where it is another's."""
        file = (self.home / _LOCKS / f"{number}").open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        self._lock = file
        return True


def asked(search: Search, prune: int) -> dict[str, Any]:
    """What tells a search from another, besides all that decides how a run trains."""
    ranges = {path: str(found) for path, found in search.ranges.items()}
    return {**ranges, "evaluate.every_epochs": search.recipe.evaluate.every_epochs, "--prune": prune}


def propose(trials: Sequence[FrozenTrial], space: dict[str, BaseDistribution], seed: int) -> dict[str, Any]:
    """The values of the trial after `trials`, by TPE (Bergstra et al. 2011, Watanabe 2023).

    The sampler is made anew, with a seed of the trial's own, for one that is kept would repeat its first draws in every
    process, and after every stop.
    """
    sampler = optuna.samplers.TPESampler(seed=rng.torch_seed(seed, "tune", len(trials)), constant_liar=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.add_trials(trials)
    return study.ask(space).params


def hopeless_at(scores: Sequence[float], others: Sequence[FrozenTrial], startups: int) -> int | None:
    """The first score at which a trial's best so far is below the median of what finished ones had there, or None.

    The rule is optuna's MedianPruner: a function of the scores alone, whenever they are looked at. `startups`: finished
    trials before which none is hopeless.
    """
    pruner = optuna.pruners.MedianPruner(n_startup_trials=startups)
    study = optuna.create_study(direction="maximize")
    study.add_trials(others)
    for number in range(len(scores)):
        so_far = dict(enumerate(scores[: number + 1]))
        if pruner.prune(study, optuna.create_trial(state=TrialState.RUNNING, intermediate_values=so_far)):
            return number
    return None


def earlier(trial: Trial, first: int = 0) -> Outcome | None:
    """How an earlier trial with the same values ended, which this one would repeat; None: there is none.

    One that failed before trial `first`, where this command began, is tried again: what it met may have been mended.
    """
    for number, other in enumerate(trial.before):
        is_over = other.state.is_finished() and (other.state != TrialState.FAIL or number >= first)
        if other.params == trial.values and is_over:
            found = _outcome(other)
            why = found.why or f"the same as trial {number}"
            return Outcome(found.state, found.accuracy, found.scores, why)
    return None


def _outcome(trial: FrozenTrial) -> Outcome:
    scores = tuple(score for _, score in sorted(trial.intermediate_values.items()))
    facts = trial.user_attrs
    accuracy = trial.value if trial.state == TrialState.COMPLETE else None
    return Outcome(facts.get("state", "under way"), accuracy, scores, facts.get("why", ""))


def _distribution(found: Range | Choices) -> BaseDistribution:
    if isinstance(found, Choices):
        return CategoricalDistribution(found.words)
    if isinstance(found.low, int):
        return IntDistribution(found.low, found.high)
    return FloatDistribution(found.low, found.high, log=found.is_log)
