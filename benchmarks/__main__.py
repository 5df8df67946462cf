"""Runs the named benchmarks, or training, jobs, pipeline and startup; writes one JSON file and prints it as a table."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import finetune, jobs, pipeline, results, serving, startup, training
from benchmarks.step import Configuration
from resnet_cifar.atomic_io import read_json
from resnet_cifar.cli.entry import escape_what_the_console_lacks

NAMES = ("training", "jobs", "pipeline", "startup", "checkpoints", "finetune", "serve")
BY_DEFAULT = NAMES[:4]
REHEARSAL = [Configuration("scratch", "imagenet", 32, 64, "no", model="test_resnet", rounds=1, seconds=0.0)]
TINY = jobs.Job(model="test_resnet", images=320, epochs=2, batch_size=32)
TINY_MODEL = {"model.name": "test_resnet", "model.pretrained": "False"}
TINY_SETTING = finetune.Setting(96, 32, 1, 32, validation_images=100)


def main(arguments: list[str]) -> int:
    """The exit code: 0, or 1 if a configuration failed; those skipped for lack of time are listed."""
    escape_what_the_console_lacks()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(NAMES)} [{' '.join(BY_DEFAULT)}]")
    parser.add_argument("--source", default="synthetic", help="the images, as in data.source [synthetic]")
    parser.add_argument("--out", type=Path, default=results.FOLDER, help="results directory [benchmarks/results]")
    parser.add_argument("--minutes", type=float, default=60, help="start no configuration of training after this [60]")
    parser.add_argument("--model", default="resnet50.a1_in1k", help="of finetune and serve [resnet50.a1_in1k]")
    parser.add_argument("--weights", default="", help="of finetune, as in model.init_from [timm's]")
    parser.add_argument("--images", type=int, help="of finetune: only the settings with that many training images")
    parser.add_argument("--rehearse", action="store_true", help="a tiny model, one round; writes no results")
    asked = parser.parse_args(arguments)
    if unknown := [name for name in asked.names if name not in NAMES]:
        parser.error(f"there is no benchmark {unknown[0]!r}: choose from {', '.join(NAMES)}")
    deadline = time.monotonic() + 60 * asked.minutes
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rehearsal.json" if asked.rehearse else results.file(asked.out, asked.names)
        for name in asked.names or BY_DEFAULT:
            print(f"{name} ...", flush=True)
            for found in _measured(name, asked, deadline):
                results.keep(file, name, asked.source, found)
        kept = read_json(file) or {}
    results.show(kept, Console(width=180))
    if not asked.rehearse:
        print(f"-> {file}")
    trained = kept.get("training", {}) if "training" in (asked.names or BY_DEFAULT) else {}
    failed = [found for found in trained.get("configurations", []) if "error" in found]
    for found in failed:
        print(f"failed: {found}", file=sys.stderr)
    return int(bool(failed))


def _measured(name: str, asked: argparse.Namespace, deadline: float) -> Iterator[dict[str, Any]]:
    """Yields the results of one benchmark so far, each time there are new ones."""
    source, rehearse = asked.source, asked.rehearse
    if name == "training":
        done = []
        for found in training.measure(source, deadline, REHEARSAL if rehearse else training.configurations()):
            done.append(found)
            yield {"configurations": done}
    elif name == "jobs":
        yield jobs.measure(source, 1, TINY, workers=(0,)) if rehearse else jobs.measure(source)
    elif name == "pipeline":
        yield pipeline.measure(source, {32: 64}, 1, 2, (0, 1)) if rehearse else pipeline.measure(source)
    elif name == "startup":
        yield startup.measure(source, 1, 1, "test_resnet") if rehearse else startup.measure(source)
    elif name == "finetune":
        model = TINY_MODEL if rehearse else {"model.name": asked.model, "model.init_from": asked.weights}
        settings = [TINY_SETTING] if rehearse else finetune.settings()
        settings = [setting for setting in settings if asked.images in (None, setting.images)]
        yield from finetune.measure(source, model, settings, finetune.CANDIDATES)
    elif name == "serve":
        model = "test_resnet" if rehearse else asked.model
        yield serving.measure(source, model, count=16) if rehearse else serving.measure(source, model)
    else:
        from benchmarks import checkpoints  # starts an Accelerator

        yield checkpoints.measure(source)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
