"""Checks before anything is downloaded: names, shapes and batch sizes of a recipe; and downloading ahead of time."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from torch import nn

from resnet_cifar.atomic_io import read_json
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Head, Model, Recipe
from resnet_cifar.data import prepared_data
from resnet_cifar.distributed.context import DistributedContext
from resnet_cifar.distributed.launcher_env import wants_cpu
from resnet_cifar.models.factory import check_model_name, check_pretrained, create_model, resolve_stem
from resnet_cifar.models.mlp_head import head_module
from resnet_cifar.models.pretrained import at_place, check_init_weights, find_init_weights, is_place, read_place
from resnet_cifar.optim.factory import check_optimizer
from resnet_cifar.tracking.multi import check_trackers
from resnet_cifar.training.plan import check_batch_size
from resnet_cifar.training.train_state import check_ghost_batch_size


class Processes(NamedTuple):
    """Those of a job that is yet to be submitted."""

    size: int
    device: torch.device


def check(recipe: Recipe, context: DistributedContext | Processes) -> None:
    """Raises UserError, the same one on every process, where the recipe cannot be trained there."""
    check_names(recipe)
    check_trackers(recipe)
    check_batch_size(recipe, context.size)
    check_ghost_batch_size(recipe, context)
    _check_input(recipe)


def named(recipe: Recipe, once: Callable[[Callable[[], str]], str] = lambda read: read()) -> Recipe:
    """The recipe with an architecture as `model.name`, if that is a place (`hf-hub:`, `local-dir:`): see `at_place`.

    `once`: returns the result of a function that only one process calls (`DistributedContext.run_on_main`).
    """
    name = recipe.model.name
    return at_place(recipe, json.loads(once(lambda: json.dumps(read_place(name))))) if is_place(name) else recipe


def resolve(
    recipe: Recipe,
    warn: Callable[[str], None] = lambda text: None,
    once: Callable[[Callable[[], str]], str] = lambda read: read(),
) -> Recipe:
    """The recipe with an architecture as `model.name` (see `named`), the stem that `auto` stands for, and an image size
    that the model accepts.

    A size that is too small for the model is raised, up to that of its pretraining (that of a phase to the recipe's),
    with a warning. Raises UserError where timm has no such model.
    """
    recipe = named(recipe, once)
    check_model_name(recipe.model.name)
    model = replace(recipe.model, stem=resolve_stem(recipe.model))
    recipe = replace(recipe, model=_suit_weights(model, bool(recipe.phases), warn))
    size, least = recipe.data.image_size, _smallest_size(recipe)
    if least > size:
        warn(f"data.image_size {size} is raised to {least}, the smallest that model.name {recipe.model.name!r} accepts")
        recipe = replace(recipe, data=replace(recipe.data, image_size=least))
    phases = list(recipe.phases)
    for number, phase in enumerate(phases):
        size = phase.image_size or least
        if size < least and _refusal(recipe, size) is not None:
            why = f"as model.name {recipe.model.name!r} does not accept it"
            warn(f"phases.{number}.image_size {size} is raised to data.image_size, {least}, {why}")
            phases[number] = replace(phase, image_size=None)
    return replace(recipe, phases=tuple(phases))


def _suit_weights(model: Model, is_trained: bool, warn: Callable[[str], None]) -> Model:
    """The model without what needs pretrained features or one linear layer where it has none. Raises UserError."""
    if model.batchnorm == "frozen" and not model.has_pretrained_features:
        warn("model.batchnorm frozen needs pretrained weights and their stem: BatchNorm uses the statistics of batches")
        model = replace(model, batchnorm="batch")
    if model.head.init == "probe":
        reason = "" if model.has_pretrained_features else "pretrained weights and their stem"
        if model.head.is_deep or not isinstance(head_module(meta_model(Recipe(model=model))), nn.Linear):
            reason = "a head of one linear layer"
        if reason and not is_trained:
            raise UserError(f"model.head.init probe needs {reason}, and nothing else is trained: use another recipe")
        if reason:
            warn(f"model.head.init probe needs {reason}: the head starts as with auto")
            model = replace(model, head=replace(model.head, init="auto"))
    return model


def _smallest_size(recipe: Recipe) -> int:
    """The smallest size >= data.image_size that the model's features accept; data.image_size itself if none is found.

    Sizes up to that of pretraining are searched: by bisection, or one by one for models that are built for a fixed
    size, which may require multiples of something.
    """
    config, size = timm.get_pretrained_cfg(recipe.model.name), recipe.data.image_size
    plain = replace(recipe, model=replace(recipe.model, head=Head()))

    def accepts(size: int) -> bool:
        asked = replace(plain, data=replace(plain.data, image_size=size)) if config.fixed_input_size else plain
        return _refusal(asked, size) is None

    sizes = range(size, max(config.input_size[1:]) + 1)
    if not sizes or accepts(size):
        return size
    if config.fixed_input_size:
        return next(filter(accepts, sizes), size)
    place = bisect_left(sizes, True, key=accepts)
    return sizes[place] if place < len(sizes) else size


def check_names(recipe: Recipe) -> None:
    """Raises UserError where timm has no such model, weights or optimizer."""
    recipe = named(recipe)
    check_model_name(recipe.model.name)
    check_pretrained(recipe.model)
    check_optimizer(recipe.optimizer)


def check_init_from(recipe: Recipe) -> None:
    """Raises UserError where the weights of `model.init_from` do not exist or do not fit. Only rank 0 reads them."""
    if recipe.model.init_from:
        check_init_weights(meta_model(recipe), find_init_weights(recipe.model.init_from))


def check_images(run: Path, asked: str, source: str, fingerprint: str) -> None:
    """Raises UserError where the images are not those that `run`, to refit or to reproduce, was trained on.

    `asked`: the words before the run, for the message. Only rank 0 reads it.
    """
    before = (read_json(run / "environment.json") or {}).get("data", fingerprint)
    if before != fingerprint:
        raise UserError(
            f"{asked} {run}: data.source {source!r} is not what the run was trained on (its fingerprint is "
            f"{fingerprint}, not {before}): bring the images back, or train the run again with --restart"
        )


def _check_input(recipe: Recipe) -> None:
    """Raises UserError where the model does not accept one of the recipe's image sizes."""
    sizes = {"data.image_size": recipe.data.image_size}
    sizes |= {f"phases.{n}.image_size": p.image_size for n, p in enumerate(recipe.phases) if p.image_size}
    name = recipe.model.name
    for field, size in sizes.items():
        reason = _refusal(recipe, size)
        if reason is not None:
            raise UserError(f"{field} {size} does not fit model.name {name!r} ({reason}): use another size")


def _refusal(recipe: Recipe, size: int) -> str | None:
    """The model's error message for images of `size` pixels; None if it accepts them."""
    try:
        model = meta_model(recipe)
        with torch.no_grad():
            model(torch.empty(2, 3, size, size, device="meta"))
    except UserError:
        raise
    except NotImplementedError:  # an operation without a meta implementation: training will tell
        return None
    except (RuntimeError, AssertionError, ValueError) as error:
        return str(error).splitlines()[0].rstrip(".")
    return None


@lru_cache(maxsize=2)
def meta_model(recipe: Recipe) -> nn.Module:
    """The model on the meta device, without memory or computation."""
    with torch.device("meta"):
        return create_model(recipe, classes=2, pretrained=False).eval()


def check_job(recipe: Recipe, processes: int) -> None:
    """Checks the recipe for a job of this many processes, without images, weights or GPUs. Raises UserError."""
    device = torch.device("cpu" if wants_cpu() else "cuda")
    check(resolve(recipe), Processes(processes, device))
    share = f"{recipe.batch_size // processes} of the {recipe.batch_size} images of a batch each"
    print(f"the recipe is valid for {processes} process{'es' * (processes > 1)} ({device.type}), {share}", flush=True)
    print("not checked here: the images, weights, memory and run directory, which --dry-run reads", flush=True)


def download(recipe: Recipe) -> None:
    """Downloads and decodes the images, and downloads pretrained weights, into this machine's caches.

    Useful before many processes start at once. Raises UserError.
    """
    recipe = resolve(recipe)
    check_names(recipe)
    entry = prepared_data.prepare(recipe.data)
    print(f"images are in {entry}", flush=True)
    if recipe.model.init_from:
        find_init_weights(recipe.model.init_from)
    elif recipe.model.pretrained:
        create_model(recipe, classes=2, pretrained=True)
        print(f"the weights of {recipe.model.name} are in the hub's cache", flush=True)
