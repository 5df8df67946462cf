"""A stand-in for the W&B service on loopback: what online runs, `wandb sync` and `wandb.Api` of wandb 0.31 talk to.

It keeps history, system metrics, config, summary, files and artifacts, and it can be broken on purpose: it may answer
with an HTTP error, or after a while.
"""

from __future__ import annotations

import gzip
import json
import re
import threading
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

_ENTITY = "local"
_TIME = "2026-01-01T00:00:00Z"


@dataclass
class StoredRun:
    """What the service knows of a run."""

    project: str
    name: str
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    modes: set[str] = field(default_factory=set)  # of the writers of history, `shared` or `default`
    events: list[dict[str, Any]] = field(default_factory=list)  # system metrics
    files: dict[str, bytes] = field(default_factory=dict)
    state: str = "running"
    is_preempting: bool = False
    is_stopped: bool = False  # by its sweep
    exits: list[int] = field(default_factory=list)  # the exit codes of its attempts
    asked: dict[str, Any] = field(default_factory=dict)  # the variables of UpsertBucket, as first given

    def settings(self) -> dict[str, Any]:
        """The config as it was given to `wandb.init`, without W&B's own entries."""
        return {key: entry["value"] for key, entry in self.config.items() if key != "_wandb"}

    def labels(self, metric: str = "") -> set[str]:
        """The labels of the writers of system metrics, or of one of them."""
        keys = {key for row in self.events for key in row if key.startswith(f"system.{metric}")}
        return {key.partition("/l:")[2] for key in keys}


@dataclass
class StoredArtifact:
    """What the service knows of a version of an artifact: it is whole when it is `committed`."""

    id: str
    project: str
    name: str
    kind: str
    version: int
    digest: str
    metadata: dict[str, Any] = field(default_factory=dict)
    aliases: set[str] = field(default_factory=set)
    run: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    manifest: bytes = b""
    committed: bool = False


class WandbServer(ThreadingHTTPServer):
    """Keeps runs in memory: `with WandbServer() as server: ... server.url, server.runs["PROJECT/ID"]`.

    `host`: the address to listen at.

    `requests` are operations of GraphQL, or "METHOD /path", in order. `status`, where it is set, answers everything;
    `seconds` is how long an answer takes, to paths with `slow` in them. `after(rows, do)` calls `do()` when a run has
    this many rows. `version`: of a server of one's own; W&B's service has none.
    """

    daemon_threads = True

    def __init__(self, host: str = "127.0.0.1") -> None:
        super().__init__((host, 0), _Handler)
        self.url = f"http://{host}:{self.server_address[1]}"
        self.runs: dict[str, StoredRun] = {}
        self.artifacts: dict[str, StoredArtifact] = {}
        self.views: list[dict[str, Any]] = []  # workspaces and reports: what UpsertView stored
        self.sweep = ""  # the YAML of the sweep
        self.trials: list[tuple[str, dict[str, Any]]] = []  # (run id, values) that an agent is told to try
        self.given: dict[str, dict[str, Any]] = {}  # those that agents were told to try
        self.is_behind: Callable[[str], bool] = lambda name: False  # whether early_terminate ends this running trial
        self.alerts: list[tuple[str, str]] = []  # title and text
        self.requests: list[str] = []
        self.version: str | None = None
        self.status: int | None = None
        self.seconds, self.slow = 0.0, ""
        self.lock = threading.Lock()
        self._closing = threading.Event()
        self._rows, self._do = 0, None

    def after(self, rows: int, do: Callable[[], None]) -> None:
        """Calls `do()` once, when a run has this many rows."""
        self._rows, self._do = rows, do

    def __enter__(self) -> WandbServer:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing.set()
        self.shutdown()
        self.server_close()

    @property
    def is_closed(self) -> bool:
        """Connections that clients keep open are closed at their next request."""
        return self._closing.is_set()

    def vanish(self) -> None:
        """From now on nobody listens at this address."""
        self._closing.set()
        threading.Thread(target=self.__exit__, daemon=True).start()

    def dawdle(self, path: str) -> None:
        """Takes its time before an answer, unless it is closed."""
        if self.slow in path:
            self._closing.wait(self.seconds)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients drop their connections when they end: nothing to report."""

    def account(self) -> dict[str, str]:
        """The environment of a user who has an account here."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": "0" * 40}

    def answer(self, operation: str, variables: dict[str, Any], is_shared: bool) -> dict[str, Any]:
        """The data of a GraphQL operation; those that are not needed get none. `is_shared`: asked in shared mode."""
        local = self.version and {"versionOnThisInstanceString": self.version}
        operations: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "Viewer": lambda _: {"viewer": {"id": "user", "entity": _ENTITY, "username": _ENTITY, "flags": "{}"}},
            "ServerInfo": lambda _: {"serverInfo": {"latestLocalVersionInfo": local}},
            "UpsertBucket": lambda asked: self._upsert(asked, is_shared),
            "RunResumeStatus": self._resume_status,
            "RunStopped": self._stopped,
            "CreateRunFiles": self._create_files,
            "ServerFeaturesQuery": lambda _: {"serverInfo": {"features": []}},
            "ArtifactType": lambda _: {"project": {"artifact": None}},
            "CreateArtifact": self._create_artifact,
            "CreateArtifactManifest": self._create_manifest,
            "CreateArtifactFiles": self._create_artifact_files,
            "CommitArtifact": self._commit_artifact,
            "ArtifactByID": lambda asked: {"artifact": _artifact(self.artifacts[asked["id"]])},
            "GetDefaultEntity": lambda _: {"viewer": {"id": "user", "entity": _ENTITY}},
            "ArtifactMembershipByName": self._membership,
            "FetchArtifactManifest": self._manifest,
            "GetArtifactMembershipFileUrls": self._file_urls,
            "UpsertSweep": self._upsert_sweep,
            "SweepWithRuns": lambda _: {"project": {"sweep": {"config": self.sweep, "runs": {"edges": []}}}},
            "CreateAgent": lambda _: {"createAgent": {"agent": {"id": "agent"}}},
            "Heartbeat": self._heartbeat,
            "NotifyScriptableRunAlert": self._alert,
            "View": self._views,
            "ProjectViews": self._views,
            "ProjectInternalId": lambda asked: {"project": {"id": "p", "internalId": asked["projectName"]}},
            "GetProjects": self._projects,
            "UpsertView2": self._upsert_view,
            "upsertView": self._upsert_view,
        }
        return operations.get(operation, lambda _: {})(variables)

    def stream(self, run: StoredRun, body: dict[str, Any], is_shared: bool) -> None:
        """Takes a piece of a run's file stream: lines of its history and system metrics, its summary, its end.

        In shared mode every writer counts its own lines, and the server appends them as they come.
        """
        for name, piece in (body.get("files") or {}).items():
            lines = piece["content"]
            if name == "wandb-summary.json":
                run.summary = json.loads(lines[-1])
            elif name in ("wandb-history.jsonl", "wandb-events.jsonl"):
                kept = run.history if name == "wandb-history.jsonl" else run.events
                # Otherwise a piece that is sent again replaces itself.
                first = len(kept) if is_shared else piece.get("offset", len(kept))
                kept[first : first + len(lines)] = [json.loads(line) for line in lines]
                if kept is run.history:
                    run.modes.add("shared" if is_shared else "default")
        if self._do and len(run.history) >= self._rows:
            self._do, do = None, self._do
            do()
        run.is_preempting |= bool(body.get("preempting"))
        if body.get("complete"):
            run.exits.append(body.get("exitcode", 0))
            run.state = ("preempted" if run.is_preempting else "failed") if run.exits[-1] else "finished"

    def _upsert(self, variables: dict[str, Any], is_shared: bool) -> dict[str, Any]:
        key = f"{variables['project']}/{variables['name']}"
        inserted = key not in self.runs
        run = self.runs.setdefault(key, StoredRun(variables["project"], variables["name"]))
        run.is_preempting &= run.state == "running"  # an attempt may send several
        run.state = "running"
        run.asked = {name: value for name, value in variables.items() if value is not None} | run.asked
        if variables.get("config"):
            run.config = (run.config if is_shared else {}) | json.loads(variables["config"])
        return {"upsertBucket": {"bucket": _bucket(run), "inserted": inserted}}

    def _upsert_sweep(self, variables: dict[str, Any]) -> dict[str, Any]:
        self.sweep = variables["config"]
        project = {"id": "project", "name": variables["projectName"], "entity": {"id": "entity", "name": _ENTITY}}
        return {"upsertSweep": {"sweep": {"name": "sweep0", "project": project}, "configValidationWarnings": []}}

    def _upsert_view(self, variables: dict[str, Any]) -> dict[str, Any]:
        names = ("type", "name", "displayName", "description", "spec")
        stored = {name: variables[name] for name in names if name in variables}
        stored["project"] = {"id": "p", "name": variables["projectName"], "entityName": variables["entityName"]}
        found = next((view for view in self.views if view["id"] == variables.get("id")), None)
        if found is None:
            self.views.append(found := {"id": f"view{len(self.views)}"})
        found.update(stored)
        return {"upsertView": {"view": found, "inserted": "id" not in variables}}

    def _views(self, variables: dict[str, Any]) -> dict[str, Any]:
        """The views of a type; one by its name in `viewName`, if that is given."""
        project = variables.get("project") or variables["projectName"]
        if project not in self.projects:
            return {"project": None}
        nodes = [
            {**view, "updatedAt": "", "createdAt": "", "user": {"username": _ENTITY, "photoUrl": None, "email": ""}}
            for view in self.views
            if view["type"] == variables.get("viewType", "runs") and view["project"]["name"] == project
            if variables.get("viewName") in (None, view["name"])
        ]
        page = {"endCursor": None, "hasNextPage": False}
        return {"project": {"allViews": {"edges": [{"node": node, "cursor": ""} for node in nodes], "pageInfo": page}}}

    @property
    def projects(self) -> set[str]:
        """Those that have runs."""
        return {run.project for run in self.runs.values()}

    def _projects(self, variables: dict[str, Any]) -> dict[str, Any]:
        facts = {"entityName": _ENTITY, "createdAt": "", "isBenchmark": False, "user": None}
        nodes = [{"id": name, "name": name, **facts} for name in sorted(self.projects)]
        edges = [{"node": node, "cursor": node["name"]} for node in nodes]
        return {"models": {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}}

    def _heartbeat(self, variables: dict[str, Any]) -> dict[str, Any]:
        """Stops running trials that are behind. When none is running, one that was preempted is resumed, or the next of
        `trials` started; at their end the agent exits.
        """
        commands: list[dict[str, Any]] = []
        runs = {run.name: run for run in self.runs.values()}
        running = json.loads(variables["runState"])
        for name in filter(self.is_behind, running):
            runs[name].is_stopped = True
            commands.append({"type": "stop", "run_id": name})
        if not running:
            kind, name = "resume", next((name for name, run in runs.items() if run.state == "preempted"), None)
            if name is None and self.trials:
                kind, (name, values) = "run", self.trials.pop(0)
                self.given[name] = values
            program = yaml.safe_load(self.sweep)["program"]
            arguments = {key: {"value": value} for key, value in self.given.get(name, {}).items()}
            command = {"type": kind, "run_id": name, "program": program, "args": arguments}
            commands = [command if name else {"type": "exit"}]
        return {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": json.dumps(commands)}}

    def _stopped(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = self.runs[f"{variables['project']}/{variables['run']}"]
        return {"project": {"run": {"stopped": run.is_stopped, "shouldStop": run.is_stopped}}}

    def _alert(self, variables: dict[str, Any]) -> dict[str, Any]:
        self.alerts.append((variables["title"], variables["text"]))
        return {"notifyScriptableRunAlert": {"success": True}}

    def _resume_status(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(f"{variables['project']}/{variables['name']}")
        bucket = None
        if run is not None:
            tail = json.dumps([json.dumps(row) for row in run.history[-1:]])
            counts = {"logLineCount": 0, "eventsLineCount": len(run.events), "eventsTail": "[]", "historyTail": tail}
            # Without a time `t` in its config a run cannot be resumed.
            known = {"summaryMetrics": json.dumps(run.summary), "wandbConfig": '{"t": 1}', "notes": "", "tags": []}
            bucket = {**_bucket(run), **counts, **known}
        entity = {"id": "entity", "name": _ENTITY}
        return {"model": {"id": "project", "name": variables["project"], "entity": entity, "bucket": bucket}}

    def upload(self, path: str, body: bytes) -> None:
        """Takes a file of a run or an artifact: /run/PROJECT/ID/NAME or /artifact/ID/NAME."""
        if match := re.fullmatch(r"/run/([^/]+/[^/]+)/(.+)", path):
            self.runs[match[1]].files[match[2]] = body
        elif match := re.fullmatch(r"/artifact/([^/]+)/(.+)", path):
            self.artifacts[match[1]].files[match[2]] = body
        elif match := re.fullmatch(r"/manifest/([^/]+)", path):
            self.artifacts[match[1]].manifest = body

    def download(self, path: str) -> bytes | None:
        """A file of an artifact or its manifest, from where it was uploaded to."""
        if match := re.fullmatch(r"/artifact/([^/]+)/(.+)", path):
            return self.artifacts[match[1]].files.get(match[2])
        match = re.fullmatch(r"/manifest/([^/]+)", path)
        return self.artifacts[match[1]].manifest if match else None

    def latest(self, kind: str) -> StoredArtifact:
        """The latest whole artifact of this type."""
        return [
            artifact for artifact in self.artifacts.values() if (artifact.kind, artifact.committed) == (kind, True)
        ][-1]

    def _create_files(self, variables: dict[str, Any]) -> dict[str, Any]:
        here = f"{self.url}/run/{variables['project']}/{variables['run']}"
        files = [{"name": name, "uploadUrl": f"{here}/{urllib.parse.quote(name)}"} for name in variables["files"]]
        return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}

    def _create_artifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        asked, key = variables["input"], f"artifact{len(self.artifacts)}"
        project, name = asked["projectName"], asked["artifactCollectionName"]
        earlier = [
            artifact for artifact in self.artifacts.values() if (artifact.project, artifact.name) == (project, name)
        ]
        aliases = {alias["alias"] for alias in asked.get("aliases") or ()}
        for artifact in earlier:  # an alias names one version
            artifact.aliases -= aliases
        metadata = json.loads(asked.get("metadata") or "{}")
        version = StoredArtifact(key, project, name, asked["artifactTypeName"], len(earlier), asked["digest"], metadata)
        version.aliases, version.run = aliases, asked.get("runName") or ""
        self.artifacts[key] = version
        sequence = {"id": "sequence", "latestArtifact": None}
        return {"createArtifact": {"artifact": {"id": key, "state": "PENDING", "artifactSequence": sequence}}}

    def _create_manifest(self, variables: dict[str, Any]) -> dict[str, Any]:
        key = variables["artifactID"]
        place = {"uploadUrl": f"{self.url}/manifest/{key}", "uploadHeaders": []}
        manifest = {"id": f"{key}-manifest", "file": {"id": "file", "displayName": variables["name"], **place}}
        return {"createArtifactManifest": {"artifactManifest": manifest}}

    def _create_artifact_files(self, variables: dict[str, Any]) -> dict[str, Any]:
        nodes = []
        for asked in variables["input"]["artifactFiles"]:
            key, name = asked["artifactID"], asked["name"]
            place = f"artifact/{key}/{urllib.parse.quote(name)}"
            facts = {"id": name, "name": name, "displayName": name, "storagePath": place, "artifact": {"id": key}}
            upload = {"uploadUrl": f"{self.url}/{place}", "uploadHeaders": [], "uploadMultipartUrls": None}
            nodes.append({"node": {**facts, **upload}})
        return {"createArtifactFiles": {"files": {"edges": nodes}}}

    def _commit_artifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        self.artifacts[variables["artifactID"]].committed = True
        return {"commitArtifact": {"artifact": {"id": variables["artifactID"], "digest": ""}}}

    def _find(self, project: str, name: str, version: str) -> StoredArtifact | None:
        """The version of an artifact that an alias or vN names, if it is whole."""
        whole = (artifact for artifact in self.artifacts.values() if artifact.committed)
        versions = (artifact for artifact in whole if (artifact.project, artifact.name) == (project, name))
        return next((found for found in versions if version in {f"v{found.version}", *found.aliases}), None)

    def _membership(self, asked: dict[str, Any]) -> dict[str, Any]:
        if asked["entity"] != _ENTITY or asked["project"] not in {a.project for a in self.artifacts.values()}:
            return {"project": None}
        name, _, version = asked["name"].partition(":")
        found = self._find(asked["project"], name, version or "latest")
        if found is None:
            return {"project": {"artifactCollectionMembership": None}}
        kind, facts = "ArtifactCollectionMembership", _artifact(found)
        shown = {"__typename": kind, "id": f"{found.id}-membership", "artifact": facts, "aliases": facts["aliases"]}
        shown |= {"versionIndex": found.version, "createdAt": _TIME, "artifactCollection": facts["artifactSequence"]}
        return {"project": {"artifactCollectionMembership": shown}}

    def _manifest(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {"artifact": {"currentManifest": {"file": {"directUrl": f"{self.url}/manifest/{asked['id']}"}}}}

    def _file_urls(self, asked: dict[str, Any]) -> dict[str, Any]:
        found = self._find(asked["project"], asked["collection"], asked["alias"])
        here = f"{self.url}/artifact/{found.id}"
        nodes = [{"name": name, "directUrl": f"{here}/{urllib.parse.quote(name)}"} for name in found.files]
        edges = [{"node": {"__typename": "File", **node}} for node in nodes]
        page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
        membership = {"files": {"pageInfo": page, "edges": edges}}
        return {"project": {"artifactCollection": {"__typename": "ArtifactSequence", "artifactMembership": membership}}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WandbServer

    def do_POST(self) -> None:
        body, path = self._body(), urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        answer: dict[str, Any] = {}
        is_shared = self.headers.get("X-WANDB-USE-ASYNC-FILESTREAM") == "true"
        self.server.dawdle(path)
        if self.server.is_closed:
            self.close_connection = True
            return
        with self.server.lock:
            if self.server.status:
                self._reply(b'{"error": "broken on purpose"}', self.server.status)
                return
            if path == "/graphql":
                query = json.loads(body)
                operation = re.search(r"(?:query|mutation)\s+(\w+)", query["query"])[1]
                self.server.requests.append(operation)
                answer = {"data": self.server.answer(operation, query.get("variables") or {}, is_shared)}
            else:
                self.server.requests.append(f"{self.command} {path}")
                if match := re.fullmatch(r"/files/[^/]+/([^/]+/[^/]+)/file_stream", path):
                    self.server.stream(self.server.runs[match[1]], json.loads(body), is_shared)
                    answer = {"exitcode": None, "limits": {}}
                elif self.command == "GET" and path != "/":
                    content = self.server.download(path)
                    self._reply(content or b"", 200 if content is not None else 404)
                    return
                else:
                    self.server.upload(path, body)
        self._reply(json.dumps(answer).encode())

    do_GET = do_PUT = do_POST

    def log_message(self, format: str, *arguments: object) -> None:
        """Requests are kept, not printed."""

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _reply(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _bucket(run: StoredRun) -> dict[str, Any]:
    project = {"id": "project", "name": run.project, "entity": {"id": "entity", "name": _ENTITY}}
    facts = {"config": json.dumps(run.config), "historyLineCount": len(run.history), "project": project}
    return {"id": f"{run.project}-{run.name}", "name": run.name, "displayName": run.name, **facts}


def _artifact(found: StoredArtifact) -> dict[str, Any]:
    project = {"id": "project", "internalId": "project", "name": found.project, "entity": {"name": _ENTITY}}
    sequence = {"__typename": "ArtifactSequence", "name": found.name, "project": project}
    names = sorted({*found.aliases, f"v{found.version}"})
    aliases = [
        {"__typename": "ArtifactAlias", "id": name, "alias": name, "artifactCollection": sequence} for name in names
    ]
    facts = {"versionIndex": found.version, "metadata": json.dumps(found.metadata), "digest": found.digest}
    facts |= {"size": sum(map(len, found.files.values())), "fileCount": len(found.files), "state": "COMMITTED"}
    facts |= {"ttlDurationSeconds": -1, "ttlIsInherited": True, "tags": [], "createdAt": _TIME, "updatedAt": None}
    facts |= dict.fromkeys(("description", "historyStep", "commitHash"))
    kind = {"artifactType": {"name": found.kind}, "artifactSequence": sequence, "aliases": aliases}
    return {"__typename": "Artifact", "id": found.id, **facts, **kind}
