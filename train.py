"""Reads a recipe, trains it, evaluates it: `accelerate launch train.py [--recipe NAME|FILE] [--FIELD VALUE ...]`."""

import sys

from resnet_cifar import cli, commands


def main(arguments: list[str]) -> None:
    """Nothing heavy is imported before the command and the recipe are checked and signals are heard."""
    command, recipe = commands.train_command(arguments)

    from resnet_cifar.data.sources import hub
    from resnet_cifar.training.interrupts import Requests

    requests = Requests(command.max_minutes)
    hub.settle_offline(recipe)

    if command.fetch:
        from resnet_cifar.training.fetch import fetch

        fetch(recipe)
        return

    from resnet_cifar.training.loop import train

    train(command, recipe, requests)


if __name__ == "__main__":
    sys.exit(cli.run(main))
