"""YAML -> recipe -> overrides from the command line -> checked recipe. Imports nothing heavy.

One validator (pydantic, in recipe.py) reads words of the command line and values of YAML alike, so both give the same
sentence for the same mistake; tyro renders `--help` from the recipe's own documentation.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import shlex
import socket
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import yaml

from resnet_cifar import target as targets
from resnet_cifar.recipe import Data, LocalMistake, Mistake, Recipe, field_paths, flat, nearest, parse, to_dict
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
    """Save and end after so many minutes, as if interrupted; 0 is off. (slurm/train.sh minds time limits by itself.)"""
    profile: int = 0
    """Trace so many steps into RUN/profile and say what takes the time in them; 0 is off. Changes no result."""


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
    """Clear what was not used for so many days; 0 is off."""


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


def recipe_names() -> list[str]:
    """The shipped recipes."""
    return sorted(path.name.removesuffix(".yaml") for path in _shipped().iterdir() if path.name.endswith(".yaml"))


def read_recipe(name: str, overrides: dict[str, str] | None = None) -> Recipe:
    """The shipped recipe or YAML file `name`, with `overrides` (field path -> word). Raises Mistake."""
    values = _read_yaml(name)
    if "data.source" in (overrides or {}) and isinstance(values.get("data"), dict):
        for described in ("name", "splits", "columns"):  # of the file's own source
            values["data"].pop(described, None)
    return _with_overrides(values, overrides)


def _with_overrides(values: dict[str, Any], overrides: dict[str, str] | None) -> Recipe:
    for path, word in (overrides or {}).items():
        _set(values, path, word)
    recipe = parse(values)
    source = Path(recipe.data.source).expanduser()
    if recipe.data.source != "synthetic" and source.exists():  # a run folder must mean the same from anywhere
        values = to_dict(recipe)
        values["data"]["source"] = str(source.resolve())
        recipe = parse(values)
    return recipe


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Writes the recipe as YAML that `--recipe PATH` reads back to the same values."""
    path.write_text(yaml.safe_dump(to_dict(recipe), sort_keys=False))


def train_command(arguments: list[str]) -> tuple[TrainCommand, Recipe]:
    """What `train.py ARGUMENTS` asks for. Ends the program after --help and --recipe list; raises Mistake."""
    values = ("recipe", "run", "extend", "max_minutes", "profile")
    own, overrides, rest = _split(arguments, values, flags=("dry_run", "fetch", "fresh"))
    if rest:
        raise Mistake(f"{rest[0]!r} stands alone: fields are given as --FIELD VALUE")
    for name in ("extend", "max_minutes"):
        if name in own:
            own[name] = _positive(name, own[name])
    if "profile" in own:
        own["profile"] = _count("profile", own["profile"])
    command = TrainCommand(**{name: value for name, value in own.items() if name != "help"})
    if command.recipe == "list":
        _say("\n".join(f"{name:12} {_first_line(name)}" for name in recipe_names()))
        raise SystemExit(0)
    if own.get("help"):
        _help(TrainCommand, "train.py", read_recipe(command.recipe))
    if command.extend and command.fresh:
        raise Mistake("--extend goes on with a run and --fresh starts over: give one of them")
    return command, read_recipe(command.recipe, overrides)


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
    own, overrides, rest = _split(arguments, values=("split", "tta", "out"), flags=("json",), lists=("images",))
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
        return _with_overrides(targets.checkpoint_recipe(target.path), overrides)
    values = _read_yaml(str(target.run / "recipe.yaml")) if target.run else {}
    if target.kind == "model":
        export = targets.export(target.path)
        seen = {"image_size": export.image_size, "interpolation": export.interpolation}
        values["data"] = {**values.get("data", {}), **seen}
        if target.run is None:
            values["model"] = {"name": export.architecture, "pretrained": False}
    return _with_overrides(values, overrides)


def report_command(arguments: list[str]) -> list[Path]:
    """The run folders that `report ARGUMENTS` names. Ends the program after --help; raises Mistake."""
    own, _, rest = _split(arguments, values=(), flags=())
    if own.get("help"):
        _say(
            "python -m resnet_cifar.report RUN [RUN ...]: what runs reached, and where their recipes differ, in a table"
        )
        raise SystemExit(0)
    if not rest:
        raise Mistake("report takes run folders: python -m resnet_cifar.report RUN RUN ...")
    folders = [Path(word) for word in rest]
    _check_runs(folders)
    return folders


def cache_command(arguments: list[str]) -> CacheCommand:
    """What `cache ARGUMENTS` asks for. Ends the program after --help; raises Mistake."""
    own, overrides, rest = _split(arguments, values=("clear", "older_than"), flags=())
    usage = "python -m resnet_cifar.cache [--clear ENTRY|all] [--older-than DAYS]"
    if own.get("help"):
        _say(f"{usage}: lists the decoded data sets; clears one, all, or those that were not used for so many days")
        raise SystemExit(0)
    if rest or overrides:
        raise Mistake(f"cache does not take {(rest or [*overrides])[0]!r}: {usage}")
    if "clear" in own and "older_than" in own:
        raise Mistake(f"--clear and --older-than each say what to clear: give one of them ({usage})")
    days = _positive("older_than", own["older_than"]) if "older_than" in own else 0.0
    return CacheCommand(clear=own.get("clear", ""), older_than=days)


def seeds_command(arguments: list[str]) -> tuple[SeedsCommand, Recipe, list[str]]:
    """What `seeds RECIPE ARGUMENTS` asks for, its recipe, and the words that say so to train.py. Raises Mistake."""
    own, overrides, rest = _split(arguments, values=("seeds", "run", "launch"), flags=())
    if own.pop("help", False):
        _help(SeedsCommand, "python -m resnet_cifar.seeds", read_recipe("finetune"))
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
    return command, read_recipe(command.recipe, overrides), [f"--{path}={word}" for path, word in overrides.items()]


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


def run(main: Callable[[list[str]], None]) -> int:
    """Runs `main` on the command line; the user's mistakes end in one sentence, from one process, and exit code 2."""
    try:
        try:
            main(sys.argv[1:])
        finally:
            sys.stdout.flush()
    except LocalMistake as mistake:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            several_nodes = os.environ.get("WORLD_SIZE") != os.environ.get("LOCAL_WORLD_SIZE")
            print(f"error: {_who() if several_nodes else ''}{mistake}", file=sys.stderr, flush=True)
        return 2
    except Mistake as mistake:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {mistake}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print("\nstopped: the same command starts again", file=sys.stderr, flush=True)
        return 130
    except BrokenPipeError:  # `train.py --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int("torch" in sys.modules)  # training that broke off is no success
    except Exception:
        if "RANK" in os.environ:
            print(f"{_who()}this went wrong:", file=sys.stderr, flush=True)
        raise
    return 0


def _who() -> str:
    """`rank 3 on node2: `, as the launcher numbers this process."""
    return f"rank {os.environ['RANK']} on {socket.gethostname()}: "


def _shipped() -> Any:
    return resources.files("resnet_cifar") / "recipes"


def _read_yaml(name: str) -> dict[str, Any]:
    is_file = Path(name).suffix in (".yaml", ".yml") or Path(name).is_file()
    file = Path(name) if is_file else _shipped() / f"{name}.yaml"
    if not file.is_file():
        raise Mistake(f"there is no recipe {name!r}{nearest(name, recipe_names())}; --recipe list shows all")
    try:
        with file.open() as stream:
            values = yaml.load(stream, _Yaml)
    except OSError as error:
        raise Mistake(f"{name} cannot be read ({error.strerror}): name another recipe") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Mistake(f"{name} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise Mistake(f"{name} holds no fields: a recipe is YAML such as `batch_size: 256`")
    return values


class _Yaml(yaml.SafeLoader):
    """Refuses a key that is given twice, of which PyYAML would silently take the last."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                place = key.start_mark
                raise Mistake(f"{place.name}, line {place.line + 1}: {key.value} is given twice: keep one of them")
            seen.add(key.value)
        return node


def _first_line(name: str) -> str:
    return (_shipped() / f"{name}.yaml").read_text().splitlines()[0].removeprefix("# ")


def _split(
    arguments: list[str],
    values: tuple[str, ...],
    flags: tuple[str, ...],
    lists: tuple[str, ...] = (),
) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """The command's own options, overrides of the recipe, and words that belong to no option.

    `values`, `flags`, `lists`: own options of one word, of none, and of all words up to the next option.
    """
    own: dict[str, Any] = {}
    overrides: dict[str, str] = {}
    rest: list[str] = []
    words = deque(arguments)
    while words:
        word = words.popleft()
        if word in ("-h", "--help"):
            own["help"] = True
            continue
        if not word.startswith("--"):
            rest.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        if name in flags:
            if equals:
                raise Mistake(f"--{name} takes no value: leave {value!r} away")
            own[name] = True
            continue
        if name not in (*values, *lists) and not _is_field(name):
            mend = nearest(name, [*values, *flags, *lists, *field_paths()]) or "; --help shows all"
            raise Mistake(f"unknown field --{name}{mend}")
        if not equals:
            if not words or words[0].startswith("--"):
                raise Mistake(f"--{name} needs a value, for example --{name} {_example(name)}")
            value = words.popleft()
        if name in lists:
            own[name] = (*own.get(name, ()), value)
            while words and not equals and not words[0].startswith("-"):
                own[name] += (words.popleft(),)
            continue
        (own if name in values else overrides)[name] = value
    return own, overrides, rest


def _is_field(path: str) -> bool:
    parts = path.split(".")
    return ".".join("0" if part.isdigit() else part for part in parts) in field_paths()


def _positive(name: str, word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise Mistake(f"--{name} cannot be {word!r}: it should be a number above 0")
    return value


def _count(name: str, word: str) -> int:
    if not (word.isascii() and word.isdigit() and int(word)):
        raise Mistake(f"--{name} cannot be {word!r}: it should be a whole number above 0")
    return int(word)


def _example(path: str) -> Any:
    if path in ("extend", "max_minutes", "profile", "older_than"):
        return 10
    if path in ("images", "seeds"):
        return {"images": "FOLDER", "seeds": "0..4"}[path]
    return flat(Recipe()).get(".".join("0" if part.isdigit() else part for part in path.split(".")), "NAME")


def _set(values: dict[str, Any], path: str, word: str) -> None:
    *parents, last = path.split(".")
    here: Any = values
    for part, following in zip(parents, [*parents, last][1:], strict=True):
        new: Any = [] if following.isdigit() else {}
        if isinstance(here, list):
            if int(part) > len(here):
                raise Mistake(f"--{path} skips a phase: the recipe has {len(here)}, so the next is phases.{len(here)}")
            if int(part) == len(here):
                here.append(new)
            place: Any = int(part)
        else:
            place = part
            here.setdefault(part, new)
        if here[place] is None:  # `data:` with nothing under it
            here[place] = new
        if not isinstance(here[place], type(new)):
            raise Mistake(f"--{path} has no place in the recipe: {part} cannot be {here[place]!r}")
        here = here[place]
    here[last] = word


def _say(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(text)


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
