"""`resnet-cifar tune RECIPE --phases.0.lr 1e-4..1e-1 --trials 20`: searches hyperparameters of a recipe."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_cifar.cli.parser import parse
from resnet_cifar.cli.seeds import check_launcher
from resnet_cifar.config.rerun import how_to_resume
from resnet_cifar.sweeps import search_space

if TYPE_CHECKING:
    from resnet_cifar.sweeps.study import Study


@dataclass(frozen=True)
class TuneOptions:
    """Search a recipe's hyperparameters for the best validation metric, the accuracy or another evaluate.select_by:
    --FIELD LOW..HIGH, or --FIELD A,B,C, is searched. Rerun the same command to resume; several at once share the
    trials (--parallel)."""

    recipe: str
    """A shipped recipe or a YAML file."""
    trials: int = 20
    """Trials of the whole search, including failed ones; increase it to extend a search."""
    prune: int = 0
    """Once this many trials have finished, end a trial whose best result so far lies below the median of theirs at that
    point [default: never]."""
    parallel: int = 0
    """Trials that may run at once, in this number of processes or fewer: each is proposed without the results of the
    PARALLEL - 1 before it, so that the trials are the same however fast each is [default: that of the search in --run,
    or 1]."""
    run: str = ""
    """The search's directory, which several processes may share [default: runs/RECIPE-tune-<8 hex digits>]."""
    launch: str = "python"
    """The launcher of train.py, such as "accelerate launch --config_file accelerate_configs/multi_gpu.yaml"."""
    download_only: bool = False
    """Download and decode the images and weights of all trials into this machine's caches, then exit."""


def parse_arguments(arguments: list[str]) -> tuple[TuneOptions, dict[str, str]]:
    """The options, and field -> value, range or choices. Exits after --help; raises UserError."""
    usage = "resnet-cifar tune RECIPE --phases.0.lr 1e-4..1e-1 [--trials 20] [--FIELD VALUE|RANGE|CHOICES ...]"
    options, overrides = parse(TuneOptions, usage, arguments, fields=("",))
    check_launcher(options.launch)
    return options, overrides


def main(arguments: list[str]) -> None:
    """Runs the remaining trials and prints all results. Exits with 1 if no trial has finished, 75 if interrupted."""
    options, overrides = parse_arguments(arguments)
    space = search_space.read(options.recipe, overrides)

    from resnet_cifar.distributed.signals import EXIT_RESUBMIT
    from resnet_cifar.sweeps import tune

    if options.download_only:
        tune.download(space)
        return
    study, launcher = tune.open_study(
        space, options.recipe, options.run, options.prune, options.launch, options.parallel
    )
    for path, searched in space.ranges.items():
        print(f"{path:24} {searched}", flush=True)
    end = tune.run_trials(study, options.recipe, options.trials, launcher)
    summary = tune.summarize(study, options.recipe, is_ending=end == "interrupted")
    _print(study, summary)
    if end == "interrupted":
        print(f"interrupted: {how_to_resume()} to resume", file=sys.stderr, flush=True)
        raise SystemExit(EXIT_RESUBMIT)
    is_over = all(trial["state"] != "running" for trial in summary["trials"])
    if end or (is_over and summary["best"] is None):
        print(f"error: {end or 'no trial has finished: see the reasons above'}", file=sys.stderr, flush=True)
        raise SystemExit(1)


def _print(study: Study, summary: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from resnet_cifar.reporting.console import listing
    from resnet_cifar.sweeps.tune import short

    paths, trials, best = list(summary["ranges"]), summary["trials"], summary["best"]
    metric = summary["metric"]
    table = Table("trial", "state", metric, *paths, box=None, pad_edge=False, header_style="bold")
    for number in summary["ranking"]:
        trial = trials[number]
        value = "-" if trial[metric] is None else f"{trial[metric]:.4f}"
        table.add_row(str(number), trial["state"], value, *(escape(short(trial["values"][path])) for path in paths))
    console = listing()
    console.print(table)
    if summary["importance"]:
        shares = ", ".join(f"{path} {share:.2f}" for path, share in summary["importance"].items())
        console.print(f"importance for the best trials (PED-ANOVA): {shares}", markup=False)
    home = Path(study.home)
    where = f", and trial {best}'s recipe to {home / 'best.yaml'}" if best is not None else ""
    page = f" and {home / 'index.html'}" if (home / "index.html").is_file() else ""
    console.print(f"written to {home / 'study.json'}{page}{where}", markup=False)
