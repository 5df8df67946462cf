"""Optimizers by name: timm's and our own."""

from __future__ import annotations

import inspect
from typing import Any

import timm.optim
import torch

from resnet_cifar.config.errors import UserError, did_you_mean
from resnet_cifar.config.schema import Optimizer
from resnet_cifar.models.mlp_head import head_module
from resnet_cifar.optim.rmsprop_keras import RMSpropKeras

# Not in timm.
OWN_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {"rmsprop_keras": RMSpropKeras}

# Part of the name -> why it is not supported.
UNSUPPORTED_OPTIMIZERS = {
    "adahessian": "it needs second derivatives",
    "kron": "its preconditioner draws random numbers that are not part of a checkpoint",
    "bnb": "it needs bitsandbytes, which is not among the dependencies",
    "fused": "it needs NVIDIA's apex, which is not among the dependencies",
}


def create_optimizer(
    model: torch.nn.Module, settings: Optimizer, peak: float, device: torch.device
) -> torch.optim.Optimizer:
    """The optimizer for `model`'s trainable parameters, without weight decay for norms and biases. Raises UserError.

    The learning rate of each parameter group is multiplied by its `lr_scale` (see `set_lr`). `peak`: the run's highest
    learning rate, to which timm's corrected weight decay (adamc and similar) is relative.
    """
    name = check_optimizer(settings)
    skip = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    if settings.layer_decay < 1:
        groups = timm.optim.param_groups_layer_decay(
            model, settings.weight_decay, no_weight_decay_list=skip, layer_decay=settings.layer_decay
        )
    else:
        groups = timm.optim.param_groups_weight_decay(model, settings.weight_decay, no_weight_decay_list=skip)
    head = {id(parameter) for parameter in head_module(model).parameters()}
    split = []  # every group into body and head
    for group in groups:
        for at_head, scale in ((False, 1.0), (True, settings.head_lr_multiplier)):
            parameters = [p for p in group["params"] if (id(p) in head) == at_head]
            if parameters:
                split.append({**group, "params": parameters, "lr_scale": scale * group.get("lr_scale", 1.0)})
    if name in OWN_OPTIMIZERS:
        return OWN_OPTIMIZERS[name](split, lr=peak)
    options: dict[str, Any] = {"betas": settings.betas} if settings.betas else {}
    kind = timm.optim.get_optimizer_class(name, bind_defaults=False)
    accepted = inspect.signature(kind).parameters
    if not settings.momentum and "nesterov" in accepted:
        options["nesterov"] = False  # torch refuses Nesterov without momentum
    if device.type == "cuda" and "fused" in accepted:
        options["fused"] = True  # one kernel per update; fp16 can skip it without a host sync
    optimizer = timm.optim.create_optimizer_v2(split, opt=name, lr=peak, momentum=settings.momentum, **options)
    if isinstance(optimizer, torch.optim.SGD) and "fused" in options and settings.momentum:
        # torch's fused SGD allocates its buffers uninitialized and fills them in the first update. If fp16's scaler
        # skips that update, they stay uninitialized (torch 2.15). Starting from zeros gives the same first update.
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def check_optimizer(settings: Optimizer) -> str:
    """The optimizer's name in lower case. Raises UserError if it is not supported, or has no such momentum or betas."""
    name = check_optimizer_name(settings.name)
    info = None if name in OWN_OPTIMIZERS else timm.optim.get_optimizer_info(name)
    if settings.momentum != Optimizer.momentum and not (info and info.has_momentum):
        other = " (optimizer.betas sets its moments)" if info and info.has_betas else ""
        raise UserError(f"optimizer.momentum {settings.momentum:g} does not apply to {name}{other}: remove it")
    betas, count = ",".join(f"{beta:g}" for beta in settings.betas), info.num_betas if info and info.has_betas else 0
    if settings.betas and len(settings.betas) != count:
        why = f"{name} takes {count} of them: give as many" if count else f"{name} has none: remove it"
        raise UserError(f"optimizer.betas {betas}: {why}")
    return name


def check_optimizer_name(name: str) -> str:
    """The name in lower case. Raises UserError if it is unknown or not supported."""
    known, name = [*timm.optim.list_optimizers(), *OWN_OPTIMIZERS], name.lower()
    if name not in known:
        hint = did_you_mean(name, known) or "; timm.optim.list_optimizers() has all"
        raise UserError(f"optimizer.name {name!r} is not one of timm's optimizers{hint}")
    for refused, reason in UNSUPPORTED_OPTIMIZERS.items():
        if refused in name:
            raise UserError(f"optimizer.name {name!r} is not supported, {reason}: use adamw, lamb or sgd")
    return name


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the learning rate of every parameter group to `lr` times its `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
