"""One training step."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from resnet_cifar import model as models
from resnet_cifar import optim
from resnet_cifar.data import draws
from resnet_cifar.data.batches import Batch, InputFormat
from resnet_cifar.data.plan import Plan
from resnet_cifar.data.resident import to_device
from resnet_cifar.ghost_batchnorm import apply_ghost_batchnorm, sync_batchnorm
from resnet_cifar.recipe import Mistake, Recipe
from resnet_cifar.training.tally import Tally
from resnet_cifar.training.world import World, out_of_memory

STEPS_AHEAD = 4  # the host may run so far ahead of the device


class OutOfMemory(RuntimeError):
    """A forward or backward pass found no room; weights and optimiser are as they were."""


class Learner:
    """The model and its optimiser, as trained by `world`: `model` and `optimizer` are the plain ones, for saving.

    `average` is the weights' moving average, a model of its own, or None. Without `pretrained` it starts from random
    weights whatever the recipe says, which is enough for an estimate.
    """

    def __init__(self, plan: Plan, world: World, classes: int, pretrained: bool = True) -> None:
        recipe = plan.recipe
        self.plan, self.world = plan, world
        self.model = _first_model(recipe, classes, world) if pretrained else models.build(recipe, classes, False)
        mean, std = models.normalisation(self.model, recipe)
        on_device = {"dtype": world.dtype, "device": world.device}
        self.format = InputFormat(recipe.data, torch.tensor(mean, **on_device), torch.tensor(std, **on_device))
        # channels_last before DDP, whose buckets take the gradients' strides over.
        self.model.to(device=world.device, dtype=world.dtype, memory_format=torch.channels_last)
        # Before norm groups: an average is not trained, and groups of processes cannot be copied.
        self.average = copy.deepcopy(self.model).requires_grad_(False) if recipe.model.ema else None
        self.model = _with_norm_groups(self.model, plan, world)
        self._learnable = [p for p in self.model.parameters() if p.requires_grad]  # some models fix a few for good
        self._dropped_units = getattr(optim.classifier(self.model), "dropped_units", 0)  # of a row, by a deep head
        self._wrapped_average = world.prepare_to_score(self.average) if self.average is not None else None
        self._before_update: list[Callable[[], None]] = []
        if world.scaler is not None:
            self._before_update.append(self._unscale_and_count_skips)
        if recipe.optimizer.clip:
            self._before_update.append(self._clip)
        self._after_update: list[Callable[[int], None]] = []
        if self.average is not None:
            self._averaged, self._weights = list(self.average.parameters()), list(self.model.parameters())
            self._after_update.append(self._follow)
        self.wrapped: torch.nn.Module = self.model
        self._optimizer: Any = None
        self.begin(plan.phase_at(0).train)
        self.tally = Tally(plan, world)
        self._finished_steps: deque[torch.cuda.Event] = deque()

    @property
    def scored(self) -> torch.nn.Module:
        """The plain model that is scored: the moving average where there is one."""
        return self.model if self.average is None else self.average

    @property
    def wrapped_to_score(self) -> torch.nn.Module:
        """The same as `world` runs it."""
        return self.wrapped if self._wrapped_average is None else self._wrapped_average

    def begin(self, trains: str) -> None:
        """Begins a stage in which `all` weights or those of the `head` learn, with a new optimiser over just these.

        The model is wrapped anew too: under a DDP wrapper of before, ranks would diverge without a word.
        """
        head = {id(parameter) for parameter in optim.classifier(self.model).parameters()}
        for parameter in self._learnable:
            parameter.requires_grad_(trains == "all" or id(parameter) in head)
        self._parameters = [parameter for parameter in self._learnable if parameter.requires_grad]
        peak = max(phase.lr for phase in self.plan.recipe.phases)
        self.optimizer = optim.build(self.model, self.plan.recipe.optimizer, peak, self.world.device)
        self.wrapped, self._optimizer = self.model, None  # the wrapper of before goes, and its hooks
        self.wrapped, self._optimizer = self.world.prepare(self.model, self.optimizer)
        if trains == "head":  # what is frozen sees neither dropout nor the batch's statistics; a deep head sees both
            self.model.eval()
            optim.classifier(self.model).train()
        else:
            self.model.train()

    def warm_up(self, inputs: Tensor, targets: Tensor) -> None:
        """One thrown-away forward and backward pass, before any state is restored.

        DDP puts gradients into other buckets after the first backward pass, and with three processes or more that is
        another order of summing: now every step of every start has the same.
        """
        if self.world.size > 1:
            self._throw_away(inputs, targets)

    def fits(self, rows: int, image_size: int) -> bool:
        """Whether a forward and backward pass of `rows` images, in which all learns, finds the memory it needs.

        It is thrown away, and no other rank takes part. Room is left for two states of the optimiser, as Adam's has.
        """
        learning = [parameter.requires_grad for parameter in self._learnable]
        inputs = torch.zeros(rows, 3, image_size, image_size, device=self.world.device, dtype=self.world.dtype)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        labels = torch.zeros(rows, dtype=torch.int64, device=self.world.device)
        try:
            with models.in_mode(self.model, training=True), self.world.reduce_gradients(self.wrapped, now=False):
                for parameter in self._learnable:
                    parameter.requires_grad_()
                room = [torch.empty_like(p) for p in self._learnable for _ in range(2)]
                self._throw_away(inputs, labels)
                del room
            return True
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            return False
        finally:
            self.model.zero_grad()
            for parameter, learns in zip(self._learnable, learning, strict=True):
                parameter.requires_grad_(learns)

    def _throw_away(self, inputs: Tensor, targets: Tensor) -> None:
        """A forward and backward pass that leaves nothing behind."""
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        self._seed_dropout(0)
        try:
            everything = torch.ones(len(inputs), self._dropped_units, dtype=torch.bool, device=self.world.device)
            kept = (everything,) if self._dropped_units else ()
            self.world.backward(F.cross_entropy(self.wrapped(inputs, *kept), targets))
        finally:
            self.optimizer.zero_grad()
            for name, buffer in self.model.named_buffers():
                buffer.copy_(buffers[name])

    def update(self, step: int, micro_batches: Iterable[Batch]) -> None:
        """Update number `step`: nothing here waits for the device.

        Raises OutOfMemory where a pass found no room; the update can then be tried again, in smaller micro-batches.
        """
        optim.set_rate(self.optimizer, self.plan.rate(step))
        self._seed_dropout(step)
        counts = self._backward(step, micro_batches)
        if counts is None:  # raised here, where no frame holds the failed pass's tensors any longer
            self._optimizer.zero_grad()
            raise OutOfMemory(f"{self.world.describe()} ran out of memory in update {step}")
        self.tally.add(step, counts)
        for look in self._before_update:
            look()
        self._optimizer.step()
        self._optimizer.zero_grad()
        for look in self._after_update:
            look(step)
        self._hold_back()

    def _backward(self, step: int, micro_batches: Iterable[Batch]) -> Tensor | None:
        """The gradient of the global batch; this rank's [loss, right answers], or None where the memory ran out."""
        recipe, world = self.plan.recipe, self.world
        parts = self.plan.share // self.plan.micro_batch
        kept = self._kept(step)
        counts = torch.zeros(2, dtype=torch.float64, device=world.device)
        try:
            for part, (inputs, targets) in enumerate(micro_batches, start=1):
                with world.reduce_gradients(self.wrapped, now=part == parts):
                    logits = self.wrapped(inputs, *kept[part - 1])
                    losses = F.cross_entropy(
                        logits, targets, reduction="none", label_smoothing=recipe.loss.label_smoothing
                    )
                    # DDP averages over ranks; the step's gradient is the mean over the global batch.
                    world.backward(losses.sum() * (world.size / recipe.batch_size))
                # Under Mixup the larger label counts.
                right = logits.detach().argmax(1) == targets.argmax(1)
                counts += torch.stack([losses.detach().sum(dtype=torch.float64), right.sum(dtype=torch.float64)])
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            return None
        return counts

    def _kept(self, step: int) -> list[tuple[Tensor, ...]]:
        """For each micro-batch what the deep head's dropout keeps, bool [rows, units]: a row's own, wherever it is.

        Masks are arguments of the model, so that it is compiled once, and are drawn while the device is behind.
        """
        if not self._dropped_units:
            return [()] * (self.plan.share // self.plan.micro_batch)
        recipe, rows = self.plan.recipe, self.plan.rows(self.world.rank)
        kept = draws.kept(recipe.seed, "dropout", step, rows, self._dropped_units, recipe.model.head.dropout)
        return [(part,) for part in to_device(kept, self.world.device).split(self.plan.micro_batch)]

    def _clip(self) -> None:
        self.tally.add_norm(torch.nn.utils.clip_grad_norm_(self._parameters, self.plan.recipe.optimizer.clip))

    def _follow(self, step: int) -> None:
        """The average's decay grows to the recipe's with the updates, as TensorFlow's does: first weights fade fast."""
        decay = min(self.plan.recipe.model.ema, (1 + step) / (10 + step))
        get_ema_multi_avg_fn(decay)(self._averaged, self._weights, None)

    def _unscale_and_count_skips(self) -> None:
        self.world.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        self.tally.skip(torch.isfinite(torch.nn.utils.get_total_norm(gradients)))

    def _seed_dropout(self, step: int) -> None:
        """What timm drops inside its models is keyed by (step, rank); it depends on the number of processes.

        What a deep head drops does not: see `_kept`.
        """
        seed = draws.torch_seed(self.plan.recipe.seed, "dropout", step, self.world.rank)
        torch.random.default_generator.manual_seed(seed)
        if self.world.device.type == "cuda":
            torch.cuda.default_generators[self.world.device.index].manual_seed(seed)

    def _hold_back(self) -> None:
        if self.world.device.type == "cuda":
            event = torch.cuda.Event()
            event.record()
            self._finished_steps.append(event)
            if len(self._finished_steps) > STEPS_AHEAD:
                self.world.waiting = True
                self._finished_steps.popleft().synchronize()
                self.world.waiting = False


def check_norm_groups(recipe: Recipe, world: World) -> None:
    """Raises Mistake where a group of BatchNorm spans processes, on a device that cannot do it."""
    rows, share = recipe.model.norm_batch, recipe.batch_size // world.size
    if rows and rows > share and world.device.type != "cuda":
        raise Mistake(
            f"model.norm_batch {rows} is larger than a process's {share} rows, which needs GPUs (SyncBatchNorm has no "
            f"CPU form): take --model.norm_batch {share}, or fewer processes"
        )


def _first_model(recipe: Recipe, classes: int, world: World) -> torch.nn.Module:
    """The model with the recipe's first weights on rank 0; other ranks wait for its download and get them from it."""
    made: list[torch.nn.Module] = []

    def make() -> str:
        made.append(models.build(recipe, classes, pretrained=True))
        if recipe.model.checkpoint:
            models.warm_start(made[0], recipe.model.checkpoint)
        return "made"

    world.main_first(make)
    return made[0] if made else models.build(recipe, classes, pretrained=False)


def _with_norm_groups(model: torch.nn.Module, plan: Plan, world: World) -> torch.nn.Module:
    rows = plan.recipe.model.norm_batch
    if rows is None or rows == plan.micro_batch:
        return model  # one group a backward pass is what BatchNorm does by itself
    if rows < plan.micro_batch:
        return apply_ghost_batchnorm(model, rows)
    return sync_batchnorm(model, world.norm_group(rows // plan.share), alone=world.norm_group(1))
