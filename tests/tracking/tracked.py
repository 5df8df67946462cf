"""A run without a model: rows 1 to LAST and their trackers. `python tracked.py RUN TRACKERS FIRST LAST END`

It begins as a start does that found a checkpoint of FIRST - 1 updates. Half way it says `half` and waits for a line.
END: `finish`, `interrupt`, `kill` (SIGKILL to itself), or half way `core` (SIGKILL to wandb-core) or `stop` (SIGSTOP).
LOG_MODEL in the environment: upload the model, in this many seconds at most.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

from resnet_cifar.config.loading import write_recipe
from resnet_cifar.config.validation import parse
from resnet_cifar.tracking import wandb as wandb_tracker
from resnet_cifar.tracking.multi import start_trackers


def row(step: int) -> dict[str, Any]:
    """What metrics.jsonl would have."""
    return {"step": step, "epoch": step / 4, "train/loss": 1 / max(step, 1), "lr": 0.1}


def hurt_core(number: signal.Signals) -> None:
    """Sends a signal to the wandb-core that this process has started."""
    for child in psutil.Process().children():
        if child.name() == "wandb-core":
            child.send_signal(number)
            if number == signal.SIGKILL:
                child.wait()


def results(run: Path) -> tuple[dict[str, Path], list[Path]]:
    """A figure, a file and a model, as the end of training leaves them."""
    (run / "figures").mkdir(exist_ok=True)
    Image.new("RGB", (8, 8), (255, 0, 0)).save(run / "figures" / "confusion.png")
    (run / "eval-test.json").write_text('{"accuracy": 0.5}')
    (run / "model").mkdir(exist_ok=True)
    (run / "model" / "config.json").write_text("{}")
    (run / "model" / "model.safetensors").write_bytes(b"weights")
    return {"confusion": run / "figures" / "confusion.png"}, [run / "eval-test.json"]


def main(folder: str, trackers: str, first: int, last: int, end: str) -> None:
    """Everything between the claim of a folder and its last word."""
    run = Path(folder)
    run.mkdir(exist_ok=True)
    kept = [row(step) for step in range(1, first)]
    metrics = run / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(values) + "\n" for values in kept))
    track = {"trackers": trackers, "project": os.environ.get("PROJECT", "resnet-cifar")}
    recipe = parse({"track": {**track, "log_model": "LOG_MODEL" in os.environ}})
    write_recipe(recipe, run / "recipe.yaml")
    if "LOG_MODEL" in os.environ:
        wandb_tracker.UPLOAD_SECONDS = float(os.environ["LOG_MODEL"])

    def warn(text: str) -> None:
        print(f"warning: {text}", flush=True)

    nodes = int(os.environ.get("NODES", "1"))
    tracker = start_trackers(recipe, run, {"cores": 2, "data": "0123"}, warn, step=first - 1, nodes=nodes)
    for step in range(first, last + 1):
        with metrics.open("a") as file:
            file.write(json.dumps(row(step)) + "\n")
        tracker.log(row(step))
        if step == (first + last) // 2:
            print("half", flush=True)
            sys.stdin.readline()
            if end in ("core", "stop"):
                hurt_core({"core": signal.SIGKILL, "stop": signal.SIGSTOP}[end])
    if end == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if end == "interrupt":
        tracker.finish("interrupted")
        return
    tracker.summary(last, {"test/accuracy": 0.5, "best/val/accuracy": 0.25, "best/step": 4}, *results(run))
    tracker.finish("finished")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
