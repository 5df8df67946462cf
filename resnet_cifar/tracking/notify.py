"""Messages about a run: that an attempt ended, and how, and that the accuracy has reached a target.

`track.notify` names who gets them. An address may be a secret, so it can come from a variable, and no message, file or
page shows it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import urllib.parse
from pathlib import Path
from typing import Any

from resnet_cifar.atomic_io import read_json
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import is_web_address
from resnet_cifar.tracking.base import TrackedRun, Tracker

_WAITS = (0.0, 0.5, 2.0)  # seconds before each attempt to send a message
_TIMEOUT = 2.0  # seconds for an answer; with _WAITS within what trackers have for their end
_AGAIN = (408, 429)  # of the answers below 500, those after which the same message may succeed


def check(notify: str) -> None:
    """Raises UserError if the variable that `track.notify` names does not hold an address."""
    kind, _, variable = notify.partition(":")
    if kind in ("env", "slack") and not is_web_address(os.environ.get(variable, "")):
        raise UserError(f"track.notify {notify!r}: {variable} holds no address: set it to https://HOST/PATH")


class Events:
    """What is worth a message. `run`: the run that is tracked."""

    def __init__(self, run: TrackedRun) -> None:
        self._path, self._target = run.path, run.recipe.track.notify_accuracy
        self._scores: dict[str, float] = {}
        self._is_reached = not self._target or any(map(self._reaches, _rows(run.path)))  # by an earlier attempt

    def of_row(self, row: dict[str, Any]) -> dict[str, Any] | None:
        """The message that a row of metrics.jsonl gives reason to."""
        self._scores |= {name: row[name] for name in ("val/accuracy",) if name in row}
        if self._is_reached or not self._reaches(row):
            return None
        self._is_reached = True
        return self._event("accuracy", row["step"])

    def of_results(self, values: dict[str, Any]) -> None:
        """Adds the final results to later messages."""
        names = {"best/val/accuracy": "val/accuracy", "test/accuracy": "test/accuracy"}
        self._scores |= {name: values[key] for key, name in names.items() if key in values}

    def of_end(self, state: str) -> dict[str, Any]:
        """The message that an attempt ended: see `Tracker.finish`."""
        with contextlib.suppress(UserError, OSError):
            status = read_json(self._path / "status.json") or {}
            return self._event(state, status.get("step"), status.get("why"))
        return self._event(state, None)

    def _reaches(self, row: dict[str, Any]) -> bool:
        return row.get("val/accuracy", 0.0) >= self._target

    def _event(self, event: str, step: int | None, why: str | None = None) -> dict[str, Any]:
        facts = {"run": self._path.resolve().name, "host": socket.gethostname(), "job": os.environ.get("SLURM_JOB_ID")}
        return {"event": event, **facts, "time": time.time(), "step": step, "why": why, **self._scores}


def text(event: dict[str, Any]) -> str:
    """The message for a person: `mine finished at step 313: validation accuracy 0.9120, test accuracy 0.9050`."""
    ended = "has reached its target" if event["event"] == "accuracy" else event["event"]
    where = "" if event["step"] is None else f" at step {event['step']:,}"
    why = f" ({event['why']})" if event["why"] else ""
    names = {"val/accuracy": "validation accuracy", "test/accuracy": "test accuracy"}
    scores = ", ".join(f"{label} {event[name]:.4f}" for name, label in names.items() if name in event)
    return f"{event['run']} {ended}{where}{why}{scores and f': {scores}'}"


class Notifier(Tracker):
    """Posts each message as a JSON object, or as Slack's, to the address of `track.notify`."""

    def __init__(self, run: TrackedRun) -> None:
        self._events, self._warn = Events(run), run.warn
        self._kind, _, rest = run.recipe.track.notify.partition(":")
        self._address = os.environ[rest] if self._kind in ("env", "slack") else run.recipe.track.notify
        self._is_abandoned = threading.Event()

    def log(self, row: dict[str, Any]) -> None:
        """Sends a message if the row reaches the target."""
        if event := self._events.of_row(row):
            self._send(event)

    def summary(self, step: int, values: dict[str, Any], figures: dict[str, Path], files: list[Path]) -> None:
        """Keeps the final results for the last message."""
        self._events.of_results(values)

    def finish(self, state: str) -> None:
        """Sends how the attempt ended."""
        self._send(self._events.of_end(state))

    def abandon(self) -> None:
        """Ends the attempts to send."""
        self._is_abandoned.set()

    def _send(self, event: dict[str, Any]) -> None:
        import requests

        body, why = {"text": text(event)} if self._kind == "slack" else event, ""
        for seconds in _WAITS:
            if self._is_abandoned.wait(seconds):
                break
            try:
                status = requests.post(self._address, json=body, timeout=_TIMEOUT, allow_redirects=False).status_code
            except requests.RequestException as error:  # whose text may hold the address
                why = type(error).__name__
                continue
            if status < 300:
                return
            why = f"it answered {status}"
            if status < 500 and status not in _AGAIN:
                break
        host = urllib.parse.urlsplit(self._address).hostname
        self._warn(f"track.notify: {host} did not take the message that the run {text(event)} ({why})")


def _rows(run: Path) -> list[dict[str, Any]]:
    """The rows of an earlier attempt."""
    file = run / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
