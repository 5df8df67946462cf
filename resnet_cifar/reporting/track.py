"""Trackers behind one small protocol: `log`, `summary`, `finish`. Only rank 0 has one."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol

from resnet_cifar.recipe import Mistake, Recipe, to_dict

_DEFAULT_URL = "https://api.wandb.ai"


class Tracker(Protocol):
    """Where a run's rows are drawn.

    `commands` tells the user how to see them: (what, command). `identity` is kept in checkpoints, so that whoever takes
    one up continues the same curve.
    """

    commands: list[tuple[str, str]]
    identity: str | None

    def log(self, row: dict[str, Any]) -> None:
        """Adds a row of metrics.jsonl."""

    def summary(self, values: dict[str, Any]) -> None:
        """Sets the run's final numbers."""

    def finish(self, state: str) -> None:
        """Ends the run as `finished`, `interrupted` or `failed`, within a bounded time."""


class Nothing:
    """The tracker `none`."""

    commands: ClassVar[list[tuple[str, str]]] = []
    identity = None

    def log(self, row: dict[str, Any]) -> None:
        """Does nothing."""

    def summary(self, values: dict[str, Any]) -> None:
        """Does nothing."""

    def finish(self, state: str) -> None:
        """Does nothing."""


class Wandb:
    """Weights & Biases: online with an account, else a real offline run in RUN/wandb; it never asks."""

    def __init__(
        self,
        recipe: Recipe,
        run: Path,
        environment: dict[str, Any],
        warn: Callable[[str], None],
        identity: str | None,
    ) -> None:
        import wandb

        folder = run / "wandb"
        folder.mkdir(exist_ok=True)
        # Artifacts wait beside the run, so that a copied run syncs whole.
        os.environ.setdefault("WANDB_DATA_DIR", str((folder / "data").resolve()))
        self.identity = _identity(folder / ".id", identity)
        options: dict[str, Any] = {
            "project": recipe.track.project,
            "name": run.name,
            "id": self.identity,
            "dir": str(run),
            "resume": "allow",
            "config": {**to_dict(recipe), "environment": environment},
            # The log is flushed every 15 s by default, and a killed run would lose them.
            "settings": wandb.Settings(
                silent=True, console="off", x_transaction_log_flush_interval=1, finish_timeout=10, init_timeout=8
            ),
        }
        mode = os.environ.get("WANDB_MODE") or ("online" if _has_account() else "offline")
        try:
            self._run = wandb.init(mode=mode, **options)
        except ValueError as error:  # of pydantic, which checks WANDB_* variables
            raise Mistake(f"a WANDB_ variable is wrong: {' '.join(str(error).split())}") from None
        except (wandb.errors.CommError, wandb.errors.UsageError) as error:
            wandb.teardown()  # without it the id counts as in use
            for begun in folder.glob(f"run-*-{options['id']}"):
                shutil.rmtree(begun)
            warn(f"W&B is offline for this run ({str(error).splitlines()[0]})")
            self._run = wandb.init(mode="offline", **options)
        # Rows bring their own axes: W&B's own step drops what comes late after a resume.
        self._run.define_metric("step")
        self._run.define_metric("epoch")
        self._run.define_metric("*", step_metric="step")
        self.commands = self._commands(folder)

    def log(self, row: dict[str, Any]) -> None:
        """Adds a row of metrics.jsonl."""
        self._run.log(row)

    def summary(self, values: dict[str, Any]) -> None:
        """Sets the run's final numbers."""
        self._run.summary.update(values)

    def finish(self, state: str) -> None:
        """Ends the run within a bounded time; an interrupted one shows as preempted until it goes on."""
        if state == "interrupted":
            self._run.mark_preempting()
        self._run.finish(exit_code=int(state != "finished"))

    def _commands(self, folder: Path) -> list[tuple[str, str]]:
        if self._run.settings.mode == "disabled":
            return []
        if not self._run.offline:
            return [("curves", str(self._run.url))]
        # Every start of an offline run leaves a piece; they are uploaded together, in order.
        return [("curves", f"wandb leet run {folder}"), ("upload", f"wandb sync {folder}/offline-run-*")]


def start(
    recipe: Recipe,
    run: Path,
    environment: dict[str, Any],
    warn: Callable[[str], None],
    identity: str | None = None,
) -> Tracker:
    """The tracker that `track.to` names, going on as `identity`; `warn` hears what the user should know."""
    return Wandb(recipe, run, environment, warn, identity) if recipe.track.to == "wandb" else Nothing()


def endpoint() -> str:
    """The address of the W&B server."""
    return os.environ.get("WANDB_BASE_URL", _DEFAULT_URL)


def _identity(file: Path, saved: str | None) -> str:
    """The run's id, made once and kept with the run, so that every start of it continues one W&B run."""
    if not file.is_file():
        file.write_text(saved or secrets.token_hex(4))
    return file.read_text()


def _has_account() -> bool:
    from requests.utils import get_netrc_auth

    return bool(os.environ.get("WANDB_API_KEY") or get_netrc_auth(endpoint()))
