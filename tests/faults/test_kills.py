"""Everything is killed at once, as by a power cut, again and again: the run ends as if nothing had happened."""

from __future__ import annotations

import random
import signal
from collections import Counter

import pytest
from faulty import fault

# What a start of each moment's kill may do before it, in units of the moment: at the most three checkpoints.
REACH = {"claim": 10, "update": 6, "evaluation": 10, "save": 56, "scoring": 1, "export": 10}
ON_RANK_0 = ("claim", "save", "export")
# Besides saves, a kill leaves what the newest checkpoint holds: that of an evaluation is left to the proof.
SHORT = {2: ("update", "save"), 3: ("update", "end")}


def moments(processes: int, number: int, proof: bool) -> list[dict]:
    """One kill for each start, of seeded moments; those at the run's end come last, for a start gets there once."""
    seeded = random.Random(f"{processes} processes, round {number}")
    kinds = SHORT[processes]
    if proof:
        kinds = ["claim", "update", "evaluation", "save"]
        seeded.shuffle(kinds)
        kinds.append("end")
    faults = []
    for kind in kinds:
        at = seeded.choice(("scoring", "export")) if kind == "end" else kind
        rank = 0 if at in ON_RANK_0 else seeded.randrange(processes)
        faults.append(fault(at, seeded.randint(1, REACH[at]), "SIGKILL everything", rank))
    return faults


@pytest.fixture(scope="module")
def tally():
    """What all rounds have seen."""
    return {"moments": Counter(), "details": Counter(), "lost": []}


@pytest.mark.rounds(1, 5)
@pytest.mark.parametrize(
    "processes",
    [pytest.param(2, id="2-processes"), pytest.param(3, id="3-processes", marks=pytest.mark.proof_only)],
)
def test_kills_change_nothing(hurt_run, undisturbed, record, tally, proof, processes, number):
    run = hurt_run(processes)
    for kill in moments(processes, number, proof):
        code, start = run.hurt(kill)
        assert code == -signal.SIGKILL
        happened = start.fired[0]
        tally["moments"][f"{processes} processes, {happened['at']}"] += 1
        tally["details"][happened["detail"].split("-0000")[0].split(".writing")[0]] += 1
    run.finish()
    undisturbed(processes).check_equal(run)
    tally["lost"] += run.lost()
    assert max(run.lost(), default=0) <= 8, "a checkpoint is due every four steps, and one may be under way"
    record(
        "kills",
        kills=sum(tally["moments"].values()),
        moments=dict(sorted(tally["moments"].items())),
        steps_lost={"each": tally["lost"], "most": max(tally["lost"], default=0)},
        equal="checkpoint bytes, scores, rows, images and batches of every step and rank",
    )


def test_the_proof_hits_every_kind_of_moment():
    planned = [kill["at"] for processes in (2, 3) for n in range(1, 6) for kill in moments(processes, n, proof=True)]
    assert len(planned) == 50
    assert set(planned) == REACH.keys()
