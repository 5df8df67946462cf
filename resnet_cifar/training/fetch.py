"""What a recipe needs from elsewhere, brought into this machine's caches before processes start that would all ask."""

from __future__ import annotations

from resnet_cifar import model as models
from resnet_cifar.data import store
from resnet_cifar.recipe import Recipe
from resnet_cifar.training import beforehand


def fetch(recipe: Recipe) -> None:
    """Downloads and decodes the images, and downloads pretrained weights. Raises Mistake."""
    beforehand.check_names(recipe)
    recipe = beforehand.resolved(recipe)
    entry = store.ensure(recipe.data)
    print(f"images are in {entry}", flush=True)
    if recipe.model.pretrained and not recipe.model.checkpoint:
        models.build(recipe, classes=2, pretrained=True)
        print(f"the weights of {recipe.model.name} are in the hub's cache", flush=True)
