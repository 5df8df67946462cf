"""`resnet-cifar compare RUN RUN ... [--out FILE]`: results and recipe differences of several runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from resnet_cifar.cli.parser import parse
from resnet_cifar.cli.report import check_run
from resnet_cifar.config.errors import UserError

_MARK = "written by resnet-cifar compare"  # in templates/compare.html


@dataclass(frozen=True)
class CompareOptions:
    """Compare runs, in a table and on a page: their results, curves, and the fields in which their recipes differ."""

    runs: tuple[str, ...]
    """The run directories."""
    out: str = "report-compare.html"
    """The page."""


def parse_arguments(arguments: list[str]) -> CompareOptions:
    """The options. Exits after --help; raises UserError."""
    options, _ = parse(CompareOptions, "resnet-cifar compare RUN RUN ... [--out FILE]", arguments)
    resolved: set[Path] = set()
    for run in map(Path, options.runs):
        check_run(run)
        if run.resolve() in resolved:
            raise UserError(f"compare: {run} is named twice, and a run is not compared with itself: name it once")
        resolved.add(run.resolve())
    if len(resolved) < 2:
        raise UserError(
            f"compare takes two runs or more, not {options.runs[0]} alone: its report is written by resnet-cifar report"
        )
    out = Path(options.out)
    if out.is_file() and _MARK not in out.read_text(encoding="utf-8", errors="replace"):
        raise UserError(f"--out {out} exists and is not a page of this command: name another file")
    return options


def main(arguments: list[str]) -> None:
    """Prints one row per run and writes the page. Raises UserError."""
    options = parse_arguments(arguments)

    from resnet_cifar.reporting import comparison_report
    from resnet_cifar.reporting.comparison_table import compare

    runs = [Path(run) for run in options.runs]
    compare(runs)
    try:
        page = comparison_report.write_comparison(runs, Path(options.out))
    except OSError as error:
        raise UserError(f"{options.out} cannot be written ({error.strerror}): name another file with --out") from None
    print(f"written: {page}", flush=True)
