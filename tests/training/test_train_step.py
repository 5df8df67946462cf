"""The step by itself: its gradient, fp16's skipped updates, compilation, and what it leaves in saved names."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from resnet_cifar import rng
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.validation import parse
from resnet_cifar.data.image_dataset import ImageDataset
from resnet_cifar.data.loader import Loader
from resnet_cifar.distributed.context import DistributedContext
from resnet_cifar.evaluation.predict import check_same_weights, predict
from resnet_cifar.training.plan import Plan
from resnet_cifar.training.train_state import TrainState
from resnet_cifar.training.train_step import OutOfMemory, train_step

IMAGES = 64
VALUES = {
    "batch_size": 32,
    "micro_batch": 16,
    "data": {"image_size": 32},
    "model": {"name": "test_resnet", "pretrained": False, "ghost_batch_size": 8},
    "phases": [{"epochs": 20, "lr": 0.05, "schedule": "constant"}],
}

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


@pytest.fixture
def images() -> ImageDataset:
    pixels = (rng.words(0, "pixels", count=IMAGES * 32 * 32 * 3) & np.uint64(255)).astype(np.uint8)
    labels = np.arange(IMAGES) % 10
    return ImageDataset(torch.from_numpy(pixels).view(IMAGES, 32, 32, 3), torch.from_numpy(labels), np.arange(IMAGES))


Start = Callable[..., tuple[TrainState, Loader]]


@pytest.fixture
def start(images: ImageDataset) -> Start:
    def create(context: DistributedContext, **values: object) -> tuple[TrainState, Loader]:
        counts = {label: int((images.labels == number).sum()) for number, label in enumerate("abcdefghij")}
        plan = Plan(parse({**VALUES, **values}), IMAGES, context.size, class_counts=counts)
        state = TrainState(plan, context, classes=tuple(counts))
        return state, Loader(plan.recipe, images, 10, state.preprocess, plan.rows(0))

    return create


def update(state: TrainState, loader: Loader, step: int) -> None:
    train_step(state, step, loader.batch(step, micro_batch=state.plan.micro_batch), state.plan.lr(step))


def test_the_gradient_is_the_mean_over_the_batch(start: Start) -> None:
    """Against one backward pass of the mean loss; a model without BatchNorm, so that groups play no part."""
    state, loader = start(
        DistributedContext("fp64"),
        precision="fp64",
        model={"name": "test_vit", "pretrained": False, "ghost_batch_size": 8},
    )
    inputs, targets = (torch.cat(parts) for parts in zip(*loader.batch(0), strict=True))
    loss = F.cross_entropy(state.model(inputs), targets)
    expected = torch.autograd.grad(loss, list(state.model.parameters()))
    seen = []
    state.wrapped_optimizer.step = lambda: seen.extend(p.grad.clone() for p in state.model.parameters())
    update(state, loader, 0)
    for ours, theirs in zip(seen, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)


WEIGHTS = [1.0, 2, 3, 4, 5, 6, 7, 8, 9, 20]


@pytest.mark.parametrize(
    "mixed",
    [{}, {"augment": {"mixup_alpha": 0.3, "cutmix_alpha": 1.0}}],
    ids=["labels", "mixed"],
)
def test_a_weighted_loss_is_torchs_weighted_mean_over_the_batch(start: Start, mixed: dict) -> None:
    """For labels torch divides by the weights of the batch's labels, we by its size: with weights of mean 1 over an
    epoch the two agree on average. For mixed labels torch divides by the batch's size too. Both are smoothed."""
    state, loader = start(
        DistributedContext("fp64"),
        precision="fp64",
        model={"name": "test_vit", "pretrained": False, "ghost_batch_size": 8},
        loss={"class_weights": WEIGHTS, "label_smoothing": 0.1},
        **mixed,
    )
    [(inputs, targets)] = loader.batch(0)
    weights = torch.tensor(list(state.plan.class_weights.values()), dtype=torch.float64)
    torch.testing.assert_close(weights / weights[0], torch.tensor(WEIGHTS, dtype=torch.float64))
    assert weights[loader.images.labels].mean() == pytest.approx(1)
    logits = state.model(inputs)
    if mixed:
        assert 0 < targets.max(1).values.min() < 1
        loss = torch.nn.CrossEntropyLoss(weights, label_smoothing=0.1)(logits, targets)
    else:
        labels = targets.argmax(1)
        loss = torch.nn.CrossEntropyLoss(weights, label_smoothing=0.1)(logits, labels) * weights[labels].sum() / 32
    expected = torch.autograd.grad(loss, list(state.model.parameters()))
    seen = []
    state.wrapped_optimizer.step = lambda: seen.extend(p.grad.clone() for p in state.model.parameters())
    update(state, loader, 0)  # in two micro-batches
    for ours, theirs in zip(seen, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)
    state.metrics.flush_async(1)
    [sums] = state.metrics.poll(wait=True)
    assert sums.loss == pytest.approx(loss.item(), rel=1e-12)


def test_an_update_has_its_own_steps_rate(start: Start) -> None:
    phases = [{"epochs": 4, "lr": 0.5, "warmup_epochs": 1, "schedule": "linear"}]
    state, loader = start(DistributedContext("no"), phases=phases, optimizer={"name": "sgd", "head_lr_multiplier": 3.0})
    rates: list[set[float]] = []
    state.wrapped_optimizer.step = lambda: rates.append({group["lr"] for group in state.optimizer.param_groups})
    for step in range(state.plan.steps):
        update(state, loader, step)
    body = [0, 0.25, 0.5, 0.5 * 5 / 6, 0.5 * 4 / 6, 0.25, 0.5 * 2 / 6, 0.5 / 6]
    assert [sorted(seen) for seen in rates] == [pytest.approx(sorted({rate, 3 * rate})) for rate in body]


def test_clipping_bounds_the_global_norm(start: Start) -> None:
    state, loader = start(DistributedContext("no"), optimizer={"name": "sgd", "clip_grad_norm": 0.01})
    norms = []
    step = state.wrapped_optimizer.step

    def note() -> None:
        norms.append(torch.nn.utils.get_total_norm([p.grad for p in state.model.parameters()]).item())
        step()

    state.wrapped_optimizer.step = note
    for number in range(3):
        update(state, loader, number)
    assert norms == pytest.approx([0.01] * 3, rel=1e-3)


def test_the_logged_gradient_norm_is_the_mean_before_clipping(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the updates since the sums were taken; a row that is taken up in another start has the same bits."""
    values = {"name": "sgd", "clip_grad_norm": 0.01}

    seen: list[float] = []
    clip = torch.nn.utils.clip_grad_norm_

    def note_and_clip(parameters: list[torch.Tensor], limit: float) -> torch.Tensor:
        seen.append(torch.nn.utils.get_total_norm([p.grad for p in parameters]).item())
        return clip(parameters, limit)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", note_and_clip)

    state, loader = start(DistributedContext("no"), optimizer=values)
    for number in range(3):
        update(state, loader, number)
    partial = json.loads(json.dumps(state.metrics.pending_sums(3)))
    state.metrics.flush_async(3)
    resumed, _ = start(DistributedContext("no"), optimizer=values)
    resumed.metrics.resume(3, partial, skipped=0)
    resumed.metrics.flush_async(3)
    for accumulator in (state.metrics, resumed.metrics):
        (sums,) = accumulator.poll(wait=True)
        assert sums.gradient_norm == sum(seen[:3]) / 3 > 0.01
    update(state, loader, 3)
    state.metrics.flush_async(4)
    (sums,) = state.metrics.poll(wait=True)
    assert sums.gradient_norm == seen[3], "each row has its own"

    state, loader = start(DistributedContext("no"))
    update(state, loader, 0)
    state.metrics.flush_async(1)
    (sums,) = state.metrics.poll(wait=True)
    assert sums.gradient_norm is None, "nothing is clipped"


def test_sums_are_the_mean_over_all_images_since_they_were_taken(start: Start) -> None:
    """Of what the model said of them while it trained; under Mixup the larger label counts."""
    state, loader = start(DistributedContext("no"), augment={"mixup_alpha": 1.0}, loss={"label_smoothing": 0.1})
    said: list[torch.Tensor] = []
    state.model.register_forward_hook(lambda _module, _inputs, logits: said.append(logits.detach()))
    for steps in ([0, 1, 2], [3, 4]):
        for step in steps:
            update(state, loader, step)
        state.metrics.flush_async(steps[-1] + 1)
        (sums,) = state.metrics.poll(wait=True)
        logits, labels = torch.cat(said), torch.cat([targets for step in steps for _, targets in loader.batch(step)])
        said.clear()
        assert len(logits) == 32 * len(steps)
        assert sums.accuracy == pytest.approx((logits.argmax(1) == labels.argmax(1)).double().mean().item())
        assert sums.loss == pytest.approx(F.cross_entropy(logits, labels, label_smoothing=0.1).item(), rel=1e-5)


def test_what_a_model_drops_is_keyed_by_step_and_rank(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told by a number drawn in each forward pass, as dropout would: a run that goes on at a step drops alike."""

    def drawn(rank: int, steps: list[int]) -> list[float]:
        state, loader = start(DistributedContext("no"))
        monkeypatch.setattr(state.context, "rank", rank)
        seen: list[float] = []
        state.model.register_forward_hook(lambda *_: seen.append(torch.rand(()).item()))
        for step in steps:
            update(state, loader, step)
        return seen

    whole = drawn(0, [0, 1, 2])
    assert len(set(whole)) == 6, "micro-loader and steps share a number"
    assert drawn(0, [2]) == whole[4:]
    assert not set(drawn(1, [0, 1, 2])) & set(whole)


DEEP = {**VALUES["model"], "head": {"hidden_dims": "16,8", "norm": True, "dropout": 0.5}}


def test_a_deep_head_drops_by_row_whatever_the_micro_batches(start: Start) -> None:
    """And not by what else is drawn: the masks are those of (seed, step, row)."""

    def dropped(micro_batch: int) -> list[torch.Tensor]:
        state, loader = start(DistributedContext("no"), model=DEEP, micro_batch=micro_batch)
        seen: list[torch.Tensor] = []
        state.model.mlp_head.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[1].clone()))
        for step in range(3):
            update(state, loader, step)
        return list(torch.cat(seen).split(32))

    whole, parts = dropped(32), dropped(8)
    for step, (kept, other) in enumerate(zip(whole, parts, strict=True)):
        assert torch.equal(kept, other)
        expected = rng.dropout_masks(0, "dropout", step, slice(0, 32), 24, 0.5)
        assert kept.tolist() == expected.tolist()
    assert not torch.equal(whole[0], whole[1])


def test_a_throw_away_pass_leaves_a_deep_head_as_it_was(start: Start) -> None:
    state, loader = start(DistributedContext("no"), model=DEEP)
    before = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    state.context.size = 2  # of one process there is no warm-up
    state.prime_ddp(*next(loader.batch(0)))
    state.context.size = 1
    assert state.fits(16, 32)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.model.state_dict().items())


def test_bf16_trains_and_keeps_float32_weights(start: Start) -> None:
    state, loader = start(DistributedContext("bf16"), precision="bf16")
    kinds = []
    state.model.layer1[0].conv1.register_forward_hook(lambda _m, _i, output: kinds.append(output.dtype))
    update(state, loader, 0)
    state.metrics.flush_async(1)
    (sums,) = state.metrics.poll(wait=True)
    assert set(kinds) == {torch.bfloat16}
    assert {p.dtype for p in state.model.parameters()} == {torch.float32}
    assert 1.5 < sums.loss < 4


class TestScaler:
    """fp16's bookkeeping with torch's CPU scaler: Accelerate has none for CPUs, the step does not know."""

    @staticmethod
    def scaled(start: Start, scale: float, **values: object) -> tuple[TrainState, Loader]:
        context = DistributedContext("no")
        context._accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
        return start(context, **values)

    def test_scaling_changes_nothing(self, start: Start) -> None:
        results = []
        for scale in (1.0, 2.0**16):
            state, loader = self.scaled(start, scale)
            for number in range(3):
                update(state, loader, number)
            results.append(torch.cat([p.detach().flatten() for p in state.model.parameters()]))
        torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-6)

    def test_clipping_sees_unscaled_gradients(self, start: Start) -> None:
        results = []
        for scale in (1.0, 2.0**16):
            context = DistributedContext("no")
            context._accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
            state, loader = start(context, optimizer={"name": "sgd", "clip_grad_norm": 0.05})
            update(state, loader, 0)
            results.append(torch.cat([p.detach().flatten() for p in state.model.parameters()]))
        torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-7)

    def test_an_overflow_skips_the_update_but_not_its_images_and_rate(self, start: Start) -> None:
        state, loader = self.scaled(start, scale=2.0**16, optimizer={"name": "sgd", "clip_grad_norm": 1.0})
        before = [p.detach().clone() for p in state.model.parameters()]
        overflow = state.model.conv1[0].weight.register_hook(lambda gradient: gradient * torch.inf)
        update(state, loader, 0)
        overflow.remove()
        assert all(torch.equal(a, b) for a, b in zip(before, state.model.parameters(), strict=True))
        assert state.metrics._skipped.item() == 1
        assert state.context.scaler.get_scale() == 2.0**15
        update(state, loader, 1)
        assert state.metrics._skipped.item() == 0
        assert not all(torch.equal(a, b) for a, b in zip(before, state.model.parameters(), strict=True))
        state.metrics.flush_async(2)
        (sums,) = state.metrics.poll(wait=True)
        assert (sums.step, sums.lr) == (2, 0.05)
        assert 0 < sums.gradient_norm < torch.inf, "that of the update that was not skipped"
        assert sums.skipped == 1

    def test_skipped_updates_of_an_unfinished_row_survive_a_resume(self, start: Start) -> None:
        state, _ = self.scaled(start, scale=1.0)
        state.metrics.add_finite(torch.tensor(False))
        state.metrics.add_finite(torch.tensor(True))
        resumed, _ = self.scaled(start, scale=1.0)
        resumed.metrics.resume(2, state.metrics.pending_sums(2), state.metrics.skipped)
        resumed.metrics.add_finite(torch.tensor(False))
        resumed.metrics.flush_async(3)
        resumed.metrics.flush_async(4)
        assert [found.skipped for found in resumed.metrics.poll(wait=True)] == [2, 0]

    def test_an_update_that_works_ends_the_count(self, start: Start) -> None:
        state, loader = self.scaled(start, scale=2.0**16)
        state.metrics._skipped += 19
        update(state, loader, 0)
        assert state.metrics._skipped.item() == 0

    def test_twenty_in_a_row_stop_the_run(self, start: Start) -> None:
        state, _ = self.scaled(start, scale=1.0)
        state.metrics._skipped += 20
        state.metrics.flush_async(1)
        with pytest.raises(UserError, match="20 updates in a row"):
            list(state.metrics.poll(wait=True))


@pytest.mark.parametrize("model", [VALUES["model"], DEEP], ids=["plain", "deep"])
def test_a_run_compiles_once_for_training_and_once_for_scoring(
    start: Start, images: ImageDataset, monkeypatch: pytest.MonkeyPatch, model: dict
) -> None:
    """Rates, draws, lambdas and masks are tensors or stay outside: the third step compiles nothing."""
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    torch._dynamo.reset()
    counts = torch._dynamo.utils.counters["stats"]
    counts.clear()
    mixing = {"augment": {"mixup_alpha": 0.2, "cutmix_alpha": 1.0}}
    state, loader = start(DistributedContext("no"), model=model, **mixing)
    compiled = []
    for number in range(3):
        update(state, loader, number)
        predict(state.context, state.wrapped, images, state.preprocess)
        compiled.append(counts["unique_graphs"])
    assert compiled == [2, 2, 2]
    assert not [name for name in state.model.state_dict() if "_orig_mod" in name or name.startswith("module.")]


def test_different_weights_on_ranks_are_found(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    state, _ = start(DistributedContext("no"))
    check_same_weights(state.context, state.model)
    monkeypatch.setattr(state.context, "gather", lambda value: torch.cat([value, value, value + 1]))
    with pytest.raises(RuntimeError, match=r"ranks \[2\] differ"):
        check_same_weights(state.context, state.model)


def test_the_average_follows_the_weights_and_is_what_is_scored(start: Start) -> None:
    state, loader = start(DistributedContext("fp64"), precision="fp64", model={**VALUES["model"], "ema_decay": 0.3})
    expected = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    for step in range(4):
        update(state, loader, step)
        decay = (0.1, 2 / 11, 0.25, 0.3)[step]  # it grows to the recipe's
        for name, parameter in state.model.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * parameter.detach()
    for name, parameter in state.average.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=1e-12, atol=1e-14, msg=name)
    assert state.scored is state.average
    assert not torch.equal(state.average.fc.weight, state.model.fc.weight)


def test_a_frozen_part_neither_learns_nor_sees_the_batch(start: Start, images: ImageDataset) -> None:
    phases = [{"epochs": 10, "lr": 0.05, "trainable": "head"}, {"epochs": 10, "lr": 0.05}]
    state, loader = start(DistributedContext("no"), phases=phases)
    assert [id(p) for group in state.optimizer.param_groups for p in group["params"]] == [
        id(p) for p in (state.model.fc.bias, state.model.fc.weight)
    ]
    before = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    for step in range(2):
        update(state, loader, step)
        predict(state.context, state.wrapped, images, state.preprocess)  # an evaluation leaves every module in its mode
    after = state.model.state_dict()
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed == {"fc.weight", "fc.bias"}, "running statistics stay too"
    state.start_stage("all")
    for step in range(2, 5):  # the last norm of a block starts at zero, so that its branch learns from the second on
        update(state, loader, step)
    after = state.model.state_dict()
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed == {name for name, _ in state.model.named_parameters()}, "ghost BatchNorm tracks no statistics"


def short_of_memory(state: TrainState, rows: int) -> torch.utils.hooks.RemovableHandle:
    """The device has room for a forward pass of this many rows."""

    def refuse(_module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if inputs[0].shape[0] > rows:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory")

    return state.model.layer1.register_forward_pre_hook(refuse)


def test_an_update_without_room_leaves_everything_as_it_was(start: Start) -> None:
    weights = []
    for is_short in (False, True):
        state, loader = start(DistributedContext("no"), micro_batch="auto")
        state.plan = state.plan.with_micro_batch(16)
        if is_short:
            state.plan = state.plan.with_micro_batch(32)
            handle = short_of_memory(state, 16)
            before = {name: p.detach().clone() for name, p in state.model.named_parameters()}
            with pytest.raises(OutOfMemory, match="ran out of memory in update 0"):
                update(state, loader, 0)
            assert all(torch.equal(p, before[name]) for name, p in state.model.named_parameters())
            assert not any(p.grad is not None for p in state.model.parameters())
            state.plan = state.plan.with_micro_batch(16)
        update(state, loader, 0)
        state.metrics.flush_async(1)
        weights.append([*state.model.parameters(), torch.tensor([s.loss for s in state.metrics.poll(wait=True)])])
    handle.remove()
    assert all(torch.equal(*pair) for pair in zip(*weights, strict=True))


def test_ghost_batches_stay_if_auto_returns_to_larger_micro_batches(start: Start) -> None:
    """An earlier attempt may have found a larger size than CPUs try first, which is one ghost batch here."""
    weights = []
    for size in ("auto", 0):
        context = DistributedContext("fp64")
        _, loader = start(context, micro_batch=size)
        plan = Plan(loader.recipe, IMAGES, 1)
        state = TrainState(plan.with_micro_batch(8) if size == "auto" else plan, context, classes=tuple("abcdefghij"))
        state.plan = plan
        assert state.plan.micro_batch == 32
        update(state, loader, 0)
        weights.append([p.detach() for p in state.model.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*weights, strict=True))


def test_whether_a_pass_fits_is_found_without_a_trace(start: Start) -> None:
    phases = [{"epochs": 20, "lr": 0.05, "trainable": "head"}]
    state, _ = start(DistributedContext("no"), micro_batch="auto", phases=phases)
    before = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    handle = short_of_memory(state, 8)
    assert [state.fits(rows, 32) for rows in (32, 16, 8)] == [False, False, True]
    handle.remove()
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.model.state_dict().items())
    assert not any(p.grad is not None for p in state.model.parameters())
    assert {name for name, p in state.model.named_parameters() if p.requires_grad} == {"fc.weight", "fc.bias"}


def test_other_errors_are_not_taken_for_a_lack_of_memory(start: Start) -> None:
    state, loader = start(DistributedContext("no"), micro_batch="auto")
    state.model.layer1.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("shapes")))
    with pytest.raises(RuntimeError, match="shapes"):
        update(state, loader, 0)
    with pytest.raises(RuntimeError, match="shapes"):
        state.fits(8, 32)
