"""Writes a run's page, or compares runs: `python -m resnet_cifar.report RUN [RUN ...] [--out FILE]`."""

import sys
from pathlib import Path

from resnet_cifar import cli, commands
from resnet_cifar.recipe import Mistake


def main(arguments: list[str]) -> None:
    """Prints a row for each run, and writes RUN/report/index.html of one, or a page that compares several."""
    command = commands.report_command(arguments)

    from resnet_cifar.reporting import comparison, report
    from resnet_cifar.reporting.compare import compare

    folders = [Path(run) for run in command.runs]
    compare(folders)
    try:
        page = comparison.write(folders, Path(command.out)) if len(folders) > 1 else report.write(folders[0])
    except OSError as error:
        place, mend = (command.out, "name another with --out") if len(folders) > 1 else (folders[0], "make it writable")
        raise Mistake(f"{place} cannot be written ({error.strerror}): {mend}") from None
    print(f"written: {page}", flush=True)


if __name__ == "__main__":
    sys.exit(cli.run(main))
