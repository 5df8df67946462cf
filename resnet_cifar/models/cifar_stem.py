"""ResNets for small images, registered with timm as NAME_cifar (resnet50_cifar and its family).

The first convolution is 3x3 with stride 1, and there is no max-pool (He et al. 2015, section 4.2), so a 32x32 image
keeps its resolution through the first stage. timm has no option for this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.models import list_models, load_pretrained, model_entrypoint, register_model
from timm.models.resnet import ResNet
from torch import nn

SUFFIX = "_cifar"


def replace_stem(model: ResNet) -> ResNet:
    """Replaces the stem of a timm ResNet, with new random weights, in place; sets the registered architecture name."""
    width = model.bn1.num_features
    model.conv1 = nn.Conv2d(3, width, kernel_size=3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    architecture = model.pretrained_cfg["architecture"].removesuffix(SUFFIX) + SUFFIX
    model.pretrained_cfg = {**model.pretrained_cfg, "architecture": architecture, "first_conv": "conv1"}
    return model


def register() -> None:
    """Adds NAME_cifar to timm's registry for every model of timm's resnet module."""
    for name in list_models(module="resnet"):
        register_model(_entrypoint(name))


def _entrypoint(name: str) -> Callable[..., nn.Module]:
    stock = model_entrypoint(name)

    def entrypoint(pretrained: bool = False, cache_dir: str | None = None, **options: Any) -> nn.Module:
        model = replace_stem(stock(pretrained=False, **options))
        if pretrained:
            load_pretrained(
                model, pretrained_cfg=model.pretrained_cfg, num_classes=model.num_classes, cache_dir=cache_dir
            )
        return model

    entrypoint.__name__ = name + SUFFIX
    entrypoint.__doc__ = f"timm's {name} with a stem for small images."
    return entrypoint


register()
