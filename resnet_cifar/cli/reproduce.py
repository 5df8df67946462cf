"""`resnet-cifar reproduce RUN`: trains a finished run again and says whether the result is the same.

The run may be one that W&B has: then its `result` artifact is downloaded, which has everything but the weights.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from resnet_cifar import wandb_artifacts
from resnet_cifar.atomic_io import read_json, write_json
from resnet_cifar.cli.parser import parse
from resnet_cifar.cli.report import check_run
from resnet_cifar.cli.seeds import check_launcher
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.config.rerun import how_to_resume
from resnet_cifar.config.schema import Recipe

EXIT_DIFFERENT = 5


@dataclass(frozen=True)
class ReproduceOptions:
    """Train a finished run again, from its own recipe, and compare metrics, weights and scores. Exits with 0 if all are
    equal and with 5 if not. Rerun the same command to resume."""

    run: str
    """The run directory, or wandb:ENTITY/PROJECT/RUN_ID."""
    out: str = ""
    """The directory of the second run [default: RUN-again, RUN_ID-again]."""
    launch: str = ""
    """The launcher of train.py [default: as many processes as the run ended with, on this machine]."""


def parse_arguments(arguments: list[str]) -> tuple[ReproduceOptions, Recipe]:
    """The options and the run's recipe. Exits after --help; raises UserError."""
    options, _ = parse(ReproduceOptions, "resnet-cifar reproduce RUN [--out DIR] [--launch COMMAND]", arguments)
    run = _run(options)
    check_run(run)
    if options.launch:
        check_launcher(options.launch)
    if read_json(run / "result.json") is None:
        raise UserError(f"{run} is not finished, so there is no result to reproduce: rerun its command first")
    if options.out and Path(options.out).resolve() == run.resolve():
        raise UserError(f"--out {options.out} is the run to reproduce: name another directory")
    return options, read_recipe(str(run / "recipe.yaml"))


def _run(options: ReproduceOptions) -> Path:
    """The run directory, downloaded if W&B has it."""
    is_remote = wandb_artifacts.is_location(options.run)
    return wandb_artifacts.fetch_run(options.run) if is_remote else Path(options.run)


def _out(options: ReproduceOptions) -> Path:
    """The directory of the second run."""
    run = Path(options.run.rpartition("/")[2] if wandb_artifacts.is_location(options.run) else options.run)
    return Path(options.out or f"{run if run.name.strip('.') else run.resolve()}-again")


def main(arguments: list[str]) -> None:
    """Trains, compares, and writes OUT/reproduction.json. Exits with 5 if something differs, 75 if interrupted."""
    options, recipe = parse_arguments(arguments)
    run, again = _run(options), _out(options)
    words = ["--recipe", str(run / "recipe.yaml"), "--track.report=False", "--track.trackers=none"]
    words += ["--track.log_model=False", "--track.notify=", "--track.notify_accuracy=0"]
    if found := read_json(run / "micro_batch.json"):  # what `auto` found: the order of summation
        recipe = dataclasses.replace(recipe, micro_batch=found["micro_batch"])
        words.append(f"--micro_batch={recipe.micro_batch}")

    from resnet_cifar.checkpoints.run_dir import RunDir
    from resnet_cifar.data import prepared_data
    from resnet_cifar.data.sources.registry import go_offline_if_unreachable
    from resnet_cifar.distributed.signals import EXIT_RESUBMIT
    from resnet_cifar.reporting import reproduction
    from resnet_cifar.sweeps.launcher import Launcher, finished, launch_words
    from resnet_cifar.training.preflight import check_images

    folder = RunDir(again)
    is_done = finished(folder, recipe) is not None
    go_offline_if_unreachable(recipe)
    fingerprint = prepared_data.fingerprint(prepared_data.prepare(recipe.data))
    check_images(run, "reproduce", recipe.data.source, fingerprint)
    processes = (read_json(run / "environment.json") or {}).get("world_size", 1)
    launch = options.launch or shlex.join([sys.executable, *launch_words(processes)])
    state = "finished" if is_done else Launcher(launch).run(folder, words)
    if state == "interrupted":
        print(f"interrupted: {how_to_resume()} to resume", file=sys.stderr, flush=True)
        raise SystemExit(EXIT_RESUBMIT)
    if state != "finished":
        print(f"error: training {again} failed, see above", file=sys.stderr, flush=True)
        raise SystemExit(1)
    compared = reproduction.compare(run, again)
    print("\n".join(reproduction.sentences(run, again, compared, options.run)), flush=True)
    try:
        write_json(again / "reproduction.json", compared)
    except OSError as error:
        raise UserError(f"{again} cannot be written ({error.strerror}): make it writable") from None
    if not compared["equal"]:
        raise SystemExit(EXIT_DIFFERENT)
