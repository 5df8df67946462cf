"""Writes a run's page, or compares runs: `python -m resnet_cifar.cli.report RUN [RUN ...] [--out FILE]`."""

import sys
from pathlib import Path

from resnet_cifar.cli.entry import run_main
from resnet_cifar.cli.looking import report_command
from resnet_cifar.config.errors import UserError

_MARK = "written by resnet-cifar compare"  # stands in the page, in its template


def main(arguments: list[str]) -> None:
    """Prints a row for each run, and writes RUN/report/index.html of one, or a page that compares several."""
    command = report_command(arguments)

    from resnet_cifar.reporting import comparison_report, run_report
    from resnet_cifar.reporting.comparison_table import compare

    folders = [Path(run) for run in command.runs]
    if len(folders) > 1:
        _check_out(Path(command.out))
    compare(folders)
    try:
        page = (
            comparison_report.write_comparison(folders, Path(command.out))
            if len(folders) > 1
            else run_report.write_run_report(folders[0])
        )
    except OSError as error:
        place, mend = (command.out, "name another with --out") if len(folders) > 1 else (folders[0], "make it writable")
        raise UserError(f"{place} cannot be written ({error.strerror}): {mend}") from None
    print(f"written: {page}", flush=True)


def _check_out(file: Path) -> None:
    """Raises UserError where something else would be overwritten."""
    if file.is_file() and _MARK not in file.read_text(encoding="utf-8", errors="replace"):
        raise UserError(f"--out {file} is there and is no page of this command: name another file")


if __name__ == "__main__":
    sys.exit(run_main(main))
