"""Evaluates a trained model, classifies images with it, or verifies its export: `python eval.py TARGET`; see --help."""

import sys

from resnet_cifar.cli.entry import run_command

if __name__ == "__main__":
    sys.exit(run_command("evaluate"))
