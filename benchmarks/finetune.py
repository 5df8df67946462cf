"""Fine-tuning recipes compared, each one field away from the recipe `finetune`, after equal numbers of updates.

Validation accuracy of the last step, on images that no candidate trains on; test images are not touched. A run is what
train.py does, without checkpoints, test and report: the same data, model, loader, step and evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from resnet_cifar.config.loading import read_recipe
from resnet_cifar.config.schema import Recipe
from resnet_cifar.data import prepared_data
from resnet_cifar.data.loader import Loader
from resnet_cifar.data.sampling import bn_indices
from resnet_cifar.distributed.context import DistributedContext
from resnet_cifar.evaluation import metrics
from resnet_cifar.evaluation.predict import precise_bn, predict
from resnet_cifar.training import preflight
from resnet_cifar.training.plan import Plan
from resnet_cifar.training.train_state import TrainState
from resnet_cifar.training.train_step import train_step

BEFORE = {  # the default until 2026-11
    "model.batchnorm": "batch",
    "model.head.init": "auto",
    "optimizer.name": "sgd",
    "optimizer.weight_decay": "5e-5",
    "optimizer.clip_grad_norm": "0",
    "optimizer.head_lr_multiplier": "10",
    "phases.0.lr": "0.02",
    "augment.mixup_alpha": "0.1",
    "augment.cutmix_alpha": "1",
    "loss.label_smoothing": "0.1",
}
CANDIDATES: dict[str, dict[str, str]] = {
    "finetune": {},
    "BatchNorm of batches": {"model.batchnorm": "batch"},
    "zero head": {"model.head.init": "auto"},
    "zero head, BatchNorm of batches": {"model.head.init": "auto", "model.batchnorm": "batch"},
    "the former default": BEFORE,
    "Mixup 0.2 and label smoothing 0.1": {"augment.mixup_alpha": "0.2", "loss.label_smoothing": "0.1"},
    "SGD, rate 0.005": {"optimizer.name": "sgd", "optimizer.weight_decay": "5e-5", "phases.0.lr": "0.005"},
    "layer decay 0.8": {"optimizer.layer_decay": "0.8"},
    "rate 0.001": {"phases.0.lr": "0.001"},
    "rate 0.0002": {"phases.0.lr": "0.0002"},
    "EMA 0.98": {"model.ema_decay": "0.98"},
}


@dataclass(frozen=True)
class Setting:
    """Training images, pixels, epochs and batch size; `seeds` runs of each candidate, or of the `named` ones only."""

    images: int
    image_size: int
    epochs: float
    batch_size: int = 64
    seeds: int = 1
    validation_images: int = 3000
    named: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.images:,} images, {self.image_size} px, {self.epochs:g} epochs of batches of {self.batch_size}"


def measure(
    source: str, model: dict[str, str], settings: list[Setting], candidates: dict[str, dict[str, str]]
) -> Iterator[dict[str, Any]]:
    """After each run: {"model", "candidates", "settings": [{..., "scores": {candidate: [accuracy by seed]}}]}.

    `model`: the fields of a recipe that name the network and its weights.
    """
    found: list[dict[str, Any]] = []
    facts = {"model": {field: Path(word).name for field, word in model.items()}, "candidates": candidates}
    for setting in settings:
        scores: dict[str, list[float]] = {}
        found.append({**vars(setting), "updates": 0, "probe": [], "scores": scores})
        for seed in range(setting.seeds):
            for name in setting.named or candidates:
                recipe = _recipe(source, {**model, **candidates[name]}, setting, seed)
                updates, *accuracies = _train(recipe, from_probe=name == "finetune")
                print(f"  {setting}: seed {seed}, {name}: {' -> '.join(f'{a:.4f}' for a in accuracies)}", flush=True)
                found[-1]["probe"] += accuracies[:-1]
                scores.setdefault(name, []).append(accuracies[-1])
                found[-1]["updates"] = updates
                yield {**facts, "settings": found}


def _recipe(source: str, words: dict[str, str], setting: Setting, seed: int) -> Recipe:
    images = setting.images + setting.validation_images
    fixed = {
        "data.source": source,
        "data.limit": str(images),
        "data.validation_fraction": str(setting.validation_images / images),
        "data.image_size": str(setting.image_size),
        "batch_size": str(setting.batch_size),
        "phases.0.epochs": str(setting.epochs),
        "seed": str(seed),
    }
    return read_recipe("finetune", {**fixed, **words})


def _train(recipe: Recipe, from_probe: bool) -> tuple[float, ...]:
    """(updates, validation accuracy after the last one); with `from_probe`, that before the first one between them."""
    recipe = preflight.resolve(recipe)
    context = DistributedContext(recipe.precision)
    data = prepared_data.load(Path(prepared_data.prepare(recipe.data)), recipe, context.device)
    plan = Plan(recipe, len(data.train), context.size)
    state = TrainState(plan, context, data.classes, decoding=data.decoding)
    rows = bn_indices(recipe.seed, len(data.train))

    def score() -> float:
        precise_bn(context, state.scored, data.train, state.preprocess, rows)
        found = predict(context, state.wrapped_for_eval, data.validation, state.preprocess)
        return metrics.summary(*found)["accuracy"]

    if recipe.model.head.init == "probe":
        state.fit_probe(data.train, rows, lambda: None)
    before = (score(),) if from_probe else ()
    loader = Loader(recipe, data.train, len(data.classes), state.preprocess, plan.rows(context.rank))
    for step in range(plan.steps):
        if step and plan.begins_stage(step):
            state.start_stage(plan.phase_at(step).trainable)
        train_step(state, step, loader.batch(step, plan.image_size(step), plan.micro_batch), plan.lr(step))
    return plan.steps, *before, score()


def settings() -> list[Setting]:
    """Those for this device."""
    if torch.cuda.is_available():
        return [Setting(45_000, size, 10, 256, seeds=5) for size in (128, 224)]
    few = ("finetune", "zero head", "BatchNorm of batches", "the former default")
    fewer_images = Setting(500, 96, 12, seeds=3, named=(*few, "rate 0.001", "rate 0.0002"))
    return [Setting(2700, 96, 3), fewer_images, Setting(10_000, 128, 1, named=few)]
