"""What the stand-in for the hub does with uploads: accounts, repositories, large files by LFS, and commits."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

LARGE = (".safetensors", ".onnx", ".pt2")  # stored by LFS
Answer = tuple[Any, int, str]  # JSON, status, X-Error-Code


@dataclass
class Uploads:
    """`accounts`: token -> user; without any, everybody may read and nobody may write. `organizations`: user ->
    namespaces. `readers`: tokens that may only read. `private`: repositories that their owner alone sees. `commits`:
    repository -> commits, the newest last. `objects`: SHA-256 -> large file, committed or not.
    """

    accounts: dict[str, str] = field(default_factory=dict)
    organizations: dict[str, list[str]] = field(default_factory=dict)
    readers: set[str] = field(default_factory=set)
    private: set[str] = field(default_factory=set)
    commits: dict[str, list[str]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)

    def answer(self, request: str, headers: Any, body: bytes, root: Path, url: str) -> Answer | None:
        """The answer to `METHOD /path`; None to what is no upload. `root`: the folder of the models."""
        token = (headers.get("Authorization") or "").removeprefix("Bearer ")
        user = self.accounts.get(token)
        if self.accounts and token and user is None:
            return {"error": "Invalid credentials in Authorization header"}, 401, ""
        read = re.fullmatch(r"(?:GET|HEAD) (?:/api/models)?/([^/]+/[^/]+?)(?:/.*)?", request)
        if read and read[1] in self.private and not self._owns(user, read[1]):
            return {"error": "Repository not found"}, 404, "RepoNotFound"
        if request == "GET /api/whoami-v2":
            organizations = [{"name": name} for name in self.organizations.get(user or "", ())]
            return {"type": "user", "name": user, "orgs": organizations}, 200 if user else 401, ""
        return self._upload(request, token, body, root, url)

    def _upload(self, request: str, token: str, body: bytes, root: Path, url: str) -> Answer | None:
        if match := re.fullmatch(r"PUT /objects/([0-9a-f]{64})", request):  # a signed address: without token
            return self._store(match[1], body)
        if request == "POST /api/validate-yaml":
            return _validate(json.loads(body)["content"])
        if request == "POST /api/repos/create":
            return self._create(json.loads(body), token, root, url)
        match = re.fullmatch(
            r"POST (?:/api/models)?/([^/]+/[^/]+?)(?:/|\.git/info/)(preupload|commit|lfs)\b(.*)", request
        )
        return self._write(token, *match.groups(), body, root, url) if match else None

    def _store(self, name: str, content: bytes) -> Answer:
        if hashlib.sha256(content).hexdigest() != name:
            return {"error": "damaged"}, 400, ""
        self.objects[name] = content
        return {}, 200, ""

    def _write(self, token: str, name: str, what: str, rest: str, body: bytes, root: Path, url: str) -> Answer:
        user, repository = self.accounts.get(token), root / name
        if not repository.is_dir():
            return {"error": "Repository not found"}, 404, "RepoNotFound"
        if not self._owns(user, name) or token in self.readers:
            return {"error": f"You have no write access to {name}"}, 403 if user else 401, ""
        if what == "commit":
            return self._commit(name, list(map(json.loads, body.splitlines())), repository, url)
        asked = json.loads(body)
        if what == "preupload":
            return {"files": [self._mode(each, repository) for each in asked["files"]]}, 200, ""
        if rest == "/verify":
            return {}, 200 if len(self.objects.get(asked["oid"], b"")) == asked["size"] else 404, ""
        verify = {"href": f"{url}/{name}.git/info/lfs/verify"}
        for each in asked["objects"]:
            if each["oid"] not in self.objects:
                each["actions"] = {"upload": {"href": f"{url}/objects/{each['oid']}"}, "verify": verify}
        return {"transfer": "basic", "objects": asked["objects"]}, 200, ""

    def _owns(self, user: str | None, name: str) -> bool:
        return user is not None and name.split("/", maxsplit=1)[0] in (user, *self.organizations.get(user, ()))

    def _create(self, asked: dict[str, Any], token: str, root: Path, url: str) -> Answer:
        user = self.accounts.get(token)
        name = f"{asked.get('organization') or user}/{asked['name']}"
        if not self._owns(user, name) or token in self.readers:
            return {"error": "You don't have the rights to create a model under this namespace"}, 403, ""
        if (root / name).is_dir():
            return {"error": "You already created this model repo", "url": f"{url}/{name}"}, 409, ""
        (root / name).mkdir(parents=True)
        (root / name / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
        self.commits[name] = [_commit_id(name)]
        if asked.get("visibility") == "private" or asked.get("private"):
            self.private.add(name)
        return {"url": f"{url}/{name}", "name": name}, 200, ""

    def _mode(self, file: dict[str, Any], repository: Path) -> dict[str, Any]:
        present = repository / file["path"]
        facts = blob_facts(present) if present.is_file() else {}
        oid = facts.get("lfs", {}).get("sha256") or facts.get("blobId")
        mode = "lfs" if file["path"].endswith(LARGE) else "regular"
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def _commit(self, name: str, lines: list[dict[str, Any]], repository: Path, url: str) -> Answer:
        """All of it or nothing."""
        parent = lines[0]["value"].get("parentCommit")
        if parent not in (None, self.commits[name][-1]):
            return {"error": "The branch has moved on"}, 412, ""
        written: dict[str, bytes | None] = {}
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "lfsFile" and value["oid"] not in self.objects:
                return {"error": f"{value['path']} has not been uploaded"}, 400, ""
            contents = {"lfsFile": self.objects.get(value.get("oid", "")), "deletedFile": None}
            written[value["path"]] = contents.get(line["key"], base64.b64decode(value.get("content", "")))
        for path, content in written.items():
            if content is None:
                (repository / path).unlink()
            else:
                (repository / path).write_bytes(content)
        self.commits[name].append(_commit_id(f"{self.commits[name]}{sorted(written)}"))
        commit = self.commits[name][-1]
        return {"commitUrl": f"{url}/{name}/commit/{commit}", "commitOid": commit}, 200, ""


def _commit_id(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()


def _validate(card: str) -> Answer:
    try:
        facts = front_matter(card)
        message = None if isinstance(facts.get("tags", []), list) else '"tags" must be an array'
    except yaml.YAMLError as error:
        message = str(error)
    errors = [{"message": message}] if message else []
    return {"errors": errors, "warnings": []}, 400 if errors else 200, ""


def front_matter(card: str) -> dict[str, Any]:
    """The metadata of a model card."""
    found = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    return (yaml.safe_load(found[1]) or {}) if found else {}


def blob_facts(file: Path) -> dict[str, Any]:
    """The hashes of a file, as the hub gives them with `blobs=true`."""
    content = file.read_bytes()
    facts: dict[str, Any] = {
        "size": len(content),
        "blobId": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(),
    }
    if file.name.endswith(LARGE):
        facts["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return facts


def card_facts(repository: Path) -> dict[str, Any]:
    """What the hub says about a repository by the metadata of its card."""
    card = repository / "README.md"
    metadata = front_matter(card.read_text()) if card.is_file() else {}
    return {"cardData": metadata, "tags": [*metadata.get("tags", ()), *filter(None, [metadata.get("library_name")])]}
