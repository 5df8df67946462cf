"""What all tests share: folders of their own for caches, the real images where they are, and the two entry commands."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def pytest_addoption(parser: pytest.Parser) -> None:
    """`make proof` runs the long form of tests that have one."""
    parser.addoption(
        "--proof", action="store_true", help="the long form of tests; writes figures to benchmarks/results"
    )


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What is too long for CI is left to the proof."""
    for item in items:
        if "proof" in item.fixturenames:
            item.add_marker("proof_too")
    if not config.getoption("--proof"):
        left = [item for item in items if item.get_closest_marker("proof_only")]
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in left]


@pytest.fixture(scope="session")
def proof(pytestconfig: pytest.Config) -> bool:
    """Whether the long form was asked for."""
    return pytestconfig.getoption("--proof")


@pytest.fixture(scope="session")
def figures() -> Path:
    """Where a room's proofs are recorded."""
    return RESULTS / "proof-faults-cpu.json"


@pytest.fixture(scope="session")
def commit(proof: bool) -> str | None:
    """Of the code that is proved, before figures change the checkout."""
    if not proof:
        return None
    from resnet_cifar.reporting import environment

    return environment.describe()["commit"]


@pytest.fixture  # of each test, since the room of the first one has figures of its own
def record(proof: bool, figures: Path, commit: str | None) -> Callable[..., None]:
    """`record(name, **found)`: keeps what a proof has measured, beside what other tests have written before."""

    def keep(name: str, **found: object) -> None:
        if not proof:
            return
        from resnet_cifar.reporting import environment

        facts = environment.describe() | {"commit": commit}
        facts.pop("command")  # it names folders of the machine
        kept = json.loads(figures.read_text()) if figures.is_file() else {}
        when = {each: facts[each] for each in ("commit", "time")}
        kept |= {name: {**found, **when}, "environment": facts}
        figures.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")

    return keep


@pytest.fixture(scope="session", autouse=True)
def _environment(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or writes the user's caches, accounts or launcher settings; all count on one thread.

    What runs in the background, or under nohup, ignores signals and hands that on to what it starts: not here.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    home = tmp_path_factory.mktemp("home")
    os.environ.update(
        HOME=str(home),
        HF_HOME=str(home / "hf"),
        RESNET_CIFAR_CACHE=str(home / "cache"),
        OMP_NUM_THREADS="1",
        PYTHONPATH=os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    )
    for name in list(os.environ):
        if name.startswith(("WANDB_", "ACCELERATE_", "SLURM_", "HF_ENDPOINT", "XDG_", "CUDA_VISIBLE")):
            del os.environ[name]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def fresh_accelerator():
    """Accelerate keeps one state a process; a test that starts a World in this process begins and ends without one."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The 60,000 real images in the hub's layout: CIFAR10_FOLDER, or ../shared/cifar10 beside the checkout."""
    folder = Path(os.environ.get("CIFAR10_FOLDER", ROOT.parent / "shared" / "cifar10"))
    if not folder.is_dir():
        pytest.skip("the real images are not here: set CIFAR10_FOLDER to a copy in the hub's layout")
    return folder


@pytest.fixture(scope="session")
def hub_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stand-in for the hub serves."""
    import hub_content

    root = tmp_path_factory.mktemp("hub")
    hub_content.write(root)
    return root


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """`mounted("size=64k")`: a file system in memory, mounted with the options."""
    disks: list[Path] = []

    def mount(options: str) -> Path:
        disk = Path(tempfile.mkdtemp(dir=tmp_path))
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
        if shutil.which("mount") is None or subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("a small file system cannot be mounted here (it takes root)")
        disks.append(disk)
        return disk

    yield mount
    for disk in disks:
        subprocess.run(["umount", str(disk)], check=True)


Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs `python ARGUMENTS` in an empty folder and returns the finished process, with its output as text."""

    def python(
        *arguments: object, env: dict[str, str] | None = None, timeout: int = 300
    ) -> subprocess.CompletedProcess:
        words = [str(word) for word in arguments]
        if words[0].endswith(".py"):
            words[0] = str(ROOT / words[0])
        return subprocess.run(
            [sys.executable, *words],
            check=False,
            cwd=tmp_path,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return python
