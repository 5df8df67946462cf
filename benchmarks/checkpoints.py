"""The cost of checkpoints: how long a step waits, how much the background write slows training, size, and resuming.

ResNet-50 at 32x32. `waits` is the copy, which is all that a step waits for; `slowdown` compares rounds of training
in which a checkpoint was written in the background with rounds in which none was.
"""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from resnet_cifar.atomic_io import read_json
from resnet_cifar.checkpoints import checkpoint, snapshot
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.data import prepared_data
from resnet_cifar.data.loader import Loader
from resnet_cifar.distributed.context import DistributedContext
from resnet_cifar.training.plan import LOGS_PER_EPOCH, Plan
from resnet_cifar.training.train_state import TrainState
from resnet_cifar.training.train_step import train_step

ROUNDS = 7
STARTS = 3
FAR = 10_000_000  # steps
TRAIN = Path(__file__).parents[1] / "train.py"


def measure(source: str) -> dict[str, Any]:
    """Medians of interleaved rounds."""
    with tempfile.TemporaryDirectory() as folder:
        return {
            "model": "resnet50, imagenet stem, 32 px",
            **{name: _saving(source, name, Path(folder) / name) for name in ("sgd", "adamw")},
            "resume": _resuming(source, Path(folder) / "runs"),
        }


def _saving(source: str, optimizer: str, folder: Path) -> dict[str, Any]:
    context = DistributedContext("auto")
    gpu = context.device.type == "cuda"
    batch, steps = (1024, 100) if gpu else (128, 3)
    words = {"data.source": source, "batch_size": str(batch), "phases.0.epochs": "100000", "data.image_size": "32"}
    words |= {"model.stem": "imagenet", "precision": context.precision, "optimizer.name": optimizer}
    recipe = read_recipe("scratch", words)
    data = prepared_data.load(prepared_data.prepare(recipe.data), recipe, context.device)
    plan = Plan(recipe, len(data.train), world_size=1)
    state = TrainState(plan, context, data.classes)
    loader = Loader(recipe, data.train, len(data.classes), state.preprocess, plan.rows(0))
    numbers = itertools.count()
    writer = checkpoint.Writer(folder, keep=1, before=lambda: None)
    waits, rounds = [], {False: [], True: []}
    for round_ in range(2 * ROUNDS + 1):
        save = round_ % 2 == 1
        began = time.perf_counter()
        if save:
            writer.write(round_, snapshot.take(state.model, state.optimizer), {}, best=None)
            waits.append(time.perf_counter() - began)
        for _ in range(steps):
            step = next(numbers)
            train_step(state, step, loader.batch(step), plan.lr(step))
        if gpu:
            torch.cuda.synchronize()
        if round_:  # the first one warms up
            rounds[save].append(time.perf_counter() - began)
        writer.wait()
    extra = statistics.median(rounds[True]) - statistics.median(rounds[False])
    wait = statistics.median(waits)
    (newest,) = checkpoint.steps(folder)
    return {
        "bytes": {path.name: path.stat().st_size for path in sorted((folder / checkpoint.name(newest)).iterdir())},
        "seconds_a_step_waits": round(wait, 3),
        "share_of_a_minute": round(wait / 60, 5),
        "seconds_a_round_without": round(statistics.median(rounds[False]), 2),
        "seconds_more_with_its_writing": round(extra, 2),
        "share_of_a_minute_with_its_writing": round(extra / 60, 5),
    }


def _resuming(source: str, runs: Path) -> dict[str, Any]:
    """Seconds from the start of train.py to training, for a run at its first steps and one at step 10 million."""
    near, far = runs / "near", runs / "far"
    _start(source, near, lambda: checkpoint.steps(near / "checkpoints"))
    shutil.copytree(near, far)
    _move_on(far)
    seconds: dict[Path, list[float]] = {near: [], far: []}
    for _ in range(STARTS):
        for run in (near, far):
            began = time.time()
            _start(source, run, lambda run=run, began=began: read_json(run / "status.json")["time"] > began)
            seconds[run].append(read_json(run / "status.json")["seconds_to_first_step"])
    return {
        "steps": [read_json(run / "status.json")["step"] for run in (near, far)],
        "rows": [sum(1 for _ in (run / "metrics.jsonl").open()) for run in (near, far)],
        "seconds": [round(statistics.median(seconds[run]), 2) for run in (near, far)],
    }


def _start(source: str, run: Path, is_enough: Callable[[], object]) -> None:
    """Starts or resumes the run, and interrupts it when `is_enough()`."""
    words = ["--recipe", "scratch", "--model.stem", "imagenet", "--data.source", source, "--batch_size", "64"]
    words += ["--phases.0.epochs", "1000000", "--evaluate.every_epochs", "1000000", "--checkpoint.every_steps", "2"]
    words += ["--track.trackers", "none", "--run", str(run)]
    with subprocess.Popen([sys.executable, str(TRAIN), *words], stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            if is_enough():
                process.send_signal(signal.SIGTERM)
                break
            time.sleep(0.05)
        process.wait()


def _move_on(run: Path) -> None:
    """Turns the run's checkpoint into one of step 10 million, with all the rows that such a run would have written."""
    (first,) = checkpoint.steps(run / "checkpoints")[-1:]
    kept, state = checkpoint.read(run / "checkpoints" / checkpoint.name(first))
    shutil.rmtree(run / "checkpoints")
    facts = {name: state[name] for name in state.keys() - {"format", "step", "optimizer", "checksums"}}
    checkpoint.write(run / "checkpoints", FAR, kept, facts)
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    steps_a_row = max(1, round(row["step"] / row["epoch"] / LOGS_PER_EPOCH))
    with (run / "metrics.jsonl").open("w") as stream:
        for step in range(steps_a_row, FAR + 1, steps_a_row):
            stream.write(json.dumps({**row, "step": step}) + "\n")
