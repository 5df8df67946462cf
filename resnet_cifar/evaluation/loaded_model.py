"""A trained model, ready to score, from wherever it is kept: a run, one of its checkpoints, or an exported model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from resnet_cifar.atomic_io import read_json
from resnet_cifar.checkpoints import checkpoint
from resnet_cifar.checkpoints.run_dir import RunDir
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Recipe
from resnet_cifar.data.preprocess import Preprocess
from resnet_cifar.distributed.context import DistributedContext
from resnet_cifar.evaluation import target as targets
from resnet_cifar.evaluation.target import Target
from resnet_cifar.models.factory import create_model, normalization


@dataclass(frozen=True)
class LoadedModel:
    """A model on the world's device, in eval mode, and what it expects and knows.

    `name`: what its scores say was scored. `fingerprint`: of the images that it was trained on, where its checkpoint
    says so. `temperature`: what an earlier scoring or the export has fitted, or None. `remark`: what to know of it.
    `decode_size`: to which side pictures were brought before training; 0: none, or not known. `plain`: `model` as timm
    knows it. `is_fresh`: whether BatchNorm's statistics are of these weights; those of a checkpoint between two scores
    are not.
    """

    model: nn.Module
    preprocess: Preprocess
    classes: tuple[str, ...]
    name: str
    fingerprint: str | None
    temperature: float | None
    remark: str | None
    decode_size: int
    plain: nn.Module
    is_fresh: bool

    def check_fresh(self) -> None:
        """Raises UserError where BatchNorm's statistics are not of these weights, and cannot be estimated here."""
        if not self.is_fresh:
            raise UserError(
                f"{self.name} was saved between two scores, and the statistics of its BatchNorm have to be estimated "
                "on the images it was trained on: take a checkpoint that was scored"
            )


def load(target: Target, recipe: Recipe, context: DistributedContext) -> LoadedModel:
    """The weights that are scored, fed as `recipe.data` says. Raises UserError where they are not whole or do not fit."""
    try:
        plain, facts = _exported(target, recipe) if target.kind == "model" else _saved(target, recipe, context.dtype)
    except (RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the weights of {target.path} do not fit its model at data.image_size {recipe.data.image_size} "
            f"({reason}): take the size it was trained at, or an undamaged copy"
        ) from None
    plain.to(dtype=context.dtype, memory_format=torch.channels_last)
    mean, std = (torch.tensor(v, dtype=context.dtype, device=context.device) for v in normalization(plain, recipe))
    model = context.prepare_for_eval(plain.eval())
    return LoadedModel(model=model, plain=plain, preprocess=Preprocess(recipe.data, mean, std), **facts)


def results_name(target: Target, split: str, weights: str) -> str:
    """NAME of eval-NAME.json with the settings of training: the split alone for a run's own result.

    Nothing else may replace that, so other `weights` of the run (as `Trained.name` has them) are told by the name.
    """
    result = read_json(target.run / "result.json") if target.run else None
    is_result = target.run is None or (result is not None and result["checkpoint"] == weights)
    return split if is_result else f"{split}-{Path(weights).name}"


def _exported(target: Target, recipe: Recipe) -> tuple[nn.Module, dict[str, Any]]:
    export, size = targets.export(target.path), recipe.data.image_size
    if not timm.is_model(export.architecture):
        raise UserError(f"{target.path} is a {export.architecture!r}, which this timm does not know: update timm")
    try:
        model = timm.create_model(f"local-dir:{target.path}", pretrained=True)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # a config.json of another model
        raise RuntimeError(f"{type(error).__name__}: {error}") from None
    if model.pretrained_cfg.get("fixed_input_size") and size != export.image_size:
        raise UserError(f"data.image_size {size}: {target.path} takes images of {export.image_size} pixels only")
    remark = f"timm would crop these images (crop_pct {export.crop:g}); here the whole image is resized"
    facts = {"classes": export.classes, "name": _name(target, target.path), "fingerprint": export.fingerprint}
    facts |= {"decode_size": export.decode_size, "is_fresh": True}
    return model, {**facts, "temperature": export.temperature, "remark": None if export.crop == 1 else remark}


def _saved(target: Target, recipe: Recipe, dtype: torch.dtype) -> tuple[nn.Module, dict[str, Any]]:
    chosen, state = _chosen_checkpoint(target)
    model = create_model(recipe, len(state["classes"]), pretrained=False).to(dtype)  # before weights are rounded
    model.load_state_dict(checkpoint.weights(chosen))
    is_early = target.kind == "run" and RunDir(target.path).result() is None
    name = _name(target, chosen)
    facts = {"classes": tuple(state["classes"]), "name": name, "fingerprint": state["data"]}
    has_norms = any(isinstance(module, _BatchNorm) for module in model.modules())
    facts |= {"decode_size": state["decode_size"], "is_fresh": state["bn_stats_current"] or not has_norms}
    remark = "this run is not finished: this is its best checkpoint so far" if is_early else None
    return model, {**facts, "temperature": _fitted_before(target, name), "remark": remark}


def _chosen_checkpoint(target: Target) -> tuple[Path, dict[str, Any]]:
    """The checkpoint that is meant, the best one of a run (or the newest, without validation), and its state."""
    if target.kind == "checkpoint":
        return target.path, checkpoint.read_state(target.path)
    checkpoints = RunDir(target.path).checkpoints
    steps = checkpoint.steps(checkpoints)
    if not steps:
        raise UserError(f"{target.path} has no checkpoint yet: let train.py reach its first one")
    chosen = checkpoints / checkpoint.name(steps[-1])
    try:
        state = checkpoint.read_state(chosen)
        if state["best"] is not None and state["best"]["step"] != steps[-1]:
            chosen = checkpoints / checkpoint.name(state["best"]["step"])
            state = checkpoint.read_state(chosen)
    except UserError as mistake:
        raise UserError(f"{mistake}: move it away to score the one before") from None
    return chosen, state


def _name(target: Target, weights: Path) -> str:
    """Where the weights lie: in the run, if they do, so that it may be moved."""
    return str(weights.resolve().relative_to(target.run.resolve()) if target.run else weights.resolve())


def _fitted_before(target: Target, weights: str) -> float | None:
    """The temperature that the end of training, or a scoring with its settings, has fitted for the weights."""
    for split in ("test", "validation"):
        found = read_json(target.results / f"eval-{results_name(target, split, weights)}.json") or {}
        if found.get("checkpoint") == weights and found.get("temperature"):
            return found["temperature"]
    return None
