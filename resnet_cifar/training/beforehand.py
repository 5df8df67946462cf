"""What can be answered before images or weights are fetched: the names, the shapes and the batch of a recipe."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import timm
import torch
from torch import nn

from resnet_cifar import model as models
from resnet_cifar import optim
from resnet_cifar.data.plan import check_share
from resnet_cifar.recipe import Head, Mistake, Recipe
from resnet_cifar.reporting import track
from resnet_cifar.training.step import check_norm_groups
from resnet_cifar.training.world import World


def check(recipe: Recipe, world: World) -> None:
    """Raises Mistake, the same on every process."""
    check_names(recipe)
    track.check(recipe)
    check_share(recipe, world.size)
    check_norm_groups(recipe, world)
    _check_input(recipe)


def resolved(recipe: Recipe, say: Callable[[str], None] = lambda text: None) -> Recipe:
    """The recipe with what its model decides: the stem that `auto` means, and the least size that it can take.

    A recipe's images are made larger where the model could not see them, up to the size of its pretraining, and `say`
    is told: they are resized anyway. Raises Mistake where timm has no such model.
    """
    models.check_name(recipe.model.name)
    recipe = replace(recipe, model=replace(recipe.model, stem=models.stem(recipe.model)))
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
    """Raises Mistake where timm has no such model, weights or optimiser."""
    models.check_name(recipe.model.name)
    models.check_weights(recipe.model)
    optim.check_name(recipe.optimizer.name)


def check_start(recipe: Recipe) -> None:
    """Raises Mistake where `model.checkpoint` is no model, or another one. For rank 0, who alone reads it."""
    if recipe.model.checkpoint:
        models.check_warm_start(_outline(recipe), recipe.model.checkpoint)


def _check_input(recipe: Recipe) -> None:
    """Raises Mistake where the model cannot take images of one of the recipe's sizes."""
    sizes = {"data.image_size": recipe.data.image_size}
    sizes |= {f"phases.{n}.image_size": p.image_size for n, p in enumerate(recipe.phases) if p.image_size}
    name = recipe.model.name
    for field, size in sizes.items():
        reason = _refusal(recipe, size)
        if reason is not None:
            raise Mistake(f"{field} {size} does not suit model.name {name!r} ({reason}): take another")


def _refusal(recipe: Recipe, size: int) -> str | None:
    """Why the recipe's model cannot take images of `size` pixels, in its own words; None where it can."""
    try:
        model = _outline(recipe)
        with torch.no_grad():
            model(torch.empty(2, 3, size, size, device="meta"))
    except Mistake:
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
        return models.build(recipe, classes=2, pretrained=False).eval()
