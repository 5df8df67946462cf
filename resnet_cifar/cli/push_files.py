"""Uploads what `resnet-cifar push` has found to be verified, in one commit."""

from __future__ import annotations

import contextlib
import hashlib
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_token,
)
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.lfs import post_lfs_batch_info
from huggingface_hub.utils import (
    build_hf_headers,
    disable_progress_bars,
    get_session,
    logging,
)

from resnet_cifar import __version__, hub_access
from resnet_cifar.atomic_io import read_json, sha256
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Recipe
from resnet_cifar.evaluation.model_location import Target
from resnet_cifar.reporting import export_card, model_card
from resnet_cifar.reporting.console import Screen

_CARD, _CONFIG, _COMPARISON = "README.md", "config.json", "export.json"
_OURS = (_CARD, _CONFIG, _COMPARISON, *export_card.FILES)
_VERIFIED_ON = 256  # test images, as of eval.py --verify-export
_SECONDS = 120  # without an answer; huggingface_hub itself waits forever


def push(target: Target, recipe: Recipe, name: str, private: bool, command: str) -> None:
    """Uploads the run's model to the repository `name`. Raises UserError, or SystemExit (4) if it is not verified.

    `command`: what the user reruns if the connection is lost.
    """
    files, is_verified = _find_files(target.path)
    screen = Screen(shown=True)
    logging.set_verbosity_error()  # its warnings show signed addresses
    if not sys.stderr.isatty():
        disable_progress_bars()
    explained = partial(_explained, f"{target.path} is not pushed to {name}, because", command)
    with tempfile.TemporaryDirectory() as folder:
        card = Path(folder, _CARD)
        card.write_text(model_card.for_repository(files[_CARD].read_text(encoding="utf-8"), name), encoding="utf-8")
        files[_CARD] = card
        with explained():
            hub = _Hub(name, HfApi(endpoint=hub_access.endpoint(), token=get_token()))
            remote = hub.look(private)
        changed = {path: file for path, file in files.items() if not _is_equal(file, remote.get(path))}
        stale = [path for path in _OURS if path in remote and path not in files]
        if not changed and not stale:
            screen.say(f"nothing to push: {hub.url} has these {len(files)} files, of commit {hub.commit}")
            return
        if not is_verified:
            from resnet_cifar.cli.verify_export import verify_export

            verify_export(target, recipe, _VERIFIED_ON)
        with explained():
            hub.commit_files(changed, stale, private)
        screen.table(f"pushed to {hub.url}{' (private)' * hub.is_private}", list(_rows(hub, files, stale)))


def _find_files(run: Path) -> tuple[dict[str, Path], bool]:
    """Path in the repository -> file, and whether the model is verified. Raises UserError.

    Files of RUN/export count if they are those that were verified, with the weights that RUN/model holds.
    """
    files = {path: run / "model" / path for path in (_CONFIG, export_card.TIMM, _CARD)}
    facts = read_json(run / "export" / _COMPARISON)
    if facts is None:
        return files, False
    weights = sha256(files[export_card.TIMM])
    if facts.get("model") != weights:
        raise UserError(f"{run}/export is of other weights than {run}/model: export again, or remove {run}/export")
    for path, found in facts["files"].items():
        file = run / "export" / path
        if not file.is_file() or sha256(file) != found["sha256"]:
            raise UserError(f"{file} is not the file that was verified: export again, or remove {run}/export")
        files.setdefault(path, file)
    files |= {path: run / "export" / path for path in (_COMPARISON, _CARD)}
    if not files[_CARD].is_file():
        raise UserError(f"{files[_CARD]} does not exist: export again, or remove {run}/export")
    is_verified = export_card.TIMM in facts["files"] and facts["files"][export_card.TIMM]["sha256"] == weights
    exported = run / "export" / _CONFIG
    return files, is_verified and exported.is_file() and exported.read_bytes() == files[_CONFIG].read_bytes()


@dataclass
class _Hub:
    """The repository `name`. `commit`: its newest, None until it is created. `sent`: the files of this push, without
    those that the hub had from one that was interrupted."""

    name: str
    api: HfApi
    commit: str | None = None
    is_private: bool = False
    sent: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        return f"{self.api.endpoint}/{self.name}"

    def look(self, private: bool) -> dict[str, Any]:
        """The files of the repository; none if it does not exist. Raises UserError where it must not be changed."""
        if not self.api.token:
            raise UserError(
                f"pushing to {self.name} takes a token that may write there: run `hf auth login`, or set HF_TOKEN"
            )
        get_session().timeout = _SECONDS
        self.api.whoami()
        try:
            info = self.api.model_info(self.name, files_metadata=True)
        except RepositoryNotFoundError:
            return {}
        found = {file.rfilename: file for file in info.siblings or ()}
        if model_card.TAG not in (info.tags or ()) and found.keys() - {".gitattributes", _CARD}:
            raise UserError(
                f"{self.name} is taken by a model that resnet-cifar has not pushed: use another name, or delete it at "
                f"{self.url}/settings"
            )
        if private and not info.private:
            raise UserError(
                f"--private: {self.name} exists and is public: make it private at {self.url}/settings, or remove "
                "--private"
            )
        self.commit, self.is_private = info.sha, bool(info.private)
        return found

    def commit_files(self, changed: Mapping[str, Path], stale: list[str], private: bool) -> None:
        """Uploads and commits the changed files, and removes stale ones, all at once or not at all."""
        if self.commit is None:
            self.api.create_repo(self.name, private=private or None)
            self.is_private = bool(self.api.model_info(self.name).private)  # by the default of an organization
        added = {path: CommitOperationAdd(path, file) for path, file in changed.items()}
        self._use_lfs_without_xet()
        present = self._stored([each for path, each in added.items() if path in export_card.FILES])
        done = self.api.create_commit(
            self.name,
            [*added.values(), *map(CommitOperationDelete, stale)],
            commit_message=f"Upload by resnet-cifar {__version__}",
            parent_commit=self.commit,
        )
        self.commit = done.oid
        self.sent = tuple(path for path, each in added.items() if each.upload_info.sha256.hex() not in present)

    def _stored(self, operations: list[CommitOperationAdd]) -> set[str]:
        """The SHA-256 of large files that the hub has, in a commit or not."""
        if not operations:
            return set()
        infos = [operation.upload_info for operation in operations]
        actions, _, _ = post_lfs_batch_info(infos, self.api.token, "model", self.name, endpoint=self.api.endpoint)
        return {action["oid"] for action in actions if "actions" not in action}

    def _use_lfs_without_xet(self) -> None:
        """huggingface_hub does not ask whether the hub has Xet, and tries for minutes where it has not."""
        url = f"{self.api.endpoint}/api/models/{self.name}/xet-write-token/main"
        answer = get_session().get(url, headers=build_hf_headers(token=self.api.token))
        if not (answer.is_success and "casUrl" in answer.text):
            constants.HF_HUB_DISABLE_XET = True


@contextlib.contextmanager
def _explained(start: str, command: str) -> Iterator[None]:
    """Errors of huggingface_hub as one sentence, which begins with `start`."""
    try:
        yield
    except UserError:
        raise
    except (HfHubHTTPError.__bases__[0], OSError, RuntimeError, ValueError) as error:
        failure = hub_access.explain_upload(error, command)
        raise UserError(f"{start} {failure.reason}: {failure.fix}") from None


def _is_equal(file: Path, found: Any) -> bool:
    """Whether a file of the repository (huggingface_hub's RepoSibling, or None) has the same content."""
    if found is None:
        return False
    if found.lfs:
        return found.lfs.sha256 == sha256(file)
    content = file.read_bytes()
    return found.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _rows(hub: _Hub, files: Mapping[str, Path], stale: list[str]) -> Iterator[tuple[str, str]]:
    yield "commit", f"{hub.commit}"
    for what, paths in (("uploaded", hub.sent), ("already there", [path for path in files if path not in hub.sent])):
        if paths:
            size = sum(files[path].stat().st_size for path in paths)
            yield what, f"{len(paths)} file{'s' * (len(paths) > 1)}, {size:,} bytes: {', '.join(paths)}"
    if stale:
        yield "removed", f"{', '.join(stale)}: of an earlier export"
    yield "load model", f'timm.create_model("hf-hub:{hub.name}", pretrained=True)'
