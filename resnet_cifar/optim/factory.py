"""timm's optimisers and ours, and the learning rate as a function of the step."""

from __future__ import annotations

import inspect

import timm.optim
import torch

from resnet_cifar.config.errors import UserError, did_you_mean
from resnet_cifar.config.schema import Optimizer
from resnet_cifar.models.mlp_head import head_module
from resnet_cifar.optim.rmsprop_keras import RMSpropKeras

# What timm lacks.
OWN_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {"rmsprop_keras": RMSpropKeras}

# Refused by a part of their name, and why.
UNSUPPORTED_OPTIMIZERS = {
    "adahessian": "it needs second derivatives",
    "kron": "its preconditioner draws random numbers of its own, which no checkpoint holds",
    "bnb": "it needs bitsandbytes, which is not among the dependencies",
    "fused": "it needs NVIDIA's apex, which is not among the dependencies",
}


def create_optimizer(
    model: torch.nn.Module, settings: Optimizer, peak: float, device: torch.device
) -> torch.optim.Optimizer:
    """The optimiser over `model`'s trainable parameters; norms and biases do not decay. Raises UserError.

    Each group has `lr_scale`, the multiple of the rate at which it learns (`set_rate`). `peak`: the run's highest rate,
    which timm's corrected weight decay (adamc and its kin) is relative to.
    """
    name = check_optimizer_name(settings.name)
    skip = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    if settings.layer_decay < 1:
        groups = timm.optim.param_groups_layer_decay(
            model, settings.weight_decay, no_weight_decay_list=skip, layer_decay=settings.layer_decay
        )
    else:
        groups = timm.optim.param_groups_weight_decay(model, settings.weight_decay, no_weight_decay_list=skip)
    head = {id(parameter) for parameter in head_module(model).parameters()}
    split = []
    for group in groups:
        for at_head, scale in ((False, 1.0), (True, settings.head_lr_multiplier)):
            parameters = [p for p in group["params"] if (id(p) in head) == at_head]
            if parameters:
                split.append({**group, "params": parameters, "lr_scale": scale * group.get("lr_scale", 1.0)})
    if name in OWN_OPTIMIZERS:
        return OWN_OPTIMIZERS[name](split, lr=peak)
    options = {}
    kind = timm.optim.get_optimizer_class(name, bind_defaults=False)
    if device.type == "cuda" and "fused" in inspect.signature(kind).parameters:
        options["fused"] = True  # one kernel an update, and an fp16 skip that needs no look from the host
    optimizer = timm.optim.create_optimizer_v2(split, opt=name, lr=peak, momentum=0.9, **options)
    if isinstance(optimizer, torch.optim.SGD) and options:
        # torch's fused SGD makes its buffers in the first update from memory as it is, and where fp16's scaler skips
        # that one, it goes on from there (torch 2.15). From zeros the first update is the same.
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def check_optimizer_name(name: str) -> str:
    """The optimiser's name. Raises UserError where there is none of that name, or where it cannot work here."""
    known, name = [*timm.optim.list_optimizers(), *OWN_OPTIMIZERS], name.lower()
    if name not in known:
        mend = did_you_mean(name, known) or "; timm.optim.list_optimizers() has all"
        raise UserError(f"optimizer.name {name!r} is not one of timm's optimisers{mend}")
    for refused, reason in UNSUPPORTED_OPTIMIZERS.items():
        if refused in name:
            raise UserError(f"optimizer.name {name!r} is not supported, {reason}: take adamw, lamb or sgd")
    return name


def set_lr(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Gives every group its multiple of `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
