"""The state of a model and its optimizer as plain tensors by parameter name.

It does not depend on wrappers of the model (DDP, compile) or on the number of processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from resnet_cifar.config.errors import UserError

# Entries of a parameter group that the constructor sets; `fused` and `foreach` depend on the device.
_CONSTRUCTED = ("params", "param_names", "fused", "foreach")


@dataclass(frozen=True)
class Snapshot:
    """Copies of the model's weights and buffers, and of the optimizer's tensors and scalars.

    `average`: the moving average of the weights, with its own buffers, or None. `copied`: the CUDA event after the
    copies; None if they are on the host.
    """

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    scalars: dict[str, Any]
    average: dict[str, Tensor] | None = None
    copied: torch.cuda.Event | None = None

    def on_host(self) -> Snapshot:
        """The same in host memory: itself, or a copy made on a separate stream, for which only the caller waits.

        Host memory is pinned if possible; torch reuses it for the next checkpoint.
        """
        if self.copied is None:
            return self
        parts = (self.weights, self.optimizer, self.average or {})
        stream, arrived = torch.cuda.Stream(_gpu(*parts)), torch.cuda.Event()
        with torch.cuda.stream(stream):
            stream.wait_event(self.copied)
            weights, optimizer, average = ({key: _to_host(t) for key, t in part.items()} for part in parts)
            arrived.record(stream)
        arrived.synchronize()  # only this thread waits; then the device copies can be freed
        return Snapshot(weights, optimizer, self.scalars, average if self.average is not None else None)


def take(model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None = None) -> Snapshot:
    """Copies the state on its device without waiting; `Snapshot.on_host` moves it to the host.

    `model`, `optimizer` and `average` are not wrapped. The optimizer's attributes are read instead of its state_dict():
    for an optimizer that has not stepped, that makes some of timm's step.
    """
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {"state": {}, "groups": []}
    for number, group in enumerate(optimizer.param_groups):
        plain = {}
        for key, value in group.items():
            if isinstance(value, Tensor):
                tensors[f"group/{number}/{key}"] = value
            elif key not in _CONSTRUCTED and not isinstance(value, torch.dtype):
                plain[key] = value  # dtypes are set by the constructor
        scalars["groups"].append(plain)
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"state/{names[id(parameter)]}/{key}"] = value
            else:
                scalars["state"].setdefault(names[id(parameter)], {})[key] = value
    scalars["tensors"] = sorted(tensors)  # to detect a missing one
    averaged = _copies(average.state_dict()) if average is not None else None
    weights, tensors, copied = _copies(model.state_dict()), _copies(tensors), None
    if gpu := _gpu(weights, tensors, averaged or {}):
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(gpu))
    return Snapshot(weights, tensors, scalars, averaged, copied)


def restore_weights(weights: dict[str, Tensor], model: nn.Module) -> None:
    """Loads weights and buffers. Raises UserError if they belong to another model."""
    _check_weights(weights, model)
    model.load_state_dict(weights)


def restore(snapshot: Snapshot, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Restores `model` and its new `optimizer`. Raises UserError if the snapshot belongs to another model."""
    _check_weights(snapshot.weights, model)
    tensors, scalars = snapshot.optimizer, snapshot.scalars
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    whole = {**optimizer.state_dict(), "state": {}}  # some optimizers are created with state
    if len(scalars["groups"]) != len(optimizer.param_groups):
        raise UserError(
            f"the optimizer's state has {len(scalars['groups'])} groups of weights, not {len(optimizer.param_groups)}"
        )
    for key in sorted(tensors.keys() ^ set(scalars["tensors"])):
        raise UserError(f"the optimizer's {key} is {'not part of it' if key in tensors else 'not in the checkpoint'}")
    for number, (group, saved) in enumerate(zip(optimizer.param_groups, whole["param_groups"], strict=True)):
        saved.update(scalars["groups"][number])
        saved.update(_under(tensors, f"group/{number}/"))
        for index, parameter in zip(saved["params"], group["params"], strict=True):
            key = names[id(parameter)]
            state = {
                name: _laid_out_like(parameter, tensor, f"{key}/{name}")
                for name, tensor in _under(tensors, f"state/{key}/").items()
            }
            state.update(scalars["state"].get(key, {}))
            if state:
                whole["state"][index] = state
    model.load_state_dict(snapshot.weights)
    optimizer.load_state_dict(whole)
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor):  # torch casts to the parameter's type; nadam's product is float32 in float64
                state[key] = value.to(tensors[f"state/{names[id(parameter)]}/{key}"].dtype)


def _check_weights(weights: dict[str, Tensor], model: nn.Module) -> None:
    expected = model.state_dict()
    for name in sorted(expected.keys() | weights.keys()):
        ours, theirs = expected.get(name), weights.get(name)
        if ours is None or theirs is None:
            raise UserError(f"{name} is {'not in the checkpoint' if theirs is None else 'not in the model'}")
        if ours.shape != theirs.shape:
            raise UserError(f"{name} has the shape {list(theirs.shape)}, and the model's has {list(ours.shape)}")


def _laid_out_like(parameter: Tensor, saved: Tensor, name: str) -> Tensor:
    """`saved` in the parameter's memory format, so that sums over it run in the same order."""
    if saved.shape == parameter.shape:
        return torch.empty_like(parameter, dtype=saved.dtype).copy_(saved)
    if saved.ndim == parameter.ndim and any(
        have not in (1, want) for have, want in zip(saved.shape, parameter.shape, strict=True)
    ):
        raise UserError(f"the optimizer's {name} has the shape {list(saved.shape)}, not {list(parameter.shape)}")
    return saved  # fewer dimensions: factored, or a scalar


def _gpu(*parts: dict[str, Tensor]) -> torch.device | None:
    return next((tensor.device for part in parts for tensor in part.values() if tensor.is_cuda), None)


def _copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    try:
        return {key: tensor.detach().clone(memory_format=torch.contiguous_format) for key, tensor in tensors.items()}
    except torch.OutOfMemoryError:  # no room on the device: copy to the host, which waits
        return {key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in tensors.items()}


def _to_host(tensor: Tensor) -> Tensor:
    if not tensor.is_cuda:
        return tensor
    try:
        there = torch.empty_like(tensor, device="cpu", pin_memory=True)
    except RuntimeError:  # no more memory can be pinned
        there = torch.empty_like(tensor, device="cpu")
    return there.copy_(tensor, non_blocking=True)


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
