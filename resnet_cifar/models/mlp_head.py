"""MLP heads: fully connected layers between the features of any timm model and its classes, registered with timm.

timm's own classifiers are one layer. An MLP head passes the features that timm computes without a classifier
(`num_classes=0`; unpooled with `flatten`) through [BatchNorm] Linear ReLU [Dropout] ... [BatchNorm] Linear. Stock timm
cannot express that, so the exported architecture is `mlp_head`, which loads after `import resnet_cifar`.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.models import load_pretrained, register_model
from torch import Tensor, nn

from resnet_cifar.config.errors import UserError

NAME = "mlp_head"  # in timm's registry, and of the submodule
_POOLS = {"avg": "avg", "max": "max", "flatten": ""}  # the recipe's names -> timm's


class DeterministicDropout(nn.Module):
    """Dropout of `units` units with a given mask; kept values are divided by 1 - p. Without a mask, torch's dropout."""

    def __init__(self, units: int, p: float) -> None:
        super().__init__()
        self.units, self.p = units, p

    def forward(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """features [n, units]; mask: bool [n, units], True for the units to keep."""
        if not self.training:
            return features
        if mask is None:
            return nn.functional.dropout(features, self.p)
        return features * mask * (1 / (1 - self.p))  # the factor is not rounded to 16-bit features

    def extra_repr(self) -> str:
        """Shown by print."""
        return f"{self.units}, p={self.p:g}"


class MlpHead(nn.Sequential):
    """[BatchNorm] Linear ReLU [Dropout] for each of `hidden_dims`, then [BatchNorm] Linear with `classes` outputs.

    Without hidden_dims, dropout is applied to the normalized features. BatchNorm uses Keras's defaults: epsilon 1e-3,
    and momentum 0.99, which torch calls 0.01.
    """

    def __init__(self, features: int, hidden_dims: Sequence[int], norm: bool, dropout: float, classes: int) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        width = features
        for number, units in enumerate((*hidden_dims, classes)):
            is_last = number == len(hidden_dims)
            if norm:
                layers[f"norm{number}"] = nn.BatchNorm1d(width, eps=1e-3, momentum=0.01)
            if dropout and not hidden_dims:
                layers["dropout"] = DeterministicDropout(width, dropout)
            layers["classifier" if is_last else f"dense{number}"] = nn.Linear(width, units)
            if not is_last:
                layers[f"relu{number}"] = nn.ReLU()
                if dropout:
                    layers[f"dropout{number}"] = DeterministicDropout(units, dropout)
            width = units
        super().__init__(layers)

    @property
    def dropout_units(self) -> int:
        """The width of the dropout mask of one row: the units of all dropout layers."""
        return sum(layer.units for layer in self if isinstance(layer, DeterministicDropout))

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """features [n, features] -> logits [n, classes]; mask: bool [n, dropout_units], or None."""
        start = 0
        for layer in self:
            if isinstance(layer, DeterministicDropout):
                end = start + layer.units
                features = layer(features, None if mask is None else mask[:, start:end])
                start = end
            else:
                features = layer(features)
        return features


class _MlpHeadMixin:
    """Added to the class of a timm model: its classifier is `mlp_head`."""

    mlp_head: MlpHead

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.forward_head(self.forward_features(images), mask=mask)

    def forward_head(self, features: Tensor, pre_logits: bool = False, mask: Tensor | None = None) -> Tensor:
        features = super().forward_head(features, pre_logits=True).flatten(1)
        return features if pre_logits else self.mlp_head(features, mask)

    def get_classifier(self) -> MlpHead:
        return self.mlp_head


@functools.cache
def _with_mlp_head(model_class: type[nn.Module]) -> type[nn.Module]:
    return type(f"{model_class.__name__}WithMlpHead", (_MlpHeadMixin, model_class), {})


def add_mlp_head(
    model: nn.Module, image_size: int, pool: str, hidden_dims: Sequence[int], norm: bool, dropout: float, classes: int
) -> None:
    """Replaces the classifier of a timm model by an MLP head, in place; leaves it in train mode.

    The module's class changes, not the module tree, so the other weights keep timm's names. A forward pass of one image
    of `image_size` pixels determines the number of features. Raises UserError if the model does not support `pool`.
    """
    body = model.pretrained_cfg["architecture"]
    try:
        model.reset_classifier(0, _POOLS.get(pool))
    except (AssertionError, NotImplementedError, RuntimeError, TypeError, ValueError):
        raise UserError(f"model.head.pool {pool}: {body} has a pooling of its own; use model") from None
    model.__class__ = _with_mlp_head(type(model))
    first = next(model.parameters())
    with torch.no_grad():
        image = torch.zeros(1, 3, image_size, image_size, device=first.device, dtype=first.dtype)
        features = model.eval().forward_head(model.forward_features(image), pre_logits=True).shape[1]
    settings = {"pool": pool, "hidden_dims": list(hidden_dims), "norm": norm, "dropout": dropout}
    model.mlp_head = MlpHead(features, hidden_dims, norm, dropout, classes).to(device=first.device, dtype=first.dtype)
    model.num_classes = classes
    model.entrypoint_options = {"body": body, "image_size": image_size, **settings}  # of `mlp_head` below
    model.pretrained_cfg = {
        **model.pretrained_cfg,
        "architecture": NAME,
        "fixed_input_size": pool == "flatten" or model.pretrained_cfg.get("fixed_input_size", False),
    }
    model.train()


@register_model
def mlp_head(
    body: str,
    image_size: int,
    pool: str,
    hidden_dims: Sequence[int],
    norm: bool,
    dropout: float,
    num_classes: int = 1000,
    pretrained: bool = False,
    cache_dir: str | None = None,
    **options: Any,
) -> nn.Module:
    """The entry point in timm's registry: timm's model `body` with an MLP head."""
    for replaced in ("global_pool", "pretrained_model_args"):
        options.pop(replaced, None)
    model = timm.create_model(body, num_classes=0, **options)
    model.pretrained_cfg = {**model.pretrained_cfg, "architecture": body}
    add_mlp_head(model, image_size, pool, hidden_dims, norm, dropout, num_classes)
    if pretrained:
        saved = {**model.pretrained_cfg, "classifier": f"{NAME}.classifier"}  # not loaded if num_classes differs
        load_pretrained(model, pretrained_cfg=saved, num_classes=num_classes, cache_dir=cache_dir)
    return model


def head_module(model: nn.Module) -> nn.Module:
    """The head: all of an MLP head, or timm's last layer (a ModuleList if there are several or none)."""
    head = model.get_classifier()
    return head if isinstance(head, nn.Module) else nn.ModuleList(head or ())
