"""The options of train.py besides the recipe."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Recipe


@dataclass(frozen=True)
class TrainOptions:
    """Train a recipe, evaluate it, and write everything to one run directory. Rerun the same command to resume."""

    recipe: str = "finetune"
    """A shipped recipe, a YAML file, or `list`."""
    run: str = ""
    """The run directory [default: runs/RECIPE-<8 hex digits of the recipe>]."""
    dry_run: bool = False
    """Print the plan (steps, learning rates, shares, memory and time), then exit."""
    scaling: str = ""
    """With --dry-run: a scaling.json of `resnet-cifar scale`, from which the plan says what the devices will bring."""
    scaling_devices: int = 0
    """With --scaling: the number of devices to plan for [default: the processes of this launch]."""
    check_for: int = 0
    """Check the recipe for this many processes, without images, weights or GPUs, then exit [default: train]."""
    download_only: bool = False
    """Download and decode the dataset and weights, then exit."""
    restart: bool = False
    """Start from scratch; an existing run directory is moved aside."""
    extend_epochs: float = 0.0
    """Append a phase of this many epochs, like the last one without its warm-up, and continue the run."""
    refit: str = ""
    """Train the recipe of this finished run again, on its training and validation images together and for as many
    updates as its validation split selected; in RUN-refit unless --run names another directory."""
    max_minutes: float = 0.0
    """Save and exit after this many minutes, as if interrupted [default: never]."""
    profile_steps: int = 0
    """Trace this many steps to RUN/profile and print what takes the time [default: none]. Changes no result."""
    compile: Literal["", "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = ""
    """Compile the model with this mode of torch.compile [default: the launcher's setting]."""


def extended(recipe: Recipe, epochs: float) -> Recipe:
    """The recipe with one more phase, of `epochs`: its last one, without warm-up and min_steps. 0 epochs: unchanged.

    Raises UserError for a refit, which ends where its run's validation split said.
    """
    if not epochs:
        return recipe
    if not recipe.phases:
        raise UserError("--extend-epochs has no phase to continue: this recipe has none; train with another one")
    if recipe.refit_steps:
        raise UserError(f"--extend-epochs: refit_steps {recipe.refit_steps} ends the run there: remove one of them")
    phase = dataclasses.replace(recipe.phases[-1], epochs=epochs, warmup_epochs=0.0, min_steps=0)
    return dataclasses.replace(recipe, phases=(*recipe.phases, phase))
