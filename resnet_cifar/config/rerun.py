"""How a message tells the user to resume or to start again: by the same command, or by a batch job's own."""

from __future__ import annotations

import os
import sys

# Set by slurm/train.sh: submits its job again, on its run directory. The same `sbatch` command would start a new run.
SUBMIT = "RESNET_CIFAR_SUBMIT"


def how_to_resume() -> str:
    """`rerun the same command`, to which "to resume from step 11" can be added.

    In a batch job it is true whatever ended the process: most jobs are requeued and resume by themselves.
    """
    return how_to_start_again() + ("" if SUBMIT in os.environ or "--restart" not in sys.argv else " without --restart")


def how_to_start_again() -> str:
    """The same, where nothing has been saved that --restart would move aside."""
    command = os.environ.get(SUBMIT)
    return f"run `{command}`, unless this job is requeued," if command else "rerun the same command"
