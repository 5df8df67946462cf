"""What can be answered before images or weights are fetched: the names, the shapes and the batch of a recipe."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import timm
import torch
from torch import nn

from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Head, Recipe
from resnet_cifar.data import image_data
from resnet_cifar.distributed.context import DistributedContext
from resnet_cifar.models.factory import check_model_name, check_pretrained, create_model, resolve_stem
from resnet_cifar.models.pretrained import check_init_weights
from resnet_cifar.optim.factory import check_optimizer_name
from resnet_cifar.tracking.multi import check_trackers
from resnet_cifar.training.plan import check_batch_size
from resnet_cifar.training.train_state import check_ghost_batch_size


def check(recipe: Recipe, context: DistributedContext) -> None:
    """Raises UserError, the same on every process."""
    check_names(recipe)
    check_trackers(recipe)
    check_batch_size(recipe, context.size)
    check_ghost_batch_size(recipe, context)
    _check_input(recipe)


def resolved(recipe: Recipe, say: Callable[[str], None] = lambda text: None) -> Recipe:
    """The recipe with what its model decides: the stem that `auto` means, and the least size that it can take.

    A recipe's images are made larger where the model could not see them, up to the size of its pretraining, and `say`
    is told: they are resized anyway. Raises UserError where timm has no such model.
    """
    check_model_name(recipe.model.name)
    recipe = replace(recipe, model=replace(recipe.model, stem=resolve_stem(recipe.model)))
    size, least = recipe.data.image_size, _least_size(recipe)
    if least == size:
        return recipe
    say(f"data.image_size {size} is raised to {least}, the least that model.name {recipe.model.name!r} can take")
    return replace(recipe, data=replace(recipe.data, image_size=least))


def _least_size(recipe: Recipe) -> int:
    """The first size from data.image_size on that the model's features take; that itself where none is found.

    It is looked for up to the size of pretraining: by halves, or one by one where a model is built for its size, since
    such a model may take multiples of something.
    """
    config, size = timm.get_pretrained_cfg(recipe.model.name), recipe.data.image_size
    plain = replace(recipe, model=replace(recipe.model, head=Head()))

    def takes(size: int) -> bool:
        asked = replace(plain, data=replace(plain.data, image_size=size)) if config.fixed_input_size else plain
        return _refusal(asked, size) is None

    sizes = range(size, max(config.input_size[1:]) + 1)
    if not sizes or takes(size):
        return size
    if config.fixed_input_size:
        return next(filter(takes, sizes), size)
    place = bisect_left(sizes, True, key=takes)
    return sizes[place] if place < len(sizes) else size


def check_names(recipe: Recipe) -> None:
    """Raises UserError where timm has no such model, weights or optimiser."""
    check_model_name(recipe.model.name)
    check_pretrained(recipe.model)
    check_optimizer_name(recipe.optimizer.name)


def check_start(recipe: Recipe) -> None:
    """Raises UserError where `model.init_from` is no model, or another one. For rank 0, who alone reads it."""
    if recipe.model.init_from:
        check_init_weights(_outline(recipe), recipe.model.init_from)


def _check_input(recipe: Recipe) -> None:
    """Raises UserError where the model cannot take images of one of the recipe's sizes."""
    sizes = {"data.image_size": recipe.data.image_size}
    sizes |= {f"phases.{n}.image_size": p.image_size for n, p in enumerate(recipe.phases) if p.image_size}
    name = recipe.model.name
    for field, size in sizes.items():
        reason = _refusal(recipe, size)
        if reason is not None:
            raise UserError(f"{field} {size} does not suit model.name {name!r} ({reason}): take another")


def _refusal(recipe: Recipe, size: int) -> str | None:
    """Why the recipe's model cannot take images of `size` pixels, in its own words; None where it can."""
    try:
        model = _outline(recipe)
        with torch.no_grad():
            model(torch.empty(2, 3, size, size, device="meta"))
    except UserError:
        raise
    except NotImplementedError:  # an operation that asks for numbers: training will show
        return None
    except (RuntimeError, AssertionError, ValueError) as error:
        return str(error).splitlines()[0].rstrip(".")
    return None


@lru_cache(maxsize=2)
def _outline(recipe: Recipe) -> nn.Module:
    """The model without its numbers, which takes neither memory nor arithmetic."""
    with torch.device("meta"):
        return create_model(recipe, classes=2, pretrained=False).eval()


def download(recipe: Recipe) -> None:
    """Downloads and decodes the images, and downloads pretrained weights, into this machine's caches.

    Where many processes start at once, run it before, so that they do not all ask. Raises UserError.
    """
    check_names(recipe)
    recipe = resolved(recipe)
    entry = image_data.prepare(recipe.data)
    print(f"images are in {entry}", flush=True)
    if recipe.model.pretrained and not recipe.model.init_from:
        create_model(recipe, classes=2, pretrained=True)
        print(f"the weights of {recipe.model.name} are in the hub's cache", flush=True)
