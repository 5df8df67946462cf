"""W&B's shared mode: further nodes add their system metrics to the run of rank 0."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import threading
from pathlib import Path
from typing import Any

import psutil

from resnet_cifar import wandb_env
from resnet_cifar.tracking.base import Tracker

_FINISH_TIMEOUT = 5.0  # seconds to upload the rest at the end
_KILL_TIMEOUT = 2.0  # seconds for a killed process to be gone, which takes it for ever while its disk hangs


class NodeTracker(Tracker):
    """A writer that sends a node's system metrics (CPU, memory, GPUs) under its label, and nothing else.

    It opens in its own thread, since rank 0's first step would wait for it, and writes to a temporary folder, which may
    fail there, too: the run directory holds the segments of rank 0, which are uploaded together.
    """

    def __init__(self, facts: dict[str, str], node: int) -> None:
        self._facts, self._node = facts, node
        self._run: Any = None
        self._folder: tempfile.TemporaryDirectory | None = None

    def latest(self) -> int:
        """Opens the run, unless this node has no account, or its user wants no uploads from here."""
        if wandb_env.mode() not in (None, "online") or not wandb_env.has_account():
            return -1
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._folder = tempfile.TemporaryDirectory(prefix="wandb-node-", ignore_cleanup_errors=True)
        facts = dict(self._facts)
        settings = wandb.Settings(
            silent=True,
            console="off",
            base_url=facts.pop("base_url"),
            init_timeout=8,
            finish_timeout=_FINISH_TIMEOUT,
            finish_timeout_raises=True,
            stop_fn=lambda: None,  # rank 0 hears of it, too, and stops all
            disable_git=True,
            x_label=label(self._node),
            x_primary=False,
            x_update_finish_state=False,
            x_server_side_derived_summary=True,  # otherwise its own would replace that of rank 0
            x_skip_transaction_log=True,
        )
        wandb.setup()
        wandb.termsetup(settings, None)
        # Without `resume`, as W&B's documentation has it: it would send a copy of the config from before.
        self._run = wandb.init(mode="shared", settings=settings, dir=self._folder.name, **facts)
        return -1

    def log(self, row: dict[str, Any]) -> None:
        """Rows are rank 0's."""

    def summary(self, step: int, values: dict[str, Any], figures: dict[str, Path], files: list[Path]) -> None:
        """Results are rank 0's."""

    def finish(self, state: str) -> None:
        """Sends the latest metrics within a bounded time; the state of the run is rank 0's."""
        if self._run is not None:
            self._run.finish()
        self._clean_up()

    def abandon(self) -> None:
        """Kills W&B's service process, which Python would wait for at exit."""
        end_core()
        self._clean_up()

    def _clean_up(self) -> None:
        if self._folder is not None:
            self._folder.cleanup()


def label(node: int) -> str:
    """The name of this machine beside its curves, unique although machines may share a name."""
    return f"{node}-{socket.gethostname()}"


def end_core() -> None:
    """Kills the service process that W&B has started for this one."""
    for child in psutil.Process().children():
        if child.name() == wandb_env.SERVICE:
            child.kill()
            with contextlib.suppress(psutil.TimeoutExpired):
                child.wait(_KILL_TIMEOUT)
    # In a thread, since W&B waits for that process, too, without a limit.
    thread = threading.Thread(target=_tear_down, daemon=True)
    thread.start()
    thread.join(_KILL_TIMEOUT)


def _tear_down() -> None:
    import wandb

    with contextlib.suppress(Exception, SystemExit):  # it would exit with the exit code of the service
        wandb.teardown()
