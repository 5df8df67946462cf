"""A stand-in for the Hugging Face hub on loopback, so that tests run the real code without a network."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from hub_uploads import Uploads, blob_facts, card_facts


@dataclass
class _Refusal:
    path: str
    status: int
    code: str
    times: float
    after: int


class HubServer(ThreadingHTTPServer):
    """Serves ROOT/{datasets,models}/OWNER/NAME: `with HubServer(root) as hub: ... hub.url, hub.requests`.

    `commit` is the newest commit of every repository; `requests` are "METHOD /path" in order; `connections` counts
    callers, those of whom a hub that is `gone` hangs up on included. `pushes` holds (commit, root) of pushes that each
    arrive just after somebody has asked what a data set's newest commit is; what is replaced can still be asked for.
    `uploads` takes what owners of accounts push, into ROOT/models.
    """

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.commit = "1" * 40
        self.requests: list[str] = []
        self.connections = 0
        self.gone = False
        self.pushes: list[tuple[str, Path]] = []
        self.uploads = Uploads()
        self._older: dict[str, Path] = {}
        self._refusals: list[_Refusal] = []
        self._lock = threading.Lock()

    def __enter__(self) -> HubServer:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.shutdown()
        self.server_close()

    def refuse(self, path: str, status: int, code: str = "", times: float = float("inf"), after: int = 0) -> None:
        """Answers the next `times` requests whose path holds the regular expression with `status`; 0 hangs up on them,
        `after` bytes of what they send.

        `code` is the hub's X-Error-Code, such as RepoNotFound or GatedRepo.
        """
        self._refusals.append(_Refusal(path, status, code, times, after))

    def requests_for(self, path: str) -> list[str]:
        """The requests so far whose path holds the regular expression."""
        return [request for request in self.requests if re.search(path, request)]

    def look(self) -> str:
        """The newest commit, as an answer to who asks for it."""
        with self._lock:
            newest = self.commit
            if self.pushes:
                self._older[self.commit] = self.root
                self.commit, self.root = self.pushes.pop(0)
            return newest

    def newest(self, model: str) -> str:
        """The newest commit of a model."""
        return self.uploads.commits.get(model, [self.commit])[-1]

    def root_of(self, revision: str | None) -> Path:
        """The files as they were at a commit, or as they are now."""
        return self._older.get(revision or "", self.root)

    def take_refusal(self, request: str) -> _Refusal | None:
        """Notes a request; the refusal that meets it, which is then used up by one."""
        with self._lock:
            self.requests.append(request)
            for refusal in self._refusals:
                if refusal.times > 0 and re.search(refusal.path, request):
                    refusal.times -= 1
                    return refusal
            return None

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Counts a caller, and hangs up if the hub is gone."""
        self.connections += 1
        return not self.gone

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients drop their connections when they end: nothing to report."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def do_GET(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        request, length = f"{self.command} {path}", int(self.headers.get("Content-Length") or 0)
        refusal = self.server.take_refusal(request)
        if refusal is not None and refusal.status == 0:
            self.rfile.read(min(refusal.after, length))
            self.close_connection = True
            return
        body, models = self.rfile.read(length), self.server.root / "models"
        if refusal is not None:
            self._json({"error": "refused"}, refusal.status, refusal.code)
        elif answer := self.server.uploads.answer(request, self.headers, body, models, self.server.url):
            self._json(*answer)
        elif match := re.fullmatch(r"/api/(datasets|models)/([^/]+/[^/]+)(?:/(\w[\w-]*)/([^/]+))?(?:/(.*))?", path):
            self._api(*match.groups(), body)
        elif match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(match[3], Path(match[1] or "models", match[2], match[4]))
        else:
            self._json({"error": "not served"}, 404)

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, format: str, *arguments: object) -> None:
        """Requests are kept, not printed."""

    def _api(self, kind: str, name: str, what: str | None, revision: str | None, rest: str | None, body: bytes) -> None:
        repository = self.server.root_of(revision) / kind / name
        if not repository.is_dir():
            self._json({"error": "Repository not found"}, 404, "RepoNotFound")
        elif what == "tree":
            recursive = "recursive=true" in self.path.lower()
            entries = list(_tree(repository, rest or "", recursive))
            self._json(entries) if entries else self._json({"error": "Entry not found"}, 404, "EntryNotFound")
        elif what == "paths-info":
            wanted = json.loads(body)["paths"] if body[:1] == b"{" else urllib.parse.parse_qs(body.decode())["paths"]
            self._json([entry for entry in _tree(repository, "", recursive=True) if entry["path"] in wanted])
        elif what not in (None, "revision"):
            self._json({"error": "not served"}, 404)
        else:
            files = [entry["path"] for entry in _tree(repository, "", recursive=True) if entry["type"] == "file"]
            facts = {"private": name in self.server.uploads.private, "gated": False, "disabled": False, "tags": []}
            facts |= {"downloads": 0, "likes": 0, **(card_facts(repository) if kind == "models" else {})}
            blobs = {file: blob_facts(repository / file) if "blobs=" in self.path else {} for file in files}
            siblings = [{"rfilename": file, **blobs[file]} for file in files]
            newest = self.server.look() if kind == "datasets" else self.server.newest(name)
            commit = revision if _is_commit(revision) else newest
            self._json({"id": name, "sha": commit, "siblings": siblings, **facts})

    def _file(self, revision: str, path: Path) -> None:
        file = self.server.root_of(revision) / path
        if not file.is_file():
            self._json({"error": "Entry not found"}, 404, "EntryNotFound")
            return
        etag = hashlib.sha256(file.read_bytes()).hexdigest()
        commit = revision if _is_commit(revision) else self.server.newest("/".join(path.parts[1:3]))
        self._answer(file.read_bytes(), 200, {"ETag": f'"{etag}"', "X-Repo-Commit": commit})

    def _json(self, value: Any, status: int = 200, code: str = "") -> None:
        headers = {"Content-Type": "application/json", **({"X-Error-Code": code} if code else {})}
        self._answer(json.dumps(value).encode(), status, headers)

    def _answer(self, body: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        headers = {"Content-Length": str(len(body)), "X-Repo-Commit": self.server.commit, **headers}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _tree(repository: Path, under: str, recursive: bool) -> Iterator[dict[str, Any]]:
    """The hub's tree listing of a folder of a repository."""
    for path in sorted((repository / under).glob("**/*" if recursive else "*")):
        name = path.relative_to(repository).as_posix()
        kind, size = ("file", path.stat().st_size) if path.is_file() else ("directory", 0)
        yield {"type": kind, "oid": hashlib.sha1(name.encode()).hexdigest(), "size": size, "path": name}


def _is_commit(revision: str | None) -> bool:
    return re.fullmatch("[0-9a-f]{40}", revision or "") is not None
