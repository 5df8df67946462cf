"""Runs that are hurt on purpose: how they start, what they leave, and whether an undisturbed one leaves the same."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import safetensors.torch
from metric_rows import computed

from resnet_cifar.checkpoints import checkpoint

ROOT = Path(__file__).parents[2]
INJECT = Path(__file__).parent / "inject"
PATIENCE = 240  # seconds for a start to end by itself
TRY_AGAIN = 75
# 39 steps: the head learns for 11, then all. Scores after every three or so, checkpoints there and at every fourth.
RECIPE = {
    "--recipe": "debug",
    "--data.limit": 300,
    "--data.image_size": 32,
    "--model.name": "test_resnet",
    "--batch_size": 48,
    "--micro_batch": 8,
    "--precision": "no",
    "--model.ema_decay": 0.9,
    "--phases.0.epochs": 2,
    "--phases.0.trainable": "head",
    "--phases.1.epochs": 5,
    "--checkpoint.every_steps": 4,
    "--track.report": False,
}
SCORES = ("val/accuracy", "val/loss", "test/accuracy", "test/top5", "test/loss")
SCORES += ("checkpoint", "step", "steps", "stopped_early", "world_size")


def fault(at: str, count: int, then: str, rank: int = 0, restart: int = 0) -> dict[str, Any]:
    """One fault; tests/faults/inject/sitecustomize.py says what moments and acts there are."""
    return {"at": at, "count": count, "then": then, "rank": rank, "restart": restart}


def is_litter(path: Path) -> bool:
    """Whether it is what a start that was killed may leave for ever: a small file's copy, of a name of its own."""
    return re.search(r"\.(json|yaml|jsonl)\.writing-", path.name) is not None


def _accelerate(processes: int) -> tuple[list[object], dict[str, str]]:
    config = ROOT / "accelerate_configs" / "cpu_ddp.yaml"
    return [
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        config,
        "--num_processes",
        processes,
        ROOT / "train.py",
    ], {}


def _torchrun(processes: int) -> tuple[list[object], dict[str, str]]:
    """Without `--`, torchrun would read --run as the beginning of its --run-path."""
    return ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes, "--", ROOT / "train.py"], {}


def _by_hand(processes: int) -> tuple[list[object], dict[str, str]]:
    """A shell in which someone sets each rank's variables, and that ends with the code of the last one to fail."""
    each = 'RANK=$rank LOCAL_RANK=$rank "$0" "$@" & pids+=($!)'
    shell = (
        f"for rank in {{0..{processes - 1}}}; do {each}; done; for pid in ${{pids[@]}}; do wait $pid || code=$?; done"
    )
    place = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    return ["bash", "-c", f"{shell}; exit ${{code:-0}}", sys.executable, ROOT / "train.py"], place


def _container(processes: int) -> tuple[list[object], dict[str, str]]:
    """With the variables that Kubeflow Trainer sets."""
    place = {"NNODES": 1, "NODE_RANK": 0, "NPROC_PER_NODE": processes}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return ["bash", ROOT / "containers/train.sh"], {
        "PATH": path,
        **{f"PET_{name}": str(v) for name, v in place.items()},
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# What starts several processes: (words before train.py's arguments, variables) for a number of them.
LAUNCHERS = {"accelerate": _accelerate, "torchrun": _torchrun, "by hand": _by_hand, "container": _container}


class Start:
    """One start of a run's command, and the faults that happen to it."""

    def __init__(self, command: list[str], home: Path, name: str, faults: tuple[dict, ...], env: dict) -> None:
        self.planned = list(faults)
        self.journal, self._stdout, self._stderr = (home / f"{name}.{kind}" for kind in ("jsonl", "out", "err"))
        self.journal.touch()
        plan = {"journal": str(self.journal), "tester": os.getpid(), "faults": self.planned}
        environment = {
            **os.environ,
            "PYTHONPATH": f"{INJECT}{os.pathsep}{ROOT}",
            "FAULTS": json.dumps(plan),
            **env,
        }
        with self._stdout.open("wb") as stdout, self._stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                command, cwd=home, env=environment, stdout=stdout, stderr=stderr, start_new_session=True
            )

    def wait(self) -> int:
        """The exit code of the command, when all that it started has ended too."""
        try:
            code = self.process.wait(PATIENCE)
            _, alive = psutil.wait_procs(self._workers(), PATIENCE)
            assert not alive, f"{alive} outlived the launcher\n{self.said}"
        finally:
            self.end()
        return code

    def end(self) -> None:
        """Kills what is left."""
        if self.process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in psutil.Process(self.process.pid).children(recursive=True):
                    process.kill()
            self.process.kill()
            self.process.wait()
        for process in self._workers():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def wait_until_fired(self) -> None:
        """Returns when a planned fault has happened. Fails where the process ended instead."""
        while not self.fired:
            assert self.process.poll() is None, self.said
            time.sleep(0.05)

    def wait_until_stopped(self) -> None:
        """Returns when the process, started without a launcher, is stopped. Fails where it ended instead."""
        change = os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        assert change.si_code == os.CLD_STOPPED, self.said

    def _workers(self) -> list[psutil.Process]:
        found = []
        for event in self.events:
            if event["event"] == "began":
                with contextlib.suppress(psutil.NoSuchProcess):
                    process = psutil.Process(event["pid"])
                    same = abs(process.create_time() - event["created"]) < 1
                    if same and process.status() != psutil.STATUS_ZOMBIE:
                        found.append(process)
        return found

    @property
    def events(self) -> list[dict[str, Any]]:
        """What the injector wrote down."""
        return [json.loads(line) for line in self.journal.read_text().splitlines()]

    @property
    def fired(self) -> list[dict[str, Any]]:
        """The faults that happened."""
        return [event for event in self.events if event["event"] == "fault"]

    @property
    def updates(self) -> list[dict[str, Any]]:
        """Every update that a rank has done."""
        return [event for event in self.events if event["event"] == "update"]

    @property
    def stderr(self) -> str:
        return self._stderr.read_text()

    @property
    def stdout(self) -> str:
        return self._stdout.read_text()

    @property
    def said(self) -> str:
        """The ends of what it printed, for a failing test."""
        return f"{self.stdout[-2000:]}\n{self.stderr[-4000:]}"

    @property
    def errors(self) -> list[str]:
        """The sentences it ended with."""
        return re.findall(r"^error: .*$", self.stderr, re.MULTILINE)

    def check_fired(self) -> None:
        """Fails where a planned fault did not happen."""
        assert len(self.fired) == len(self.planned), f"planned {self.planned}, happened {self.fired}\n{self.said}"


class FaultyRun:
    """One run directory, RUN in `home`, and the starts of one command in it."""

    def __init__(self, home: Path, processes: int = 1, track: str = "none", run: Path | None = None) -> None:
        self.home, self.processes, self.track = home, processes, track
        self.folder = run or home / "RUN"
        self.starts: list[Start] = []

    def start(
        self,
        *faults: dict[str, Any],
        options: tuple[object, ...] = (),
        launcher_options: tuple[object, ...] = (),
        env: dict[str, str] | None = None,
        by: str = "accelerate",
    ) -> Start:
        """Starts the command; one process starts without a launcher, several by one of LAUNCHERS."""
        words = [word for pair in RECIPE.items() for word in pair]
        words += ["--track.trackers", self.track, "--run", self.folder, *options]
        launch, own = LAUNCHERS[by](self.processes) if self.processes > 1 else ([ROOT / "train.py"], {})
        env = {**own, **(env or {})}
        *launch, script = launch
        words = [*launch, *launcher_options, script, *words]
        command = [*(() if words[0] == "bash" else (sys.executable,)), *map(str, words)]
        self.starts.append(Start(command, self.home, f"start-{len(self.starts) + 1}", faults, env))
        return self.starts[-1]

    def hurt(self, *faults: dict[str, Any], **more: Any) -> tuple[int, Start]:
        """A start that ends by a fault, all of which happen: (exit code, the start)."""
        start = self.start(*faults, **more)
        code = start.wait()
        start.check_fired()
        return code, start

    def finish(self, **more: Any) -> None:
        """A start that nothing happens to, up to the end of the run."""
        start = self.start(**more)
        assert start.wait() == 0, start.said
        assert self.result is not None

    def end(self) -> None:
        """Kills what is left of all starts."""
        for start in self.starts:
            start.end()

    @property
    def status(self) -> dict[str, Any] | None:
        return self._json("status.json")

    @property
    def result(self) -> dict[str, Any] | None:
        return self._json("result.json")

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    @property
    def last(self) -> Path:
        """The newest checkpoint, as it lies there."""
        return self.folder / "checkpoints" / checkpoint.name(checkpoint.steps(self.folder / "checkpoints")[-1])

    def check_whole(self) -> None:
        """Fails where a checkpoint is damaged, or where there is anything half written."""
        for step in checkpoint.steps(self.folder / "checkpoints"):
            checkpoint.read_state(self.folder / "checkpoints" / checkpoint.name(step))
        half = re.compile(r"\.(writing|replaced|damaged)")
        assert [path for path in self.folder.rglob("*") if half.search(path.name) and not is_litter(path)] == []

    def _json(self, name: str) -> dict[str, Any] | None:
        file = self.folder / name
        return json.loads(file.read_text()) if file.is_file() else None

    def digests(self) -> dict[str, str]:
        """Of every file in the folder."""
        files = (path for path in sorted(self.folder.rglob("*")) if path.is_file())
        return {str(path.relative_to(self.folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    def lost(self) -> list[int]:
        """For each start after which another one trained: the updates that were done again."""
        trained = [(min(steps), max(steps)) for s in self.starts if (steps := [u["step"] for u in s.updates])]
        return [last + 1 - first for (_, last), (first, _) in pairwise(trained)]


class Reference(FaultyRun):
    """An undisturbed run, and the comparison with it."""

    @cached_property
    def seen(self) -> dict[tuple[int, int], tuple]:
        """What each rank saw in each step: {(step, rank): digests}."""
        return {(u["step"], u["rank"]): (u["order"], u["batches"]) for u in self.starts[0].updates}

    def check_equal(self, run: FaultyRun, with_status: bool = True) -> None:
        """Fails where `run` ended otherwise in anything but its speed."""
        self.check_data(run)
        assert run.status["state"] == "finished" or not with_status
        assert [run.result[name] for name in SCORES] == [self.result[name] for name in SCORES]
        for name in ("eval-test.json", "model/model.safetensors", "model/config.json"):
            assert (run.folder / name).read_bytes() == (self.folder / name).read_bytes(), name
        self._check_rows(run)
        self._check_last(run)

    def check_data(self, run: FaultyRun) -> None:
        """Fails where a start trained on other images in any step, or where no start did a step at all."""
        done = set()
        for start in run.starts:
            for update in start.updates:
                place = (update["step"], update["rank"])
                assert (update["order"], update["batches"]) == self.seen[place], place
                done.add(place)
        assert done == self.seen.keys()

    def _check_rows(self, run: FaultyRun) -> None:
        assert [row["step"] for row in run.rows] == [row["step"] for row in self.rows]
        for ours, theirs in zip(run.rows, self.rows, strict=True):
            assert ours.keys() == theirs.keys()
            for name, value in computed(theirs).items():
                if name in ("train/loss", "train/accuracy"):  # sums that were begun are added in another order
                    assert abs(ours[name] - value) <= 1e-12, (name, ours["step"])
                else:
                    assert ours[name] == value, (name, ours["step"])

    def _check_last(self, run: FaultyRun) -> None:
        run.check_whole()
        assert run.last.name == self.last.name
        for file in ("model.safetensors", "average.safetensors", "optimizer.safetensors"):
            ours, theirs = (safetensors.torch.load_file(each.last / file) for each in (run, self))
            assert ours.keys() == theirs.keys()
            for name, tensor in theirs.items():
                assert tensor.dtype == ours[name].dtype, name
                # Bytes, for two zeros or NaNs may differ in them.
                assert tensor.numpy().tobytes() == ours[name].numpy().tobytes(), name
        ours, theirs = (checkpoint.read_state(each.last) for each in (run, self))
        for name in ("optimizer", "best", "stopping", "partial", "pending_row"):
            assert ours[name] == theirs[name], name


def keep_sending(start: Start, number: signal.Signals) -> int:
    """Sends the signal again and again until the process, started without a launcher, has ended; its exit code."""
    for _ in range(PATIENCE):
        start.process.send_signal(number)
        try:
            start.process.wait(1)
        except subprocess.TimeoutExpired:
            continue
        return start.wait()
    raise AssertionError(start.said)
