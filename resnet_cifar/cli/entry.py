"""TODO."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable

from resnet_cifar.config.errors import NodeError, UserError


def run_main(main: Callable[[list[str]], None]) -> int:
    """Runs `main` on the command line; the user's mistakes end in one sentence, from one process, and exit code 2."""
    try:
        try:
            main(sys.argv[1:])
        finally:
            sys.stdout.flush()
    except NodeError as mistake:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            several_nodes = os.environ.get("WORLD_SIZE") != os.environ.get("LOCAL_WORLD_SIZE")
            print(f"error: {_who() if several_nodes else ''}{mistake}", file=sys.stderr, flush=True)
        return 2
    except UserError as mistake:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {mistake}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print("\nstopped: the same command starts again", file=sys.stderr, flush=True)
        return 130
    except BrokenPipeError:  # `train.py --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int("torch" in sys.modules)  # training that broke off is no success
    except Exception:
        if "RANK" in os.environ:
            print(f"{_who()}this went wrong:", file=sys.stderr, flush=True)
        raise
    return 0


def _who() -> str:
    """`rank 3 on node2: `, as the launcher numbers this process."""
    return f"rank {os.environ['RANK']} on {socket.gethostname()}: "


def print_once(text: str) -> None:
    """Prints it, from one process."""
    if os.environ.get("RANK", "0") == "0":
        print(text)
