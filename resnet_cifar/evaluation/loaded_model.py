"""A trained model ready for evaluation, loaded from a run, a checkpoint or an exported model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import timm.data
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from resnet_cifar.atomic_io import read_json
from resnet_cifar.checkpoints import checkpoint
from resnet_cifar.checkpoints.run_dir import RunDir
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Recipe
from resnet_cifar.data.preprocess import Preprocess
from resnet_cifar.data.sources.image_io import NO_LIMITS, Decoding, Limits
from resnet_cifar.distributed.context import DistributedContext
from resnet_cifar.evaluation import model_location
from resnet_cifar.evaluation.model_location import Target
from resnet_cifar.models.factory import create_model, normalization
from resnet_cifar.models.frozen_batchnorm import FrozenStatistics


@dataclass(frozen=True)
class LoadedModel:
    """A model on the context's device, in eval mode, with its preprocessing and metadata.

    `name`: recorded as `checkpoint` in eval-NAME.json. `fingerprint`: of the training images, if known. `temperature`:
    fitted by an earlier evaluation or the export, or None. `remark`: a warning for the user. `plain`: `model` without
    wrappers. `is_fresh`: whether the BatchNorm statistics belong to these weights; those of a checkpoint between two
    evaluations do not. `timm_transform`: for files, if this package has not exported the model; it gives uint8.
    """

    model: nn.Module
    preprocess: Preprocess
    classes: tuple[str, ...]
    name: str
    fingerprint: str | None
    temperature: float | None
    remark: str | None
    plain: nn.Module
    is_fresh: bool
    timm_transform: Callable[[Image.Image], Tensor] | None = None

    @property
    def architecture(self) -> str:
        """The name that timm knows the model by."""
        return self.plain.pretrained_cfg["architecture"]

    def read(self, image: Any, limits: Limits = NO_LIMITS) -> Tensor:
        """An image (see `to_rgb`) as uint8 [h, w, 3], as in the model's training. Raises UndecodableImage."""
        pixels = self.preprocess.read(image, limits)
        if self.timm_transform is None:
            return torch.from_numpy(pixels)
        return self.timm_transform(Image.fromarray(pixels)).permute(1, 2, 0)

    @torch.no_grad()
    def logits(self, images: Sequence[Tensor]) -> Tensor:
        """Of images as `read` gives them, in one batch: float64 [n, classes] on the device."""
        device = self.preprocess.mean.device
        inputs = torch.cat([self.preprocess(image[None].to(device)) for image in images])
        return self.model(inputs.contiguous(memory_format=torch.channels_last)).double()

    def probabilities(self, logits: Tensor) -> Tensor:
        """softmax(logits / temperature), if the model has one."""
        return (logits / (self.temperature or 1.0)).softmax(1)

    def check_fresh(self) -> None:
        """Raises UserError if the BatchNorm statistics do not belong to these weights and cannot be estimated here."""
        if not self.is_fresh:
            raise UserError(
                f"{self.name} was saved between two evaluations, so its BatchNorm statistics have to be estimated on "
                "its training images: use a checkpoint that was evaluated"
            )


def load_model(target: Target, recipe: Recipe, context: DistributedContext) -> LoadedModel:
    """Loads the weights and the preprocessing of `recipe.data`. Raises UserError if they are damaged or do not fit."""
    try:
        load = _exported(target, recipe) if target.kind == "model" else _saved(target, recipe, context.dtype)
        plain, decoding, facts = load
    except (RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the weights of {target.path} do not fit its model at data.image_size {recipe.data.image_size} "
            f"({reason}): use the size it was trained at, or an undamaged copy"
        ) from None
    plain.to(dtype=context.dtype, memory_format=torch.channels_last)
    mean, std = (torch.tensor(v, dtype=context.dtype, device=context.device) for v in normalization(plain, recipe))
    model = context.prepare_for_eval(plain.eval())
    return LoadedModel(model=model, plain=plain, preprocess=Preprocess(recipe.data, mean, std, decoding), **facts)


def results_name(target: Target, split: str, weights: str) -> str:
    """NAME of eval-NAME.json under the training settings: SPLIT for the final result, SPLIT-WEIGHTS for other weights.

    `weights`: a `LoadedModel.name`. The final result of a run is never overwritten by other weights.
    """
    is_alone = target.run is None or bool(target.artifact)
    result = None if is_alone else read_json(target.run / "result.json")
    is_result = is_alone or (result is not None and result["checkpoint"] == weights)
    return split if is_result else f"{split}-{Path(weights).name}"


def _exported(target: Target, recipe: Recipe) -> tuple[nn.Module, Decoding, dict[str, Any]]:
    export, size = model_location.read_export_config(target.path), recipe.data.image_size
    if not timm.is_model(export.architecture):
        raise UserError(f"{target.path} is a {export.architecture!r}, which this timm does not know: update timm")
    try:
        model = timm.create_model(f"local-dir:{target.path}", pretrained=True)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # a config.json of another model
        raise RuntimeError(f"{type(error).__name__}: {error}") from None
    if model.pretrained_cfg.get("fixed_input_size") and size != export.image_size:
        raise UserError(f"data.image_size {size}: {target.path} takes images of {export.image_size} pixels only")
    cropped = f"timm's transform crops (crop_pct {export.crop:g}), and so does prediction of files; evaluation does not"
    facts = {"classes": export.classes, "name": _name(target, target.path), "fingerprint": export.fingerprint}
    facts |= {"temperature": export.temperature, "remark": None if export.crop == 1 else cropped, "is_fresh": True}
    if not export.is_ours:
        config = {**timm.data.resolve_model_data_config(model), "input_size": (3, size, size)}
        facts["timm_transform"] = timm.data.create_transform(**config, normalize=False)
    return model, Decoding(export.stored_size, export.value_range, export.decode_mode), facts


def _saved(target: Target, recipe: Recipe, dtype: torch.dtype) -> tuple[nn.Module, Decoding, dict[str, Any]]:
    chosen, state = _chosen_checkpoint(target)
    model = create_model(recipe, len(state["classes"]), pretrained=False).to(dtype)
    model.load_state_dict(checkpoint.weights(chosen))
    is_early = target.kind == "run" and RunDir(target.path).result() is None
    name = _name(target, chosen)
    facts = {"classes": tuple(state["classes"]), "name": name, "fingerprint": state["data"]}
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    has_norms = not all(isinstance(module, FrozenStatistics) for module in norms)
    facts |= {"temperature": _saved_temperature(target, name), "is_fresh": state["bn_stats_current"] or not has_norms}
    facts["remark"] = "this run is not finished: this is its best checkpoint so far" if is_early else None
    decoding = {name: tuple(value) if isinstance(value, list) else value for name, value in state["decoding"].items()}
    return model, Decoding(**decoding), facts


def _chosen_checkpoint(target: Target) -> tuple[Path, dict[str, Any]]:
    """The checkpoint to evaluate and its state: for a run its best one, or the latest without validation."""
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
        raise UserError(f"{mistake}: move it away to evaluate the previous one") from None
    return chosen, state


def _name(target: Target, weights: Path) -> str:
    """Path of the weights, relative to the run directory if they lie in one, so that it may be moved; an artifact."""
    if target.artifact:
        return target.artifact
    return str(weights.resolve().relative_to(target.run.resolve()) if target.run else weights.resolve())


def _saved_temperature(target: Target, weights: str) -> float | None:
    """The temperature fitted for these weights by training or an earlier evaluation under the same settings."""
    for split in ("test", "validation"):
        found = read_json(target.results / f"eval-{results_name(target, split, weights)}.json") or {}
        if found.get("checkpoint") == weights and found.get("temperature"):
            return found["temperature"]
    return None
