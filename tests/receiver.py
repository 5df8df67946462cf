"""An HTTP server on 127.0.0.1 that takes the messages of `track.notify`."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Receiver(ThreadingHTTPServer):
    """`messages`: the objects it has accepted, in order. `statuses`: what it answers first; then 204."""

    daemon_threads = True

    def __init__(self, *statuses: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/hook/SECRET"
        self.messages: list[dict[str, Any]] = []
        self.requests = 0
        self.statuses = list(statuses)

    def __enter__(self) -> Receiver:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests += 1
        status = self.server.statuses.pop(0) if self.server.statuses else 204
        if status == 204:
            self.server.messages.append(body)
        self.send_response(status)
        self.end_headers()

    def log_message(self, format: str, *values: object) -> None:
        """Nothing."""
