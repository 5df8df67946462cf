"""Compares runs in a table: `python -m resnet_cifar.report RUN RUN ...`."""

import sys

from resnet_cifar import cli, commands


def main(arguments: list[str]) -> None:
    """A row for each run folder; nothing heavy is imported."""
    from resnet_cifar.reporting.compare import compare

    compare(commands.report_command(arguments))


if __name__ == "__main__":
    sys.exit(cli.run(main))
