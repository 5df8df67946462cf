"""world.py on this process alone; several processes are tests/distributed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from resnet_cifar.recipe import Mistake
from resnet_cifar.training import launched
from resnet_cifar.training.world import World


def test_a_run_is_left_where_what_followed_it_on_this_machine_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(launched.FOLLOWER, raising=False)
    assert not launched.is_left()
    ((name, here),) = launched.followed().items()
    host, _, number = here.rpartition(":")
    monkeypatch.setenv(name, here)
    assert int(number) == os.getpid() and not launched.is_left()
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    monkeypatch.setenv(name, f"{host}:{process.pid}")
    assert launched.is_left()
    monkeypatch.setenv(name, f"another-{host}:{process.pid}")
    assert not launched.is_left(), "nobody here can know"


def test_a_single_gpu_has_its_number(monkeypatch: pytest.MonkeyPatch, fresh_accelerator: None) -> None:
    """Accelerate says `cuda` to a process that is alone, and the device's own generator is found by number."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert World("no").device == torch.device("cuda", 3)


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        # `srun --ntasks 2 python train.py`, without a launcher
        ("SLURM_STEP_NUM_TASKS", "2", "each believes that it is alone"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "gradient_accumulation_steps 4"),
    ],
)
def test_an_environment_that_would_change_the_run_is_refused(
    variable: str, value: str, sentence: str, monkeypatch: pytest.MonkeyPatch, fresh_accelerator: None
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(Mistake, match=sentence):
        World("no")
