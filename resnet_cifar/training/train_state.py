"""What a run trains: the model, its optimizer, the weights' moving average and the metrics since the last row."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from resnet_cifar import rng
from resnet_cifar.checkpoints import snapshot
from resnet_cifar.checkpoints.snapshot import Snapshot
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Recipe
from resnet_cifar.data.image_dataset import ImageDataset
from resnet_cifar.data.preprocess import Preprocess
from resnet_cifar.data.sources.image_io import AS_IS, Decoding
from resnet_cifar.distributed.context import DistributedContext, is_out_of_memory
from resnet_cifar.evaluation.linear_probe import fit_head
from resnet_cifar.evaluation.predict import precise_bn
from resnet_cifar.models.factory import create_model, in_mode, normalization, zero_classifier
from resnet_cifar.models.ghost_batchnorm import apply_ghost_batchnorm, sync_batchnorm
from resnet_cifar.models.mlp_head import head_module
from resnet_cifar.models.pretrained import find_init_weights, load_init_weights
from resnet_cifar.optim.factory import create_optimizer
from resnet_cifar.training.metric_accumulator import MetricAccumulator
from resnet_cifar.training.plan import Plan

STEPS_AHEAD = 4  # how far the host may run ahead of the device


class TrainState:
    """The model and its optimizer: plain (`model`, `optimizer`) and as Accelerate wraps them (`wrapped...`).

    `average` is a second model, the weights' moving average, or None. `parameters` are those that the current stage
    trains. `init_remarks`: sentences on the weights of model.init_from; `decoding`: of the training images. Without
    `pretrained` it starts from random weights whatever the recipe says, which suffices for an estimate.
    """

    def __init__(
        self,
        plan: Plan,
        context: DistributedContext,
        classes: tuple[str, ...],
        pretrained: bool = True,
        decoding: Decoding = AS_IS,
    ) -> None:
        recipe = plan.recipe
        self.plan, self.context = plan, context
        self.init_remarks: tuple[str, ...] = ()
        if pretrained:
            self.model, self.init_remarks = _initial_model(recipe, classes, context)
        else:
            self.model = create_model(recipe, len(classes), pretrained=False)
        mean, std = normalization(self.model, recipe)
        on_device = {"dtype": context.dtype, "device": context.device}
        mean, std = torch.tensor(mean, **on_device), torch.tensor(std, **on_device)
        self.preprocess = Preprocess(recipe.data, mean, std, decoding)
        # channels_last before DDP, whose buckets adopt the strides of the gradients.
        weights = plan.class_weights
        self.class_weights = None if weights is None else torch.tensor(list(weights.values()), **on_device)
        self.model.to(device=context.device, dtype=context.dtype, memory_format=torch.channels_last)
        # Before ghost BatchNorm: the average is not trained, and process groups cannot be copied.
        self.average = copy.deepcopy(self.model).requires_grad_(False) if recipe.model.ema_decay else None
        self.model = _with_ghost_batchnorm(self.model, plan, context)
        self._learnable = [p for p in self.model.parameters() if p.requires_grad]  # some models freeze a few
        self.dropout_units = getattr(head_module(self.model), "dropout_units", 0)  # per row, in an MLP head
        self._wrapped_average = context.prepare_for_eval(self.average) if self.average is not None else None
        if self.average is not None:
            self._averaged, self._weights = list(self.average.parameters()), list(self.model.parameters())
        self.wrapped: torch.nn.Module = self.model
        self.wrapped_optimizer: Any = None
        self.start_stage(plan.phase_at(0).trainable)
        self.metrics = MetricAccumulator(plan, context)
        self._finished_steps: deque[torch.cuda.Event] = deque()

    @property
    def scored(self) -> torch.nn.Module:
        """The plain model that is evaluated: the moving average where there is one."""
        return self.model if self.average is None else self.average

    def fit_probe(self, images: ImageDataset, bn_rows: np.ndarray, check_stop: Callable[[], None]) -> None:
        """Makes the head a linear probe of the untrained features, with BatchNorm as evaluations have it."""
        precise_bn(self.context, self.model, images, self.preprocess, bn_rows, check_stop)
        plan, weights = self.plan, None
        if plan.class_weights or plan.recipe.data.sampling == "balanced":  # an image weighs as much as in training
            losses = plan.class_weights or dict.fromkeys(plan.class_counts, 1.0)
            weights = np.array([losses[name] * plan.image_uses.get(name, 0.0) for name in plan.class_counts])
            weights *= len(images) / plan.images  # their mean is 1 in a refit, too
        fit_head(self.context, self.model, images, self.preprocess, plan.recipe.seed, weights, check_stop)
        if self.average is not None:
            self.average.load_state_dict(self.model.state_dict())

    @property
    def wrapped_for_eval(self) -> torch.nn.Module:
        """The evaluated model as Accelerate wraps it."""
        return self.wrapped if self._wrapped_average is None else self._wrapped_average

    def start_stage(self, trainable: str) -> None:
        """Starts a stage that trains `all` weights or only those of the `head`, with a new optimizer over just these.

        The model is wrapped again, too: under the previous DDP wrapper ranks would silently diverge.
        """
        head = {id(parameter) for parameter in head_module(self.model).parameters()}
        for parameter in self._learnable:
            parameter.requires_grad_(trainable == "all" or id(parameter) in head)
        self.parameters = [parameter for parameter in self._learnable if parameter.requires_grad]
        peak = max((phase.lr for phase in self.plan.recipe.phases), default=0.0)
        self.optimizer = create_optimizer(self.model, self.plan.recipe.optimizer, peak, self.context.device)
        self.wrapped, self.wrapped_optimizer = self.model, None  # drops the previous wrapper and its hooks
        self.wrapped, self.wrapped_optimizer = self.context.prepare(self.model, self.optimizer)
        if trainable == "head":  # frozen layers use neither dropout nor batch statistics; an MLP head uses both
            self.model.eval()
            head_module(self.model).train()
        else:
            self.model.train()

    def prime_ddp(self, inputs: Tensor, targets: Tensor) -> None:
        """One discarded forward and backward pass, before any state is restored.

        DDP rebuilds its buckets after the first backward pass, which changes the order of sums with three or more
        processes. After this, every step of every attempt sums in the same order.
        """
        if self.context.size > 1:
            self._discarded_pass(inputs, targets)

    def fits(self, rows: int, image_size: int) -> bool:
        """Whether a forward and backward pass of `rows` images, training all weights, fits the device's memory.

        The pass is discarded and involves no other rank. Two optimizer states, as Adam has, are accounted for.
        """
        required_grad = [parameter.requires_grad for parameter in self._learnable]
        inputs = torch.zeros(rows, 3, image_size, image_size, device=self.context.device, dtype=self.context.dtype)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        labels = torch.zeros(rows, dtype=torch.int64, device=self.context.device)
        try:
            with in_mode(self.model, training=True), self.context.grad_sync(self.wrapped, now=False):
                for parameter in self._learnable:
                    parameter.requires_grad_()
                room = [torch.empty_like(p) for p in self._learnable for _ in range(2)]
                self._discarded_pass(inputs, labels)
                del room
            return True
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return False
        finally:
            self.model.zero_grad()
            for parameter, required in zip(self._learnable, required_grad, strict=True):
                parameter.requires_grad_(required)

    def _discarded_pass(self, inputs: Tensor, targets: Tensor) -> None:
        """A forward and backward pass that leaves gradients and buffers as they were."""
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        self.seed_dropout(0)
        try:
            keep_all = torch.ones(len(inputs), self.dropout_units, dtype=torch.bool, device=self.context.device)
            masks = (keep_all,) if self.dropout_units else ()
            self.context.backward(F.cross_entropy(self.wrapped(inputs, *masks), targets))
        finally:
            self.optimizer.zero_grad()
            for name, buffer in self.model.named_buffers():
                buffer.copy_(buffers[name])

    def snapshot(self) -> Snapshot:
        """Copies of weights, optimizer state and moving average, without waiting for the device."""
        return snapshot.take(self.model, self.optimizer, self.average)

    def restore(self, saved: Snapshot | None, state: dict[str, Any]) -> None:
        """Restores a checkpoint: tensors from rank 0 (`saved`, None on the others) and the plain values of `state`.

        Raises UserError where they do not fit the model.
        """
        context, step = self.context, state["step"]
        weights = context.broadcast_tensors(saved.weights if saved else None)
        optimizer = context.broadcast_tensors(saved.optimizer if saved else None)
        average = None
        if self.average is not None:
            average = context.broadcast_tensors(saved.average if saved else None)
        try:
            if self.plan.begins_stage(step):  # the saved optimizer belongs to the stage that is over
                snapshot.restore_weights(weights, self.model)
            else:
                snapshot.restore(Snapshot(weights, optimizer, state["optimizer"]), self.model, self.optimizer)
            if average is not None:
                snapshot.restore_weights(average, self.average)
        except UserError as error:
            raise UserError(f"the checkpoint of step {step} does not fit: {error}") from None
        if context.scaler is not None:
            context.scaler.load_state_dict(state["scaler"])
        self.metrics.resume(step, state["partial"], state["skipped"])

    def update_ema(self, step: int) -> None:
        """The decay grows with the updates up to the recipe's, as TensorFlow's does: initial weights fade quickly."""
        decay = min(self.plan.recipe.model.ema_decay, (1 + step) / (10 + step))
        get_ema_multi_avg_fn(decay)(self._averaged, self._weights, None)

    def seed_dropout(self, step: int) -> None:
        """Dropout inside timm's models is keyed by (step, rank), so it depends on the number of processes.

        Dropout of the MLP head is keyed by row and does not (train_step.py).
        """
        seed = rng.torch_seed(self.plan.recipe.seed, "dropout", step, self.context.rank)
        torch.random.default_generator.manual_seed(seed)
        if self.context.device.type == "cuda":
            torch.cuda.default_generators[self.context.device.index].manual_seed(seed)

    def throttle_host(self) -> None:
        """Keeps the host at most STEPS_AHEAD steps ahead of the device."""
        if self.context.device.type == "cuda":
            event = torch.cuda.Event()
            event.record()
            self._finished_steps.append(event)
            if len(self._finished_steps) > STEPS_AHEAD:
                self.context.waiting = True
                self._finished_steps.popleft().synchronize()
                self.context.waiting = False


def check_ghost_batch_size(recipe: Recipe, context: DistributedContext) -> None:
    """Raises UserError where a BatchNorm group spans processes on a device without SyncBatchNorm.

    Only the context's size and device are read.
    """
    rows, share = recipe.model.norm_rows, recipe.batch_size // context.size
    if rows and rows > share and context.device.type != "cuda":
        raise UserError(
            f"model.ghost_batch_size {rows} is larger than the {share} rows of a process, which needs GPUs (there is "
            f"no SyncBatchNorm for CPUs): use --model.ghost_batch_size {share}, or fewer processes"
        )


def _initial_model(
    recipe: Recipe, classes: tuple[str, ...], context: DistributedContext
) -> tuple[torch.nn.Module, tuple[str, ...]]:
    """The model, with the recipe's initial weights on rank 0, and remarks on them.

    The other ranks get the weights when the model is wrapped.
    """
    created: list[torch.nn.Module] = []

    def create() -> str:
        model, start = create_model(recipe, len(classes), pretrained=True), recipe.model.init_from
        created.append(model)
        if not start:
            return ""
        found = find_init_weights(start)
        new_head = load_init_weights(model, found, classes)
        if new_head and recipe.model.head.init == "auto":
            zero_classifier(model)
        normalized = found.normalization_remark(*normalization(model, recipe))
        remarks = (new_head and f"{new_head} and is reinitialized", normalized and f"{normalized}, other than here")
        return "".join(f"model.init_from {start}: {remark}\n" for remark in remarks if remark)

    remarks = tuple(context.run_on_main(create).splitlines())
    return created[0] if created else create_model(recipe, len(classes), pretrained=False), remarks


def _with_ghost_batchnorm(model: torch.nn.Module, plan: Plan, context: DistributedContext) -> torch.nn.Module:
    rows = plan.recipe.model.norm_rows
    is_fixed = plan.recipe.micro_batch != "auto"  # otherwise an earlier attempt may have found a larger one
    if rows is None or rows == plan.per_rank_batch or (is_fixed and rows == plan.micro_batch):
        return model  # one group per backward pass is what BatchNorm computes anyway
    if rows <= plan.micro_batch:
        return apply_ghost_batchnorm(model, rows)
    trained = head_module(model) if plan.recipe.model.batchnorm == "frozen" else model  # an MLP head has norms, too
    groups = context.batchnorm_group(rows // plan.per_rank_batch), context.batchnorm_group(1)
    synchronized = sync_batchnorm(trained, *groups)
    return synchronized if trained is model else model
