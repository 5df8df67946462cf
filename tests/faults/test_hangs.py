"""A rank hangs, or calls for another collective than the others: one sentence names it and what it did not enter."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

HANGING = Path(__file__).with_name("hanging.py")
PACKAGE = Path(__file__).parents[2] / "resnet_cifar"
EVALUATION = 7  # the step after which they evaluate again
HELD = ("stopped", "held")  # they cannot report on themselves
KINDS = ("stopped", "disk", "skipped sum", "skipped gather", "skipped gradients")
CI = [*KINDS * 3, "stopped", "disk", "held", "held", "loop"]  # a loop costs seconds of computing


def line_of(module: str, text: str) -> str:
    """`data/loader.py:78`, the only line of the module that has the text."""
    lines = (PACKAGE / module).read_text().splitlines()
    (found,) = [number for number, line in enumerate(lines, start=1) if text in line]
    return f"{module}:{found}"


def expected(fault: dict[str, Any]) -> str:
    """What the sentence has to say, as a pattern."""
    kind, rank, step = fault["kind"], fault["rank"], fault["step"]
    others = "the others" if fault["processes"] > 2 else f"rank {1 - rank}"
    total = line_of("training/metric_accumulator.py", "self.context.all_reduce_sum_(self._sums.clone()),")
    least = line_of("training/metric_accumulator.py", "self.context.all_reduce_min_(self._first_bad.clone()),")
    gather = line_of("evaluation/predict.py", "gathered = context.gather(")
    loader = line_of("data/loader.py", "indices, uses = sample_indices(")
    never = f"rank {rank} never entered the all-reduce of step {step}; it"
    said = {
        "stopped": f"{never} is a stopped process (state T)",
        "loop": f"{never} is in {loader}, in hanging.py:",
        "held": f"{never} runs but does not respond, and is in {loader}, in hanging.py:",
        "disk": f"{never} is in {loader}, in pathlib.py:",
        "skipped sum": f"rank {rank} entered the all-reduce of step {step} at {least}, "
        f"{others} the all-reduce of step {step} at {total} (see ",
        "skipped gather": f"rank {rank} entered the all-reduce of step {EVALUATION}, "
        f"{others} the gather of the evaluation at {gather} (see ",
        "skipped gradients": f"rank {rank} entered the all-reduce of step {step} at {total}, "
        f"{others} the all-reduce of step {step} (see ",
    }
    return re.escape(said[kind])


def is_right(world: dict[str, Any]) -> bool:
    """Whether the run ended with one sentence, the expected one."""
    return len(world["errors"]) == 1 and re.search(expected(world), world["errors"][0]) is not None


def check_folder(world: dict[str, Any]) -> None:
    """Every rank's stacks are there, its own or what the others saw; also memory and the flight recorder's buffer."""
    (folder,) = (Path(world["folder"]) / "RUN").glob("hang-*")
    assert str(folder) in world["errors"][0]
    if world["status"]["state"] != "running":  # rank 0 was there to write it
        assert (world["status"]["state"], world["status"]["hang"]) == ("lost", folder.name)
        assert world["errors"][0] == f"error: {world['status']['why']}"
    if world["kind"] == "disk" and world["step"] % 2:
        return  # there is nothing but FIFOs, as if its file server were gone
    assert (folder / "report.txt").read_text().splitlines()[0] in world["errors"][0]
    for rank in range(world["processes"]):
        stacks = (folder / f"rank-{rank}.txt").read_text()
        if (folder / f"rank-{rank}.json").exists():
            assert "Thread MainThread" in stacks and "resnet_cifar/training/trainer.py" in stacks
            assert json.loads((folder / f"rank-{rank}.json").read_text())["memory"]["process"] > 1e7
            trace = pickle.loads((folder / f"flight_recorder_{rank}").read_bytes())
            assert trace["entries"][-1]["profiling_name"].startswith("gloo:")
        else:
            assert rank == world["rank"] or world["kind"] == "skipped gradients"  # gloo ended it, or another one
            assert "seen by another process of its machine" in stacks
            assert world["kind"] != "held" or f'{PACKAGE}/data/loader.py", line' in stacks


def test_the_sentence_is_right_whatever_hangs(tmp_path: Path, proof: bool, record: Callable[..., None]) -> None:
    seeded = random.Random("hangs")
    kinds = [*KINDS, "held", "loop"] * 8 if proof else CI
    plan = []
    for number, kind in enumerate(kinds[:50]):
        processes = (2, 3, 4)[number % 3] if proof else 3 if number % 7 == 1 else 2
        rank = seeded.randrange(processes)
        plan.append({"kind": kind, "rank": rank, "step": seeded.randint(3, 6), "processes": processes})
    done = subprocess.run(
        [sys.executable, str(HANGING), str(tmp_path)],
        input=json.dumps(plan),
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([os.environ["PYTHONPATH"], str(HANGING.parents[1])])},
        text=True,
        timeout=1500,
        check=True,
    )
    worlds = json.loads(done.stdout)
    wrong = [world for world in worlds if not is_right(world)]
    assert len(worlds) == len(plan) >= 20
    found = Counter(world["kind"] for world in worlds if is_right(world))
    record("hangs", injected=len(worlds), right=len(worlds) - len(wrong), by_kind=dict(found))
    assert not wrong, "\n\n".join(f"{world}\n{expected(world)}" for world in wrong)
    for world in worlds:
        check_folder(world)
