"""Requests to end a run: it saves, says where it stopped, and the same command resumes from there."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from faulty import TRY_AGAIN, FaultyRun, Start, fault, keep_sending

from resnet_cifar.checkpoints import checkpoint

REASONS = {"SIGTERM": "SIGTERM", "SIGINT": "SIGINT", "SIGUSR1": "the end of the launcher"}
# How far a start may come before its signal, in units of the moment: the rest of the run is for the next ones.
REACH = {"load": 1, "claim": 10, "update": 3, "evaluation": 5, "save": 30, "scoring": 1}
ON_RANK_0 = ("claim", "save")
BEFORE_TRAINING = ("load", "claim")
SHORT = [
    (fault("update", 3, "SIGTERM self", rank=1), "by hand"),
    (fault("evaluation", 2, "SIGUSR1 launcher"), "accelerate"),
    (fault("save", 5, "SIGTERM launcher"), "container"),
]


def moments(number: int) -> list[dict]:
    """One signal for each start of a round; the round's last one comes in the last scoring."""
    seeded = random.Random(f"signals, round {number}")
    acts = ("SIGTERM self", "SIGTERM launcher", "SIGUSR1 launcher", "SIGINT launcher")
    faults = []
    for at in (*seeded.sample(("load", "claim", "update", "evaluation", "save"), 4), "scoring"):
        rank = 0 if at in ON_RANK_0 else seeded.randrange(3)
        faults.append(fault(at, seeded.randint(1, REACH[at]), seeded.choice(acts), rank))
    return faults


def saved_steps(run: FaultyRun) -> int:
    """Updates that the newest checkpoint has seen; 0 if there is none."""
    return max(checkpoint.steps(run.folder / "checkpoints"), default=0)


def check_interrupted(run: FaultyRun, start: Start, why: str) -> None:
    """Fails where the run does not say that it stopped, or not where."""
    assert run.status["state"] == "interrupted", start.said
    assert run.status["why"] == why
    assert run.status["step"] == saved_steps(run)
    assert start.errors == []
    for rank in range(run.processes):
        if done := [update["step"] + 1 for update in start.updates if update["rank"] == rank]:
            assert max(done) == run.status["step"], "every rank has stopped after the same step, and that is saved"


@pytest.fixture(scope="module")
def tally():
    """What all rounds have seen."""
    return {"signals": Counter(), "moments": Counter(), "lost": []}


@pytest.mark.rounds(1, 6)
def test_signals_lose_no_step(hurt_run, undisturbed, record, tally, proof, number):
    run = hurt_run(3 if proof else 2)
    planned_by = [(planned, "accelerate") for planned in moments(number)] if proof else SHORT
    for planned, launcher in planned_by:
        before = run.status
        code, start = run.hurt(planned, by=launcher)
        name, target = planned["then"].split()
        if planned["at"] == "scoring" and run.status["state"] == "finished":
            pass  # what is left then takes no longer than the ranks need to agree
        elif planned["at"] not in BEFORE_TRAINING:
            check_interrupted(run, start, REASONS[name])
            if target == "self":  # torch's launcher would start another code than 0 over
                assert code == (TRY_AGAIN if launcher == "by hand" else 0)
            assert launcher != "container" or code == TRY_AGAIN, "what makes Kubernetes start the pod again"
        elif run.status != before:
            check_interrupted(run, start, REASONS[name])
        tally["signals"][f"{name} to {'a rank' if target == 'self' else 'the launcher'}"] += 1
        tally["moments"][planned["at"]] += 1
    run.finish()
    undisturbed(run.processes).check_equal(run)
    assert set(run.lost()) <= {0}
    tally["lost"] += run.lost()
    record(
        "signals",
        signals=dict(sorted(tally["signals"].items())),
        moments=dict(sorted(tally["moments"].items())),
        steps_lost=sum(tally["lost"]),
    )


@pytest.mark.proof_only
@pytest.mark.parametrize(
    "launchers", [("torchrun", "by hand"), ("container", "accelerate", "torchrun")], ids=" then ".join
)
def test_a_run_saves_and_resumes_under_any_launcher(hurt_run, undisturbed, launchers: tuple[str, ...]):
    """SIGTERM to what was started by hand is one to a rank: a shell passes none on."""
    run = hurt_run(2)
    for number, launcher in enumerate(launchers):
        to_rank = launcher == "by hand"
        planned = fault("update", 5, f"SIGTERM {'self' if to_rank else 'launcher'}", rank=number % 2)
        code, start = run.hurt(planned, by=launcher)
        check_interrupted(run, start, "SIGTERM")
        assert code == (1 if launcher in ("accelerate", "torchrun") else TRY_AGAIN), start.said
    run.finish(by=launchers[0])
    undisturbed(2).check_equal(run)
    assert set(run.lost()) == {0}


def test_a_process_alone_ends_at_its_limit_and_at_a_second_signal(hurt_run, undisturbed):
    run = hurt_run()

    start = run.start(options=("--max_minutes", 0.0001))
    assert start.wait() == TRY_AGAIN
    assert (
        start.stderr == "stopped by --max-minutes 0.0001 before training began: rerun the same command to start again\n"
    )
    assert not run.folder.exists()

    code, start = run.hurt(fault("update", 6, "an hour passes"), options=("--max_minutes", 30))
    assert code == TRY_AGAIN
    check_interrupted(run, start, "--max-minutes 30")
    assert run.status["step"] >= 6

    start = run.start(fault("update", 2, "block"))
    start.wait_until_fired()
    assert keep_sending(start, signal.SIGTERM) == 128 + signal.SIGTERM
    assert start.stderr == "SIGTERM again: exiting immediately\n"

    run.finish()
    undisturbed().check_equal(run)


@pytest.mark.proof_only
def test_wandb_shows_every_row_of_an_interrupted_run(hurt_run, undisturbed):
    run = hurt_run(track="wandb")
    code, start = run.hurt(fault("update", 12, "SIGTERM self"))
    assert code == TRY_AGAIN
    check_interrupted(run, start, "SIGTERM")
    run.finish()
    undisturbed().check_equal(run)
    pieces = sorted((run.folder / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(pieces) == 2
    assert {piece.stem for piece in pieces} == {"run-" + (run.folder / "wandb" / ".id").read_text()}
    assert [row for piece in pieces for row in history(piece)] == run.rows


def history(piece: Path) -> list[dict]:
    """The rows that W&B's own reader finds, without its own entries and the row that holds the figures."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", piece]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    records = [json.loads(line) for line in printed.splitlines()]
    rows = [found["history"]["item"] for found in records if found["type"] == "history"]
    plain = [{key: value for key, value in row.items() if not key.startswith("_")} for row in rows]
    return [row for row in plain if "lr" in row]


@pytest.mark.proof_only
def test_a_signal_before_anything_is_saved_costs_nothing_but_the_start(hurt_run, undisturbed, tmp_path):
    run = hurt_run()
    (tmp_path / "cache").mkdir()
    empty_cache = {"RESNET_CIFAR_CACHE": str(tmp_path / "cache")}

    for moment in (fault("decode", 3, "SIGINT self"), fault("load", 1, "SIGTERM self")):
        code, start = run.hurt(moment, env=empty_cache)
        name = moment["then"].split()[0]
        assert code == TRY_AGAIN
        assert start.stderr == f"stopped by {name} before training began: rerun the same command to start again\n"
        assert not run.folder.exists()

    code, start = run.hurt(fault("claim", 5, "SIGKILL self"), env=empty_cache)
    assert code == -signal.SIGKILL
    assert {file.name.partition(".writing")[0] for file in run.folder.iterdir()} == {"lease.json", "recipe.yaml"}

    # A first step that compiles may take minutes; the signal is answered in it.
    code, start = run.hurt(fault("update", 1, "SIGTERM self"), fault("update", 1, "block"), env=empty_cache)
    assert code == TRY_AGAIN
    check_interrupted(run, start, "SIGTERM")
    assert run.status["step"] == 0

    run.finish()
    undisturbed().check_equal(run)
