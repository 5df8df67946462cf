"""Checkpoints: a folder of safetensors and state.json, pickle-free, by parameter name, whole or not there.

    step-00000100/  model.safetensors  optimizer.safetensors  state.json

It is written beside its final name, flushed, checksummed and renamed. Nothing in it depends on the number of processes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from resnet_cifar.recipe import Mistake

FORMAT = 1
_FILES = ("model.safetensors", "optimizer.safetensors")
_NAME = re.compile(r"step-(\d{8,})")


def name(step: int) -> str:
    """The folder of the checkpoint after `step` updates."""
    return f"step-{step:08d}"


def save(folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> Path:
    """Writes the checkpoint after `step` updates; `state` is plain JSON. `model` and `optimizer` are not wrapped."""
    final, aside = folder / name(step), folder / f"{name(step)}.writing"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    tensors, scalars = _optimizer_state(model, optimizer)
    _write(aside / "model.safetensors", _on_host(model.state_dict()))
    _write(aside / "optimizer.safetensors", tensors)
    checksums = {file.name: _checksum(file) for file in sorted(aside.iterdir())}
    whole = {"format": FORMAT, "step": step, "optimizer": scalars, "checksums": checksums, **state}
    whole["checksum"] = _state_checksum(whole)
    with (aside / "state.json").open("w") as stream:
        json.dump(whole, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    shutil.rmtree(final, ignore_errors=True)  # a run that was started over writes the same steps again
    aside.rename(final)
    _flush(folder)
    return final


def steps(folder: Path) -> list[int]:
    """The steps of all whole checkpoints, rising."""
    names = (_NAME.fullmatch(path.name) for path in folder.iterdir()) if folder.is_dir() else ()
    return sorted(int(match[1]) for match in names if match)


def prune(folder: Path, keep: int, best: int | None) -> None:
    """Removes all but the newest `keep` and the best checkpoint."""
    for step in steps(folder)[:-keep]:
        if step != best:
            shutil.rmtree(folder / name(step))


def read_state(checkpoint: Path) -> dict[str, Any]:
    """state.json, after every file's checksum was verified. Raises Mistake, naming what is damaged."""
    mend = "remove the folder to use the one before"
    try:
        state = json.loads((checkpoint / "state.json").read_text())
        if state["format"] != FORMAT:
            raise Mistake(f"{checkpoint} has format {state['format']} and this version reads {FORMAT}: {mend}")
        changed = [file for file in _FILES if _checksum(checkpoint / file) != state["checksums"][file]]
        if state.pop("checksum") != _state_checksum(state):
            changed.append("state.json")
    except (OSError, KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise Mistake(f"the checkpoint {checkpoint} is damaged ({type(error).__name__}: {error}): {mend}") from None
    if changed:
        raise Mistake(f"{checkpoint / changed[0]} has changed since it was written: {mend}")
    return state


def weights(checkpoint: Path) -> dict[str, Tensor]:
    """The model's weights and buffers by timm's names, on the CPU."""
    return load_file(checkpoint / "model.safetensors")


def load_optimizer(
    checkpoint: Path, scalars: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Gives a new `optimizer` over `model` the state it had; `scalars` is `read_state(...)["optimizer"]`."""
    tensors = load_file(checkpoint / "optimizer.safetensors")
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    whole = optimizer.state_dict()
    for number, (group, saved) in enumerate(zip(optimizer.param_groups, whole["param_groups"], strict=True)):
        saved.update(scalars["groups"][number])
        saved.update(_under(tensors, f"group/{number}/"))
        for index, parameter in zip(saved["params"], group["params"], strict=True):
            key = names[id(parameter)]
            saved_tensors = _under(tensors, f"state/{key}/").items()
            state = {name: _laid_out_like(parameter, tensor) for name, tensor in saved_tensors}
            state.update(scalars["state"].get(key, {}))
            if state:
                whole["state"][index] = state
    optimizer.load_state_dict(whole)


def _optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, plain values) by parameter name. Reads the state only: asking torch for it would make some step."""
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {"state": {}, "groups": []}
    for number, group in enumerate(optimizer.param_groups):
        plain = {}
        for key, value in group.items():
            if isinstance(value, Tensor):
                tensors[f"group/{number}/{key}"] = value
            elif key not in ("params", "param_names") and not isinstance(value, torch.dtype):
                plain[key] = value  # a type is the constructor's, and is set by it again
        scalars["groups"].append(plain)
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"state/{names[id(parameter)]}/{key}"] = value
            else:
                scalars["state"].setdefault(names[id(parameter)], {})[key] = value
    return _on_host(tensors), scalars


def _laid_out_like(parameter: Tensor, saved: Tensor) -> Tensor:
    """`saved` in the parameter's memory format, in which sums over it run in the same order as before."""
    return torch.empty_like(parameter, dtype=saved.dtype).copy_(saved) if saved.shape == parameter.shape else saved


def _on_host(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor.detach().to("cpu").contiguous() for key, tensor in tensors.items()}


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _write(file: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, file)
    _flush(file)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _state_checksum(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _checksum(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
