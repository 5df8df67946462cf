"""What only a GPU shows: no wait in the step, precisions, compilation, memory format, fused updates.

`python -m benchmarks.gpu` begins with these. What also holds on a CPU is tested there too, on a small model; the rest
is skipped, and said so, without a GPU.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor

from resnet_cifar import rng
from resnet_cifar.checkpoints import snapshot
from resnet_cifar.config.validation import parse
from resnet_cifar.data.image_dataset import ImageDataset, MmapImages
from resnet_cifar.data.loader import Batch, Loader
from resnet_cifar.data.prepared_data import ImageData
from resnet_cifar.distributed.context import DistributedContext
from resnet_cifar.evaluation.predict import predict
from resnet_cifar.training.plan import Plan
from resnet_cifar.training.telemetry import GpuCounters, Telemetry
from resnet_cifar.training.train_state import TrainState
from resnet_cifar.training.train_step import train_step

ON_GPU = torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(not ON_GPU, reason="no GPU on this machine")
HAS_TF32 = ON_GPU and torch.cuda.get_device_capability() >= (8, 0)
needs_tf32 = pytest.mark.skipif(not HAS_TF32, reason="no GPU with TF32 on this machine")
pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("fresh_accelerator")]
IMAGES = 512
LOSS_SCALE = 2.0**10  # fp16's first, 65536, may overflow at once


def random_images(device: torch.device) -> ImageDataset:
    words = rng.words(0, "pixels", count=IMAGES * 32 * 32 * 3)
    pixels = torch.from_numpy((words & np.uint64(255)).astype(np.uint8)).view(IMAGES, 32, 32, 3)
    return ImageDataset(pixels.to(device), (torch.arange(IMAGES) % 10).to(device), np.arange(IMAGES))


def start(precision: str, **values: object) -> tuple[TrainState, Loader]:
    """A state and its loader, with every augmentation and two micro-batches per step."""
    AcceleratorState._reset_state(True)
    everything = {
        "trivial_augment": True,
        "rand_augment": 9,
        "color_jitter": 0.4,
        "grayscale": 0.2,
        "cutout": 8,
        "random_erasing": 0.5,
        "mixup_alpha": 0.2,
        "cutmix_alpha": 1.0,
        "flip": "alternating",
    }
    defaults = {
        "batch_size": 128,
        "micro_batch": 64,
        "data": {"image_size": 64 if ON_GPU else 32},
        "augment": everything,
        "model": {"name": "resnet18" if ON_GPU else "test_resnet", "pretrained": False},
        "phases": [{"epochs": 10, "lr": 0.01, "schedule": "constant"}],
    }
    context = DistributedContext(precision)
    recipe = parse({**defaults, **values, "precision": precision})
    plan = Plan(recipe, IMAGES, context.size)
    state = TrainState(plan, context, classes=tuple("abcdefghij"))
    if context.scaler is not None:
        context.scaler.load_state_dict({**context.scaler.state_dict(), "scale": LOSS_SCALE})
    return state, Loader(recipe, random_images(context.device), 10, state.preprocess, plan.rows(0))


def update(state: TrainState, loader: Loader, step: int) -> None:
    train_step(state, step, loader.batch(step, micro_batch=state.plan.micro_batch), state.plan.lr(step))


def before_update(state: TrainState, look: Callable[[], object]) -> None:
    """Calls `look` when the gradients are complete and clipped."""
    state.optimizer.register_step_pre_hook(lambda *_: look())


def gradients(state: TrainState) -> list[Tensor]:
    return [p.grad for p in state.model.parameters() if p.grad is not None]


def updates_to_try() -> list[tuple[str, str, float]]:
    """(precision, optimizer, clip). With fp16, torch's scaler asks the device before an update that is not fused."""
    fused = [(p, *rule) for p in ("no", "bf16", "fp16") for rule in (("sgd", 0.0), ("sgd", 1.0), ("adamw", 1.0))]
    return [*fused, ("no", "lamb", 0.0), ("bf16", "lamb", 0.0)]


@needs_gpu
@pytest.mark.parametrize(("precision", "optimizer", "clip"), updates_to_try())
def test_the_step_never_waits_for_the_device(precision: str, optimizer: str, clip: float) -> None:
    state, loader = start(precision, optimizer={"name": optimizer, "clip_grad_norm": clip})
    for step in range(2):  # cuDNN and the scaler set themselves up
        update(state, loader, step)
    images = loader.images
    measured = Telemetry(state.plan, state.context, ImageData(images, images, images, tuple("0123456789"), ""))
    measured.start(2)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(2, 8):
            update(state, loader, step)
            state.metrics.flush_async(step + 1)
            list(state.metrics.poll())
            row = measured.row(step + 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for sums in state.metrics.poll(wait=True):
        assert np.isfinite(sums.loss)
        assert (sums.gradient_norm is not None) == (clip > 0)
    assert 0 < row["memory_gib"] < torch.cuda.get_device_properties(0).total_memory / 2**30
    assert row.get("mfu", 1.0) > 0, "absent where the device's peak is not known"


class TestPrecisions:
    """The first step's loss and gradient norm lie within a format's rounding of float32's.

    Seen on a CPU with bfloat16: 0.05 of its epsilon for the loss, 0.6 for the norm.
    """

    @staticmethod
    def first_step(precision: str, tf32: bool) -> tuple[float, float]:
        state, loader = start(precision)
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
        norms: list[Tensor] = []
        before_update(state, lambda: norms.append(torch.nn.utils.get_total_norm(gradients(state))))
        update(state, loader, 0)
        state.metrics.flush_async(1)
        (sums,) = state.metrics.poll(wait=True)
        return sums.loss, norms[0].item()

    @pytest.mark.parametrize(
        ("precision", "tf32", "epsilon"),
        [
            ("bf16", False, torch.finfo(torch.bfloat16).eps),
            pytest.param("fp16", False, torch.finfo(torch.float16).eps, marks=needs_gpu),
            pytest.param("no", True, 2.0**-10, marks=needs_tf32),  # it keeps ten bits, as fp16 does
        ],
    )
    def test_they_start_where_float32_does(self, precision: str, tf32: bool, epsilon: float) -> None:
        loss, norm = self.first_step("no", tf32=False)
        its_loss, its_norm = self.first_step(precision, tf32)
        assert its_norm != norm, "it is another arithmetic"
        assert its_loss == pytest.approx(loss, rel=epsilon)
        assert its_norm == pytest.approx(norm, rel=4 * epsilon)


def test_a_run_compiles_once_for_each_image_size_and_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR" if ON_GPU else "EAGER")
    torch._dynamo.reset()
    counts = torch._dynamo.utils.counters["stats"]
    counts.clear()
    small = {"batch_size": 64, "micro_batch": 32, "model": {"name": "test_resnet", "pretrained": False}}
    state, _ = start("bf16", **small, data={"image_size": 32})
    scored = random_images(state.context.device)
    compiled = []
    for step, image_size in enumerate([32, 32, 48, 48, 32]):
        inputs = torch.zeros(32, 3, image_size, image_size, device=state.context.device)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        targets = torch.zeros(32, 10, device=state.context.device)
        train_step(state, step, [(inputs, targets)] * 2, 0.01)
        data = dataclasses.replace(state.preprocess.data, image_size=image_size)
        predict(state.context, state.wrapped, scored, dataclasses.replace(state.preprocess, data=data))
        compiled.append(counts["unique_graphs"])
    assert compiled == [2, 2, 4, 4, 4]


def test_channels_last_holds_through_the_step() -> None:
    """A tensor that falls out of it is copied back and forth before and after every convolution."""
    state, loader = start("bf16")
    strays: list[str] = []

    def look(name: str, tensor: Tensor) -> None:
        if tensor.dim() == 4 and not tensor.is_contiguous(memory_format=torch.channels_last):
            strays.append(name)

    def look_at_both(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        look(f"input of {module}", inputs[0])
        look(f"output of {module}", output)

    def look_at_gradients() -> None:
        for name, parameter in state.model.named_parameters():
            look(f"gradient {name}", parameter.grad)

    for module in state.model.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.BatchNorm2d)):
            module.register_forward_hook(look_at_both)
    before_update(state, look_at_gradients)
    for step in range(2):
        update(state, loader, step)
    for name, parameter in state.model.named_parameters():
        look(f"weight {name}", parameter)
        for key, value in state.optimizer.state[parameter].items():
            if isinstance(value, Tensor):
                look(f"{key} {name}", value)
    assert strays == []


@needs_gpu
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_updates_are_fused(optimizer: str) -> None:
    state, _ = start("no", optimizer={"name": optimizer})
    assert state.optimizer.defaults["fused"]


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp16", marks=needs_gpu)])
def test_a_clipped_update_is_that_of_float32(precision: str) -> None:
    """Unscaled once, then clipped, then taken by the fused update as it is."""
    moved = []
    for kind in ("no", precision):
        state, loader = start(kind, optimizer={"name": "sgd", "clip_grad_norm": 0.1})
        before = [p.detach().clone() for p in state.model.parameters()]
        norms: list[Tensor] = []
        before_update(
            state, lambda norms=norms, state=state: norms.append(torch.nn.utils.get_total_norm(gradients(state)))
        )
        update(state, loader, 0)
        assert norms[0].item() == pytest.approx(0.1, rel=1e-3)
        moved.append(torch.cat([(p - b).flatten() for p, b in zip(state.model.parameters(), before, strict=True)]))
    assert ((moved[1] - moved[0]).norm() / moved[0].norm()).item() < 0.3, "16 % in bfloat16"


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp16", marks=needs_gpu)])
def test_a_deterministic_run_goes_on_from_a_snapshot_bit_for_bit(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    state, loader = start(precision, optimizer={"name": "adamw"})
    scaler = state.context.scaler

    def train(first: int, last: int) -> tuple[dict[str, Tensor], dict | None]:
        for step in range(first, last):
            update(state, loader, step)
        weights = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
        return weights, scaler.state_dict() if scaler else None

    _, scale = train(0, 3)
    kept = snapshot.take(state.model, state.optimizer)
    expected, scale_after = train(3, 6)
    snapshot.restore(kept, state.model, state.optimizer)
    if scaler:
        scaler.load_state_dict(scale)
    weights, scale = train(3, 6)
    assert scale == scale_after
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0, msg=name)


@needs_gpu
def test_images_on_disk_make_the_same_batches_and_nobody_waits(tmp_path: Path) -> None:
    """Gathered by a thread, copied by a stream of their own while the default one is busy."""
    state, resident = start("no")
    everything = resident.images
    device = everything.device
    np.save(tmp_path / "images.npy", everything.images.cpu().numpy())
    mapped = MmapImages([(tmp_path / "images.npy", np.arange(IMAGES))], device)
    host = ImageDataset(mapped, everything.labels, everything.indices)
    on_disk = Loader(state.plan.recipe, host, 10, state.preprocess, state.plan.rows(0))
    busy = torch.rand(4096, 4096, device=device)

    def joined(loader: Loader) -> list[torch.Tensor]:
        found = []
        for step in range(state.plan.steps):
            for inputs, _ in loader.batch(step, micro_batch=state.plan.micro_batch):
                busy.copy_(busy @ busy / 4096)
                found.append(inputs.clone())
        return found

    expected = joined(resident)
    next(on_disk.batch(0))  # pinned memory is found
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = joined(on_disk)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(found) == len(expected) == resident.plan.steps * 2
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@needs_gpu
def test_nvml_counts_what_the_gpu_uses() -> None:
    """Where it counts at all: not on slices, in some virtual machines, and on GPUs before Volta."""
    device = torch.device("cuda", 0)
    counters = GpuCounters(device)
    before = counters.joules()
    if before is None:
        pytest.skip("NVML does not count this device's energy")
    busy = torch.rand(8192, 8192, device=device)
    for _ in range(200):
        busy.copy_(busy @ busy / 8192)
    torch.cuda.synchronize()
    assert 0 < counters.joules() - before < 100_000, "joules"
    assert 0 <= counters.utilization() <= 1


@needs_gpu
class TestCheckpoints:
    """Copied on the device in the step, and to the host by a stream of its own."""

    def test_taking_one_does_not_wait_and_later_updates_do_not_change_it(self) -> None:
        state, loader = start("bf16", optimizer={"name": "adamw"}, model={"name": "resnet18", "ema_decay": 0.9})
        for step in range(2):
            update(state, loader, step)
        expected = [
            {key: tensor.cpu() for key, tensor in part.items()}
            for part in (state.model.state_dict(), state.average.state_dict())
        ]
        torch.cuda.set_sync_debug_mode("error")
        try:
            taken = state.snapshot()
            for step in range(2, 4):
                update(state, loader, step)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert all(tensor.is_cuda for tensor in taken.weights.values())
        there = taken.on_host()
        for found, wanted in zip((there.weights, there.average), expected, strict=True):
            assert all(tensor.is_pinned() and tensor.is_contiguous() for tensor in found.values())
            torch.testing.assert_close(found, wanted, rtol=0, atol=0)
        assert not torch.equal(there.weights["fc.weight"], state.model.fc.weight.cpu()), "training went on"

    def test_pinned_memory_is_used_again(self) -> None:
        state, _ = start("no")
        snapshot.take(state.model, state.optimizer).on_host()
        before = torch.cuda.host_memory_stats()["allocated_bytes.current"]
        for _ in range(3):
            snapshot.take(state.model, state.optimizer).on_host()
        assert torch.cuda.host_memory_stats()["allocated_bytes.current"] == before


class TestInputs:
    def test_pixels_are_resized_outside_autocast_and_in_full_precision(self) -> None:
        """As on a CPU in float64, although the network multiplies in bfloat16 or TensorFloat-32."""
        settings = {"crop_padding": 4, "trivial_augment": True, "mixup_alpha": 0.2, "cutmix_alpha": 1.0}
        data = {"image_size": 64, "interpolation": "bicubic"}
        state, loader = start("bf16", data=data, augment=settings)
        seen: list[tuple[bool, Tensor]] = []

        def recorded(micro_batches: Iterator[Batch]) -> Iterator[Batch]:
            for inputs, targets in micro_batches:
                seen.append((torch.is_autocast_enabled(inputs.device.type), inputs))
                yield inputs, targets

        parts = {"micro_batch": state.plan.micro_batch}
        train_step(state, 0, recorded(loader.batch(0, **parts)), 0.01)
        mean, std = (values.double().cpu() for values in (state.preprocess.mean, state.preprocess.std))
        exact_form = dataclasses.replace(state.preprocess, mean=mean, std=std)
        exact = Loader(loader.recipe, random_images(torch.device("cpu")), 10, exact_form, loader.rows)
        for (autocast, inputs), (expected, _) in zip(seen, exact.batch(0, **parts), strict=True):
            assert not autocast
            assert inputs.dtype == torch.float32
            torch.testing.assert_close(inputs.double().cpu(), expected, rtol=0, atol=1e-5)
