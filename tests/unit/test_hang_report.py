"""The sentence on a hang from what is known of every rank, and how that becomes known."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
from pathlib import Path
from types import FrameType

import pytest

from resnet_cifar.data import sampling
from resnet_cifar.distributed import process_snapshot
from resnet_cifar.distributed.collective_log import Call, CollectiveLog, NeighborLog
from resnet_cifar.distributed.hang_report import RankReport, explain

LOADER = "data/loader.py:88"
GATHER = ("gather", "the evaluation", "evaluation/predict.py:88")

RANK_0 = ("work on rank 0", "the start", "training/trainer.py:80")


def gradients(step: int) -> tuple[str, str, str]:
    return "all-reduce", f"step {step}", ""


def metrics(step: int, line: int = 102) -> tuple[str, str, str]:
    return "all-reduce", f"step {step}", f"training/metric_accumulator.py:{line}"


def rank(
    *calls: tuple[str, str, str],
    at: str = "",
    waiting: bool = False,
    state: str = "running",
    responds: bool = True,
    is_current: bool = True,
) -> RankReport:
    """One that has entered `calls`, numbered from 1."""
    numbered = [Call(number, *call) for number, call in enumerate(calls, start=1)]
    return RankReport(numbered, waiting, at, state, responds, is_current)


def waits(*calls: tuple[str, str, str]) -> RankReport:
    return rank(*calls, at="training/train_step.py:71", waiting=True, state="sleeping")


STEPS = [gradients(455), metrics(455), gradients(456)]
SITUATIONS = {
    "one rank of eight is in its loader": (
        [*[waits(*STEPS)] * 5, rank(*STEPS[:2], at=LOADER), *[waits(*STEPS)] * 2],
        [5],
        "rank 5 never entered the all-reduce of step 456; it is in data/loader.py:88",
    ),
    "the others are steps ahead, as hosts of GPUs may be": (
        [waits(*STEPS, gradients(457)), rank(*STEPS[:1], at=LOADER), waits(*STEPS)],
        [1],
        "rank 1 never entered the all-reduce of step 455 at training/metric_accumulator.py:102; "
        "it is in data/loader.py:88",
    ),
    "a node of two hangs at one place": (
        [waits(*STEPS), rank(*STEPS[:2], at=LOADER), rank(*STEPS[:2], at=LOADER), waits(*STEPS)],
        [1, 2],
        "ranks 1 and 2 never entered the all-reduce of step 456; each is in data/loader.py:88",
    ),
    "two ranks hang at two places": (
        [rank(*STEPS[:2], at=LOADER), waits(*STEPS), rank(*STEPS[:2], at="rng.py:5", state="disk-sleep")],
        [0, 2],
        "ranks 0 and 2 never entered the all-reduce of step 456; rank 0 is in data/loader.py:88, "
        "rank 2 is in rng.py:5, where a disk or file system does not answer (state D)",
    ),
    "a stopped process, whose memory is read": (
        [waits(*STEPS), rank(*STEPS[:2], state="stopped", responds=False)],
        [1],
        "rank 1 never entered the all-reduce of step 456; it is a stopped process (state T)",
    ),
    "a process that is stopped inside": (
        [waits(*STEPS), rank(*STEPS, state="stopped", responds=False, waiting=True)],
        [1],
        "rank 1 entered the all-reduce of step 456 and never left it; it is a stopped process (state T)",
    ),
    "a machine that is gone, with its last heartbeat": (
        [waits(*STEPS), rank(*STEPS[:1], state="", responds=False, is_current=False)],
        [1],
        "rank 1 does not take part in the all-reduce of step 456; it does not respond, and no other process of its "
        "machine saw it",
    ),
    "C that holds the interpreter's lock": (
        [waits(*STEPS), rank(*STEPS[:2], at=LOADER, responds=False)],
        [1],
        "rank 1 never entered the all-reduce of step 456; it runs but does not respond, and is in data/loader.py:88",
    ),
    "rank 0 works for the others": (
        [
            rank(("work of rank 0", "step 4", "a.py:1"), at="hub_access.py:5"),
            waits(("work of rank 0", "step 4", "a.py:1")),
        ],
        [0],
        "rank 0 holds up the work of rank 0 of step 4 at a.py:1, in which the others wait; it is in hub_access.py:5",
    ),
    "the network or a device": (
        [waits(*STEPS)] * 3,
        [0, 1, 2],
        "all ranks entered the all-reduce of step 456, and it never ended: a device or the network hangs",
    ),
    "a file server that all read from": (
        [rank(*STEPS[:2], at=LOADER, state="disk-sleep")] * 40,
        [*range(40)],
        "no rank entered another collective after the all-reduce of step 455 at training/metric_accumulator.py:102; "
        "each is in data/loader.py:88, where a disk or file system does not answer (state D)",
    ),
    "one rank evaluates while the others train": (
        [waits(*STEPS), waits(*STEPS[:2], GATHER), waits(*STEPS)],
        [1],
        "rank 1 entered the gather of the evaluation at evaluation/predict.py:88, "
        "the others the all-reduce of step 456",
    ),
    "of two ranks, the one that left out what always came": (
        [waits(*STEPS, metrics(456)), waits(gradients(455), metrics(455), gradients(456), gradients(457))],
        [1],
        "rank 1 entered the all-reduce of step 457, rank 0 the all-reduce of step 456 at "
        "training/metric_accumulator.py:102",
    ),
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_the_sentence_names_the_rank_and_what_it_did_not_enter(situation: str) -> None:
    reports, culprits, sentence = SITUATIONS[situation]
    recorded = {number: RankReport.from_json(report.to_json()) for number, report in enumerate(reports)}
    assert explain(recorded) == (culprits, sentence)


def test_a_rank_of_many_is_not_lost_in_a_list_of_numbers() -> None:
    reports = {number: rank(*STEPS[:2], at=LOADER) for number in range(9)} | {9: waits(*STEPS)}
    assert explain(reports)[1].startswith("ranks 0, 1, 2, 3 and 5 others never entered")


def test_the_latest_call_of_a_process_outlives_it() -> None:
    """A process that gloo has aborted, or that the kernel killed for its memory, still tells what it was doing."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        log = CollectiveLog()
        log.enter("broadcast", sys._getframe())
        fd = log.share()
        os.write(writer, str(fd).encode())
        threading.Event().wait()
    fd = int(os.read(reader, 16))
    neighbor = NeighborLog(pid, fd)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    calls, waiting = neighbor.read()
    assert [(call.number, call.kind, call.phase) for call in calls[1:]] == [(1, "broadcast", "the start")]
    assert not waiting
    assert process_snapshot.observe(pid, neighbor.read(), Path("/nowhere")).state == "ended"
    with pytest.raises(OSError):
        NeighborLog(pid, fd)


def test_calls_are_numbered_and_name_the_line_that_asked_for_them() -> None:
    log = CollectiveLog()
    for step in range(300):
        log.begin(f"step {step}")
        log.enter("gather", sys._getframe())
        log.enter("all-reduce", None)
    assert [call.number for call in log.recent] == list(range(345, 601)), "the oldest ones are dropped"
    line = test_calls_are_numbered_and_name_the_line_that_asked_for_them.__code__.co_firstlineno + 4
    assert str(log.recent[-2]) == f"the gather of step 299 at test_hang_report.py:{line}"
    assert str(log.latest) == "the all-reduce of step 299"


def test_a_stack_is_the_same_from_inside_and_from_faulthandler(tmp_path: Path) -> None:
    """The place is the innermost line of the package, and what that called."""
    found = {}

    def look(*_: object) -> None:
        frame: FrameType = sys._getframe()
        found["inside"] = process_snapshot._innermost(process_snapshot._stack(frame))
        with (tmp_path / "stacks").open("w") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        raise InterruptedError

    rows = type("Rows", (), {"start": property(look)})()
    with pytest.raises(InterruptedError):
        sampling.sample_indices(0, 10, 1, 0, rows)
    stack = process_snapshot._last_stack((tmp_path / "stacks").read_text().replace("Current thread", "Thread"))
    assert found["inside"].startswith("data/sampling.py:")
    assert process_snapshot._innermost(stack).split(",")[0] == found["inside"].split(",")[0]
