"""train.py."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from resnet_cifar import cli
from resnet_cifar.commands.help import show_help
from resnet_cifar.recipe import Mistake, Recipe

COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


@dataclass(frozen=True)
class TrainCommand:
    """Train a recipe, evaluate it, and leave everything in one run folder. The same command finds its run again."""

    recipe: str = "finetune"
    """A shipped recipe, a YAML file, or `list`."""
    run: str = ""
    """The run folder [default: runs/RECIPE-<8 hex of the recipe>]."""
    dry_run: bool = False
    """Print the plan (steps, rates, shares, memory and time) and end."""
    fetch: bool = False
    """Bring images and weights into this machine's caches, and end: so that many processes need not ask for them."""
    fresh: bool = False
    """Start over where the run folder holds a run of this recipe already."""
    extend: float = 0.0
    """Append a phase of so many epochs, like the last one without its warm-up, to the run that the rest names."""
    max_minutes: float = 0.0
    """Save and end after so many minutes, as if interrupted [default: never]; slurm/train.sh minds its own limits."""
    profile: int = 0
    """Trace so many steps into RUN/profile and say what takes the time in them [default: none]. Changes no result."""
    compile: str = ""
    """torch.compile's mode: default, reduce-overhead, max-autotune, max-autotune-no-cudagraphs [the launcher's]."""


def train_command(arguments: list[str]) -> tuple[TrainCommand, Recipe]:
    """What `train.py ARGUMENTS` asks for. Ends the program after --help and --recipe list; raises Mistake."""
    values = ("recipe", "run", "extend", "max_minutes", "profile", "compile")
    own, overrides, rest = cli.split(arguments, values, flags=("dry_run", "fetch", "fresh"))
    if rest:
        raise Mistake(f"{rest[0]!r} stands alone: fields are given as --FIELD VALUE")
    for name in ("extend", "max_minutes"):
        if name in own:
            own[name] = cli.positive(name, own[name])
    if "profile" in own:
        own["profile"] = cli.count("profile", own["profile"])
    if (mode := own.get("compile")) is not None and mode not in COMPILE_MODES:
        raise Mistake(f"--compile {mode!r} is not a mode of torch.compile: take {', '.join(COMPILE_MODES)}")
    command = TrainCommand(**{name: value for name, value in own.items() if name != "help"})
    if command.recipe == "list":
        cli.say("\n".join(f"{name:12} {cli.first_line(name)}" for name in cli.recipe_names()))
        raise SystemExit(0)
    if own.get("help"):
        show_help(TrainCommand, "train.py", cli.read_recipe(command.recipe))
    if command.extend and command.fresh:
        raise Mistake("--extend goes on with a run and --fresh starts over: give one of them")
    return command, cli.read_recipe(command.recipe, overrides)


def extended(recipe: Recipe, epochs: float) -> Recipe:
    """The recipe with one more phase, of `epochs`: like its last one, without a warm-up. 0 epochs: as it is."""
    if not epochs:
        return recipe
    more = dataclasses.replace(recipe.phases[-1], epochs=epochs, warmup=0.0)
    return dataclasses.replace(recipe, phases=(*recipe.phases, more))
