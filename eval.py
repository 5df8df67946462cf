"""Scores a run: `python eval.py RUN [--split test|validation] [--data.source ...]`."""

import sys

from resnet_cifar import cli


def main(arguments: list[str]) -> None:
    """Nothing heavy is imported before the command is checked."""
    command, recipe = cli.eval_command(arguments)

    from resnet_cifar.data.sources import hub

    hub.settle_offline(recipe)

    from resnet_cifar.training.evaluate import evaluate

    evaluate(command, recipe)


if __name__ == "__main__":
    sys.exit(cli.run(main))
