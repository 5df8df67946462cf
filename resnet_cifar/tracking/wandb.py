"""Weights & Biases: online with an account, else a real offline run in RUN/wandb; it never asks."""

from __future__ import annotations

import configparser
import contextlib
import json
import os
import secrets
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from resnet_cifar.config.diff import to_dict
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Recipe
from resnet_cifar.tracking.base import Tracker, kept_rows

_DEFAULT_URL = "https://api.wandb.ai"
_ANSWER = 2.0  # seconds in which a server that is there answers
_FINISH = 7.0  # seconds for what is not uploaded yet, at the end; a piece that is written instead takes some more


class Wandb(Tracker):
    """One W&B run, in as many pieces as the run had starts: RUN/wandb/[offline-]run-DATE-ID.

    Every piece begins after the last row of the one before, so that together they hold each row once.
    """

    def __init__(
        self,
        recipe: Recipe,
        run: Path,
        environment: dict[str, Any],
        warn: Callable[[str], None],
        identity: str | None,
    ) -> None:
        import wandb

        self._wandb, self._folder, self._warn = wandb, run, warn
        folder = run / "wandb"
        folder.mkdir(exist_ok=True)
        os.environ["WANDB_DATA_DIR"] = str((folder / "data").resolve())  # where artifacts wait to be uploaded
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it would print where the server is gone
        self.identity = _identity(folder / ".id", identity)
        self._options: dict[str, Any] = {
            "project": recipe.track.project,
            "name": run.name,
            "id": self.identity,
            "dir": str(run),
            "resume": "allow",
            "config": {**to_dict(recipe), "environment": environment},
        }
        self.rest = f", and `{self._upload('--include-online ')}` uploads those that W&B has"
        self._has_told = self._has_fallen = self._has_given_up = False
        self._after = 0  # the step from which on this start brings rows
        self._result: Callable[[], None] = lambda: None
        mode = os.environ.get("WANDB_MODE") or ("online" if _has_account() else "offline")
        before = set(folder.iterdir())
        try:
            self._open(mode)
        except ValueError as error:  # of pydantic, which checks WANDB_* variables
            raise UserError(f"a WANDB_ variable is wrong: {' '.join(str(error).split())}") from None
        except (wandb.errors.CommError, wandb.errors.UsageError) as error:
            wandb.teardown()  # without it the id counts as in use
            for begun in set(folder.glob(f"run-*-{self.identity}")) - before:
                shutil.rmtree(begun)
            warn(f"W&B is offline for this run ({str(error).splitlines()[0]})")
            self._open("offline")
        self.commands = self._commands()

    def latest(self) -> int:
        """Online what the server has counts, offline what lies in the pieces: a kill may have taken the last second."""
        if self._run.settings.mode == "disabled":
            return 0
        if not self._run.offline:
            try:
                self._after = self._run.summary.get("step", 0)
            except Exception as error:
                self._go_offline(error)
            else:
                for piece in (self._folder / "wandb").glob("offline-run-*/run-*.wandb"):
                    piece.with_name(f"{piece.name}.synced").touch()  # its rows are uploaded now: `wandb sync` skips it
                return self._after
        pieces = sorted((self._folder / "wandb").glob("*run-*"), key=lambda piece: piece.name.removeprefix("offline-"))
        self._after = next((step for piece in reversed(pieces) if (step := _step(piece))), 0)
        return self._after

    def log(self, row: dict[str, Any]) -> None:
        """Adds a row of metrics.jsonl."""
        self._do(lambda: self._run.log(row), row["step"] - 1)

    def summary(self, step: int, values: dict[str, Any], figures: dict[str, Path], files: list[Path]) -> None:
        """Numbers for the table of runs, a row with the figures, and the files as an artifact."""

        def work() -> None:
            self._check_server()  # an artifact waits for it
            images = {f"figures/{name}": self._wandb.Image(str(file)) for name, file in figures.items()}
            if images:
                self._run.log({"step": step, **images})
            self._run.summary.update(values)
            self._run.log_artifact(self._artifact(files))

        self._do(work, step)
        self._result = work

    def finish(self, state: str) -> None:
        """Ends the run within a bounded time; an interrupted one shows as preempted until it goes on."""

        def work() -> None:
            self._check_server()
            if state == "interrupted":
                self._run.mark_preempting()
            self._run.finish(exit_code=int(state != "finished"))

        self._do(work, sys.maxsize)

    def abandon(self) -> None:
        """Ends W&B's own process, which Python would wait for at its end."""
        self._has_told = self._has_fallen = True
        self._end_core()

    # What W&B would print comes here: see `_open`.

    def info(self, text: str) -> None:
        """Nothing that a user needs."""

    def warning(self, text: str) -> None:
        """Hears that W&B has given up uploading: what it lacks is kept offline in the end."""
        if "uploading" in text:
            self._has_given_up = True

    error = warning

    def _tell(self, trouble: str) -> None:
        """Once: what comes later follows from it."""
        if not self._has_told:
            self._has_told = True
            self._warn(f"W&B: {trouble}; `{self._upload()}` uploads the rest")

    def _open(self, mode: str) -> None:
        settings = self._wandb.Settings(
            silent=True,
            console="off",
            x_transaction_log_flush_interval=1,  # of 15 s, which a killed run would lose
            init_timeout=8,
            finish_timeout=_FINISH,
            finish_timeout_raises=True,
        )
        self._wandb.setup()
        self._wandb.termsetup(settings, self)
        self._run = self._wandb.init(mode=mode, settings=settings, **self._options)
        # Rows bring their own axes: W&B's own step drops what comes late after a resume.
        self._run.define_metric("step")
        self._run.define_metric("epoch")
        self._run.define_metric("*", step_metric="step")

    def _do(self, work: Callable[[], None], rows_until: int) -> None:
        """Does `work`; where that fails, goes on offline and does it there.

        From an online piece all of this start's rows come again: nobody can tell which of them the server has.
        """
        try:
            work()
        except Exception as error:
            was_offline = self._run.offline
            self._go_offline(error)
            for row in kept_rows(self._folder, self.latest() if was_offline else self._after, rows_until):
                self._run.log(row)
            self._result()
            work()

    def _go_offline(self, error: Exception) -> None:
        """In a new piece; raises `error` where that has been tried."""
        if self._has_fallen:
            raise error
        self._has_fallen = True
        self._tell(f"it goes on offline ({' '.join(str(error).split()) or type(error).__name__})")
        self._end_core()
        self._open("offline")

    def _check_server(self) -> None:
        """Raises ConnectionError where an online run's server does not answer: W&B would wait for it."""
        import requests

        if self._run.offline or self._run.settings.mode == "disabled":
            return
        if self._has_given_up:
            raise ConnectionError("it has given up uploading")
        server = self._run.settings.base_url
        try:
            status = requests.get(server, timeout=_ANSWER, allow_redirects=False).status_code
        except requests.RequestException as error:
            raise ConnectionError(f"{server} does not answer: {type(error).__name__}") from None
        if status >= 500:
            raise ConnectionError(f"{server} answers {status}")

    def _end_core(self) -> None:
        """At once: what it was given in the last second may be missing in its piece."""
        for child in psutil.Process().children():
            if child.name() == "wandb-core":
                child.kill()
                child.wait()
        with contextlib.suppress(Exception, SystemExit):  # it would end this process with the other's code
            self._wandb.teardown()

    def _artifact(self, files: list[Path]) -> Any:
        """Scores and predictions, not the weights: a ResNet-50's 94 MB would not be uploaded within the bounded end."""
        artifact = self._wandb.Artifact(f"result-{self.identity}", "result")
        for file in files:
            entry = artifact.add_file(str(file), skip_cache=True)
            if self._run.offline:  # from inside the run folder it is found wherever that was moved
                entry.local_path = os.path.relpath(entry.local_path, self._folder)
        return artifact

    def _upload(self, option: str = "") -> str:
        """The files of an artifact are found from inside the run folder."""
        return f"cd {shlex.quote(str(self._folder))} && wandb sync {option}wandb/*run-*"

    def _commands(self) -> tuple[tuple[str, str], ...]:
        if self._run.settings.mode == "disabled":
            return ()
        if not self._run.offline:
            return (("curves", str(self._run.url)),)
        # Every start leaves a piece; they are uploaded together, in order.
        return (
            ("curves", f"wandb leet run {shlex.quote(str(self._folder / 'wandb'))}"),
            ("upload", self._upload()),
        )


def endpoint() -> str:
    """The address of the W&B server: of the environment, or what `wandb login --host` has kept."""
    kept = configparser.ConfigParser()
    folder = Path(os.environ.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb")
    with contextlib.suppress(configparser.Error, OSError):
        kept.read(folder / "settings")
    return os.environ.get("WANDB_BASE_URL") or kept.get("default", "base_url", fallback=_DEFAULT_URL)


def _step(piece: Path) -> int:
    """The step of the last row in a piece, by W&B's own reader; 0 where there is none."""
    steps = [0]
    for file in piece.glob("run-*.wandb"):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(file)]
        found = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        with contextlib.suppress(ValueError):
            steps.append(json.loads(found.stdout)["summary"].get("step", 0))
    return max(steps)


def _identity(file: Path, saved: str | None) -> str:
    """The run's id, made once and kept with the run, so that every start of it continues one W&B run."""
    if not file.is_file():
        file.write_text(saved or secrets.token_hex(4))
    return file.read_text()


def _has_account() -> bool:
    from requests.utils import get_netrc_auth

    return bool(os.environ.get("WANDB_API_KEY") or get_netrc_auth(endpoint()))
