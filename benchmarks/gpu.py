"""Ten minutes on a machine with a GPU: `python -m benchmarks.gpu`, or `make gpu`. Exit code 1 names what is wrong.

1. tests/gpu: no host sync in the step, no unexpected compilation, precisions within their rounding, fused updates
2. the benchmark table of the shipped recipes; the whole step must reach 97 % of the bare one
3. `scratch`, traced and trained for as many epochs as the time allows: accuracy against seconds

Figures go to benchmarks/results/gpu-DEVICE.json as they come.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import results, training
from benchmarks.__main__ import REHEARSAL
from benchmarks.step import Configuration
from resnet_cifar.data import store
from resnet_cifar.recipe import Data, Mistake
from resnet_cifar.run_folder import read_json

LEAST = 0.97  # of the bare step
_TABLE = 0.45  # of the time; the tests come before and training takes the rest
_EPOCHS = 100  # of the recipe
_RESERVE = 45  # seconds of training for its start, the trace and the last scores
_NORMS = 2_048  # images that BatchNorm's statistics are estimated on at a score


def main(arguments: list[str]) -> int:
    """The exit code: 0; 1 where something is wrong, which is named; 2 without a GPU or without the images."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--source", default="uoft-cs/cifar10", help="the images, as in data.source [uoft-cs/cifar10]")
    parser.add_argument("--minutes", type=float, default=10, help="of everything [10]")
    parser.add_argument("--rehearse", action="store_true", help="the same path, tiny, on any machine; keeps nothing")
    asked = parser.parse_args(arguments)
    if not (torch.cuda.is_available() or asked.rehearse):
        print("no GPU that torch can use was found: check the driver (nvidia-smi), or --rehearse", file=sys.stderr)
        return 2
    source = "synthetic" if asked.rehearse else asked.source
    try:
        entry = store.ensure(Data(source=source))
    except Mistake as mistake:
        print(f"error: {mistake} (--source synthetic has images of its own)", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        if asked.rehearse:
            file, run = Path(folder) / "gpu.json", Path(folder) / "run"
        else:
            device = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
            file, run = results.FOLDER / f"gpu-{device}.json", Path("runs") / time.strftime("gpu-%Y%m%d-%H%M%S")
        images = read_json(entry / "meta.json")["images"]["train"]
        wrong = _check(source, images, asked.minutes, asked.rehearse, file, run)
    for sentence in wrong:
        print(f"wrong: {sentence}", file=sys.stderr)
    print(f"{'rehearsed' if asked.rehearse else f'-> {file}'}: {f'{len(wrong)} wrong' if wrong else 'all is well'}")
    return int(bool(wrong))


def _check(source: str, images: int, minutes: float, rehearse: bool, file: Path, run: Path) -> list[str]:
    """What is wrong, in sentences. `images`: to train and validate on."""
    end = time.monotonic() + 60 * minutes
    wrong = tests(rehearse, seconds=0.5 * 60 * minutes)
    results.keep(file, "tests", source, {"failed": list(wrong)})

    table_end = time.monotonic() + _TABLE * (end - time.monotonic())
    chosen = [replace(REHEARSAL[0], precision="bf16")] if rehearse else essential()
    measured: list[dict[str, Any]] = []
    for found in training.measure(source, table_end, chosen):
        measured.append(found)
        results.keep(file, "training", source, {"configurations": measured})
    results.show({"training": {"configurations": measured}}, Console(width=160))
    wrong += [] if rehearse else too_slow(measured)
    if not any("left_out" not in found for found in measured):
        wrong.append("no configuration of training was measured: give it more --minutes")

    trained = train(source, images, run, measured, end - time.monotonic(), rehearse)
    results.keep(file, "scratch", source, trained)
    _show_curve(trained)
    if trained["exit_code"] not in (0, 75):
        wrong.append(f"train.py ended with {trained['exit_code']}")
    return wrong


def tests(collect_only: bool, seconds: float) -> list[str]:
    """Runs tests/gpu, or ends it after so many seconds, and returns what failed there."""
    command = [sys.executable, "-m", "pytest", "-q", "-rf", "-p", "no:cacheprovider", "tests/gpu"]
    command += ["--collect-only"] if collect_only else []
    try:
        done = subprocess.run(
            command, cwd=training.ROOT, stdout=subprocess.PIPE, text=True, check=False, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return [f"tests/gpu did not end within {seconds:.0f} s"]
    if collect_only and not done.returncode:
        return []
    print(done.stdout, flush=True)
    lines = done.stdout.splitlines()
    failed = [line.removeprefix("FAILED ") for line in lines if line.startswith(("FAILED ", "ERROR "))]
    return failed or ([f"tests/gpu ended with {done.returncode}"] if done.returncode else [])


def essential() -> list[Configuration]:
    """The shipped recipes in the device's best precision, eager and compiled."""
    everything = training.configurations()
    best = everything[0].precision
    mine = [one for one in everything if one.precision == best and one.image_size in (32, 224)]
    return [one for one in mine if one.recipe == "scratch" or one.image_size == 224]


def too_slow(measured: list[dict[str, Any]]) -> list[str]:
    """Sentences for configurations that fail, or whose whole step is under 97 % of the bare one."""
    wrong = []
    for found in measured:
        name = f"{found['recipe']} at {found['image_size']} px{', compiled' if found['compiled'] else ''}"
        if "error" in found:
            wrong.append(f"{name} failed: {found['error']}")
        elif "left_out" not in found and found["whole_over_bare"] < LEAST:
            wrong.append(f"{name} trains at {found['whole_over_bare']:.1%} of the bare step, under {LEAST:.0%}")
    return wrong


def train(
    source: str, images: int, run: Path, measured: list[dict[str, Any]], seconds: float, rehearse: bool
) -> dict[str, Any]:
    """Trains `scratch`, traced, the way that gives the most epochs in `seconds`; accuracy against seconds."""
    epochs, how = best_way(measured, images, seconds)
    words = ["--recipe", "scratch", "--data.source", source, "--run", str(run), "--track.to", "none", "--profile", "10"]
    words += ["--max_minutes", f"{max(seconds, 60) / 60:.2f}", "--precision", how["precision"]]
    if rehearse:
        epochs = 1
        words += ["--model.name", how["model"], "--model.stem", how["stem"], "--data.limit", "400"]
        words += ["--batch_size", "32", "--profile", "2"]
    words += ["--phases.0.epochs", str(epochs), "--phases.0.warmup", str(min(1.0, epochs / 5))]
    environment = {**os.environ, **({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"} if how["compiled"] else {})}
    code = subprocess.run(
        [sys.executable, str(training.ROOT / "train.py"), *words], env=environment, check=False
    ).returncode
    summary = run / "profile" / "summary.txt"
    return {
        "exit_code": code,  # 75: it was not done in time
        "epochs": epochs,
        "precision": how["precision"],
        "compiled": how["compiled"],
        "curve": curve(run),
        "trace": summary.read_text().splitlines() if summary.is_file() else None,
        "result": read_json(run / "result.json"),
    }


def best_way(measured: list[dict[str, Any]], images: int, seconds: float) -> tuple[int, dict[str, Any]]:
    """(epochs, configuration): the configuration of `scratch` that trains the most epochs in so many seconds."""
    ways = [found for found in measured if found["recipe"] == "scratch" and "left_out" not in found]
    held_out = round(images * Data().validation)
    if not ways:
        return 1, {**measured[0], "compiled": False}

    def epochs(way: dict[str, Any]) -> int:
        speeds = way["images_per_second"]
        left = 0.9 * (seconds - _RESERVE - way["seconds_of_first_steps"])
        one = (images - held_out) / speeds["whole"] + (held_out + _NORMS) / speeds["evaluation"]
        return max(1, min(_EPOCHS, int(left / one)))

    best = max(ways, key=epochs)
    return epochs(best), best


def curve(run: Path) -> list[dict[str, float]]:
    """Epoch, seconds of training without the scores, and validation accuracy, at every score of a run."""
    points, seconds, images = [], 0.0, 0
    file = run / "metrics.jsonl"
    for row in map(json.loads, file.read_text().splitlines() if file.is_file() else ()):
        seconds += (row["images"] - images) / row["images_per_second"]
        images = row["images"]
        if "val/accuracy" in row:
            points.append({"epoch": row["epoch"], "seconds": round(seconds, 2), "accuracy": row["val/accuracy"]})
    return points


def _show_curve(trained: dict[str, Any]) -> None:
    table = Table(title="scratch: accuracy against seconds of training", title_justify="left")
    for column in ("epoch", "seconds", "validation accuracy"):
        table.add_column(column, justify="right")
    for point in trained["curve"]:
        table.add_row(f"{point['epoch']:.1f}", f"{point['seconds']:.1f}", f"{point['accuracy']:.4f}")
    Console().print(table)
    if result := trained["result"]:
        print(f"test accuracy {result['test/accuracy']:.4f} after {result['seconds']:.0f} s with every score and save")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
