"""What each program is asked to do: its words, and the recipe they name. Imports nothing heavy.

tyro renders `--help` from the documentation of the commands and the recipe.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from resnet_cifar import cli
from resnet_cifar import target as targets
from resnet_cifar.recipe import Data, Mistake, Recipe
from resnet_cifar.target import Target


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


@dataclass(frozen=True)
class Changeable:
    """What may differ from the recipe that a model was trained by."""

    precision: str = "auto"
    """`auto` follows `accelerate launch --mixed_precision`; no, bf16, fp16 or fp64."""
    data: Data = field(default_factory=Data)


@dataclass(frozen=True)
class CacheCommand:
    """List the decoded data sets and, if asked to, clear some."""

    clear: str = ""
    """An entry, or `all`."""
    older_than: float = 0.0
    """Clear what was not used for so many days [default: none]."""


@dataclass(frozen=True)
class SeedsCommand:
    """Train a recipe under several seeds, one after the other, and print mean, deviation and interval of the scores."""

    recipe: str
    """A shipped recipe or a YAML file."""
    seeds: str = "0..4"
    """`0..4` (both ends included), or `0,3,7`."""
    run: str = ""
    """The folder of the seeds' run folders [default: runs/RECIPE-seeds-<8 hex of the recipe>]."""
    launch: str = "python"
    """What starts train.py: `python`, or "accelerate launch --config_file accelerate_configs/multi_gpu.yaml"."""


@dataclass(frozen=True)
class ReportCommand:
    """Write a run's page, or compare runs."""

    runs: tuple[str, ...]
    """Run folders."""
    out: str = "report-compare.html"
    """The page that compares several."""


def train_command(arguments: list[str]) -> tuple[TrainCommand, Recipe]:
    """What `train.py ARGUMENTS` asks for. Ends the program after --help and --recipe list; raises Mistake."""
    values = ("recipe", "run", "extend", "max_minutes", "profile")
    own, overrides, rest = cli.split(arguments, values, flags=("dry_run", "fetch", "fresh"))
    if rest:
        raise Mistake(f"{rest[0]!r} stands alone: fields are given as --FIELD VALUE")
    for name in ("extend", "max_minutes"):
        if name in own:
            own[name] = cli.positive(name, own[name])
    if "profile" in own:
        own["profile"] = cli.count("profile", own["profile"])
    command = TrainCommand(**{name: value for name, value in own.items() if name != "help"})
    if command.recipe == "list":
        cli.say("\n".join(f"{name:12} {cli.first_line(name)}" for name in cli.recipe_names()))
        raise SystemExit(0)
    if own.get("help"):
        _help(TrainCommand, "train.py", cli.read_recipe(command.recipe))
    if command.extend and command.fresh:
        raise Mistake("--extend goes on with a run and --fresh starts over: give one of them")
    return command, cli.read_recipe(command.recipe, overrides)


def extended(recipe: Recipe, epochs: float) -> Recipe:
    """The recipe with one more phase, of `epochs`: like its last one, without a warm-up. 0 epochs: as it is."""
    if not epochs:
        return recipe
    more = dataclasses.replace(recipe.phases[-1], epochs=epochs, warmup=0.0)
    return dataclasses.replace(recipe, phases=(*recipe.phases, more))


def eval_command(arguments: list[str]) -> tuple[EvalCommand, Recipe]:
    """What `eval.py TARGET ARGUMENTS` asks for, with the target's own recipe and overrides of `data.*`. Raises Mistake.

    A run or checkpoint has its recipe; of a model that stands alone only `data` and `precision` mean something.
    """
    own, overrides, rest = cli.split(arguments, values=("split", "tta", "out"), flags=("json",), lists=("images",))
    if own.get("help"):
        _help(EvalCommand, "eval.py", Changeable())
    if len(rest) != 1:
        raise Mistake(
            "eval.py takes one run folder, checkpoint or exported model: python eval.py TARGET [--data.source ...], or "
            "python eval.py TARGET --images a.png folder/"
        )
    _check_eval(own, overrides)
    target = targets.find(Path(rest[0]))
    recipe = target_recipe(target, overrides)
    if target.kind == "model" and target.run is None and "data.source" not in overrides and "images" not in own:
        raise Mistake(f"{target.path} is a model without a recipe: say with --data.source what it is scored on")
    if own.get("split", "test") == "test" and recipe.data.source != target_recipe(target).data.source:
        # The test split may be all that is wanted of another source, and all that it can give.
        recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, validation=0.0))
    return EvalCommand(target=rest[0], **own), recipe


def _check_eval(own: dict[str, Any], overrides: dict[str, str]) -> None:
    for name, words in {"split": ("test", "validation"), "tta": ("none", "flip")}.items():
        if own.get(name, words[0]) not in words:
            raise Mistake(f"--{name} cannot be {own[name]!r}: it should be {' or '.join(words)}")
        if name in own and "images" in own:
            raise Mistake(f"--{name} is for scores, and --images labels pictures: leave one of them away")
    if "out" in own and "images" in own:
        raise Mistake("--out is for scores, and --images prints: take --json and send its lines to a file")
    if "json" in own and "images" not in own:
        raise Mistake("--json is for --images: scores are written as JSON anyway")
    for path in overrides:
        if not path.startswith("data.") and path != "precision":
            raise Mistake(f"--{path} cannot change when a model is scored: only --data.* and --precision can")
    for word in own.get("images", ()):
        if not Path(word).exists():
            raise Mistake(f"--images {word}: there is no such file or folder")


def target_recipe(target: Target, overrides: dict[str, str] | None = None) -> Recipe:
    """The recipe of what is scored, with `overrides`; an exported model has its own input format. Raises Mistake."""
    if target.kind == "checkpoint":
        return cli.with_overrides(targets.checkpoint_recipe(target.path), overrides)
    values = cli.read_yaml(str(target.run / "recipe.yaml")) if target.run else {}
    if target.kind == "model":
        export = targets.export(target.path)
        seen = {"image_size": export.image_size, "interpolation": export.interpolation}
        values["data"] = {**values.get("data", {}), **seen}
        if target.run is None:
            values["model"] = {"name": export.architecture, "pretrained": False}
    return cli.with_overrides(values, overrides)


def report_command(arguments: list[str]) -> ReportCommand:
    """What `report ARGUMENTS` asks for. Ends the program after --help; raises Mistake."""
    own, _, rest = cli.split(arguments, values=("out",), flags=())
    if own.get("help"):
        cli.say(
            "python -m resnet_cifar.report RUN: writes RUN/report/index.html anew\n"
            "python -m resnet_cifar.report RUN RUN ... [--out FILE]: what runs reached and where their recipes differ, "
            f"in a table and on a page [{ReportCommand.out}]"
        )
        raise SystemExit(0)
    if not rest:
        raise Mistake("report takes run folders: python -m resnet_cifar.report RUN RUN ...")
    if "out" in own and len(rest) == 1:
        raise Mistake("--out is for a comparison, and a run's page lies in it: name more runs, or leave --out away")
    _check_runs([Path(word) for word in rest])
    return ReportCommand(tuple(rest), **own)


def cache_command(arguments: list[str]) -> CacheCommand:
    """What `cache ARGUMENTS` asks for. Ends the program after --help; raises Mistake."""
    own, overrides, rest = cli.split(arguments, values=("clear", "older_than"), flags=())
    usage = "python -m resnet_cifar.cache [--clear ENTRY|all] [--older-than DAYS]"
    if own.get("help"):
        cli.say(f"{usage}: lists the decoded data sets; clears one, all, or those that were not used for so many days")
        raise SystemExit(0)
    if rest or overrides:
        raise Mistake(f"cache does not take {(rest or [*overrides])[0]!r}: {usage}")
    if "clear" in own and "older_than" in own:
        raise Mistake(f"--clear and --older-than each say what to clear: give one of them ({usage})")
    days = cli.positive("older_than", own["older_than"]) if "older_than" in own else 0.0
    return CacheCommand(clear=own.get("clear", ""), older_than=days)


def seeds_command(arguments: list[str]) -> tuple[SeedsCommand, Recipe, list[str]]:
    """What `seeds RECIPE ARGUMENTS` asks for, its recipe, and the words that say so to train.py. Raises Mistake."""
    own, overrides, rest = cli.split(arguments, values=("seeds", "run", "launch"), flags=())
    if own.pop("help", False):
        _help(SeedsCommand, "python -m resnet_cifar.seeds", cli.read_recipe("finetune"))
    if len(rest) != 1:
        raise Mistake("seeds takes one recipe: python -m resnet_cifar.seeds RECIPE --seeds 0..4 [--FIELD VALUE ...]")
    if "seed" in overrides:
        raise Mistake(f"--seed {overrides['seed']} and --seeds are the same thing: give --seeds {overrides['seed']}")
    command = SeedsCommand(recipe=rest[0], **own)
    try:
        launcher = shlex.split(command.launch)
    except ValueError:  # a quote that is not closed
        launcher = []
    if not launcher:
        raise Mistake(f"--launch cannot be {command.launch!r}: it should be a command, such as 'accelerate launch'")
    return command, cli.read_recipe(command.recipe, overrides), [f"--{path}={word}" for path, word in overrides.items()]


def seed_numbers(word: str) -> list[int]:
    """The seeds of `0..4` (both ends included) or `0,3,7`, in that order. Raises Mistake."""
    numbers: list[int] = []
    if ends := re.fullmatch(r"(\d+)\.\.(\d+)", word):
        numbers = list(range(int(ends[1]), int(ends[2]) + 1))
    elif re.fullmatch(r"\d+(,\d+)*", word):
        numbers = [int(number) for number in word.split(",")]
    if not numbers or len(set(numbers)) < len(numbers):
        raise Mistake(f"--seeds cannot be {word!r}: it should be FIRST..LAST, such as 0..4, or a list, such as 0,3,7")
    return numbers


def _check_runs(folders: list[Path]) -> None:
    for folder in folders:
        if not (folder / "recipe.yaml").is_file():
            raise Mistake(f"{folder} is no run folder (it has no recipe.yaml): name a folder that train.py wrote")


def _help(command: type, program: str, recipe: Recipe | Changeable) -> None:
    if os.environ.get("RANK", "0") != "0":
        raise SystemExit(0)
    import tyro

    fields = Annotated[tyro.conf.FlagConversionOff[type(recipe)], tyro.conf.arg(name="")]
    alone = {EvalCommand: "target", SeedsCommand: "recipe"}.get(command)  # a word that stands without a --name
    own = [(alone, tyro.conf.Positional[str])] if alone else []
    page = dataclasses.make_dataclass(
        command.__name__, [*own, ("fields", fields, dataclasses.field(default=recipe))], bases=(command,), frozen=True
    )
    page.__doc__ = command.__doc__
    page = tyro.conf.FlagCreatePairsOff[page]
    tyro.cli(page, prog=program, args=["--help"], use_underscores=True)
