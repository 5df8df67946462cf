"""world.py on this process alone; several processes are tests/distributed."""

from __future__ import annotations

import pytest
import torch

from resnet_cifar.recipe import Mistake
from resnet_cifar.training.world import World


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
