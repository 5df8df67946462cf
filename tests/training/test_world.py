"""world.py on this process alone; several processes are tests/distributed."""

from __future__ import annotations

import pytest
import torch

from resnet_cifar.training.world import World


def test_a_single_gpu_has_its_number(monkeypatch: pytest.MonkeyPatch, fresh_accelerator: None) -> None:
    """Accelerate says `cuda` to a process that is alone, and the device's own generator is found by number."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert World("no").device == torch.device("cuda", 3)
