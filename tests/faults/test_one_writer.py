"""Two starts in one run directory: the later one has it, and the other stops without a trace."""

from __future__ import annotations

import random
import signal

import pytest
from faulty import FaultyRun, Start, fault


def places(number: int) -> tuple[int, int]:
    """Where two starts wait for each other, in file operations of their claims: the first rounds are the nastiest."""
    chosen = {1: (1, 1), 2: (6, 6)}  # nobody has written yet; both are about to rename recipe.yaml
    seeded = random.Random(f"claims, round {number}")
    return chosen.get(number) or (seeded.randint(1, 10), seeded.randint(1, 10))


@pytest.mark.rounds(1, 10)
def test_of_two_starts_at_one_moment_one_finishes(hurt_run, undisturbed, record, number):
    run = hurt_run()
    both = [run.start(fault("claim", place, "meet")) for place in places(number)]
    codes = [start.wait() for start in both]
    said = "\n---\n".join(start.said for start in both)
    assert sorted(codes) == [0, 2], said
    loser, winner = (both[codes.index(code)] for code in (2, 0))
    assert "error" not in winner.stderr
    assert len(loser.errors) == 1
    assert loser.stderr.count("\n") == 1, loser.stderr
    assert "was taken over by attempt" in loser.stderr
    undisturbed().check_equal(run)
    record("two starts at one moment", pairs=number)


def asleep_while_another_finishes(run: FaultyRun, moment: dict) -> Start:
    """A start that stopped at a moment, and has not noticed that the run was finished by another one."""
    asleep = run.start(moment)
    asleep.wait_until_stopped()
    asleep.check_fired()
    run.finish()
    return asleep


@pytest.mark.rounds(1, 4)
def test_a_start_that_was_asleep_changes_nothing(hurt_run, undisturbed, record, number):
    run = hurt_run()
    update = (11, 20, 28, 31)[number - 1]  # two steps after a save
    asleep = asleep_while_another_finishes(run, fault("update", update, "SIGSTOP self"))
    before = run.digests()
    asleep.process.send_signal(signal.SIGCONT)
    assert asleep.wait() == 2
    assert len(asleep.errors) == 1
    assert asleep.stderr.count("\n") == 1, asleep.stderr
    assert "was taken over by attempt 2" in asleep.stderr
    assert run.digests() == before
    undisturbed().check_equal(run)
    record("asleep in an update", starts=number)


@pytest.mark.rounds(0, 6)
def test_a_start_that_was_asleep_in_a_save_changes_nothing_that_counts(hurt_run, undisturbed, record, number):
    run = hurt_run()
    operation = random.Random(f"asleep, round {number}").randint(20, 80)
    asleep = asleep_while_another_finishes(run, fault("save", operation, "SIGSTOP self"))
    before = run.digests()
    asleep.process.send_signal(signal.SIGCONT)
    assert asleep.wait() == 2
    assert len(asleep.errors) == 1
    assert asleep.stderr.count("\n") == 1, asleep.stderr
    # The other thread may have slept while it replaced status.json: nothing can take that back.
    passing = ("status.json", "metrics.jsonl.writing", "lease.json.writing")
    after = run.digests()
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert {name for name in changed if not name.startswith(passing)} == set()
    undisturbed().check_equal(run, with_status=False)
    record("asleep in a save", starts=number)
