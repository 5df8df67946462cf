"""One W&B run of several nodes: rank 0's rows once, and the system metrics of every node under its label."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from test_breaking import go
from test_wandb import own
from wandb_server import StoredRun, WandbServer

from resnet_cifar import wandb_env
from resnet_cifar.config.schema import Recipe
from resnet_cifar.tracking import wandb_nodes
from resnet_cifar.tracking.multi import start_node_trackers

TRAIN = Path(__file__).parents[2] / "train.py"
TINY = "--recipe debug --model.name test_resnet --data.image_size 32 --data.limit 300 --batch_size 48 --micro_batch 8"
TINY += " --track.report False --phases.0.epochs 30 --checkpoint.every_steps 0 --run RUN"
OFTEN = {"WANDB_X_STATS_SAMPLING_INTERVAL": "0.2"}  # seconds


def start_nodes(home: Path, server: WandbServer) -> list[subprocess.Popen]:
    """train.py as the launcher starts it on two nodes with one process each, here both on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1]}
    place |= {
        "WORLD_SIZE": 2,
        "GROUP_WORLD_SIZE": 2,
        "LOCAL_RANK": 0,
        "LOCAL_WORLD_SIZE": 1,
        "ACCELERATE_USE_CPU": "true",
    }
    started = []
    for node in (0, 1):
        env = {**place, "RANK": node, "GROUP_RANK": node, "ACCELERATE_USE_CPU": "true", **server.account(), **OFTEN}
        with (home / f"{node}.log").open("ab") as log:
            command = [sys.executable, TRAIN, *TINY.split()]
            env = {**os.environ, **{name: str(value) for name, value in env.items()}}
            started.append(subprocess.Popen(command, cwd=home, env=env, stdout=log, stderr=subprocess.STDOUT))
    return started


def wait_until(happened: Callable[[], object], nodes: list[subprocess.Popen], home: Path) -> None:
    """Returns when it has happened, and fails when a node has ended before."""
    while not happened():
        said = [(home / f"{node}.log").read_text() for node in (0, 1)]
        assert all(node.poll() is None for node in nodes), said
        time.sleep(0.05)


def test_two_nodes_show_in_one_run(tmp_path: Path, proof: bool):
    """The long form resumes it, and kills the writer of node 1, which nobody notices."""
    labels = {f"{node}-{socket.gethostname()}" for node in (0, 1)}
    with WandbServer() as server:

        def run() -> StoredRun:
            (run,) = server.runs.values()
            return run

        def are_seen() -> bool:
            return bool(server.runs) and run().labels() == labels and bool(rows())

        def rows() -> list[dict]:
            file = tmp_path / "RUN" / "metrics.jsonl"
            return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

        nodes = start_nodes(tmp_path, server)
        wait_until(are_seen, nodes, tmp_path)
        for node in nodes:
            node.terminate()
        assert [node.wait(60) for node in nodes] == [75, 75]
        assert own(run().history) == rows()
        assert (run().state, run().exits, run().summary["step"]) == ("preempted", [1], rows()[-1]["step"])
        assert run().labels("cpu") == run().labels("memory_percent") == labels
        assert run().settings()["batch_size"] == 48
        if proof:
            run().events.clear()
            nodes = start_nodes(tmp_path, server)
            wait_until(are_seen, nodes, tmp_path)
            (core,) = (child for child in psutil.Process(nodes[1].pid).children() if child.name() == "wandb-core")
            core.kill()
            assert [node.wait(600) for node in nodes] == [0, 0]
            assert own(run().history) == rows()
            result = json.loads((tmp_path / "RUN" / "result.json").read_text())
            assert (run().state, run().summary["test/accuracy"]) == ("finished", result["test/accuracy"])
    assert run().modes == {"shared"}
    assert len(list((tmp_path / "RUN" / "wandb").glob("run-*"))) == 1 + proof, "rank 0's segments alone"
    for node in (0, 1):
        said = (tmp_path / f"{node}.log").read_text()
        assert "warning: W&B" not in said and "wandb:" not in said and "Traceback" not in said


def test_a_node_without_a_temporary_folder_is_merely_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "full"))
    facts = {"id": "a", "entity": "local", "project": "p", "base_url": "http://127.0.0.1:9"}
    start_node_trackers(Recipe(), tmp_path, {"wandb": facts}, 1).finish("finished")


def test_a_service_that_outlives_its_kill_is_waited_for_in_vain(monkeypatch: pytest.MonkeyPatch):
    def wait(timeout: float | None = None) -> None:
        assert timeout is not None, "for ever"
        waited.append("process")
        raise psutil.TimeoutExpired(timeout)

    waited, ended = [], threading.Event()
    core = SimpleNamespace(name=lambda: wandb_env.SERVICE, kill=lambda: None, wait=wait)
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(children=lambda: [core]))
    monkeypatch.setattr("wandb.teardown", lambda: waited.append("W&B") or ended.wait())
    monkeypatch.setattr(wandb_nodes, "_KILL_TIMEOUT", 0.2)
    wandb_nodes.end_core()
    assert waited == ["process", "W&B"]
    ended.set()


OLD = "the server is version 0.67.2, and its shared mode came with 0.68"


@pytest.mark.parametrize(
    ("version", "why"), [(None, ""), ("0.67.2", OLD), ("0.68.0", ""), ("1.2", ""), ("local-dev", "")]
)
def test_a_server_of_ones_own_may_lack_shared_mode(version: str | None, why: str, monkeypatch: pytest.MonkeyPatch):
    with WandbServer() as server:
        server.version = version
        for name, value in server.account().items():
            monkeypatch.setenv(name, value)
        assert wandb_env.lacks_shared_mode() == why
    assert wandb_env.lacks_shared_mode() == "", "one that is away says nothing"


NODES, OFFLINE = {"NODES": "2"}, {"WANDB_MODE": "offline"}  # NODES: for tracked.py


@pytest.mark.parametrize(
    ("first", "then", "version", "why", "mode"),
    [
        (NODES, {}, None, "", "shared"),
        pytest.param({}, NODES, None, "this W&B run began without the others", "default", marks=pytest.mark.proof_only),
        pytest.param(NODES, NODES, "0.67.2", OLD, "default", marks=pytest.mark.proof_only),
        pytest.param({}, NODES | OFFLINE, None, "W&B is offline", "default", marks=pytest.mark.proof_only),
    ],
    ids=["goes on alone", "began alone", "old server", "goes on offline"],
)
def test_a_run_stays_in_the_mode_that_it_began_in(
    first: dict, then: dict, version: str | None, why: str, mode: str, tmp_path: Path
):
    """The first start comes to step 7, and the second resumes from a checkpoint of step 4, where a server is newer."""
    told = f"warning: W&B gets the system metrics of the first node only ({why})\n" if why else ""
    with WandbServer() as server:
        server.version = version
        said = told if version else ""
        assert go(tmp_path, "RUN", "wandb", 1, 7, "interrupt", env=server.account() | first) == (0, said)
        server.version = None
        told = told.replace(OLD, "this W&B run began without the others")
        assert go(tmp_path, "RUN", "wandb", 5, 9, "finish", env=server.account() | then) == (0, told)
    (run,) = server.runs.values()
    steps = [row["step"] for row in own(run.history)]
    assert (steps, run.modes) == ([*range(1, 8 if "WANDB_MODE" in then else 10)], {mode})
