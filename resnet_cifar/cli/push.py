"""`resnet-cifar push RUN OWNER/NAME [--private]`: uploads the verified model and its card to the Hugging Face Hub."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from resnet_cifar import hub_access
from resnet_cifar.cli.parser import parse
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Recipe
from resnet_cifar.distributed.launcher_env import check_launcher
from resnet_cifar.evaluation import model_location
from resnet_cifar.evaluation.model_location import Target

_NEEDED = ("result.json", "model/config.json", "model/model.safetensors", "model/README.md")


@dataclass(frozen=True)
class PushOptions:
    """Upload the model of a run, its card and the files of RUN/export to the Hugging Face Hub, in one commit; a model
    that is not verified yet is verified first, and a rerun uploads only what is missing."""

    run: str
    """A finished run directory, or its RUN/model."""
    name: str
    """OWNER/NAME of the repository, which is created if there is none."""
    private: bool = False
    """Create a private repository."""


def parse_arguments(arguments: list[str]) -> tuple[PushOptions, Target, Recipe]:
    """The options, the run and its recipe; nothing is asked of the Hub yet. Raises UserError."""
    usage = "resnet-cifar push RUN OWNER/NAME [--private] [--data.source SOURCE]"
    options, overrides = parse(PushOptions, usage, arguments, fields=("data.source",))
    _check_name(options.name)
    _check_environment()
    found = model_location.find_target(Path(options.run))
    if found.kind == "checkpoint" or found.run is None or found.artifact:
        raise UserError(f"{options.run} is not a run directory: push the run whose model it is, or name another one")
    target, run = Target(found.run, "run"), found.run
    for file in _NEEDED:
        if not (run / file).is_file():
            raise UserError(f"{run} has no {file}: let train.py finish the run, or restore the file")
    return options, target, model_location.recipe(target, overrides)


def main(arguments: list[str]) -> None:
    """Verifies and uploads. Raises UserError, or SystemExit (4) if the exported model gives other logits."""
    options, target, recipe = parse_arguments(arguments)

    from resnet_cifar.cli import push_files

    command = shlex.join(["resnet-cifar", "push", *arguments])
    push_files.push(target, recipe, options.name, options.private, command)


def _check_environment() -> None:
    check_launcher()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("push runs in one process: run it without a launcher, resnet-cifar push RUN OWNER/NAME")
    hub_access.check_variables()
    if variables := hub_access.offline_variables(for_datasets=False):
        unset = " and ".join(variable.partition("=")[0] for variable in variables)
        raise UserError(f"{' and '.join(variables)} forbid{'s' * (len(variables) == 1)} uploads: unset {unset}")


def _check_name(name: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        name_is_valid = False
    else:
        name_is_valid = name.count("/") == 1
    if not name_is_valid:
        raise UserError(
            f"{name!r} cannot be a repository of the Hub: use OWNER/NAME, of letters, digits, -, _ and ., such as "
            "alice/resnet50-cifar10"
        )
