"""Evaluates a trained model, labels images with it, or verifies its export: `python eval.py TARGET`; see --help."""

import sys

from resnet_cifar.cli import scoring
from resnet_cifar.cli.entry import run_main

if __name__ == "__main__":
    sys.exit(run_main(scoring.main))
