"""training/plan_summary.py: the memory that training takes, counted without computing, and the warning about it."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from resnet_cifar.config.validation import parse
from resnet_cifar.distributed.context import DistributedContext
from resnet_cifar.training import plan_summary
from resnet_cifar.training.plan import Plan
from resnet_cifar.training.train_state import TrainState

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def state_of(name: str, **values: Any) -> TrainState:
    model = {"name": name, "pretrained": False, "ghost_batch_size": 32}
    recipe = parse({"batch_size": 64, "data": {"image_size": 64}, "model": model, **values})
    return TrainState(Plan(recipe, 640, 1), DistributedContext("no"), classes=("a", "b"))


def measured_bytes(state: TrainState, size: int) -> float:
    """Bytes per image that a real forward pass of 64 images saves for the backward pass."""
    weights = {p.untyped_storage().data_ptr() for p in state.model.parameters()}
    saved: dict[int, torch.Tensor] = {}
    images = torch.zeros(64, 3, size, size).contiguous(memory_format=torch.channels_last)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.setdefault(tensor.untyped_storage().data_ptr(), tensor), lambda tensor: tensor
    ):
        state.model(images)
    return sum(t.untyped_storage().nbytes() for pointer, t in saved.items() if pointer not in weights) / 64


@pytest.mark.parametrize(("name", "tolerance"), [("test_resnet", 0.02), ("test_efficientnet", 0.05), ("test_vit", 0.2)])
def test_activations_are_counted_as_a_real_pass_saves_them(name: str, tolerance: float) -> None:
    """Attention is counted in its unfused form, and ghost BatchNorm as stock: its groups are views."""
    state = state_of(name, data={"image_size": 160})
    assert plan_summary.activation_bytes(state) == pytest.approx(measured_bytes(state, 160), rel=tolerance)


def test_the_largest_phase_counts_and_a_frozen_body_saves_little() -> None:
    phases = [{"epochs": 1, "lr": 0.1}, {"epochs": 1, "lr": 0.1, "image_size": 128}]
    growing = plan_summary.activation_bytes(state_of("test_resnet", phases=phases))
    constant = plan_summary.activation_bytes(state_of("test_resnet"))
    head = plan_summary.activation_bytes(state_of("test_resnet", phases=[{**phases[0], "trainable": "head"}]))
    assert 3.8 < growing / constant < 4.1
    assert head < constant / 50


def test_the_micro_batch_that_the_memory_warning_names_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    state = state_of("test_resnet", batch_size=512)
    weights = sum(p.numel() for p in state.model.parameters()) * 4
    per_image = plan_summary.activation_bytes(state)
    assert plan_summary.memory_warning(state) is None
    for rows, named in ((512, 256), (256, 128), (33, 32)):
        free = int(3 * weights + (rows - 0.5) * per_image)
        monkeypatch.setattr(plan_summary, "free_memory", lambda device, free=free: free)
        warning = plan_summary.memory_warning(state)
        assert re.search(r"set micro_batch to (\d+)$", warning)[1] == str(named)
        smaller = replace(state.plan, recipe=replace(state.plan.recipe, micro_batch=named))
        monkeypatch.setattr(state, "plan", smaller)
        assert plan_summary.memory_warning(state) is None
        monkeypatch.undo()
    monkeypatch.setattr(plan_summary, "free_memory", lambda device: weights)
    assert plan_summary.memory_warning(state).endswith("lower data.image_size or use a smaller model")


def test_an_operation_that_cannot_be_counted_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*arguments: Any) -> int:
        raise NotImplementedError("aten::new_operation")

    monkeypatch.setattr(plan_summary, "_saved_bytes", unknown)
    state = state_of("test_resnet")
    assert plan_summary.activation_bytes(state) is None
    assert plan_summary.memory_warning(state) is None
