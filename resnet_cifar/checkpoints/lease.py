"""Who may write to a run directory: lease.json names the attempt that holds it, and every other attempt stops."""

from __future__ import annotations

import os
import secrets
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from resnet_cifar.atomic_io import read_json, write_json
from resnet_cifar.config.errors import UserError


@dataclass(frozen=True)
class Lease:
    """The content of lease.json. `attempt` counts from 1; `time`: seconds since the epoch.

    The latest attempt always gets the lease. If two attempts acquire it at the same moment, both may have the same
    number; `token` tells them apart, and the one whose lease.json was written last holds the lease.
    """

    attempt: int
    token: str
    host: str
    pid: int
    time: float

    @classmethod
    def acquire(cls, run: Path) -> Lease:
        """Takes the run directory over from any earlier attempt. Raises OSError."""
        attempt = (read_json(run / "lease.json") or {}).get("attempt", 0) + 1
        lease = cls(attempt, secrets.token_hex(8), socket.gethostname(), os.getpid(), time.time())
        write_json(run / "lease.json", asdict(lease))
        return lease

    def check(self, run: Path) -> None:
        """Raises UserError if another attempt has taken the run directory over."""
        now = read_json(run / "lease.json")
        if now is None:
            raise UserError(f"--run {run} has been moved or removed: stopping")
        if now.get("token") != self.token:
            other = f"attempt {now.get('attempt')} (pid {now.get('pid')} on {now.get('host')})"
            raise UserError(f"--run {run} was taken over by {other}; this is attempt {self.attempt}: stopping")
