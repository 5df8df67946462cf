"""Creates timm models from a recipe: weights, stem, head and input normalization."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from pickle import UnpicklingError

import timm
import timm.data
import torch
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError
from torch import nn

from resnet_cifar import hub_access, rng
from resnet_cifar.config.errors import UserError, did_you_mean
from resnet_cifar.config.schema import Model, Recipe
from resnet_cifar.models import mlp_head
from resnet_cifar.models.cifar_stem import SUFFIX, replace_stem
from resnet_cifar.models.frozen_batchnorm import freeze_batchnorm
from resnet_cifar.models.mlp_head import head_module

# What downloading raises. HfHubHTTPError's base is httpx's or, from huggingface_hub 2 on, httpx2's.
DOWNLOAD_ERRORS = (LocalEntryNotFoundError, OSError, HfHubHTTPError.__bases__[0])
_WEIGHT_ERRORS = (*DOWNLOAD_ERRORS, SafetensorError, UnpicklingError, EOFError, RuntimeError)


def check_model_name(name: str) -> None:
    """Raises UserError if timm has no model of that name, or no weights with that tag."""
    architecture, _, tag = name.partition(".")
    if architecture.endswith(SUFFIX):
        raise UserError(f"model.name {name!r}: use {architecture.removesuffix(SUFFIX)} with --model.stem cifar")
    if architecture == mlp_head.NAME:
        raise UserError(
            f"model.name {name!r}: use the model itself, such as resnet50, with --model.head.hidden_dims 128,64"
        )
    if not timm.is_model(architecture):
        hint = did_you_mean(architecture, timm.list_models()) or "; timm.list_models() has all"
        raise UserError(f"model.name {name!r} is not one of timm's models{hint}")
    tagged = timm.list_pretrained(f"{architecture}.*")
    if tag and name not in tagged:
        raise UserError(
            f"model.name {name!r} has no weights of that tag{did_you_mean(name, tagged) or f'; use {architecture}'}"
        )


def check_pretrained(settings: Model) -> None:
    """Raises UserError if the recipe starts from pretrained weights and timm has none for the model."""
    if settings.pretrained and not settings.init_from and not timm.is_model_pretrained(settings.name):
        raise UserError(f"model.name {settings.name!r} has no pretrained weights: use --model.pretrained False")


def create_model(recipe: Recipe, classes: int, pretrained: bool) -> nn.Module:
    """The recipe's model: images [n, 3, h, w] -> logits [n, classes], on the CPU, float32, in train mode.

    Random weights depend only on the seed. With `pretrained` False timm's weights are not loaded even if the recipe
    asks for them: ranks that receive their weights from another rank skip the download. Raises UserError.
    """
    settings = recipe.model
    check_model_name(settings.name)
    if pretrained:
        check_pretrained(settings)
    torch.random.default_generator.manual_seed(rng.torch_seed(recipe.seed, "init"))
    pretrained = pretrained and settings.pretrained and not settings.init_from
    options = {**input_size_options(recipe), **({"drop_path_rate": settings.drop_path} if settings.drop_path else {})}
    num_classes = 0 if settings.head.is_deep else classes
    create = partial(timm.create_model, settings.name, pretrained=pretrained, num_classes=num_classes, **options)
    try:
        model = hub_access.fetch_once(f"weights of {settings.name}", create) if pretrained else create()
    except _WEIGHT_ERRORS as error:
        if not pretrained or (isinstance(error, RuntimeError) and "PytorchStreamReader" not in str(error)):
            raise
        raise _unreadable_weights(settings.name, error) from None
    except TypeError as error:
        if "drop_path_rate" not in str(error):
            raise
        raise UserError(
            f"model.drop_path {settings.drop_path:g}: model.name {settings.name!r} has no residual branches to drop; "
            "set it to 0"
        ) from None
    if resolve_stem(settings) == "cifar":
        if not _has_cifar_form(settings.name):
            raise UserError(
                f"model.stem cifar is for timm's ResNets, not for model.name {settings.name!r}: use imagenet"
            )
        replace_stem(model)
    if settings.batchnorm == "frozen":
        freeze_batchnorm(model)
    if settings.head.is_deep:
        head = settings.head
        mlp_head.add_mlp_head(
            model, recipe.data.image_size, head.pool, head.hidden_dims, head.norm, head.dropout, classes
        )
    if settings.head.init == "glorot":
        head_module(model).apply(_init_glorot)
    elif pretrained:
        zero_classifier(model)
    return model.train()


def _unreadable_weights(name: str, error: Exception) -> UserError:
    failure = explain_download(error, timm.get_pretrained_cfg(name).hf_hub_id or "")
    return UserError(
        f"the pretrained weights of model.name {name!r} cannot be loaded, because {failure.reason}: {failure.fix}, use "
        "--model.pretrained False, or a run's weights with --model.init_from"
    )


def explain_download(error: Exception, repository: str) -> hub_access.Failure:
    """Why the weights of a repository of the Hub cannot be loaded; "": of another place that timm knows."""
    cached = Path(HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" if repository else torch.hub.get_dir()
    return hub_access.explain(error, False, Path(cached))


def zero_classifier(model: nn.Module) -> None:
    """Zeroes the last layer, which then does not disturb pretrained features in the first steps (BiT, ViT)."""
    head = head_module(model)
    for parameter in getattr(head, "classifier", head).parameters():
        nn.init.zeros_(parameter)


def resolve_stem(settings: Model) -> str:
    """`imagenet` or `cifar`; resolves `auto`."""
    if settings.stem == "auto":
        return "cifar" if _has_cifar_form(settings.name) else "imagenet"
    return settings.stem


def _has_cifar_form(name: str) -> bool:
    return timm.is_model(name.partition(".")[0] + SUFFIX)


def _init_glorot(layer: nn.Module) -> None:
    """Keras's initial weights (Glorot & Bengio 2010)."""
    if isinstance(layer, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def input_size_options(recipe: Recipe) -> dict[str, int]:
    """The options of timm.create_model that models with a fixed input size (most transformers) need."""
    is_fixed = timm.get_pretrained_cfg(recipe.model.name).fixed_input_size
    return {"img_size": recipe.data.image_size} if is_fixed else {}


@contextlib.contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Puts the whole model in train or eval mode within the context, then restores the mode of every module."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def normalization(model: nn.Module, recipe: Recipe) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) of the input channels, for pixels in 0..1."""
    if recipe.data.normalize == "none":
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if isinstance(recipe.data.normalize, tuple):
        return recipe.data.normalize[:3], recipe.data.normalize[3:]
    config = timm.data.resolve_model_data_config(model)
    return tuple(config["mean"]), tuple(config["std"])
