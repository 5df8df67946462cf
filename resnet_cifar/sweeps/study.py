"""The trials of a search: optuna's journal in a directory that several processes may share, and the next proposal.

A proposal is a function of the recipe's seed, the trial's number, the values of the earlier trials and the outcomes of
all of them but the latest `parallel - 1`, which may still be running. A search is therefore reproducible: however many
processes share it, whichever is faster, and wherever one of them is killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from resnet_cifar import rng
from resnet_cifar.checkpoints.run_dir import RunDir
from resnet_cifar.config.diff import differences
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import read_recipe, write_recipe
from resnet_cifar.sweeps.search_space import Choices, Range, SearchSpace

optuna.logging.set_verbosity(optuna.logging.WARNING)

_JOURNAL, _LOCKS, _BASE = "journal.log", "locks", "base.yaml"
_MIN_TRIALS = 4  # finished trials below which no importance is computed


@dataclass(frozen=True)
class Trial:
    """A trial that this process runs. `before`: the earlier trials whose outcomes it may depend on, all ended."""

    number: int
    values: dict[str, Any]
    run: RunDir
    log: Path
    before: list[FrozenTrial]


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: `finished`, `ended early`, `diverged`, `failed`; or `running`.

    `best`: the result of a finished trial, the validation metric evaluate.select_by with a sign that makes larger
    better (see `metric_score`). `scores`: the same at its evaluations during training, by which trials are pruned.
    `why`: the error it failed with, or another reason.
    """

    state: str
    best: float | None = None
    scores: Sequence[float] = ()
    why: str = ""


class Study:
    """A search's directory: base.yaml (the recipe that trials share), journal.log (optuna's), trial-N/, trial-N.log.

    `first`: the number of the first trial that started after the study was opened. `parallel`: how many trials may run
    at once.
    """

    def __init__(self, home: Path, space: SearchSpace, prune: int, parallel: int = 0) -> None:
        """Creates or resumes the study. Raises UserError if the directory holds something else or cannot be used.

        `parallel` 0: as the study was created, 1 for a new one.
        """
        self.home, self.base = home, home / _BASE
        self.space, self.prune, self.select_by = space, prune, space.recipe.evaluate.select_by
        self._distributions = {path: _distribution(found) for path, found in space.ranges.items()}
        self._lock: BinaryIO | None = None  # of the trial that this process runs: others see that it is alive
        self._token = ""  # of that trial, in the journal: a file server may drop the locks of a machine that it lost
        names = {path.name for path in home.iterdir()} if home.is_dir() else set()
        if _JOURNAL not in names and names - {_LOCKS}:
            raise UserError(f"--run {home} contains files but no search: name a new or empty directory")
        try:
            (home / _LOCKS).mkdir(parents=True, exist_ok=True)
            with self.locked():
                self._study, self.parallel = self._open(parallel)
                self.first = len(self._study.get_trials(deepcopy=False))
        except OSError as error:
            raise UserError(f"--run {home} cannot be used ({error.strerror}): name another directory") from None

    def take(self, limit: int, pause: Callable[[str], bool] = lambda reason: False) -> Trial | None:
        """A trial that a dead process left unfinished, or else a new one; None if there are `limit` trials.

        While a new trial depends on others that are running, calls `pause` with the reason, and looks again; returns
        None if it returns False.
        """
        while True:
            with self.locked():
                trials = self._study.get_trials(deepcopy=False)
                for trial in trials:
                    if trial.state == TrialState.RUNNING and self._lock_trial(trial.number):
                        return self._claim(trials, trial.number)
                number = len(trials)
                if number >= limit:
                    return None
                running = [trial.number for trial in self._known(trials, number) if not trial.state.is_finished()]
                if not running:
                    self._add(trials)
                    self._lock_trial(number)
                    return self._claim(self._study.get_trials(deepcopy=False), number)
            first = running[0]
            if not pause(f"trial {number} depends on trial {first}, which is running (--parallel {self.parallel})"):
                return None

    def owns(self, trial: Trial) -> bool:
        """Whether this process still runs the trial, and no other has taken it over."""
        with self.locked():
            return self._recorded(trial).user_attrs["token"] == self._token

    def record(self, trial: Trial, outcome: Outcome) -> bool:
        """Records how the trial ended; returns False, and records nothing, if another process has taken it over."""
        state = {"finished": TrialState.COMPLETE, "failed": TrialState.FAIL}.get(outcome.state, TrialState.PRUNED)
        with self.locked(), self._lock:
            recorded = self._recorded(trial)
            if recorded.user_attrs["token"] != self._token:
                return False
            live = optuna.Trial(self._study, recorded._trial_id)
            for number, score in enumerate(outcome.scores):
                if number not in recorded.intermediate_values:  # by a process that was killed right here
                    live.report(score, number)
            live.set_user_attr("state", outcome.state)
            live.set_user_attr("why", outcome.why)
            self._study.tell(trial.number, outcome.best, state)
        return True

    def trials(self) -> list[tuple[dict[str, Any], Outcome]]:
        """The values and the outcome of all trials so far, by number."""
        return [(trial.params, _outcome(trial)) for trial in self._study.get_trials(deepcopy=False)]

    def importance(self) -> dict[str, float]:
        """Each field's importance for the best trials (PED-ANOVA, Watanabe et al. 2023), the largest first.

        Empty if too few trials have finished, or all with the same result.
        """
        values = [trial.value for trial in self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))]
        if len(values) < _MIN_TRIALS or len(set(values)) == 1:
            return {}
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        return optuna.importance.get_param_importances(self._study, evaluator=evaluator)

    def _open(self, parallel: int) -> tuple[optuna.Study, int]:
        file = self.home / _JOURNAL
        recipe = self.space.recipe
        before = read_recipe(str(self.base)) if file.exists() and self.base.exists() else recipe
        try:
            storage = JournalStorage(JournalFileBackend(str(file), _Locked()))
            study = optuna.create_study(
                storage=storage,
                sampler=optuna.samplers.RandomSampler(),  # not used: see `propose`
                study_name="tune",
                direction="maximize",
                load_if_exists=True,
            )
        except (ValueError, KeyError):
            raise UserError(f"{file} is damaged: remove its last line, or name another directory with --run") from None
        theirs = {"--parallel": 1, **study.user_attrs.get("settings", {"--parallel": parallel or 1})}
        ours = {**settings(self.space, self.prune), "--parallel": parallel or theirs["--parallel"]}
        theirs = theirs if "settings" in study.user_attrs else ours
        differing = [
            f"{name}: {theirs.get(name, 'not searched')}, not {ours.get(name, 'a value')}"
            for name in {**ours, **theirs}
            if ours.get(name) != theirs.get(name)
        ]
        if differing := differing or differences(recipe, before):
            what = "; ".join(differing[:6])
            raise UserError(f"--run {self.home} belongs to another search ({what}): name another directory")
        study.set_user_attr("settings", ours)
        write_recipe(recipe, self.base)
        return study, ours["--parallel"]

    def _known(self, trials: Sequence[FrozenTrial], number: int) -> list[FrozenTrial]:
        """Those of the `trials` whose outcomes trial `number` may depend on."""
        return list(trials[: max(0, number - self.parallel + 1)])

    def _recorded(self, trial: Trial) -> FrozenTrial:
        return self._study.get_trials(deepcopy=False)[trial.number]

    def _add(self, trials: Sequence[FrozenTrial]) -> None:
        """Adds the trial after `trials`; of the latest ones only the values count, as if they were all running."""
        known = self._known(trials, len(trials))
        pending = [
            optuna.create_trial(state=TrialState.RUNNING, params=trial.params, distributions=trial.distributions)
            for trial in trials[len(known) :]
        ]
        values = propose([*known, *pending], self._distributions, self.space.recipe.seed)
        self._study.add_trial(
            optuna.create_trial(state=TrialState.RUNNING, params=values, distributions=self._distributions)
        )

    def _claim(self, trials: Sequence[FrozenTrial], number: int) -> Trial:
        """The trial, which this process has locked."""
        self._token, found, name = secrets.token_hex(8), trials[number], f"trial-{number:03d}"
        optuna.Trial(self._study, found._trial_id).set_user_attr("token", self._token)
        before = self._known(trials, number)
        return Trial(number, found.params, RunDir(self.home / name), self.home / f"{name}.log", before)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Excludes other processes from taking and recording trials and from writing the summary."""
        journal = self.home / _JOURNAL
        with (self.home / _LOCKS / "study").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # A machine that died may have left part of a line, to which optuna would append the next one.
            if journal.exists() and not (content := journal.read_bytes()).endswith(b"\n"):
                os.truncate(journal, content.rfind(b"\n") + 1)
            yield

    def _lock_trial(self, number: int) -> bool:
        """Locks the trial until it is recorded or the process ends; False if another process runs it."""
        file = (self.home / _LOCKS / f"{number}").open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        self._lock = file
        return True


class _Locked:
    """Does nothing, since all that write hold `Study.locked`: optuna's own lock is a file that outlives its process."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def settings(space: SearchSpace, prune: int) -> dict[str, Any]:
    """The settings that identify a search, besides the recipe's fields that decide how a run trains."""
    ranges = {path: str(found) for path, found in space.ranges.items()}
    return {**ranges, "evaluate.every_epochs": space.recipe.evaluate.every_epochs, "--prune": prune}


def propose(trials: Sequence[FrozenTrial], space: dict[str, BaseDistribution], seed: int) -> dict[str, Any]:
    """The values of the trial after `trials`, by TPE (Bergstra et al. 2011, Watanabe 2023).

    The sampler is created for each trial with a seed of its own; a persistent one would repeat its first random numbers
    in every process and after every interruption.
    """
    sampler = optuna.samplers.TPESampler(seed=rng.torch_seed(seed, "tune", len(trials)), constant_liar=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.add_trials(trials)
    return study.ask(space).params


def pruned_at(scores: Sequence[float], others: Sequence[FrozenTrial], startups: int) -> int | None:
    """The index of the first evaluation at which the best so far is below the median of finished trials, or None.

    The rule is optuna's MedianPruner, applied to each prefix of `scores`, so that the result does not depend on when it
    is called. `startups`: finished trials before which none is pruned.
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
    """The outcome of an earlier trial with the same values, or None.

    Trials before `first` that failed are tried again: the cause may have been fixed.
    """
    for number, other in enumerate(trial.before):
        is_over = other.state.is_finished() and (other.state != TrialState.FAIL or number >= first)
        if other.params == trial.values and is_over:
            found = _outcome(other)
            why = found.why or f"the same as trial {number}"
            return Outcome(found.state, found.best, found.scores, why)
    return None


def _outcome(trial: FrozenTrial) -> Outcome:
    scores = tuple(score for _, score in sorted(trial.intermediate_values.items()))
    facts = trial.user_attrs
    best = trial.value if trial.state == TrialState.COMPLETE else None
    return Outcome(facts.get("state", "running"), best, scores, facts.get("why", ""))


def _distribution(found: Range | Choices) -> BaseDistribution:
    if isinstance(found, Choices):
        return CategoricalDistribution(found.words)
    if isinstance(found.low, int):
        return IntDistribution(found.low, found.high)
    return FloatDistribution(found.low, found.high, log=found.is_log)
