"""tune.py and launcher.py: trials that are killed or taken over, and the way of a signal through a launcher."""

from __future__ import annotations

import fcntl
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from resnet_cifar import wandb_env
from resnet_cifar.atomic_io import write_json
from resnet_cifar.checkpoints.run_dir import RunDir
from resnet_cifar.sweeps import search_space, tune
from resnet_cifar.sweeps.launcher import Launcher
from resnet_cifar.sweeps.study import Study

# A launcher as torch's: it starts a process in a session of its own, and dies of SIGUSR1 itself.
ELASTIC = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[-1]], start_new_session=True)
sys.exit(child.wait())
"""
# What it starts is that of W&B: a service in a session of its own.
TRAINING = """
import pathlib, signal, subprocess, sys
run = pathlib.Path(sys.argv[-1])
service = subprocess.Popen([run / "wandb-core", "60"], start_new_session=True)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
(run / "began").touch()
if signal.sigtimedwait({signal.SIGUSR1}, 20) and service.poll() is None:
    (run / "saved").touch()
service.kill()
sys.exit(75)
"""


class Killing:
    """A launcher whose runs are killed at these steps, and then finish."""

    stopped = False

    def __init__(self, *steps: int) -> None:
        self.left = list(steps)

    def run(self, run: RunDir, *_: object) -> str:
        if not self.left:
            return "finished"
        run.path.mkdir(exist_ok=True)
        write_json(run.path / "status.json", {"state": "running", "step": self.left.pop(0)})
        return "killed"


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path / "S", search_space.read("debug", {"phases.0.lr": "1e-3..1e-1"}), 0)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ((0, 0), ("finished", "")),
        ((0, 0, 4, 4, 8, 8), ("finished", "")),
        ((0, 4, 4, 4, 4), ("killed", "killed 3 times after step 4, perhaps for lack of memory")),
    ],
)
def test_a_killed_trial_is_resumed_while_it_makes_progress(study: Study, steps: tuple[int, ...], expected) -> None:
    assert tune._train(study, study.take(1), Killing(*steps), lambda: False) == expected


def test_a_trial_that_another_process_has_taken_over_is_not_resumed(study: Study, capsys) -> None:
    lost = study.take(1)
    fcntl.flock(study._lock, fcntl.LOCK_UN)  # as a file server does with those of a machine that it does not hear of
    Study(study.home, study.space, 0).take(1)
    launcher = Killing(0, 0, 0, 0)
    assert tune._train(study, lost, launcher, lambda: False) == ("killed", "")
    assert len(launcher.left) == 3


@pytest.fixture
def handlers() -> Iterator[None]:
    """Signal handlers are this process's own again."""
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
    kept = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("is_elastic", [True, False])
def test_a_signal_goes_to_the_processes_that_save_and_to_no_other(tmp_path: Path, handlers, is_elastic: bool) -> None:
    script = tmp_path / "elastic.py"
    script.write_text(ELASTIC)
    launcher = Launcher(sys.executable)
    # In place of train.py; the run directory is the last word.
    launcher._command[1:] = [script, TRAINING] if is_elastic else ["-c", TRAINING]
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    shutil.copy(shutil.which("sleep"), run.path / wandb_env.SERVICE)

    def ask() -> None:
        while not (run.path / "began").exists():
            pass
        signal.raise_signal(signal.SIGUSR1)

    thread = threading.Thread(target=ask)
    thread.start()
    assert launcher.run(run, []) == "interrupted"
    thread.join()
    assert (run.path / "saved").exists()
