"""Trains a few steps of cases, scores splits of many sizes, and writes what happened: `worker.py OUT CASE ...`.

Every rank writes the rows it took (indices, uniforms) and the predictions it got; rank 0 writes rates, the first
gradients, the sums, the final weights and the scores.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import torch

from resnet_cifar import rng
from resnet_cifar.config.schema import Augment
from resnet_cifar.config.validation import parse
from resnet_cifar.data.image_dataset import ImageDataset
from resnet_cifar.data.loader import Loader
from resnet_cifar.data.preprocess import Preprocess
from resnet_cifar.data.sampling import balanced_order, bn_indices, sample_indices
from resnet_cifar.distributed.context import DistributedContext
from resnet_cifar.evaluation import metrics
from resnet_cifar.evaluation.predict import check_same_weights, precise_bn, predict
from resnet_cifar.models.factory import create_model
from resnet_cifar.training.plan import Plan
from resnet_cifar.training.train_state import TrainState
from resnet_cifar.training.train_step import train_step

CLASSES, IMAGES, BATCH, STEPS = 10, 150, 96, 5  # they cross the epoch's end three times
PLAIN = {
    "batch_size": BATCH,
    "data": {"image_size": 32},
    "augment": {"crop_padding": 4, "flip": "alternating"},
    "optimizer": {"name": "sgd", "weight_decay": 1e-4},
    "phases": [{"epochs": STEPS * BATCH / IMAGES, "lr": 0.05, "warmup_epochs": 1, "schedule": "cosine"}],
}
RESNET = {"model": {"name": "test_resnet", "pretrained": False, "ghost_batch_size": 8}}
FROZEN = {"model": {**RESNET["model"], "batchnorm": "frozen", "head": {"init": "probe"}}}
VIT = {"model": {"name": "test_vit", "pretrained": False, "ghost_batch_size": 8}}
MICRO = {"micro_batch": 8}
DEEP = {"model": {**RESNET["model"], "head": {"pool": "flatten", "hidden_dims": "24,16", "norm": True, "dropout": 0.5}}}
# Every augmentation: a new one fails here until it has a value.
_VALUES = {"crop_padding": 4, "flip": "random", "trivial_augment": True, "cutout": 8, "random_erasing": 0.5}
_VALUES |= {"rand_augment": 9, "color_jitter": 0.4, "grayscale": 0.3, "random_resized_crop": 0.3}
_VALUES |= {"mixup_alpha": 0.3, "cutmix_alpha": 1.0}
MIXED = {
    "augment": {field.name: _VALUES[field.name] for field in dataclasses.fields(Augment)},
    "loss": {"label_smoothing": 0.1, "class_weights": "balanced"},
}
BALANCED = {"data": {**PLAIN["data"], "sampling": "balanced"}}
WEIGHTED = {"loss": {"label_smoothing": 0.1, "class_weights": list(range(1, CLASSES + 1))}}
CLIPPED = {
    "optimizer": {"name": "adamw", "weight_decay": 0.05, "clip_grad_norm": 0.5},
    "phases": [{"epochs": STEPS * BATCH / IMAGES, "lr": 0.002, "warmup_epochs": 1, "schedule": "linear"}],
}
REFIT = {"refit_steps": 4}
JOINED = 12  # of the images, those that a refit has from the validation split
CASES = {
    "resnet": {**PLAIN, **RESNET},
    "resnet frozen probe": {**PLAIN, **FROZEN},
    "resnet micro-loader": {**PLAIN, **RESNET, **MICRO},
    "resnet mixed": {**PLAIN, **RESNET, **MIXED},
    "resnet mixed micro-loader clipped": {**PLAIN, **RESNET, **MIXED, **MICRO, **CLIPPED},
    "deep head micro-loader": {**PLAIN, **DEEP, **MICRO},
    "vit": {**PLAIN, **VIT},
    "vit balanced mixed micro-loader clipped refit": {
        **PLAIN,
        **BALANCED,
        **VIT,
        **MIXED,
        **MICRO,
        **CLIPPED,
        **WEIGHTED,
        **REFIT,
    },
}
# Everything is on in one of these.
COMBINED = ("resnet frozen probe", "resnet mixed micro-loader clipped", "vit balanced mixed micro-loader clipped refit")
SCORED = ("test_resnet", "test_vit")
# Of the splits that are scored: every remainder of a batch of 32 and of the world's sizes, and around more loader;
# from 2,048 images on a batch is of 64.
SPLITS = [*range(1, 71), 95, 96, 97, 127, 128, 129, 159, 160, 161, 257, 2047, 2048, 2049, 2113]
MEASURED = (1, 33, 97, 2113)  # metrics are functions of predictions, which are compared for every split


def images(count: int, seed: int, unbalanced: bool = False) -> ImageDataset:
    """Random images with random labels; the largest of `unbalanced` classes is seven times as large as the smallest."""
    words = rng.words(seed, "test images", count=count * 32 * 32 * 3)
    pixels = (words & np.uint64(255)).astype(np.uint8).reshape(count, 32, 32, 3)
    order = rng.permutation(seed, "test labels", 0, count)
    labels = order**2 * CLASSES // count**2 if unbalanced else order % CLASSES
    return ImageDataset(torch.from_numpy(pixels), torch.from_numpy(labels), np.arange(count))


def train(
    context: DistributedContext, values: dict, precision: str
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(this rank's rows, what all ranks share) of one case."""
    recipe = parse({**values, "precision": precision})
    context.precision = precision  # a process has one world, and without autocast it takes either
    training, validation = images(IMAGES, 0, unbalanced=True), images(70, 1)
    counts = {str(label): count for label, count in enumerate(training.labels.bincount().tolist())}
    epoch_images = IMAGES - JOINED if recipe.refit_steps else IMAGES
    plan = Plan(recipe, epoch_images, context.size, class_counts=counts)
    state = TrainState(plan, context, tuple(counts))
    if recipe.model.head.init == "probe":
        state.fit_probe(training, bn_indices(recipe.seed, IMAGES), lambda: None)
    loader = Loader(recipe, training, CLASSES, state.preprocess, plan.rows(context.rank))
    balanced = balanced_order(recipe, training.labels.numpy())
    first: dict[str, torch.Tensor] = {}
    step_of = state.wrapped_optimizer.step

    def remember_gradients() -> None:
        if not first:
            first.update({name: p.grad.clone() for name, p in state.model.named_parameters()})
        step_of()

    state.wrapped_optimizer.step = remember_gradients
    rows: dict[str, list[np.ndarray]] = {"indices": [], "uniforms": []}
    for step in range(plan.steps):
        indices, _ = sample_indices(recipe.seed, IMAGES, BATCH, step, plan.rows(context.rank), balanced)
        rows["indices"].append(indices)
        rows["uniforms"].append(rng.row_uniforms(recipe.seed, "augment", step, plan.rows(context.rank)))
        train_step(state, step, loader.batch(step, micro_batch=plan.micro_batch), plan.lr(step))
        state.metrics.flush_async(step + 1)
    sums = list(state.metrics.poll(wait=True))
    check_same_weights(context, state.model)
    precise_bn(context, state.model, training, state.preprocess, bn_indices(recipe.seed, IMAGES))
    scores = predict(context, state.wrapped, validation, state.preprocess)
    shared = {
        "rates": np.array([plan.lr(step) for step in range(plan.steps)]),
        "loss": np.array([s.loss for s in sums]),
        "accuracy": np.array([s.accuracy for s in sums]),
        **({"norms": np.array([s.gradient_norm for s in sums])} if recipe.optimizer.clip_grad_norm else {}),
        "logits": scores.logits.numpy(),
        **{f"gradient {name}": gradient.numpy() for name, gradient in first.items()},
        **{f"weight {name}": p.detach().numpy() for name, p in state.model.state_dict().items()},
    }
    return {name: np.stack(values) for name, values in rows.items()}, shared


def score(context: DistributedContext, name: str) -> tuple[dict[str, np.ndarray], dict[str, dict]]:
    """(logits, metrics) of every size of split, by a model with weights that are always the same."""
    context.precision = "no"
    torch.manual_seed(0)
    recipe = parse({**PLAIN, **(RESNET if name == "test_resnet" else VIT), "data": {"image_size": 16}})
    model = create_model(recipe, CLASSES, pretrained=False)
    for parameter in model.parameters():  # the head would start at zero
        if parameter.ndim > 1:
            torch.nn.init.kaiming_normal_(parameter)
    model.to(memory_format=torch.channels_last).eval()
    preprocess = Preprocess(recipe.data, torch.full((3,), 0.5), torch.full((3,), 0.25))
    everything = images(max(SPLITS), 2)
    with torch.no_grad():  # so that every class is predicted
        model.get_classifier().bias -= model(preprocess(everything.images[:70])).mean(0)
    model = context.prepare_for_eval(model)
    logits, scores = {}, {}
    for count in SPLITS:
        split = ImageDataset(everything.images[:count], everything.labels[:count], everything.indices[:count])
        predictions = predict(context, model, split, preprocess)
        assert torch.equal(predictions.labels, split.labels)
        logits[str(count)] = predictions.logits.numpy()
        if count in MEASURED:
            scores[str(count)] = metrics.full(*predictions, tuple("abcdefghij"))
    with torch.no_grad():
        one_by_one = [model(preprocess(everything.images[row : row + 1])) for row in range(70)]
    logits["one by one"] = torch.cat(one_by_one).numpy()
    logits["labels"] = everything.labels.numpy()
    return logits, scores


def main(out: Path, cases: list[str]) -> None:
    context = DistributedContext("no")
    for case in cases:
        for precision in ("fp64", "no"):
            rows, shared = train(context, CASES[case], precision)
            np.savez(out / f"{case} {precision} rank {context.rank}.npz", **rows)
            if context.is_main:
                np.savez(out / f"{case} {precision}.npz", **shared)
    for name in SCORED:
        logits, scores = score(context, name)
        np.savez(out / f"{name} scored rank {context.rank}.npz", **logits)
        (out / f"{name} rank {context.rank}.json").write_text(json.dumps(scores))
    context.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
