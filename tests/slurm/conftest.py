"""The cluster, a clone of the project on it, jobs, and the runs that they are compared with."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, Unavailable, missing
from jobs import RESULTS, ROOT, Job, arguments

PROJECT = ("train.py", "eval.py", "accelerate_configs", "resnet_cifar", "slurm", "logs")


@pytest.fixture(scope="session")
def figures() -> Path:
    """Where the proofs of this room are recorded."""
    return RESULTS / "proof-slurm-cpu.json"


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Three machines of two GPUs each; the tests that need them skip where they cannot be."""
    if reason := missing():
        pytest.skip(reason)
    with contextlib.ExitStack() as stack:
        try:
            made = stack.enter_context(Cluster())
        except Unavailable as reason:
            pytest.skip(str(reason))
        yield made


@pytest.fixture
def project(cluster: Cluster, tmp_path: Path) -> Path:
    """The project as a fresh clone has it, on the cluster's shared disk; all nodes are free."""
    cluster.wait_until_idle()
    folder = tmp_path / "project"
    folder.mkdir()
    left_out = shutil.ignore_patterns("__pycache__", "*.out", "*.starts")
    for name in PROJECT:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=left_out)
        else:
            shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture
def submit(cluster: Cluster, project: Path) -> Callable[..., Job]:
    """`submit("--nodes=2", words=arguments())`: a job on the CPUs of its nodes, with one thread a process."""
    environment = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "WANDB_MODE": "offline",
    }

    def make(*options: str, script: str = "train.sh", words: tuple = (), **env: str) -> Job:
        scripted = (*options, "--cpus-per-gpu=1", f"slurm/{script}", *words)
        return Job(cluster, project, *scripted, **(environment | env))

    return make


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The run directory of `arguments(**changes)` on this many processes of this machine, without SLURM."""
    made: dict[Any, Path] = {}

    def reference(processes: int = 1, **changes: object) -> Path:
        key = (processes, *sorted(changes.items()))
        if key not in made:
            home = tmp_path_factory.mktemp("undisturbed")
            launcher = ["-m", "accelerate.commands.launch", "--num_processes", str(processes)]
            launcher += ["--config_file", str(ROOT / "accelerate_configs/cpu_ddp.yaml")]
            words = [str(ROOT / "train.py"), *map(str, arguments(**changes)), "--run", "run"]
            command = [sys.executable, *(launcher if processes > 1 else []), *words]
            environment = os.environ | {"WANDB_MODE": "offline"}
            done = subprocess.run(
                command, check=False, cwd=home, env=environment, capture_output=True, text=True, timeout=300
            )
            assert done.returncode == 0, done.stdout + done.stderr
            made[key] = home / "run"
        return made[key]

    return reference
