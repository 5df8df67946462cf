"""study.py: what is tried next, who trains it, and what is kept of it."""

from __future__ import annotations

import fcntl
import math
import os
import re
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import Phase, given, settings, strategies
from optuna.trial import FrozenTrial, TrialState

from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.sweeps import search_space
from resnet_cifar.sweeps.search_space import SearchSpace
from resnet_cifar.sweeps.study import Outcome, Study, Trial, earlier, propose, pruned_at

WORDS = {"phases.0.lr": "1e-4..1e-1", "augment.crop_padding": "0..8", "optimizer.name": "sgd,adamw"}


def search(**more: str) -> SearchSpace:
    return search_space.read("debug", {**WORDS, **more})


def quality(values: dict[str, Any]) -> float:
    """A made-up accuracy, best at a rate of 0.01 with adamw."""
    return 0.9 - 0.1 * abs(math.log10(values["phases.0.lr"]) + 2) - 0.2 * (values["optimizer.name"] == "sgd")


def go_on(study: Study, until: int) -> list[dict[str, Any]]:
    """Takes and finishes trials while there are fewer than `until`; every fifth one fails."""
    tried = []
    while trial := study.take(until):
        tried.append(trial.values)
        failed = trial.number % 5 == 4
        study.record(trial, Outcome("failed", why="no") if failed else Outcome("finished", quality(trial.values)))
    return tried


def test_a_search_makes_the_same_trials_again_and_after_every_stop_and_others_with_another_seed(tmp_path: Path) -> None:
    at_once = go_on(Study(tmp_path / "a", search(), 0), 25)
    in_parts = []
    for until in (1, 2, 9, 16, 25):  # TPE's random trials are the first ten
        in_parts += go_on(Study(tmp_path / "b", search(), 0), until)
    assert in_parts == at_once
    assert len({str(values) for values in at_once}) == 25, "every trial has draws of its own"
    assert go_on(Study(tmp_path / "c", search(seed="1"), 0), 3) != at_once[:3]


def test_the_search_finds_what_is_good(tmp_path: Path) -> None:
    study = Study(tmp_path, search(), 0)
    go_on(study, 50)
    reached = [outcome.best for _, outcome in study.trials() if outcome.best]
    assert statistics.fmean(reached[-10:]) > statistics.fmean(reached[:8]) + 0.05
    importance = study.importance()
    assert list(importance)[-1] == "augment.crop_padding", "which decides nothing"
    assert sum(importance.values()) == pytest.approx(1)


def test_nothing_is_said_to_matter_after_a_few_trials(tmp_path: Path) -> None:
    study = Study(tmp_path, search(), 0)
    go_on(study, 3)
    assert study.importance() == {}


def test_a_trial_that_was_left_is_taken_again_and_one_that_is_under_way_is_not(tmp_path: Path) -> None:
    left = Study(tmp_path, search(), 0, 2)
    first = left.take(3)
    ours = Study(tmp_path, search(), 0)
    second = ours.take(3)
    assert (first.number, second.number, ours.parallel) == (0, 1, 2)
    reasons: list[str] = []
    assert Study(tmp_path, search(), 0).take(3, reasons.append) is None, "both are under way"
    assert reasons == ["trial 2 depends on trial 0, which is running (--parallel 2)"]
    left._lock.close()  # as its process ends
    again = Study(tmp_path, search(), 0).take(3)
    assert (again.number, again.values, again.run.path) == (0, first.values, first.run.path)


def test_a_trial_follows_from_all_but_the_latest_which_may_be_running(tmp_path: Path) -> None:
    study = Study(tmp_path, search(), 0, 3)
    for number in range(5):
        trial = study.take(9)
        assert [before.number for before in trial.before] == list(range(number - 2))
        assert all(before.state == TrialState.COMPLETE for before in trial.before)
        study.record(trial, Outcome("finished", quality(trial.values)))


@dataclass
class Worker:
    """A process of a search; `trial`: what it is training."""

    study: Study
    trial: Trial | None = None


@settings(max_examples=6, deadline=None, derandomize=True, phases=[Phase.generate])  # shrinking takes minutes
@given(data=strategies.data())
def test_any_order_and_any_kills_give_the_same_trials(data: strategies.DataObject, tmp_path_factory) -> None:
    """TPE's ten random trials and six proposed ones; which of them fail or are pruned follows from their values."""

    def outcome(values: dict[str, Any]) -> Outcome:
        states = {0: "failed", 1: "ended early"}
        state = states.get(values["augment.crop_padding"] % 5, "finished")
        return Outcome(state, quality(values) if state == "finished" else None, (quality(values) / 2,), state)

    space, count, parallel = search(), 16, data.draw(strategies.integers(2, 4), label="parallel")
    alone = Study(tmp_path_factory.mktemp("alone"), space, 0, parallel)
    while trial := alone.take(count):
        alone.record(trial, outcome(trial.values))
    home = tmp_path_factory.mktemp("shared")
    workers = [Worker(Study(home, space, 0, parallel)) for _ in range(data.draw(strategies.integers(2, 5)))]
    while sum(found.state != "running" for _, found in workers[0].study.trials()) < count:
        worker = data.draw(strategies.sampled_from(workers), label="worker")
        event = data.draw(strategies.sampled_from(["continues", "continues", "is killed", "is killed in a write"]))
        if event == "continues" and worker.trial is None:
            worker.trial = worker.study.take(count)
        elif event == "continues":
            assert worker.study.record(worker.trial, outcome(worker.trial.values))
            worker.trial = None
        else:
            if worker.trial is not None:
                worker.study._lock.close()
            if event == "is killed in a write":
                with (home / "journal.log").open("ab") as journal:
                    journal.write(b'{"op_code":6,"worker')
            worker.study, worker.trial = Study(home, space, 0), None
    assert alone.trials() == workers[0].study.trials()


def test_a_process_that_lost_its_lock_records_nothing(tmp_path: Path) -> None:
    """As of a machine that was cut off for so long that the file server has dropped its locks."""
    lost, study = Study(tmp_path, search(), 0), Study(tmp_path, search(), 0)
    old = lost.take(1)
    fcntl.flock(lost._lock, fcntl.LOCK_UN)
    new = study.take(1)
    assert (old.number, lost.owns(old), study.owns(new)) == (new.number, False, True)
    assert not lost.record(old, Outcome("failed", why="taken over"))
    assert study.record(new, Outcome("finished", 0.5))
    assert [found.state for _, found in study.trials()] == ["finished"]


def test_the_kernel_frees_the_trial_of_a_process_that_dies(tmp_path: Path) -> None:
    child = os.fork()
    if not child:
        Study(tmp_path, search(), 0).take(5)
        os._exit(0)  # as by a kill: nothing is closed or recorded
    os.waitpid(child, 0)
    assert Study(tmp_path, search(), 0).take(5).number == 0


def test_how_trials_ended_is_kept(tmp_path: Path) -> None:
    study = Study(tmp_path, search(), 0)
    outcomes = [
        Outcome("finished", 0.5, (0.25, 0.5)),
        Outcome("ended early", None, (0.1,), "below the median at score 1"),
        Outcome("diverged", why="the loss of step 1 is not finite: lower the rate"),
        Outcome("failed", why="model.name 'test_vit' is too large"),
    ]
    for outcome in outcomes:
        study.record(study.take(9), outcome)
    study.take(9)
    kept = [outcome for _, outcome in Study(tmp_path, search(), 0).trials()]
    assert kept == [*outcomes, Outcome("running")]


def test_what_failed_is_tried_again_by_the_next_command(tmp_path: Path) -> None:
    for first in (0, 4):
        study = Study(tmp_path, search_space.read("debug", {"optimizer.name": "sgd,adamw"}), 0)
        assert study.first == first
        seen = set()
        for _ in range(4):
            trial = study.take(first + 4)
            found, name = earlier(trial, study.first), trial.values["optimizer.name"]
            assert (found is None) == (name not in seen)
            seen.add(name)
            study.record(trial, found or Outcome("failed", why="the disk is full"))


def test_what_was_tried_is_not_trained_again(tmp_path: Path) -> None:
    study = Study(tmp_path, search_space.read("debug", {"optimizer.name": "sgd,adamw"}), 0)
    seen: dict[str, Outcome] = {}
    for number in range(6):
        trial = study.take(6)
        name = trial.values["optimizer.name"]
        found = earlier(trial)
        assert (found is None) == (name not in seen)
        if found:
            assert (found.state, found.best, found.scores) == (
                seen[name].state, seen[name].best, seen[name].scores,
            )  # fmt: skip
            assert re.fullmatch(r"the same as trial \d", found.why)
        outcome = found or Outcome("finished", 0.5 + number / 10, (0.25,))
        seen.setdefault(name, outcome)
        study.record(trial, outcome)
    assert set(seen) == {"sgd", "adamw"}


@pytest.mark.parametrize(
    ("other", "prune", "sentence"),
    [
        ({"phases.0.lr": "1e-4..1e-2"}, 0, "phases.0.lr: 0.0001 to 0.1, on a log scale, not 0.0001 to 0.01, on a log"),
        ({"batch_size": "64"}, 0, "batch_size: 32, not 64"),
        ({"phases.1.lr": "1e-4..1e-2"}, 0, "phases.1.lr: not searched, not 0.0001 to 0.01"),
        ({"optimizer.name": "sgd"}, 0, "optimizer.name: one of sgd; adamw, not a value"),
        ({}, 2, "--prune: 0, not 2"),
        ({"evaluate.every_epochs": "0.25"}, 0, "evaluate.every_epochs: 0.5, not 0.25"),
    ],
)
def test_a_folder_of_another_search_is_refused(
    other: dict[str, str], prune: int, sentence: str, tmp_path: Path
) -> None:
    Study(tmp_path, search(), 0)
    with pytest.raises(UserError, match=rf"--run .* belongs to another search \(.*{re.escape(sentence)}"):
        Study(tmp_path, search(**other), prune)


def test_the_number_of_trials_at_once_belongs_to_the_search(tmp_path: Path) -> None:
    Study(tmp_path, search(), 0)
    with pytest.raises(UserError, match=r"belongs to another search \(--parallel: 1, not 4\)"):
        Study(tmp_path, search(), 0, 4)


def test_what_decides_nothing_may_change_between_two_starts(tmp_path: Path) -> None:
    Study(tmp_path, search(), 0)
    study = Study(tmp_path, search(**{"track.trackers": "none"}), 0)
    assert read_recipe(str(study.base)).track.trackers == "none"


def test_a_damaged_journal_is_named(tmp_path: Path) -> None:
    go_on(Study(tmp_path, search(), 0), 2)
    journal = tmp_path / "journal.log"
    journal.write_bytes(journal.read_bytes()[:-20] + b"\n")
    with pytest.raises(UserError, match=r"journal.log is damaged: remove its last line"):
        Study(tmp_path, search(), 0)


# Pruning


def peer(*scores: float, state: TrialState = TrialState.COMPLETE) -> FrozenTrial:
    return optuna.create_trial(state=state, value=max(scores), intermediate_values=dict(enumerate(scores)))


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.3, 0.4, 0.5], None),
        ([0.2, 0.3], None),  # as good as the median is good enough
        ([0.2, 0.29], 1),
        ([0.19, 0.9], 0),
        ([0.3, 0.1, 0.1], None),  # its best so far is compared, and nobody had a third score
        ([], None),
    ],
)
def test_a_trial_is_pruned_if_its_best_is_below_the_median_of_the_finished(scores, expected) -> None:
    """Medians of three by hand: 0.2 at the first score, 0.3 at the second."""
    peers = [peer(0.1, 0.2), peer(0.2, 0.3), peer(0.3, 0.4), peer(0.9, 0.9, state=TrialState.PRUNED)]
    assert pruned_at(scores, peers, 3) == expected
    assert pruned_at(scores, peers, 4) is None, "too few have finished"


def test_pruning_does_not_depend_on_when_the_evaluations_are_read() -> None:
    peers, scores = [peer(0.1, 0.3, 0.5, 0.7)], [0.2, 0.3, 0.4, 0.8, 0.9]
    looks = {pruned_at(scores[:seen], peers, 1) for seen in range(len(scores) + 1)}
    assert looks == {None, 2}


def test_proposals_are_a_function_of_the_seed_and_the_trials_before() -> None:
    space = {"x": optuna.distributions.FloatDistribution(0, 1)}
    before = [optuna.create_trial(value=x, params={"x": x}, distributions=space) for x in (0.1, 0.9, 0.5, *(0.2,) * 9)]
    assert propose(before, space, 0) == propose(before, space, 0)
    assert propose(before, space, 0) != propose(before, space, 1)
    assert propose(before[:3], space, 0) != propose(before[:2], space, 0)
