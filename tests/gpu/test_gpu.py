"""What only a GPU shows: no wait in the step, precisions, fused updates. Skipped, and said so, without one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from resnet_cifar.data import draws
from resnet_cifar.data.batches import Batches
from resnet_cifar.data.plan import Plan
from resnet_cifar.data.resident import ImageSet, Mapped
from resnet_cifar.recipe import parse
from resnet_cifar.training import snapshot
from resnet_cifar.training.step import Learner
from resnet_cifar.training.world import World

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine"),
    pytest.mark.usefixtures("fresh_accelerator"),
]
IMAGES = 512


def start(precision: str, **values: object) -> tuple[Learner, Batches]:
    everything = {"cutout": 8, "erase": 0.5, "mixup": 0.2, "cutmix": 1.0, "flip": "alternating"}
    defaults = {
        "batch_size": 128,
        "micro_batch": 64,
        "data": {"image_size": 64},
        "augment": everything,
        "model": {"name": "resnet18", "pretrained": False},
        "phases": [{"epochs": 10, "lr": 0.01, "decay": "constant"}],
    }
    world = World(precision)
    recipe = parse({**defaults, **values, "precision": precision})
    words = draws.words(0, "pixels", count=IMAGES * 32 * 32 * 3)
    pixels = torch.from_numpy((words & np.uint64(255)).astype(np.uint8)).view(IMAGES, 32, 32, 3)
    labels = torch.arange(IMAGES) % 10
    images = ImageSet(pixels.to(world.device), labels.to(world.device), np.arange(IMAGES))
    plan = Plan(recipe, IMAGES, world.size)
    learner = Learner(plan, world, classes=10)
    return learner, Batches(plan, images, 10, learner.format, rank=0)


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_the_step_never_waits_for_the_device(precision: str, clip: float) -> None:
    learner, batches = start(precision, optimizer={"name": "sgd", "clip": clip})
    stream = enumerate(batches.steps())
    for _ in range(2):  # cuDNN and the scaler set themselves up
        learner.update(*next(stream))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(6):
            number, micro_batches = next(stream)
            learner.update(number, micro_batches)
            learner.take_sums(number + 1)
            list(learner.ready_sums())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(np.isfinite(sums.loss) for sums in learner.ready_sums(wait=True))


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.05), ("fp16", 0.01)])
def test_mixed_precision_starts_where_float32_does(precision: str, tolerance: float) -> None:
    losses = []
    for kind in ("no", precision):
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(True)
        learner, batches = start(kind)
        learner.update(0, batches.step(0))
        learner.take_sums(1)
        losses.extend(sums.loss for sums in learner.ready_sums(wait=True))
    assert losses[1] == pytest.approx(losses[0], rel=tolerance)


def test_updates_are_fused() -> None:
    learner, _ = start("no", optimizer={"name": "adamw"})
    assert learner.optimizer.defaults["fused"]


def test_a_deterministic_run_goes_on_from_a_snapshot_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    learner, batches = start("bf16", optimizer={"name": "adamw"})

    def train(first: int, last: int) -> dict[str, torch.Tensor]:
        for step in range(first, last):
            learner.update(step, batches.step(step))
        return {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}

    train(0, 3)
    kept = snapshot.take(learner.model, learner.optimizer)
    expected = train(3, 6)
    snapshot.restore(kept, learner.model, learner.optimizer)
    for name, tensor in train(3, 6).items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0, msg=name)


def test_images_on_disk_make_the_same_batches_and_nobody_waits(tmp_path: Path) -> None:
    """Gathered by a thread, copied by a stream of their own while the default one is busy."""
    _, resident = start("no")
    device, everything = resident.device, resident.images
    np.save(tmp_path / "images.npy", everything.images.cpu().numpy())
    mapped = Mapped(tmp_path / "images.npy", np.arange(IMAGES), device)
    host = ImageSet(mapped, everything.labels, everything.indices)
    on_disk = Batches(resident.plan, host, 10, resident.format, rank=0)
    busy = torch.rand(4096, 4096, device=device)

    def joined(batches: Batches) -> list[torch.Tensor]:
        found = []
        for micro_batches in batches.steps():
            for inputs, _ in micro_batches:
                busy.copy_(busy @ busy / 4096)
                found.append(inputs.clone())
        return found

    expected = joined(resident)
    next(next(on_disk.steps()))  # pinned memory is found
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = joined(on_disk)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(found) == len(expected) == resident.plan.steps * 2
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
