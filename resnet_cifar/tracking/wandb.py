"""Weights & Biases: online with an account, otherwise an offline run in RUN/wandb; it never prompts."""

from __future__ import annotations

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

from resnet_cifar import wandb_env
from resnet_cifar.config.diff import fingerprint, to_dict
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Recipe, Track
from resnet_cifar.tracking import notify, wandb_nodes
from resnet_cifar.tracking.base import UPLOAD_SECONDS, TrackedRun, Tracker, keep_identity, kept_identity, kept_rows

_TITLE = 63  # characters of an alert's title
_SCORES = ("best/", "test/")  # prefixes of final numbers that belong to the model
_FINISH_TIMEOUT = 7.0  # seconds to upload the rest at the end; falling back to an offline run takes some more


class WandbTracker(Tracker):
    """One W&B run, stored as one segment per attempt: RUN/wandb/[offline-]run-DATE-ID.

    Every segment begins after the last row of the previous one, so that together they hold each row once. W&B's own
    variables win over what has no recipe field (names, groups, folders) and over a field at its default.
    """

    package = "wandb"

    @classmethod
    def check(cls, recipe: Recipe) -> None:
        """Raises UserError where a variable of W&B, or the project, is invalid."""
        wandb_env.check_variables(recipe.track.project)

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        self._wandb, self._run_dir, self._warn = wandb, run.path, run.warn
        self._logs_model = run.recipe.track.log_model
        self.upload_seconds = UPLOAD_SECONDS if self._logs_model else 0.0
        data = run.environment.get("data")
        self._model_facts = {"data_fingerprint": data, "recipe_fingerprint": fingerprint(run.recipe)}
        (run.path / "wandb").mkdir(exist_ok=True)
        self._is_shared = run.path / "wandb" / ".shared"
        file = run.path / "wandb" / ".id"
        is_new = run.identity is None and kept_identity(file) is None
        self.identity = _identity(file, run.identity)
        keep_identity(file, self.identity)
        if is_new and self.identity == os.environ.get("WANDB_RUN_ID"):
            self.named_run = f"WANDB_RUN_ID={self.identity}"
        self._folder = wandb_env.wandb_dir() or run.path
        folder = self._folder / "wandb"
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["WANDB_DATA_DIR"] = str((folder / "data").resolve())  # staging area of artifacts
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it would print when the server is unreachable
        project = run.recipe.track.project
        named = {"project": project} if project != Track().project or not os.environ.get("WANDB_PROJECT") else {}
        named |= {} if os.environ.get("WANDB_NAME") else {"name": run.path.name}
        if wandb_env.in_sweep():  # the agent's variables say which run of which project this is
            named.pop("project", None)
        else:
            named["id"] = self.identity
        self._options: dict[str, Any] = {
            **named,
            "dir": str(self._folder),
            "resume": "allow",
            "config": {**_config(run.recipe), "environment": run.environment},
        }
        self.recovery_hint = f", and `{self._upload('--include-online ')}` uploads the rows that W&B has stored"
        self._has_warned = self._has_fallen_back = self._has_given_up = False
        self._events = notify.Events(run) if run.recipe.track.notify == "wandb" else None
        self._after = -1  # this attempt logs the rows after this step
        self._result: Callable[[], None] = lambda: None
        mode = wandb_env.mode() or ("online" if wandb_env.has_account() else "offline")
        before = set(folder.iterdir())
        alone = self._why_alone(run.nodes, mode, is_new)
        try:
            self._open("shared" if alone is None else mode)
        except ValueError as error:  # W&B checks the WANDB_* variables with pydantic
            raise UserError(wandb_env.invalid_variable(error)) from None
        except (wandb.errors.CommError, wandb.errors.UsageError) as error:
            wandb.teardown()  # otherwise the id counts as in use
            for begun in set(folder.glob(f"run-*-{self.identity}")) - before:
                shutil.rmtree(begun)
            key = "; the key is that of WANDB_API_KEY" if os.environ.get("WANDB_API_KEY") else ""
            run.warn(f"W&B is offline for this run ({str(error).splitlines()[0]}{key})")
            self._open("offline")
        else:
            if alone:
                run.warn(f"W&B gets the system metrics of the first node only ({alone})")
        self.commands = self._commands()

    @classmethod
    def on_node(cls, facts: dict[str, str], node: int) -> Tracker:
        """The writer of a further node."""
        return wandb_nodes.NodeTracker(facts, node)

    def latest(self) -> int:
        """Online the server decides, offline the segments: a killed process may have lost the last second."""
        if self._run.settings.mode == "disabled":
            return -1
        if not self._run.offline:
            try:
                self._after = self._run.summary.get("step", -1)
            except Exception as error:
                self._go_offline(error)
            else:
                for segment in (self._folder / "wandb").glob(f"offline-run-*-{self.identity}/run-*.wandb"):
                    segment.with_name(f"{segment.name}.synced").touch()  # already uploaded: `wandb sync` skips it
                return self._after
        segments = sorted(
            (self._folder / "wandb").glob(f"*run-*-{self.identity}"),
            key=lambda segment: segment.name.removeprefix("offline-"),
        )
        self._after = next((step for segment in reversed(segments) if (step := _step(segment)) >= 0), -1)
        return self._after

    def log(self, row: dict[str, Any]) -> None:
        """Logs a row of metrics.jsonl."""
        self._do(lambda: self._run.log(row), row["step"] - 1)
        if self._events and (event := self._events.of_row(row)):
            self._alert(event)

    def summary(self, step: int, values: dict[str, Any], figures: dict[str, Path], files: list[Path]) -> None:
        """Logs numbers for the runs table, a row with figures and report, and the files and the model as artifacts."""
        if self._events:
            self._events.of_results(values)

        def work() -> None:
            self._check_server()  # uploading an artifact blocks without a server
            media = {f"figures/{name}": self._wandb.Image(str(file)) for name, file in figures.items()}
            page = self._run_dir / "report" / "index.html"
            if figures and page.is_file():
                media["report"] = self._wandb.Html(str(page), inject=False)
            if media:
                self._run.log({"step": step, **media})
            self._run.summary.update(values)
            self._run.log_artifact(self._artifact("result", files))
            if self._logs_model:
                self._log_model(values.get("best/step", step), values)

        self._do(work, step)
        self._result = work

    def finish(self, state: str) -> None:
        """Ends the run within a bounded time; an interrupted one shows as preempted until it is resumed.

        A sweep gives an interrupted trial to another agent, but neither a finished nor a stopped one.
        """

        def work() -> None:
            self._check_server()
            if state == "interrupted":
                self._run.mark_preempting()
            if self._events:
                self._alert(self._events.of_end(state))
            self._run.finish(exit_code=int(state not in ("finished", "stopped")))

        self._do(work, sys.maxsize)

    def abandon(self) -> None:
        """Kills W&B's service process, which Python would wait for at exit."""
        self._has_warned = self._has_fallen_back = True
        wandb_nodes.end_core()

    # W&B prints through these methods: see `_open`.

    def info(self, text: str) -> None:
        """Discards informational messages."""

    def warning(self, text: str) -> None:
        """Notes that W&B has given up uploading: the missing rows are then stored offline."""
        if "uploading" in text:
            self._has_given_up = True

    error = warning

    def _warn_once(self, problem: str) -> None:
        """Later problems follow from the first."""
        if not self._has_warned:
            self._has_warned = True
            self._warn(f"W&B: {problem}; `{self._upload()}` uploads the rest")

    def _open(self, mode: str) -> None:
        settings = self._wandb.Settings(
            silent=True,
            console="off",
            x_transaction_log_flush_interval=1,  # the default of 15 s would be lost when killed
            init_timeout=8,
            finish_timeout=_FINISH_TIMEOUT,
            finish_timeout_raises=True,
            # An agent sends its own signal to a trial that is stopped; a second one would end it before it has saved.
            stop_fn=(lambda: None) if wandb_env.in_sweep() else None,
        )
        self._wandb.setup()
        self._wandb.termsetup(settings, self)
        if mode == "shared":
            settings.x_label = wandb_nodes.label(0)
        self._run = self._wandb.init(mode=mode, settings=settings, **self._options)
        self.for_nodes = None
        if mode == "shared":
            self._is_shared.touch()
            run = self._run
            self.for_nodes = {"id": run.id, "entity": run.entity, "project": run.project}
            self.for_nodes["base_url"] = run.settings.base_url
        # Rows carry their own axes: W&B's internal step drops late rows after a resume.
        self._run.define_metric("step")
        self._run.define_metric("epoch")
        self._run.define_metric("*", step_metric="step")

    def _why_alone(self, nodes: int, mode: str, is_new: bool) -> str | None:
        """None where further nodes can write to this run, in W&B's shared mode; otherwise why not ("": no other node).

        A run stays in the mode that it began in: in shared mode the server numbers the rows, otherwise the client does,
        and a run that has both loses rows.
        """
        if mode == "online" and self._is_shared.exists():
            return None
        if nodes == 1 or mode == "disabled":
            return ""
        if mode == "offline":
            return "W&B is offline"
        return wandb_env.lacks_shared_mode() or None if is_new else "this W&B run began without the others"

    def _do(self, work: Callable[[], None], rows_until: int) -> None:
        """Runs `work`; on failure switches to an offline segment, logs the missing rows and runs it there.

        After an online segment all rows of this attempt are logged again: which of them the server has is unknown.
        """
        try:
            work()
        except Exception as error:
            was_offline = self._run.offline
            self._go_offline(error)
            for row in kept_rows(self._run_dir, self.latest() if was_offline else self._after, rows_until):
                self._run.log(row)
            self._result()
            work()

    def _go_offline(self, error: Exception) -> None:
        """Opens an offline segment; raises `error` if that has been tried before."""
        if self._has_fallen_back:
            raise error
        self._has_fallen_back = True
        self._warn_once(f"continuing offline ({' '.join(str(error).split()) or type(error).__name__})")
        wandb_nodes.end_core()  # rows of the last second may be missing from its segment
        self._open("offline")

    def _is_online(self) -> bool:
        return not self._run.offline and self._run.settings.mode != "disabled"

    def _check_server(self) -> None:
        """Raises ConnectionError if the server of an online run does not answer: W&B would wait for it."""
        import requests

        if not self._is_online():
            return
        if self._has_given_up:
            raise ConnectionError("W&B has given up uploading")
        server = self._run.settings.base_url
        for _ in range(2):  # a hiccup is no reason to end a healthy run offline
            try:
                status = requests.get(server, timeout=wandb_env.SERVER_TIMEOUT, allow_redirects=False).status_code
                problem = f"answers {status}" if status >= 500 else ""
            except requests.exceptions.SSLError:  # W&B has certificates of its own, and its own opinion
                problem = ""
            except requests.RequestException as error:
                problem = f"does not answer: {type(error).__name__}"
            if not problem:
                return
        raise ConnectionError(f"{server} {problem}")

    def _alert(self, event: dict[str, Any]) -> None:
        title = f"{event['run']}: {event['event']}"
        self._run.alert(title=title[:_TITLE], text=notify.text(event))

    def _log_model(self, step: int, values: dict[str, Any]) -> None:
        """Logs RUN/model with its recipe; online, waits for the upload. Raises wandb's error if that takes too long."""
        scores = {name.removeprefix("best/"): value for name, value in values.items() if name.startswith(_SCORES)}
        files = [*sorted((self._run_dir / "model").iterdir()), self._run_dir / "recipe.yaml"]
        artifact = self._artifact("model", files, {**self._model_facts, **scores})
        logged = self._run.log_artifact(artifact, aliases=["latest", "best", f"step-{step}"])
        if self._is_online():
            logged.wait(int(UPLOAD_SECONDS))

    def _artifact(self, kind: str, files: list[Path], metadata: dict[str, Any] | None = None) -> Any:
        """The artifact KIND-ID of type KIND."""
        artifact = self._wandb.Artifact(f"{kind}-{self.identity}", kind, metadata=metadata)
        for file in files:
            entry = artifact.add_file(str(file), skip_cache=True)
            if self._run.offline:  # relative, so that a moved run directory still uploads
                entry.local_path = os.path.relpath(entry.local_path, self._folder)
        return artifact

    def _upload(self, option: str = "") -> str:
        """The paths of artifact files are relative to the folder, which with WANDB_DIR may hold other runs too."""
        only = "" if self._folder == self._run_dir else f"-{self.identity}"
        return f"cd {shlex.quote(str(self._folder))} && wandb sync {option}wandb/*run-*{only}"

    def _commands(self) -> tuple[tuple[str, str], ...]:
        if self._run.settings.mode == "disabled":
            return ()
        if not self._run.offline:
            return (("curves", str(self._run.url)),)
        # One segment per attempt, uploaded together and in order.
        return (
            ("curves", f"wandb leet run {shlex.quote(str(self._folder / 'wandb'))}"),
            ("upload", self._upload()),
        )


def _config(recipe: Recipe) -> dict[str, Any]:
    """The recipe with phases by number: charts of W&B reach no elements of lists."""
    found = to_dict(recipe)
    return {**found, "phases": {str(number): phase for number, phase in enumerate(found["phases"])}}


def _step(segment: Path) -> int:
    """The step of the last row in a segment, read by W&B's own reader; -1 without rows."""
    steps = [-1]
    for file in segment.glob("run-*.wandb"):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(file)]
        found = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        with contextlib.suppress(ValueError):
            steps.append(json.loads(found.stdout)["summary"].get("step", -1))
    return max(steps)


def _identity(file: Path, saved: str | None) -> str:
    """The W&B id: that of earlier attempts, so that each continues one run; a sweep has its own."""
    given = os.environ.get("WANDB_RUN_ID")
    return given if wandb_env.in_sweep() else kept_identity(file) or saved or given or secrets.token_hex(4)
