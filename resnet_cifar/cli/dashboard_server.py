"""Serves the dashboard on 127.0.0.1: the page at /, its changes as server-sent events, and the reports of its runs.

Run directories are read only while a browser has the page open.
"""

from __future__ import annotations

import contextlib
import json
import mimetypes
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from resnet_cifar.config.errors import UserError
from resnet_cifar.reporting.dashboard.view import Dashboard, View

_HOST = "127.0.0.1"
_NAMES = (_HOST, "localhost")  # that a browser may know this machine by; a page of another site has another one
_EVENTS, _REPORT = "/events", "/report"
_SILENCE = 15.0  # seconds after which a comment is sent, so that a closed connection is noticed


def report_address(key: str, run: Path) -> str:
    """The address of the report of the run with this key."""
    return f"{_REPORT}{key}/index.html"


class DashboardServer(ThreadingHTTPServer):
    """Listens from construction on, and answers inside its context. `port`: 0 is any free one. Raises OSError.

    Runs are read every `interval` seconds, or `idle_factor` times as long as reading takes.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, dashboard: Dashboard, port: int, interval: float, idle_factor: float) -> None:
        self.dashboard, self.interval, self._idle_factor = dashboard, interval, idle_factor
        self.ended = threading.Event()
        self._lock, self._next, self._view = threading.Lock(), 0.0, dashboard.look()
        super().__init__((_HOST, port), _Handler)

    def __enter__(self) -> DashboardServer:
        threading.Thread(target=self.serve_forever, args=(0.1,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        self.shutdown()
        self.server_close()

    def look(self) -> View:
        """The runs as they are now, or were a moment ago: all browsers share one look."""
        with self._lock:
            began = time.monotonic()
            if began >= self._next:
                with contextlib.suppress(UserError):  # all runs have been removed: the page keeps what it shows
                    self._view = self.dashboard.look()
                now = time.monotonic()
                self._next = now + max(0.9 * self.interval, self._idle_factor * (now - began))
            return self._view

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that closes its connection is no error."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: DashboardServer

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if self.headers.get("Host", "").partition(":")[0] not in _NAMES:
            self.send_error(HTTPStatus.FORBIDDEN, "only browsers of this machine are answered")
        elif path == "/":
            view = self.server.look()
            self._answer(self.server.dashboard.page(view, events=_EVENTS).encode(), "text/html; charset=utf-8")
        elif path == _EVENTS:
            self._send_events()
        elif (file := self._report_file(path)) is not None:
            self._answer(file.read_bytes(), mimetypes.guess_type(file.name)[0] or "application/octet-stream")
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def log_message(self, *words: object) -> None:
        """Requests are not printed."""

    def _report_file(self, path: str) -> Path | None:
        """The file of a run's report with this address: of a run on the page, and of nothing else."""
        for key in self.server.dashboard.feeds if path.startswith(_REPORT) else ():
            folder, file = Path(key, "report"), Path(key, "report", path.removeprefix(f"{_REPORT}{key}/"))
            if path.startswith(f"{_REPORT}{key}/") and file.resolve().is_relative_to(folder.resolve()):
                return file if file.is_file() else None
        return None

    def _answer(self, content: bytes, kind: str) -> None:
        self._start(kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _start(self, kind: str) -> None:
        self.send_response(HTTPStatus.OK)
        for name, value in (
            ("Content-Type", kind),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
        ):
            self.send_header(name, value)

    def _send_events(self) -> None:
        """All parts of the page, and then those that change, until the browser or the command ends."""
        self._start("text/event-stream")
        self.end_headers()
        sent: dict[str, Any] = {}
        spoke = time.monotonic()
        while not self.server.ended.is_set():
            view = self.server.look()
            if changed := view.changes(sent):
                self.wfile.write(f"data: {json.dumps(changed, allow_nan=False)}\n\n".encode())
            elif time.monotonic() - spoke > _SILENCE:
                self.wfile.write(b": no news\n\n")
            if changed or time.monotonic() - spoke > _SILENCE:
                self.wfile.flush()
                spoke = time.monotonic()
            sent = view.parts
            self.server.ended.wait(self.server.interval)
