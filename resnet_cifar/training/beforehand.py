"""What can be answered before images or weights are fetched: the names, the shapes and the batch of a recipe."""

from __future__ import annotations

import torch
from torch import nn

from resnet_cifar import model as models
from resnet_cifar import optim
from resnet_cifar.data.plan import check_share
from resnet_cifar.recipe import Mistake, Recipe
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
    name, model = recipe.model.name, _outline(recipe)
    for field, size in sizes.items():
        try:
            with torch.no_grad():
                model(torch.empty(2, 3, size, size, device="meta"))
        except NotImplementedError:  # an operation that asks for numbers: training will show
            pass
        except (RuntimeError, AssertionError, ValueError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise Mistake(f"{field} {size} does not suit model.name {name!r} ({reason}): take another") from None


def _outline(recipe: Recipe) -> nn.Module:
    """The model without its numbers, which takes neither memory nor arithmetic."""
    with torch.device("meta"):
        return models.build(recipe, classes=2, pretrained=False).eval()
