"""`resnet-cifar export RUN --to onnx,pt2,timm [--quantize int8]`: files for programs without this project, verified."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from resnet_cifar.cli.parser import parse
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Recipe
from resnet_cifar.distributed.launcher_env import check_launcher
from resnet_cifar.evaluation import model_location

FORMATS = ("onnx", "pt2", "timm")
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # for ONNX


@dataclass(frozen=True)
class ExportOptions:
    """Export a trained model together with its preprocessing, for uint8 images of any size; every file is run in a
    process of its own on all test images, and counts only if it predicts the same classes."""

    run: str
    """A finished run directory, its RUN/model, or wandb:ENTITY/PROJECT/NAME:ALIAS."""
    to: str = "onnx"
    """A list of onnx (for onnxruntime and others), pt2 (for torch.export.load) and timm (weights and config.json)."""
    quantize: Literal["none", "int8"] = "none"
    """`int8`: also write an ONNX model with 8-bit weights and activations, whose accuracy is reported."""
    out: str = ""
    """The directory of the files and their model card [default: RUN/export]."""

    @property
    def formats(self) -> set[str]:
        """The words of `to`, and `int8` if it is asked for."""
        return {*self.to.split(","), self.quantize} - {"none"}


def parse_arguments(arguments: list[str]) -> tuple[ExportOptions, Recipe]:
    """The options and the recipe of the run. Raises UserError."""
    usage = "resnet-cifar export RUN [--to onnx,pt2,timm] [--quantize int8] [--out DIR] [--data.source SOURCE]"
    options, overrides = parse(ExportOptions, usage, arguments, fields=("data.source",))
    if not set(options.to.split(",")) <= set(FORMATS):
        raise UserError(f"--to cannot be {options.to!r}: it should be a list of {', '.join(FORMATS)}, such as onnx,pt2")
    if options.quantize == "int8" and "onnx" not in options.formats:
        raise UserError("--quantize int8 makes a second ONNX model: add onnx to --to")
    target = model_location.find_target(Path(options.run))
    if target.kind == "checkpoint":
        raise UserError(f"{target.path} is a checkpoint: export its run, or name another one")
    if target.kind == "run" and not (target.path / "model" / "config.json").is_file():
        raise UserError(f"{target.path} has no model/config.json: let train.py finish the run, or restore the file")
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing and "onnx" in options.formats:
        raise UserError(f"--to onnx needs the package {missing[0]}: pip install -e '.[onnx]'")
    return options, model_location.recipe(target, overrides)


def main(arguments: list[str]) -> None:
    """Exports and verifies. Raises UserError, or SystemExit (4) if a file predicts other classes."""
    options, recipe = parse_arguments(arguments)
    check_launcher()

    from resnet_cifar.cli import export_files
    from resnet_cifar.data.sources import registry

    registry.go_offline_if_unreachable(recipe)
    target = model_location.find_target(Path(options.run))
    export_files.export(target, recipe, options.formats, Path(options.out or target.exports))
