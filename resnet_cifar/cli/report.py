"""`resnet-cifar report RUN` writes RUN/report/index.html."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from resnet_cifar.checkpoints.run_dir import check_version
from resnet_cifar.cli.parser import parse
from resnet_cifar.config.errors import UserError


@dataclass(frozen=True)
class ReportOptions:
    """Write the report of a run, finished or not, to RUN/report/index.html."""

    run: str
    """The run directory."""


def parse_arguments(arguments: list[str]) -> ReportOptions:
    """The options. Exits after --help; raises UserError."""
    usage = "resnet-cifar report RUN (to compare runs: resnet-cifar compare RUN RUN ...)"
    options, _ = parse(ReportOptions, usage, arguments)
    check_run(Path(options.run))
    return options


def main(arguments: list[str]) -> None:
    """Writes the report and prints its path. Raises UserError."""
    run = Path(parse_arguments(arguments).run)

    from resnet_cifar.reporting import run_report
    from resnet_cifar.reporting.comparison_table import compare, read_runs

    compare(read_runs([run]))
    try:
        page = run_report.write_run_report(run)
    except OSError as error:
        raise UserError(f"{run} cannot be written ({error.strerror}): make it writable") from None
    print(f"written: {page}", flush=True)


def check_run(run: Path) -> None:
    """Raises UserError if `run` is not a run directory of this version."""
    check_version(run)
    if not (run / "recipe.yaml").is_file():
        raise UserError(f"{run} is not a run directory (it has no recipe.yaml): name one that train.py wrote")
