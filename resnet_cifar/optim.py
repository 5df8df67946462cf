"""timm's optimisers and ours, and the learning rate as a function of the step."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import timm.optim
import torch

from resnet_cifar.recipe import Mistake, Optimizer, Phase, nearest
from resnet_cifar.rmsprop_keras import RMSpropKeras

# What timm lacks.
OWN: dict[str, type[torch.optim.Optimizer]] = {"rmsprop_keras": RMSpropKeras}

# Refused by a part of their name, and why.
REFUSED = {
    "adahessian": "it needs second derivatives",
    "kron": "its preconditioner draws random numbers of its own, which no checkpoint holds",
    "bnb": "it needs bitsandbytes, which is not among the dependencies",
    "fused": "it needs NVIDIA's apex, which is not among the dependencies",
}


def build(model: torch.nn.Module, settings: Optimizer, peak: float, device: torch.device) -> torch.optim.Optimizer:
    """The optimiser over `model`'s trainable parameters; norms and biases do not decay. Raises Mistake.

    Each group has `lr_scale`, the multiple of the rate at which it learns (`set_rate`). `peak`: the run's highest rate,
    which timm's corrected weight decay (adamc and its kin) is relative to.
    """
    name = check_name(settings.name)
    skip = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    if settings.layer_decay < 1:
        groups = timm.optim.param_groups_layer_decay(
            model, settings.weight_decay, no_weight_decay_list=skip, layer_decay=settings.layer_decay
        )
    else:
        groups = timm.optim.param_groups_weight_decay(model, settings.weight_decay, no_weight_decay_list=skip)
    head = {id(parameter) for parameter in classifier(model).parameters()}
    split = []
    for group in groups:
        for at_head, scale in ((False, 1.0), (True, settings.head_lr)):
            parameters = [p for p in group["params"] if (id(p) in head) == at_head]
            if parameters:
                split.append({**group, "params": parameters, "lr_scale": scale * group.get("lr_scale", 1.0)})
    if name in OWN:
        return OWN[name](split, lr=peak)
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


def classifier(model: torch.nn.Module) -> torch.nn.Module:
    """The head: a timm model's last layer, or all of a deep head (no parameters where timm has several or none)."""
    head = model.get_classifier()
    return head if isinstance(head, torch.nn.Module) else torch.nn.ModuleList(head or ())


def check_name(name: str) -> str:
    """The optimiser's name. Raises Mistake where there is none of that name, or where it cannot work here."""
    known, name = [*timm.optim.list_optimizers(), *OWN], name.lower()
    if name not in known:
        mend = nearest(name, known) or "; timm.optim.list_optimizers() has all"
        raise Mistake(f"optimizer.name {name!r} is not one of timm's optimisers{mend}")
    for refused, reason in REFUSED.items():
        if refused in name:
            raise Mistake(f"optimizer.name {name!r} is not supported, {reason}: take adamw, lamb or sgd")
    return name


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Gives every group its multiple of `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def phase_rate(phase: Phase, step: int, steps: int, steps_an_epoch: float) -> float:
    """The rate of update `step` of a phase of `steps`: linear warm-up from 0, then the phase's decay from its peak."""
    warmup = min(round(phase.warmup * steps_an_epoch), steps)
    if step < warmup:
        return phase.lr * step / warmup
    return phase.lr * DECAYS[phase.decay]((step - warmup) / (steps - warmup))


def _cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def _linear(progress: float) -> float:
    return 1 - progress


def _step(progress: float) -> float:
    return 0.1 ** ((progress >= 0.5) + (progress >= 0.75))


def _one_cycle(progress: float) -> float:
    """Smith & Topin 2019 with torch's default shape: cosine from 1/25 to 1 over 30 %, then to 1/250,000."""
    rise, start, end = 0.3, 1 / 25, 1 / 250_000
    if progress < rise:
        return start + (1 - start) * (1 - _cosine(progress / rise))
    return end + (1 - end) * _cosine((progress - rise) / (1 - rise))


def _constant(progress: float) -> float:
    return 1.0


# The share of the peak rate as a function of progress in 0..1 (timm has neither linear nor one-cycle).
DECAYS: dict[str, Callable[[float], float]] = {
    "cosine": _cosine,
    "linear": _linear,
    "step": _step,
    "one-cycle": _one_cycle,
    "constant": _constant,
}
