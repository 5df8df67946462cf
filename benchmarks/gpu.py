"""A few minutes on a machine with a GPU: `python -m benchmarks.gpu`, or `make gpu`. Exit code 1 names what failed.

Stages in order of value, each with a limit in seconds (of 9 minutes; more minutes stretch them):

1. side by side, nothing timed: tests/gpu and the tests of ghost BatchNorm, torch.compile's cache, decoding
2. what the device can do, one batch, one checkpoint
3. the training step, eager, beside stock timm in a plain loop
4. the implementations of ghost BatchNorm
5. the training step, compiled
6. `scratch`, traced and trained for as many epochs as fit into the rest: accuracy against seconds

Every result is appended at once to OUT/gpu-DEVICE.jsonl, and everything that was printed to OUT/gpu-DEVICE.log.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks import results
from benchmarks.gpu_stages import EXPECTED_ACCURACY, WARMED_UP, Variant
from resnet_cifar.atomic_io import read_json
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Data
from resnet_cifar.data.sources.registry import find_source
from resnet_cifar.reporting import environment

ROOT = Path(__file__).parents[1]
PACKED_COMMIT = ROOT / ".carry" / "commit.txt"  # written by benchmarks/pack.sh, for a copy without git
LEAST = 0.97  # images/s of the whole step over those of stock timm in a plain loop
LIMITS = {"side by side": 170.0, "ceilings": 40.0, "eager": 90.0, "batchnorm": 40.0, "compiled": 75.0}  # of 9 minutes
_MINUTES = 9.0  # that LIMITS are made for
_ENDING = 4.0  # seconds kept for ending processes
_START, _REST = 25.0, 20.0  # seconds of training's start and trace; of its last evaluation, export and end
_SCORING = 0.8  # seconds of an epoch on average, for evaluation
_EPOCHS = 100  # of the recipe
_TESTS = {"tests/gpu": "tests/gpu", "ghost BatchNorm": "tests/training/test_ghost_batchnorm.py"}


def main(arguments: list[str], began: float | None = None) -> int:
    """The exit code: 0; 1 if something failed, which is named; 2 without a GPU or without the images.

    began: when the process did, from which --minutes count, in seconds since the epoch; now by default.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--source", help="the images, as in data.source; a folder needs no network [uoft-cs/cifar10]")
    parser.add_argument("--minutes", type=float, default=_MINUTES, help="total time limit [9]")
    parser.add_argument("--out", type=Path, default=results.FOLDER, help="results directory [benchmarks/results]")
    parser.add_argument("--rehearse", action="store_true", help="all stages with a tiny model, on a CPU")
    asked = parser.parse_args(arguments)
    began = time.time() if began is None else began
    end = time.monotonic() - (time.time() - began) + 60 * asked.minutes
    if not (torch.cuda.is_available() or asked.rehearse):
        print("no GPU that torch can use was found: check the driver (nvidia-smi), or --rehearse", file=sys.stderr)
        return 2
    source = asked.source or ("synthetic" if asked.rehearse else "uoft-cs/cifar10")
    source = str(Path(source).resolve()) if Path(source).exists() else source
    try:
        find_source(source)
    except UserError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return 2
    device = "rehearsal" if asked.rehearse else re.sub(r"\W+", "-", torch.cuda.get_device_name().lower()).strip("-")
    runner = Runner(asked.out.resolve() / f"gpu-{device}", end, asked.minutes / _MINUTES, asked.rehearse)
    runner.record("environment", **_environment(), minutes=asked.minutes, rehearsal=asked.rehearse)
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))  # so that children end too
    try:
        wrong = _stages(runner, source)
    finally:
        signal.signal(signal.SIGTERM, previous)
    runner.record("end", seconds=round(time.time() - began, 1), wrong=wrong)
    for sentence in wrong:
        print(f"wrong: {sentence}", file=sys.stderr)
    what = "rehearsed: " if asked.rehearse else ""
    print(f"{what}{f'{len(wrong)} wrong' if wrong else 'all is well'} -> {runner.file}")
    return int(bool(wrong))


@dataclass
class Outcome:
    """How a process ended: its exit code (None where it was killed at its limit), its lines and its results."""

    lines: list[str] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    code: int | None = None
    seconds: float = 0.0

    def problem(self, name: str) -> list[str]:
        """A sentence where the process failed or was killed."""
        if self.code is None:
            return [f"{name} was not done within {self.seconds:.0f} s"]
        last = f": {self.lines[-1]}" if self.lines else ""
        return [f"{name} ended with {self.code}{last}"] if self.code else []


class Runner:
    """Starts processes, ends them in time with all their children, and keeps what they report as they report it.

    stem: of the files that are written. end: when all must be over, a time of time.monotonic(). scale: of the limits.
    """

    def __init__(self, stem: Path, end: float, scale: float, rehearse: bool) -> None:
        self.stem, self.end, self.scale, self.rehearse = stem, end, scale, rehearse
        self.file, self.log = stem.with_suffix(".jsonl"), stem.with_suffix(".log")
        self._began = time.monotonic()
        self._lock = threading.Lock()
        stem.parent.mkdir(parents=True, exist_ok=True)
        self.log.write_text("")

    @property
    def left(self) -> float:
        """Seconds until everything must be over, but for ending processes."""
        return self.end - _ENDING - time.monotonic()

    def record(self, kind: str, **values: Any) -> dict[str, Any]:
        """Appends a result, on disk when this returns, and prints it for a person."""
        with self._lock, self.file.open("a") as stream:
            at = round(time.monotonic() - self._began, 1)
            stream.write(json.dumps({"kind": kind, "at": at, **values}) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        print(f"{at:6.1f} s  {_said(kind, values)}", flush=True)
        return {"kind": kind, **values}

    def limit(self, stage: str) -> float:
        """Seconds that a stage may take. A rehearsal may take what is left: it is for slow machines."""
        return self.left if self.rehearse else min(self.left, self.scale * LIMITS[stage])

    def run(
        self, limit: float, commands: dict[str, list[str]], variables: dict[str, str] | None = None
    ) -> dict[str, Outcome]:
        """Runs commands side by side, by their names, for `limit` seconds at most.

        variables: of their environment, besides this process's. Each has a session of its own, which is killed as a
        whole, since the compiler and pytest start processes too.
        """
        found = {name: Outcome() for name in commands}
        if limit <= 0:
            return found
        began = time.monotonic()
        # The project before what else PYTHONPATH names, which may be where its packages are.
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **(variables or {})}
        processes: dict[str, subprocess.Popen] = {}
        readers: list[threading.Thread] = []
        try:
            for name, command in commands.items():
                processes[name] = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                    start_new_session=True,
                )
                readers.append(
                    threading.Thread(target=self._read, args=(name, processes[name], found[name]), daemon=True)
                )
                readers[-1].start()
            for name, process in processes.items():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    found[name].code = process.wait(max(0.0, began + limit - time.monotonic()))
        finally:
            for process in processes.values():
                with contextlib.suppress(ProcessLookupError):  # it has ended, and all that it started
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            for reader in readers:
                reader.join(_ENDING / 2)  # what has left the session may still hold the output open
            for outcome in found.values():
                outcome.seconds = outcome.seconds or time.monotonic() - began
        return found

    def _read(self, name: str, process: subprocess.Popen, outcome: Outcome) -> None:
        began = time.monotonic()
        for line in process.stdout:
            text = line.rstrip()
            reported = text.startswith("RESULT ")
            with contextlib.suppress(ValueError):  # of a process that was killed while it wrote
                if reported:
                    outcome.results.append(self.record(**json.loads(text.removeprefix("RESULT "))))
            if text and not reported:
                outcome.lines.append(text)
            with self._lock, self.log.open("a") as stream:
                stream.write(f"{name} | {text}\n")
        outcome.seconds = time.monotonic() - began


def _stages(runner: Runner, source: str) -> list[str]:
    """What is wrong, in sentences."""
    tiny = ["--rehearse"] if runner.rehearse else []

    def stage(name: str, *words: str) -> list[str]:
        return [sys.executable, "-m", "benchmarks.gpu_stages", name, *words, *tiny]

    commands = {name: _pytest(path, runner.rehearse) for name, path in _TESTS.items()}
    commands["decoding"] = stage("decode", "--source", source)
    for variant in range(1 if runner.rehearse else WARMED_UP):
        commands[f"warm-up {variant}"] = stage("warm-up", "--variant", str(variant))
    offline = {"HF_HUB_OFFLINE": "1"} if Path(source).exists() else {}
    beside = runner.run(runner.limit("side by side"), commands, offline)
    wrong = []
    for name in _TESTS:
        failed = failures(name, beside[name])
        runner.record("tests", name=name, failed=failed, said=beside[name].lines[-1:], seconds=beside[name].seconds)
        wrong += failed
    for name in list(commands)[len(_TESTS) :]:
        wrong += beside[name].problem(name)

    variants: list[dict[str, Any]] = []
    for name in ("ceilings", "eager", "batchnorm", "compiled"):
        limit = runner.limit(name)
        outcome = runner.run(limit, {name: stage(name, "--seconds", f"{limit - 2:.0f}")})[name]
        variants += [found for found in outcome.results if found["kind"] == "variant"]
        wrong += outcome.problem(name)
    wrong += too_slow(variants, compare=not runner.rehearse)

    images = next((found for found in beside["decoding"].results if found["kind"] == "images"), None)
    if images is None:
        return [*wrong, "scratch was not trained, since the images were not decoded"]
    return wrong + _train(runner, images["source"], images["images"]["train"], variants, offline)


def _pytest(path: str, collect_only: bool) -> list[str]:
    """A rehearsal collects only: on a CPU, these tests run with all others."""
    command = [sys.executable, "-m", "pytest", "-q", "-rf", "-p", "no:cacheprovider", path]
    return [*command, "--collect-only"] if collect_only else command


def failures(name: str, outcome: Outcome) -> list[str]:
    """What failed in a run of pytest."""
    failed = [line.split(" ", 1)[1] for line in outcome.lines if line.startswith(("FAILED ", "ERROR "))]
    return failed or outcome.problem(name)


def too_slow(variants: list[dict[str, Any]], compare: bool = True) -> list[str]:
    """Sentences for variants that failed and, to `compare`, for steps under 97 % of stock timm in a plain loop, or
    that were not compared because there was no time for that loop."""
    wrong = [f"{_name(found)} failed: {found['error']}" for found in variants if "error" in found]
    measured = [found for found in variants if "images_per_second" in found]
    if not measured:
        return [*wrong, "no variant of the step was measured"]

    def plain_loop(like: dict[str, Any]) -> dict[str, Any] | None:
        same = ("recipe", "image_size", "batch", "precision", "compile_mode", "cudnn_benchmark")
        loops = (found for found in variants if found["batchnorm"] == "plain loop" and "error" not in found)
        return next((found for found in loops if all(found[name] == like[name] for name in same)), None)

    for found in measured:
        stock = plain_loop(found) if compare and found["batchnorm"] == "auto" else None
        if stock is None:
            continue
        if "left_out" in stock:
            wrong.append(f"{_name(found)} was not compared with stock timm in a plain loop: give it more --minutes")
        elif (share := found["images_per_second"] / stock["images_per_second"]) < LEAST:
            wrong.append(f"{_name(found)} trains at {share:.1%} of stock timm in a plain loop, under {LEAST:.0%}")
    return wrong


def _train(
    runner: Runner, source: str, images: int, variants: list[dict[str, Any]], variables: dict[str, str]
) -> list[str]:
    """Trains `scratch`, traced, in the way that gives the most epochs in the time left; what is wrong about it."""
    epochs, way = best_way(variants, images, runner.left)
    if not way:
        return ["scratch was not trained, since no variant of it was measured"]
    if runner.left < 1.5 * (_START + _REST) and not runner.rehearse:
        return [f"scratch was not trained, since only {runner.left:.0f} s were left: give it more --minutes"]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        words = ["--recipe", "scratch", "--data.source", source, "--run", str(run), "--precision", way["precision"]]
        words += ["--track.trackers", "none", "--track.report", "False", "--evaluate.every_epochs", "2"]
        if runner.rehearse:
            epochs = 1
            words += ["--model.name", "test_resnet", "--model.stem", "imagenet", "--data.limit", "400"]
            words += ["--batch_size", "32", "--profile-steps", "2"]
        else:
            words += ["--profile-steps", "10"]
        words += ["--phases.0.epochs", str(epochs), "--phases.0.warmup_epochs", str(min(1.0, epochs / 5))]
        words += ["--max_minutes", f"{(runner.left - _REST) / 60:.2f}"]
        if way["compile_mode"] and not runner.rehearse:
            variables = {
                **variables,
                "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR",
                "ACCELERATE_DYNAMO_MODE": way["compile_mode"],
            }
        command = {"scratch": [sys.executable, str(ROOT / "train.py"), *words]}
        outcome = runner.run(runner.left, command, variables)["scratch"]
        summary = run / "profile" / "summary.txt"
        runner.record(
            "trained",
            exit_code=outcome.code,  # 75: it was not done in time
            epochs=epochs,
            precision=way["precision"],
            compile_mode=way["compile_mode"],
            seconds=round(outcome.seconds, 1),
            curve=curve(run),
            trace=summary.read_text().splitlines() if summary.is_file() else None,
            result=read_json(run / "result.json"),
        )
        if (run / "metrics.jsonl").is_file():
            shutil.copy(run / "metrics.jsonl", runner.stem.with_name(f"{runner.stem.name}-scratch.jsonl"))
    if outcome.code == 75:
        return ["scratch did not finish in time and was saved"]
    return outcome.problem("scratch")


def best_way(variants: list[dict[str, Any]], images: int, seconds: float) -> tuple[int, dict[str, Any] | None]:
    """(epochs, variant): the measured variant of `scratch` that trains the most epochs in `seconds`, or None.

    images: of the source's training split, of which a part is held out for validation.
    """
    ways = [
        found
        for found in variants
        if "images_per_second" in found
        and (found["recipe"], found["batchnorm"]) == ("scratch", "auto")
        and found["compile_mode"] in (None, "default")
        and found["batch"] <= 256  # the recipe's, whose learning rate suits it
    ]

    def epochs(way: dict[str, Any]) -> int:
        compiling = way["first_steps_s"] if way["compile_mode"] else 0.0
        left = 0.9 * (seconds - _START - _REST - compiling)
        one = images * (1 - Data().validation_fraction) / way["images_per_second"] + _SCORING
        return max(1, min(_EPOCHS, int(left / one)))

    best = max(ways, key=epochs, default=None)
    return (epochs(best), best) if best else (0, None)


def curve(run: Path) -> list[dict[str, float]]:
    """Epoch, seconds of training without evaluation, and validation accuracy, at every evaluation of a run."""
    points, seconds, images = [], 0.0, 0
    file = run / "metrics.jsonl"
    for row in map(json.loads, file.read_text().splitlines() if file.is_file() else ()):
        seconds += (row["images"] - images) / row["images_per_second"]
        images = row["images"]
        if "val/accuracy" in row:
            points.append({"epoch": row["epoch"], "seconds": round(seconds, 2), "accuracy": row["val/accuracy"]})
    return points


def _environment() -> dict[str, Any]:
    """Device, driver, versions and commit, and what the device does before anything is started."""
    facts = environment.describe()
    facts.pop("command")
    with contextlib.suppress(metadata.PackageNotFoundError):
        facts["packages"]["triton"] = metadata.version("triton")
    facts["cudnn"] = torch.backends.cudnn.version()
    if facts["commit"] is None and PACKED_COMMIT.is_file():
        facts["commit"] = f"{PACKED_COMMIT.read_text().strip()} when it was packed"
    query = "name,driver_version,memory.used,clocks.sm,power.draw,temperature.gpu"
    try:
        answer = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return facts
    rows = (zip(query.split(","), line.split(", "), strict=False) for line in answer.splitlines())
    return {**facts, "nvidia_smi": [dict(row) for row in rows]}


def _name(found: dict[str, Any]) -> str:
    return str(Variant(**{one.name: found[one.name] for one in fields(Variant)}))


def _said(kind: str, values: dict[str, Any]) -> str:
    """A result in one line."""
    if kind == "variant":
        if why := values.get("error", values.get("left_out")):
            return f"{_name(values)}: {why}"
        expected = _beside(values["images_per_second"], values["expected"])
        facts = {
            f"{values['ms']:,.2f} ms": values["ms"],
            f"spread {values['spread']:.0%}": values["spread"],
            f"{values['kernels']} kernels": values["kernels"],
            f"device busy {values['busy_ms']} ms": values["busy_ms"],
            f"{values['memory_gib']} GiB": values["memory_gib"],
            f"MFU {values['mfu'] or 0:.1%}": values["mfu"],
            f"first steps {values['first_steps_s']} s": values["first_steps_s"],
        }
        known = ", ".join(text for text, value in facts.items() if value is not None)
        return f"{_name(values):75} {values['images_per_second']:9,.0f} images/s{expected}; {known}"
    if kind == "ceiling":
        beside = _beside(values["measured"], values["expected"])
        return f"{values['name']}: {values['measured']:g} {values['unit']}{beside}"
    if kind == "tests":
        return f"tests of {values['name']}: {' '.join(values['said'])}"
    if kind == "trained":
        points = [f"{point['epoch']:.0f}: {point['accuracy']:.4f}" for point in values["curve"]]
        accuracy = (values["result"] or {}).get("test/accuracy")
        return (
            f"scratch, {values['epochs']} epochs in {values['seconds']:.0f} s, test accuracy {accuracy}, "
            f"expected (predicted for an H100) {EXPECTED_ACCURACY}; validation accuracy by epoch: {', '.join(points)}"
        )
    return f"{kind}: " + ", ".join(f"{name} {value}" for name, value in values.items())


def _beside(measured: float, expected: float | None) -> str:
    return f", expected (predicted for an H100) {expected:,g} ({measured / expected - 1:+.0%})" if expected else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], psutil.Process().create_time()))  # imports take seconds, too
