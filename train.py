"""Trains a recipe: `accelerate launch train.py [--recipe NAME|FILE] [--FIELD VALUE ...]`; --help lists every field."""

import sys

from resnet_cifar.cli.entry import run_command

if __name__ == "__main__":
    sys.exit(run_command("train"))
