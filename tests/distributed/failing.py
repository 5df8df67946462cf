"""Rank 0 fails in `run_on_main`, as no mistake of the user's: what both processes print and how they end."""

from __future__ import annotations

import sys

from resnet_cifar.cli.entry import run
from resnet_cifar.distributed import rendezvous
from resnet_cifar.distributed.context import DistributedContext


def fail() -> str:
    raise RuntimeError("on purpose")


def main(arguments: list[str]) -> None:
    """Waiting processes speak five times a second."""
    rendezvous._REPORT = 0.2
    context = DistributedContext("no")
    with context.sharing_failures():
        assert context.run_on_main(lambda: "done", per_node=True) == "done"
        context.run_on_main(fail)


if __name__ == "__main__":
    sys.exit(run(main))
