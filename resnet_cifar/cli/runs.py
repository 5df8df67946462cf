"""`resnet-cifar runs [PATH ...] [--watch] [--json]`: lists runs with their state, progress and results."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from resnet_cifar.cli.parser import parse
from resnet_cifar.config.errors import UserError

_INTERVAL = 2.0  # seconds from one list to the next
_USAGE = "resnet-cifar runs [PATH ...] [--watch] [--json]"


@dataclass(frozen=True)
class RunsOptions:
    """List the runs at and below directories, the latest active first: state, progress, time left, best validation and
    test accuracy, and SLURM job. A `killed` run has lost its process; a `silent` one, on another machine, has given no
    sign for long."""

    paths: tuple[str, ...]
    """The directories [default: runs]."""
    watch: bool = False
    """Update the list until Ctrl-C."""
    json: bool = False
    """Print a JSON array with an object per run."""


def parse_arguments(arguments: list[str]) -> RunsOptions:
    """The options. Exits after --help; raises UserError."""
    names_none = all(word.startswith("-") for word in arguments)
    options, _ = parse(RunsOptions, _USAGE, [*arguments, "runs"] if names_none else arguments)
    for path in map(Path, options.paths):
        if not path.is_dir():
            raise UserError(f"{path} is not a directory: name one that holds runs ({_USAGE})")
    if options.watch and options.json:
        raise UserError("--watch draws a list and --json prints one: give one of them")
    if options.watch and not sys.stdout.isatty():
        raise UserError("--watch needs a terminal to draw on, and the output is none: remove it")
    return options


def main(arguments: list[str]) -> None:
    """Prints the list. Raises UserError."""
    options = parse_arguments(arguments)

    from resnet_cifar.reporting.console import listing
    from resnet_cifar.reporting.run_listing import list_runs, table

    roots, console = [Path(path) for path in options.paths], listing()
    if options.watch:
        from rich.live import Live

        with contextlib.suppress(KeyboardInterrupt), Live(table(list_runs(roots)), console=console) as live:
            while True:
                time.sleep(_INTERVAL)
                live.update(table(list_runs(roots)))
        return
    runs = list_runs(roots)
    if options.json:
        print(json.dumps([dataclasses.asdict(run) for run in runs], indent=1))
    elif runs:
        console.print(table(runs))
    else:
        console.print(f"no run at or below {', '.join(options.paths)}")
