"""Scores a trained model, or labels pictures with it.

python eval.py TARGET [--split test|validation] [--data.source ...] [--tta flip] [--out FOLDER]
python eval.py TARGET --images a.png folder/ ... [--json]
python eval.py RUN --check [N]

TARGET: a run folder (its best checkpoint), a checkpoint folder, or an exported model. Exit codes: 0; 2 for a mistake of
the user's; 3 where some pictures could not be read and the others are labelled; 4 where --check finds other logits.
"""

import sys

from resnet_cifar import cli, commands


def main(arguments: list[str]) -> None:
    """Nothing heavy is imported before the command is checked."""
    command, recipe = commands.eval_command(arguments)

    if command.images:
        from resnet_cifar.training.label import label

        label(command, recipe)
        return

    from resnet_cifar.data.sources import hub

    hub.settle_offline(recipe)

    if command.check:
        from resnet_cifar.training.check import check

        check(command, recipe)
        return

    from resnet_cifar.training.score import score

    score(command, recipe)


if __name__ == "__main__":
    sys.exit(cli.run(main))
