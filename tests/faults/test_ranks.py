"""One process of several dies or hangs: the others say which and where, end, and the same command goes on."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
from faulty import FaultyRun, fault

IMPATIENT = {
    "options": ("--rank_timeout", 5),
    "env": {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "3"},  # seconds until torch's launcher kills who does not end
}
DIED = "died or lost the network"
STUCK = "made no progress for 5 s (rank_timeout): rank 1 never entered the all-reduce of step "
STOPPED = "no longer responds: rank 1 never entered the all-reduce of step "


def check_sentence(run: FaultyRun, planned: dict, pattern: str, **more: Any) -> str:
    """A start with the planned fault fails, with one sentence of ours that names the rank and a step it has seen."""
    code, start = run.hurt(planned, **more)
    assert code != 0
    assert len(start.errors) == 1, start.said
    found = re.fullmatch(f"error: rank {planned['rank']} {pattern}.*", start.errors[0])
    assert found, start.errors
    assert int(found["step"]) <= int(start.fired[0]["detail"].removeprefix("step "))
    return start.errors[0].removeprefix("error: ")


@pytest.mark.rounds(1, 4)
def test_a_rank_that_dies_or_hangs_ends_the_start_and_not_the_run(hurt_run, undisturbed, record, proof, number):
    run = hurt_run(3 if proof else 2)
    seeded = random.Random(f"ranks, round {number}")

    def moment(then: str, rank: int) -> dict:
        return fault("update", seeded.randint(2, 5) if proof else 3, then, seeded.randrange(3) if number > 1 else rank)

    heard = r"\(last heard of at step (?P<step>\d+)\) "
    check_sentence(run, moment("SIGKILL self", rank=1), heard + DIED)
    if proof:
        check_sentence(run, fault("update", 2, "SIGKILL self", rank=0), heard + DIED)
    said = check_sentence(run, fault("update", 3, "block", rank=1), heard + re.escape(STUCK), **IMPATIENT)
    assert (run.status["state"], run.status["why"]) == ("lost", said)
    assert f"{run.status['hang']})" in said and (run.folder / run.status["hang"] / "rank-1.txt").is_file()
    if proof:
        said = check_sentence(run, fault("update", 3, "SIGSTOP self", rank=1), heard + STOPPED, **IMPATIENT)
        assert (run.status["state"], run.status["why"]) == ("lost", said)
    run.finish()
    undisturbed(run.processes).check_equal(run)
    assert max(run.lost(), default=0) <= 8
    record(f"ranks, round {number}", died=2, stuck=1, stopped=1, steps_lost=run.lost())


@pytest.mark.proof_only
@pytest.mark.parametrize("killed", [(2,), (3,), (2, 3)], ids=str)
def test_all_ranks_that_die_at_one_moment_are_named(hurt_run, killed):
    """Of four, whose heartbeats reach rank 0 in blocks of two: rank 2, which sends those of both, rank 3, or both."""
    run, smaller = hurt_run(4), ("--model.ghost_batch_size", 4, "--micro_batch", 4)
    code, start = run.hurt(
        *(fault("update", 3, "SIGKILL self", rank) for rank in killed), by="by hand", options=smaller
    )
    assert code != 0
    named = ", ".join(rf"rank {rank} \(last heard of at step \d\)" for rank in killed)
    assert len(start.errors) == 1 and re.match(f"error: {named} {DIED}: ", start.errors[0]), start.said
    assert run.status["state"] == "lost"


@pytest.mark.proof_only
def test_a_rank_that_fails_before_training_says_which_it_was(hurt_run):
    run = hurt_run(3)
    code, start = run.hurt(fault("load", 1, "raise", rank=2))
    assert code != 0
    assert re.search(r"^rank 2 on \S+ failed:$", start.stderr, re.MULTILINE), start.said
    assert "[rank2]: RuntimeError: injected" in start.stderr
    told = "error: rank 2 failed (RuntimeError: injected), and the other processes stop"
    assert set(start.errors) <= {told, "error: another process ended before training began, and says why"}
    assert not run.folder.exists()


@pytest.mark.rounds(0, 2)
def test_the_launcher_starts_all_ranks_over_by_itself(hurt_run, undisturbed, record, number):
    run = hurt_run(2)
    then = ("raise", "SIGKILL self")[number - 1]
    code, start = run.hurt(fault("update", 7, then, rank=1), launcher_options=("--max_restarts", 1))
    assert code == 0, start.said
    (said,) = start.errors
    assert said == "error: rank 1 failed at step 6: injected" if then == "raise" else DIED in said
    assert {update["restart"] for update in start.updates} == {0, 1}
    undisturbed(2).check_equal(run)
    record("started over by the launcher", attempts=2 * number)
