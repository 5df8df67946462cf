"""Trains a few steps of each case and writes what happened: `accelerate launch ... worker.py OUT`, any world size.

Every rank writes the rows it took (indices, uniforms); rank 0 writes rates, the first gradients, the sums, the final
weights and the scores.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from resnet_cifar.data import draws
from resnet_cifar.data.batches import Batches
from resnet_cifar.data.plan import Plan
from resnet_cifar.data.store import ImageSet
from resnet_cifar.recipe import parse
from resnet_cifar.training.evaluate import check_same_weights, predict, refresh_norms
from resnet_cifar.training.step import Learner
from resnet_cifar.training.world import World

CLASSES, IMAGES, STEPS = 10, 150, 8  # 8 steps of 48 rows cross the epoch's end twice
PLAIN = {
    "batch_size": 48,
    "data": {"image_size": 32},
    "augment": {"crop": 4, "flip": "alternating"},
    "optimizer": {"name": "sgd", "weight_decay": 1e-4},
    "phases": [{"epochs": STEPS * 48 / IMAGES, "lr": 0.05, "warmup": 1, "decay": "cosine"}],
}
RESNET = {"model": {"name": "test_resnet", "pretrained": False, "norm_batch": 8}}
VIT = {"model": {"name": "test_vit", "pretrained": False, "norm_batch": 8}}
MICRO = {"micro_batch": 8}
MIXED = {
    "augment": {"crop": 4, "flip": "random", "cutout": 8, "erase": 0.5, "mixup": 0.3, "cutmix": 1.0},
    "loss": {"label_smoothing": 0.1},
}
CLIPPED = {
    "optimizer": {"name": "adamw", "weight_decay": 0.05, "clip": 0.5},
    "phases": [{"epochs": STEPS * 48 / IMAGES, "lr": 0.002, "warmup": 1, "decay": "linear"}],
}
CASES = {
    "resnet": {**PLAIN, **RESNET},
    "resnet micro-batches": {**PLAIN, **RESNET, **MICRO},
    "resnet mixed": {**PLAIN, **RESNET, **MIXED},
    "resnet mixed micro-batches clipped": {**PLAIN, **RESNET, **MIXED, **MICRO, **CLIPPED},
    "vit": {**PLAIN, **VIT},
    "vit mixed micro-batches clipped": {**PLAIN, **VIT, **MIXED, **MICRO, **CLIPPED},
}


def images(count: int, seed: int) -> ImageSet:
    """Random images with random labels."""
    words = draws.words(seed, "test images", count=count * 32 * 32 * 3)
    pixels = (words & np.uint64(255)).astype(np.uint8).reshape(count, 32, 32, 3)
    labels = draws.permutation(seed, "test labels", 0, count) % CLASSES
    return ImageSet(torch.from_numpy(pixels), torch.from_numpy(labels), np.arange(count))


def train(values: dict, precision: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(this rank's rows, what all ranks share) of one case."""
    recipe = parse({**values, "precision": precision})
    world = World(precision)
    training, validation = images(IMAGES, 0), images(70, 1)
    plan = Plan(recipe, IMAGES, world.size)
    learner = Learner(plan, world, CLASSES)
    batches = Batches(plan, training, CLASSES, learner.format, world.rank)
    first: dict[str, torch.Tensor] = {}
    step_of = learner._optimizer.step

    def remember_gradients() -> None:
        if not first:
            first.update({name: p.grad.clone() for name, p in learner.model.named_parameters()})
        step_of()

    learner._optimizer.step = remember_gradients
    rows: dict[str, list[np.ndarray]] = {"indices": [], "uniforms": []}
    for step, micro_batches in enumerate(batches.steps()):
        rows["indices"].append(plan.order(step, plan.rows(world.rank))[0])
        rows["uniforms"].append(draws.table(recipe.seed, "augment", step, plan.rows(world.rank)))
        learner.update(step, micro_batches)
        learner.take_sums(step + 1)
    sums = list(learner.ready_sums(wait=True))
    check_same_weights(world, learner.model)
    refresh_norms(world, learner.model, training, learner.format, torch.from_numpy(plan.norm_rows()))
    scores = predict(world, learner.wrapped, validation, learner.format)
    shared = {
        "rates": np.array([plan.rate(step) for step in range(plan.steps)]),
        "loss": np.array([s.loss for s in sums]),
        "accuracy": np.array([s.accuracy for s in sums]),
        "logits": scores.logits.numpy(),
        **{f"gradient {name}": gradient.numpy() for name, gradient in first.items()},
        **{f"weight {name}": p.detach().numpy() for name, p in learner.model.state_dict().items()},
    }
    return {name: np.stack(values) for name, values in rows.items()}, shared


def main(out: Path) -> None:
    world = World("no")
    for case, values in CASES.items():
        for precision in ("fp64", "no"):
            rows, shared = train(values, precision)
            np.savez(out / f"{case} {precision} rank {world.rank}.npz", **rows)
            if world.is_main:
                np.savez(out / f"{case} {precision}.npz", **shared)
    world.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
