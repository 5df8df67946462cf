"""eval.py."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resnet_cifar.cli.arguments import positive_integer, split_arguments
from resnet_cifar.cli.help import show_help
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import read_yaml, with_overrides
from resnet_cifar.config.schema import Data, Recipe
from resnet_cifar.evaluation import target as targets
from resnet_cifar.evaluation.target import Target

CHECKED = "256"  # images that eval.py --verify-export compares


@dataclass(frozen=True)
class EvalCommand:
    """Score a model on a split, with `--images` label pictures with it instead."""

    target: str
    """A run folder (its best checkpoint), a checkpoint folder (RUN/checkpoints/step-...), or a model in timm's format
    (RUN/model, or what timm's save_for_hf wrote: it needs --data.source)."""
    split: str = "test"
    """`test` or `validation`."""
    tta: str = "none"
    """`flip`: the mean over each image and its mirror image too, reported beside the plain figure."""
    out: str = ""
    """Where eval-NAME.json and predictions-NAME.parquet go [default: the run folder; without one, TARGET-scores]."""
    images: tuple[str, ...] = ()
    """Pictures, and folders of pictures, to label."""
    json: bool = False
    """With --images: a JSON object a line on the standard output, in place of the table."""
    verify_export: int = 0
    """Load RUN/model with timm in a process of its own and compare its logits of so many test images with the run's
    [256 where no number is given; more than there are: all]."""


@dataclass(frozen=True)
class Changeable:
    """What may differ from the recipe that a model was trained by."""

    precision: str = "auto"
    """`auto`: what the launcher asks for, else bf16 on GPUs that have it; or no (float32), bf16, fp16, fp64."""
    data: Data = field(default_factory=Data)


def eval_command(arguments: list[str]) -> tuple[EvalCommand, Recipe]:
    """What `eval.py TARGET ARGUMENTS` asks for, with the target's own recipe and overrides of `data.*`. Raises UserError.

    A run or checkpoint has its recipe; of a model that stands alone only `data` and `precision` mean something.
    """
    own, overrides, rest = split_arguments(
        arguments, ("split", "tta", "out"), flags=("json",), lists=("images",), numbers={"verify_export": CHECKED}
    )
    if own.get("help"):
        show_help(EvalCommand, "eval.py", Changeable(), alone="target")
    if len(rest) != 1:
        raise UserError(
            "eval.py takes one run folder, checkpoint or exported model: python eval.py TARGET [--data.source ...], or "
            "python eval.py TARGET --images a.png folder/"
        )
    _check_eval(own, overrides)
    target = targets.find_target(Path(rest[0]))
    if "verify_export" in own:
        own["verify_export"] = positive_integer("verify_export", own["verify_export"])
        _check_checked(target)
    recipe = target_recipe(target, overrides)
    if target.kind == "model" and target.run is None and "data.source" not in overrides and "images" not in own:
        raise UserError(f"{target.path} is a model without a recipe: say with --data.source what it is scored on")
    if own.get("split", "test") == "test" and recipe.data.source != target_recipe(target).data.source:
        # The test split may be all that is wanted of another source, and all that it can give.
        recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, validation_fraction=0.0))
    return EvalCommand(target=rest[0], **own), recipe


def _check_eval(own: dict[str, Any], overrides: dict[str, str]) -> None:
    for name, words in {"split": ("test", "validation"), "tta": ("none", "flip")}.items():
        if own.get(name, words[0]) not in words:
            raise UserError(f"--{name} cannot be {own[name]!r}: it should be {' or '.join(words)}")
        if name in own and "images" in own:
            raise UserError(f"--{name} is for scores, and --images labels pictures: leave one of them away")
    if "out" in own and "images" in own:
        raise UserError("--out is for scores, and --images prints: take --json and send its lines to a file")
    if "json" in own and "images" not in own:
        raise UserError("--json is for --images: scores are written as JSON anyway")
    if "verify_export" in own and (others := [name for name in (*own, *overrides) if name != "verify_export"]):
        raise UserError(f"--verify-export compares with what the run has scored itself: leave --{others[0]} away")
    for path in overrides:
        if not path.startswith("data.") and path != "precision":
            raise UserError(f"--{path} cannot change when a model is scored: only --data.* and --precision can")
    for word in own.get("images", ()):
        if not Path(word).exists():
            raise UserError(f"--images {word}: there is no such file or folder")


def _check_checked(target: Target) -> None:
    """Raises UserError where there is no exported model, or nothing that its logits could be compared with."""
    if target.kind != "run":
        raise UserError(
            f"--verify-export compares the model of a run with the run's scores, and {target.path} is no run folder"
        )
    for file in ("result.json", "model/config.json", "predictions-test.parquet"):
        if not (target.path / file).is_file():
            raise UserError(
                f"--verify-export: {target.path} has no {file}: let train.py finish the run, or bring the file back"
            )


def target_recipe(target: Target, overrides: dict[str, str] | None = None) -> Recipe:
    """The recipe of what is scored, with `overrides`; an exported model has its own input format. Raises UserError."""
    if target.kind == "checkpoint":
        return with_overrides(targets.checkpoint_recipe(target.path), overrides)
    values = read_yaml(str(target.run / "recipe.yaml")) if target.run else {}
    if target.kind == "model":
        export = targets.read_export_config(target.path)
        seen = {"image_size": export.image_size, "interpolation": export.interpolation}
        values["data"] = {**values.get("data", {}), **seen}
        if target.run is None:
            values["model"] = {"name": export.architecture, "pretrained": False}
    return with_overrides(values, overrides)


def main(arguments: list[str]) -> None:
    """Nothing heavy is imported before the command is checked."""
    command, recipe = eval_command(arguments)

    if command.images:
        from resnet_cifar.cli.predict import label_images

        label_images(command, recipe)
        return

    from resnet_cifar.data.sources import hf_hub

    hf_hub.settle_offline(recipe)

    if command.verify_export:
        from resnet_cifar.cli.verify_export import verify_export

        verify_export(command, recipe)
        return

    from resnet_cifar.cli.evaluate import evaluate

    evaluate(command, recipe)
