"""Deep heads: Dense layers between the features of any timm model and its classes, registered with timm.

timm's own classifiers are one layer. A deep head takes the features that timm gives without a classifier
(`num_classes=0`; unpooled with `flatten`) through [BatchNorm] Dense ReLU [Dropout] ... [BatchNorm] Dense. Stock timm
cannot express that, so an exported model is `mlp_head`, which loads after `import resnet_cifar`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.models import load_pretrained, register_model
from torch import Tensor, nn

from resnet_cifar.config.errors import UserError

NAME = "mlp_head"  # in timm's registry, and of the layers in a model
_POOLS = {"avg": "avg", "max": "max", "flatten": ""}  # timm's words


class DeterministicDropout(nn.Module):
    """Dropout of `units` units whose mask comes from outside: kept values are divided by 1 - p, as Keras and torch do.

    Without a mask, in training, torch draws one.
    """

    def __init__(self, units: int, p: float) -> None:
        super().__init__()
        self.units, self.p = units, p

    def forward(self, features: Tensor, kept: Tensor | None) -> Tensor:
        """features [n, units]; kept: bool [n, units]."""
        if not self.training:
            return features
        if kept is None:
            return nn.functional.dropout(features, self.p)
        return features * kept * (1 / (1 - self.p))  # the factor stays a float32 where features are of 16 bits

    def extra_repr(self) -> str:
        """What print shows."""
        return f"{self.units}, p={self.p:g}"


class MlpHead(nn.Sequential):
    """[BatchNorm] Dense ReLU [Dropout] for each of `hidden_dims`, then [BatchNorm] Dense of `classes`.

    Without hidden_dims dropout is of the features, after their norm. BatchNorm is Keras's: momentum 0.99 (torch counts the
    other way), epsilon 1e-3.
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
    def dropped_units(self) -> int:
        """Units of one row that dropout decides about."""
        return sum(layer.units for layer in self if isinstance(layer, DeterministicDropout))

    def forward(self, features: Tensor, kept: Tensor | None = None) -> Tensor:
        """features [n, features] -> logits [n, classes]; kept: bool [n, dropped_units], or None."""
        start = 0
        for layer in self:
            if isinstance(layer, DeterministicDropout):
                end = start + layer.units
                features = layer(features, None if kept is None else kept[:, start:end])
                start = end
            else:
                features = layer(features)
        return features


class _Headed:
    """Mixed into a timm model's class: its classifier is `mlp_head`, a MlpHead."""

    mlp_head: MlpHead

    def forward(self, images: Tensor, kept: Tensor | None = None) -> Tensor:
        return self.forward_head(self.forward_features(images), kept=kept)

    def forward_head(self, features: Tensor, pre_logits: bool = False, kept: Tensor | None = None) -> Tensor:
        features = super().forward_head(features, pre_logits=True).flatten(1)
        return features if pre_logits else self.mlp_head(features, kept)

    def get_classifier(self) -> MlpHead:
        return self.mlp_head


_headed_classes: dict[type, type] = {}


def attach(
    model: nn.Module, image_size: int, pool: str, hidden_dims: Sequence[int], norm: bool, dropout: float, classes: int
) -> None:
    """Gives a timm model a deep head in place of its classifier. Changes `model` in place, which is left in train mode.

    The module's class changes, not the tree, so that the other weights keep timm's names. A forward pass of one image
    of `image_size` pixels says how many features there are. Raises UserError where the model cannot be pooled so.
    """
    body = model.pretrained_cfg["architecture"]
    try:
        model.reset_classifier(0, _POOLS.get(pool))
    except (AssertionError, NotImplementedError, RuntimeError, TypeError, ValueError):
        raise UserError(f"model.head.pool {pool}: {body} has a pooling of its own; take model") from None
    kind = type(model)
    if kind not in _headed_classes:
        _headed_classes[kind] = type(f"Headed{kind.__name__}", (_Headed, kind), {})
    model.__class__ = _headed_classes[kind]
    first = next(model.parameters())
    with torch.no_grad():
        image = torch.zeros(1, 3, image_size, image_size, device=first.device, dtype=first.dtype)
        features = model.eval().forward_head(model.forward_features(image), pre_logits=True).shape[1]
    settings = {"pool": pool, "hidden_dims": list(hidden_dims), "norm": norm, "dropout": dropout}
    model.mlp_head = MlpHead(features, hidden_dims, norm, dropout, classes).to(device=first.device, dtype=first.dtype)
    model.num_classes = classes
    model.remake = {"body": body, "image_size": image_size, **settings}  # what `mlp_head` below takes
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
    """timm's model `body` with a deep head, as an exported config.json asks for it."""
    for made_anew in ("global_pool", "pretrained_model_args"):
        options.pop(made_anew, None)
    model = timm.create_model(body, num_classes=0, **options)
    model.pretrained_cfg = {**model.pretrained_cfg, "architecture": body}
    attach(model, image_size, pool, hidden_dims, norm, dropout, num_classes)
    if pretrained:
        saved = {**model.pretrained_cfg, "classifier": f"{NAME}.classifier"}  # left out where classes are others
        load_pretrained(model, pretrained_cfg=saved, num_classes=num_classes, cache_dir=cache_dir)
    return model


def head_module(model: torch.nn.Module) -> torch.nn.Module:
    """The head: a timm model's last layer, or all of a deep head (no parameters where timm has several or none)."""
    head = model.get_classifier()
    return head if isinstance(head, torch.nn.Module) else torch.nn.ModuleList(head or ())
