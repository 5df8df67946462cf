"""`accelerate launch` for node.sh: a failure is a line, and the exit code is that of the process which failed.

By itself it ends with 1, after a traceback of forty lines on every node.
"""

from __future__ import annotations

import socket
import sys

from accelerate.commands.launch import main
from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def launch() -> int:
    """Runs `accelerate launch` with this program's arguments; the exit code."""
    host = socket.gethostname()
    try:
        main()
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode  # as a shell counts signals
        print(f"rank {rank} on {host} ended first there, with code {code}", file=sys.stderr, flush=True)
        return code
    except DistError as error:
        reason = str(error).splitlines()[0]
        print(
            f"error: {host} did not meet the other nodes ({reason}): they must reach each other on any port over one "
            "network; name it in slurm/site.sh (INTERFACE)",
            file=sys.stderr,
            flush=True,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(launch())
