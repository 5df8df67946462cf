"""Run directories with everything that a report reads, made in a moment: real files by the code that writes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from resnet_cifar.atomic_io import write_json
from resnet_cifar.checkpoints.run_dir import RunDir
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.evaluation import metrics, results_io
from resnet_cifar.reporting import gallery, prediction_arrays

CLASSES = ("cat", "dog", "<script>alert(1)</script>", 'a $name$ & "more" that is too long for a table\'s head')
STEPS, AN_EPOCH = 40, 10


def prediction(count: int, classes: int, seed: int = 0, sharpness: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits float32 [n, classes], labels [n]) of a model that is often right."""
    labels = np.arange(count) % classes
    logits = np.random.default_rng(seed).normal(size=(count, classes)).astype(np.float32)
    logits[np.arange(count), labels] += sharpness
    return torch.from_numpy(logits), torch.from_numpy(labels)


def pictures(rows: np.ndarray, side: int = 8) -> np.ndarray:
    """Of each image its own picture: all of one value."""
    return np.broadcast_to((rows % 251).astype(np.uint8)[:, None, None, None], (len(rows), side, side, 3)).copy()


def row(step: int) -> dict[str, Any]:
    """A row of metrics.jsonl; every tenth has an evaluation, of which the third is the best (by loss the last,
    by macro F1 the second)."""
    row = {"step": step, "epoch": step / AN_EPOCH, "images": 32 * step, "lr": 0.1 * (1 - step / STEPS)}
    row |= {"train/loss": 2 / step, "train/accuracy": step / STEPS, "images_per_second": 100.0 + step}
    score = {"val/loss": 1 / step, "val/accuracy": 0.5 + 0.1 * (step == 30), "val/macro_f1": 0.4 + 0.1 * (step == 20)}
    return {**row, **(score if step % 10 == 0 else {})}


def start(folder: Path, steps: int = STEPS, **overrides: str) -> RunDir:
    """A run that was interrupted at step 14, killed at 20 and is now, running, at `steps`."""
    recipe = read_recipe(
        "debug", {"phases.0.epochs": "1", "phases.1.epochs": "3", "track.trackers": "none", **overrides}
    )
    environment = {"command": "train.py --recipe debug --seed 3", "python": "3.11.7", "cpu": "a CPU", "cores": 2}
    environment |= {"threads": 2, "gpus": [], "packages": {"torch": "2.15.0"}, "world_size": 2, "data": "f00d"}
    for first, last, end in ((0, 14, "interrupted"), (14, 20, ""), (20, steps, "")):
        run = RunDir(folder)
        run.acquire(recipe, environment)
        run.status("running", step=first, steps=STEPS)
        run.resume_metrics(first)
        for step in range(first + 1, last + 1):
            run.append_metrics(row(step))
        run.status(end or "running", step=last, steps=STEPS, **({"why": "SIGTERM"} if end else {}))
    return run


def score(
    folder: Path,
    name: str = "test",
    count: int = 200,
    classes: Sequence[str] = CLASSES,
    side: int = 8,
    seed: int = 0,
    temperature: float | None = 1.25,
    fingerprint: str = "f00d",
    split: str = "test",
    file_names: Sequence[str] = (),
) -> None:
    """What scoring leaves in the folder, as NAME: predictions, their summary and pictures."""
    logits, labels = prediction(count, len(classes), seed)
    recipe = read_recipe("debug")
    facts = results_io.evaluation_facts(split, recipe, fingerprint, "checkpoints/step-00000030")
    index = np.arange(count) * 3
    scores = {**facts, **metrics.full(logits, labels, tuple(classes), temperature)}
    results_io.write_results(folder, name, scores, logits, labels, index, file_names)
    found = prediction_arrays.from_logits(logits.numpy(), labels.numpy(), index, temperature)
    file = folder / "report" / f"pictures-{name}.npz"
    gallery.save_images(file, found, (side, side), lambda rows: pictures(rows, side))


def write_predictions(
    folder: Path, split: str, logits: np.ndarray, labels: np.ndarray, index: np.ndarray, file_names: Sequence[str]
) -> None:
    """predictions-SPLIT.parquet as an evaluation writes it."""
    both = torch.from_numpy(logits), torch.from_numpy(labels)
    results_io.write_results(folder, split, {"split": split}, *both, index, file_names)


def finish(folder: Path, **scored: Any) -> Path:
    """The whole run: see `start` and `score`."""
    run = start(folder)
    score(folder, **scored)
    accuracy = json.loads((folder / "eval-test.json").read_text())["accuracy"]
    result = {"val/accuracy": 0.6, "val/loss": 0.1, "test/accuracy": accuracy, "test/top5": 1.0, "test/loss": 0.5}
    result |= {"checkpoint": "checkpoints/step-00000030", "step": 30, "steps": STEPS, "stopped_early": False}
    write_json(folder / "result.json", {**result, "seconds": 12.5, "world_size": 2})
    run.status("finished", step=STEPS, steps=STEPS)
    return folder
