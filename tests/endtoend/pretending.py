"""In place of `python train.py`: leaves in a moment what a run leaves, with an accuracy that is made up of its recipe.

`tune` starts it with --launch "python pretending.py". What it does follows from optimizer.name: lamb is a mistake,
lion an error; sgd is worse than all that have finished and, where there are any, waits to be asked to end; adam is
stopped by Ctrl-C in its first start. Where MEET names a folder, every start leaves a file there and waits for a second.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from resnet_cifar.atomic_io import write_json
from resnet_cifar.checkpoints.run_dir import RunDir
from resnet_cifar.cli.train import parse_arguments

STEPS = 40
ASKED = {signal.SIGTERM, signal.SIGINT}


def main() -> None:
    command, recipe = parse_arguments(sys.argv[2:])
    run, name = RunDir(Path(command.run)), recipe.optimizer.name
    if "MEET" in os.environ:
        meet(Path(os.environ["MEET"]), run.path.name)
    if name == "lamb":
        sys.exit(f"error: optimizer.name {name!r} is not liked: use another")
    if name == "lion":
        raise RuntimeError("a lion")
    is_new = not run.path.exists()
    run.acquire(recipe, {})
    run.status("running", step=0, steps=STEPS)
    run.resume_metrics(0)
    others = len(list(run.path.parent.glob("*/result.json")))
    best = 0.01 / (1 + others) if name == "sgd" else recipe.phases[0].lr
    for step in (10, 20, 30):
        run.append_metrics(evaluation(step, best * step / STEPS))
    if name == "adam" and is_new:
        os.killpg(0, signal.SIGINT)
    elif name != "sgd" or not others:
        end(run, best)
        return
    assert signal.sigtimedwait(ASKED, 60), "nobody asked it to end"
    run.status("interrupted", step=30, steps=STEPS)
    sys.exit(75)


def evaluation(step: int, accuracy: float) -> dict[str, float]:
    return {"step": step, "val/accuracy": accuracy, "val/loss": 2 * accuracy}  # so that the two disagree


def end(run: RunDir, best: float) -> None:
    run.append_metrics(evaluation(STEPS, best))
    write_json(run.path / "result.json", {**evaluation(STEPS, best), "test/accuracy": 1 - best, "steps": STEPS})
    run.status("finished", step=STEPS, steps=STEPS)


def meet(folder: Path, trial: str) -> None:
    (folder / f"{trial}-{os.getpid()}").touch()
    while len(list(folder.iterdir())) < 2:
        time.sleep(0.002)


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, ASKED)
    main()
