"""A whole small job, from the command to its last file, against plain scripts: wall seconds, CPU seconds and memory.

All three train timm's ResNet-50 with random weights on 2,000 images at 32 pixels, of which 200 are held out, for two
epochs of 14 steps: batch 128, float32, a random crop and flip, SGD with Nesterov momentum, cosine decay. All evaluate
the 200 images and save a checkpoint after each epoch, and evaluate 2,000 test images once at the end. They differ in:

train.py          ghost BatchNorm of 32 rows; precise BatchNorm statistics before each evaluation; tests the best
                  checkpoint; writes a temperature, a verified checkpoint, the exported model and the HTML report
accelerate_style  benchmarks/plain/accelerate_style.py: tests the last weights; saves states and a model
timm_style        benchmarks/plain/timm_style.py: tests the last weights; saves states and summary.csv

Each job is a new process. The plain scripts run once with each number of workers, and keep the fastest. Each job then
runs with an empty image cache ("cold"; the operating system has the files in memory). Then come the rounds, in which
the three alternate.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.pipeline import encoded_synthetic
from resnet_cifar.atomic_io import read_json
from resnet_cifar.data.sources import synthetic

ROOT = Path(__file__).parents[1]
USAGE = Path(__file__).with_name("usage.py")
OURS = "train.py"
PLAIN = ("accelerate_style", "timm_style")
LEAST = {"seconds": 1.0, "peak_bytes": 1.1}  # targets: train.py over the better of the plain scripts, at most


@dataclass(frozen=True)
class Job:
    """What all three scripts train."""

    model: str = "resnet50"
    images: int = 2000
    epochs: int = 2
    batch_size: int = 128
    image_size: int = 32
    lr: float = 0.05
    weight_decay: float = 5e-5
    validation: float = 0.1


SMALL = Job()


def measure(source: str, rounds: int = 5, job: Job = SMALL, workers: tuple[int, ...] = ()) -> dict[str, Any]:
    """Medians of each figure, every round's figures, and ratios of train.py to the better plain script of a figure.

    A ratio is the median of the rounds' ratios. `workers`: the numbers to choose from. Raises RuntimeError with a
    job's last line where it fails.
    """
    workers = workers or tuple(sorted({0, min(4, os.cpu_count() or 1)}))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = parquet(folder / "synthetic", job.images) if source == "synthetic" else source

        def taken(script: str, number: int, kind: str = "warm") -> dict[str, Any]:
            # A cache for each script: what one has prepared, the other would find.
            caches = folder / kind / script
            environment = {
                **os.environ,
                "RESNET_CIFAR_CACHE": str(caches / "ours"),
                "HF_DATASETS_CACHE": str(caches / "datasets"),
                "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
            }
            with tempfile.TemporaryDirectory(dir=folder) as output:
                words = command(script, source, Path(output) / "run", job, number)
                found = run(words, environment)
                parts = (read_json(Path(output) / "run" / "status.json") or {}).get("seconds_by_part")
                result = read_json(Path(output) / "run" / "result.json")
            return {**found, "test/accuracy": result["test/accuracy"], **({"parts": parts} if parts else {})}

        for script in (OURS, *PLAIN):
            taken(script, workers[-1])  # fills the caches
        best = {OURS: 0}
        for script in PLAIN:
            seconds = {number: taken(script, number)["seconds"] for number in workers if len(workers) > 1}
            best[script] = min(seconds, key=seconds.__getitem__, default=workers[0])
        cold = {script: taken(script, best[script], "cold") for script in (OURS, *PLAIN)}
        found: dict[str, list[dict[str, Any]]] = {script: [] for script in (OURS, *PLAIN)}
        for _ in range(rounds):
            for script, runs in found.items():
                runs.append(taken(script, best[script]))
    return {"job": asdict(job), **summarize(found, cold, best)}


def summarize(
    found: dict[str, list[dict[str, Any]]], cold: dict[str, dict[str, Any]], workers: dict[str, int]
) -> dict[str, Any]:
    """Medians, and the ratios of train.py to the plain script whose median is the least, figure by figure."""
    figures = ("seconds", "cpu_seconds", "peak_bytes")

    def median(script: str, figure: str) -> float:
        return statistics.median(run[figure] for run in found[script])

    ratios, better = {}, {}
    for figure in figures:
        better[figure] = min(PLAIN, key=lambda script, figure=figure: median(script, figure))
        rounds = zip(found[OURS], found[better[figure]], strict=True)
        ratios[figure] = round(statistics.median(ours[figure] / theirs[figure] for ours, theirs in rounds), 4)
    parts = [run["parts"] for run in found[OURS] if "parts" in run]
    return {
        "ratios": ratios,
        "to": better,
        "met": {figure: ratios[figure] <= most for figure, most in LEAST.items()},
        "scripts": {
            script: {
                **{figure: round(median(script, figure), 2) for figure in figures},
                "test/accuracy": round(median(script, "test/accuracy"), 4),
                "workers": workers[script],
                "cold": cold[script],
                "rounds": runs,
            }
            for script, runs in found.items()
        },
        "seconds_by_part": {
            name: round(statistics.median(run[name] for run in parts), 2) for name in (parts[0] if parts else ())
        },
    }


def command(script: str, source: str, output: Path, job: Job, workers: int) -> list[str]:
    """What starts a script: the interpreter, the file and its options."""
    if script == OURS:
        settings = {
            "recipe": "scratch",
            "run": output,
            "precision": "no",
            "batch_size": job.batch_size,
            "track.trackers": "none",
            "data.source": source,
            "data.limit": job.images,
            "data.validation_fraction": job.validation,
            "data.image_size": job.image_size,
            "model.name": job.model,
            "model.stem": "imagenet",
            "augment.flip": "random",
            "augment.mixup_alpha": 0,
            "augment.cutmix_alpha": 0,
            "loss.label_smoothing": 0,
            "optimizer.name": "sgd",
            "optimizer.weight_decay": job.weight_decay,
            "phases.0.epochs": job.epochs,
            "phases.0.lr": job.lr,
            "phases.0.warmup_epochs": 0,
            "phases.0.schedule": "cosine",
        }
        file = ROOT / "train.py"
    else:
        settings = {
            "source": source,
            "output": output,
            "images": job.images,
            "validation": job.validation,
            "batch-size": job.batch_size,
            "image-size": job.image_size,
            "model": job.model,
            "epochs": job.epochs,
            "lr": job.lr,
            "weight-decay": job.weight_decay,
            "workers": workers,
        }
        file = ROOT / "benchmarks" / "plain" / f"{script}.py"
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return [sys.executable, str(file), *words]


def run(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """What benchmarks/usage.py finds of the command. Raises RuntimeError with its last line where it fails."""
    with tempfile.NamedTemporaryFile() as log:
        words = [sys.executable, str(USAGE), log.name, *command]
        done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            lines = Path(log.name).read_text().strip().splitlines() or [f"exit code {done.returncode}"]
            raise RuntimeError(f"{Path(command[1]).name} failed: {lines[-1]}")
    return json.loads(done.stdout)


def parquet(folder: Path, count: int) -> str:
    """`count` synthetic images a split as a folder of parquet files in the layout of the Hub's CIFAR-10."""
    folder.mkdir()
    for split in synthetic.SIZES:
        dataset = encoded_synthetic(split, count).rename_column("image", "img")
        dataset.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return str(folder)
