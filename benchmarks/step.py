"""One configuration, in a process of its own: `python -m benchmarks.step JSON`. Prints what it measured as JSON.

whole  the step as train.py does it: rate, batch, augment, forward, backward, update, sums
bare   forward, backward and update of the same network on one batch in memory, in plain torch
stock  a plain loop: timm's own model, BatchNorm and optimizer on one batch in memory, nothing loaded or augmented

`bare_over_stock` is what ghost BatchNorm costs, `whole_over_stock` what the whole step costs beside a loop that gets
its batches for nothing. The order of the three changes from round to round.

A process of its own has clean peaks of memory and compiles nothing that another one has compiled.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import timm.optim
import torch
import torch.nn.functional as F

from resnet_cifar.config.loading import read_recipe
from resnet_cifar.config.schema import Recipe
from resnet_cifar.data import prepared_data
from resnet_cifar.data.image_dataset import ImageDataset
from resnet_cifar.data.loader import Batch, Loader
from resnet_cifar.distributed.context import DistributedContext
from resnet_cifar.evaluation.predict import predict
from resnet_cifar.models.factory import create_model
from resnet_cifar.models.ghost_batchnorm import apply_ghost_batchnorm
from resnet_cifar.optim.factory import create_optimizer
from resnet_cifar.training import auto_micro_batch, flops
from resnet_cifar.training.plan import Plan
from resnet_cifar.training.scaling_measurement import rotated, whole_step
from resnet_cifar.training.train_state import TrainState

_WARM_UP = 3  # steps


@dataclass(frozen=True)
class Configuration:
    """What is trained, on one process. `rounds` turns of about `seconds` each are measured."""

    recipe: str
    stem: str
    image_size: int
    batch: int
    precision: str
    compiled: bool = False
    model: str = "resnet50"
    rounds: int = 7
    seconds: float = 0.5

    def __str__(self) -> str:
        compiled = ", compiled" if self.compiled else ""
        return (
            f"{self.model}, {self.stem} stem, {self.image_size} px, batch {self.batch}, "
            f"precision {self.precision}{compiled}"
        )

    def read(self, source: str) -> Recipe:
        """The recipe, with random weights and without an end."""
        words = {
            "data.source": source,
            "data.image_size": str(self.image_size),
            "batch_size": str(self.batch),
            "model.name": self.model,
            "model.pretrained": "False",
            "model.batchnorm": "batch",
            "model.stem": self.stem,
            "phases.0.epochs": "100000",
            "precision": self.precision,
        }
        return read_recipe(self.recipe, words)


def measure(configuration: Configuration, source: str) -> dict[str, Any]:
    """Medians over the rounds. Peaks of memory are those of the whole step, before anything else is built."""
    context = DistributedContext(configuration.precision)
    gpu = context.device.type == "cuda"
    recipe = configuration.read(source)
    data = prepared_data.load(prepared_data.prepare(recipe.data), recipe, context.device)
    plan = auto_micro_batch.first_try(Plan(recipe, len(data.train), world_size=1), context.device)
    state = TrainState(plan, context, data.classes)
    loader = Loader(recipe, data.train, len(data.classes), state.preprocess, plan.rows(0))
    whole = whole_step(state, loader)
    warm_up = _seconds(whole, _WARM_UP, gpu)
    steps = max(1, round(configuration.seconds / _seconds(whole, 1, gpu)))
    memory = {
        "peak_host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "peak_device_bytes": torch.cuda.max_memory_allocated() if gpu else None,
    }
    compared = {"whole": whole, **_bare_steps(configuration, recipe, state, next(loader.batch(0)))}
    images = data.test if gpu else _first(data.test, 2 * configuration.batch)
    speeds: dict[str, list[float]] = {name: [] for name in (*compared, "evaluation")}
    for round_ in range(configuration.rounds + 1):
        for name, step in rotated(list(compared.items()), round_):
            speed = configuration.batch * steps / _seconds(step, steps, gpu)
            if round_:  # the first one warms up
                speeds[name].append(speed)
        began = time.perf_counter()
        predict(context, state.wrapped, images, state.preprocess)  # ends on the host
        if round_:
            speeds["evaluation"].append(len(images) / (time.perf_counter() - began))
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    tf32 = context.uses_tf32
    an_image = flops.flops_an_image(recipe, len(data.classes))
    peak = flops.peak(torch.cuda.get_device_name(context.device), context.precision, tf32) if gpu else None
    return {
        **asdict(configuration),
        "tf32": tf32 and context.precision == "no",
        "images_per_second": {name: round(value, 1) for name, value in medians.items()},
        "whole_over_bare": _ratio(speeds["whole"], speeds["bare"]),
        **{f"{name}_over_stock": _ratio(speeds[name], speeds.get("stock")) for name in ("whole", "bare")},
        **memory,
        "seconds_of_first_steps": round(warm_up, 2),
        "gflops_an_image": round(an_image / 1e9, 3),
        "share_of_peak": round(medians["whole"] * an_image / peak, 4) if peak else None,
    }


def _bare_steps(
    configuration: Configuration, recipe: Recipe, state: TrainState, batch: Batch
) -> dict[str, Callable[[], None]]:
    """With compilation, the state's compiled network is reused, so that nothing is compiled twice."""
    context, settings = state.context, recipe.optimizer

    def built() -> torch.nn.Module:
        model = create_model(recipe, batch[1].shape[1], pretrained=False)
        return model.to(context.device, memory_format=torch.channels_last)

    def own(model: torch.nn.Module) -> torch.optim.Optimizer:
        return create_optimizer(model, settings, 0.001, context.device)

    if configuration.compiled:
        return {"bare": _bare_step(state.wrapped, own(state.model), recipe, batch, context, casts=True)}
    bare, stock = built(), built()
    if recipe.model.ghost_batch_size and recipe.model.ghost_batch_size < recipe.batch_size:
        bare = apply_ghost_batchnorm(bare, recipe.model.ghost_batch_size)
    options = {"opt": settings.name, "lr": 0.001, "weight_decay": settings.weight_decay, "momentum": 0.9}
    return {
        "bare": _bare_step(bare, own(bare), recipe, batch, context),
        "stock": _bare_step(stock, timm.optim.create_optimizer_v2(stock, **options), recipe, batch, context),
    }


def _bare_step(
    forward: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    batch: Batch,
    context: DistributedContext,
    casts: bool = False,
) -> Callable[[], None]:
    """`casts`: whether `forward` enters autocast by itself, and was compiled so."""
    low = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(context.precision)
    scaler = torch.amp.GradScaler(context.device.type, enabled=low == torch.float16)
    inputs, targets = batch

    def step() -> None:
        with torch.autocast(context.device.type, dtype=low, enabled=low is not None and not casts):
            logits = forward(inputs)
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=recipe.loss.label_smoothing)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step


def _seconds(step: Callable[[], None], count: int, gpu: bool) -> float:
    began = time.perf_counter()
    for _ in range(count):
        step()
    if gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _ratio(ours: list[float], theirs: list[float] | None) -> float | None:
    if theirs is None:
        return None
    return round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 4)


def _first(images: ImageDataset, count: int) -> ImageDataset:
    return ImageDataset(images.images[:count], images.labels[:count], images.indices[:count])


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    print(json.dumps(measure(Configuration(**asked["configuration"]), asked["source"])))
