"""Trains a recipe: `accelerate launch train.py [--recipe NAME|FILE] [--FIELD VALUE ...]`; --help shows every field."""

import sys

from resnet_cifar.cli import train
from resnet_cifar.cli.entry import run_main

if __name__ == "__main__":
    sys.exit(run_main(train.main))
