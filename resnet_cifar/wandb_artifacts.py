"""Artifacts of Weights & Biases, downloaded into the cache."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

from resnet_cifar.atomic_io import atomic_write
from resnet_cifar.cache_folder import artifacts_root, ask_once, mark_used
from resnet_cifar.config.errors import UserError
from resnet_cifar.hub_access import Failure, answers
from resnet_cifar.wandb_env import check_variables, endpoint, has_account

_LOCATION = re.compile(r"wandb:([^/:\\#?%]+)/([^/:\\#?%]+)/([\w.-]+)(?::([^/:]+))?")
_MODEL = ("config.json", "model.safetensors")
_RUN = ("recipe.yaml", "environment.json", "metrics.jsonl", "result.json")
_TIMEOUT = 20  # seconds for one answer of the server
T = TypeVar("T")


def is_location(word: str) -> bool:
    """Whether this names something on W&B instead of a path."""
    return word.startswith("wandb:")


@functools.cache  # one process uses one version, even if the alias is moved in the meantime
def fetch_model(location: str) -> Path:
    """A directory with the exported model as `model` and, if the artifact has one, `recipe.yaml`.

    `location`: wandb:ENTITY/PROJECT/NAME:ALIAS. Raises UserError.
    """
    found = _LOCATION.fullmatch(location)
    if not found or not found[4]:
        raise UserError(
            f"{location} does not name an artifact: write wandb:ENTITY/PROJECT/NAME:ALIAS, such as "
            "wandb:ada/photos/model-1a2b3c4d:best"
        )
    return _fetch(location, "/".join(found.groups()[:3]), found[4], _MODEL, "model")


@functools.cache
def fetch_run(location: str) -> Path:
    """A directory with what is recorded of a finished run, without weights, checkpoints and report.

    `location`: wandb:ENTITY/PROJECT/RUN_ID. Raises UserError.
    """
    found = _LOCATION.fullmatch(location)
    if not found or found[4]:
        raise UserError(
            f"{location} does not name a run: write wandb:ENTITY/PROJECT/RUN_ID, such as wandb:ada/photos/1a2b3c4d"
        )
    entity, project, name, _ = found.groups()
    return _fetch(location, f"{entity}/{project}/result-{name}", "latest", _RUN, "")


def _fetch(location: str, path: str, version: str, needed: Collection[str], folder: str) -> Path:
    """The cache's directory with an artifact in `folder`; it is downloaded if another version is there, or none.

    If W&B cannot be asked, the version that the location named the last time is used.
    """
    root = artifacts_root()
    last = root / hashlib.sha256(f"{endpoint()} {path}:{version}".encode()).hexdigest()[:16]
    if failure := _why_unavailable():
        if last.is_file() and (root / last.read_text()).is_dir():
            return root / last.read_text()
        raise UserError(f"{location} cannot be loaded, because {failure.reason}: {failure.fix}")

    def download() -> str:
        try:
            root.mkdir(exist_ok=True)
            entry = _download(location, path, version, needed, root, folder)
            with atomic_write(last, flush=False) as temporary:
                temporary.write_text(entry.name)
        except OSError as error:
            raise UserError(
                f"{location} cannot be kept in the cache folder {root} ({error.strerror}): make room there, or set "
                "RESNET_CIFAR_CACHE to another folder"
            ) from None
        return entry.name

    entry = root / ask_once(f"artifact {last.resolve()}", download)
    mark_used(entry)
    return entry


def _why_unavailable() -> Failure | None:
    """Why W&B cannot be asked, if so; nothing is imported for it."""
    server = f"W&B ({endpoint()})"
    if importlib.util.find_spec("wandb") is None:
        return Failure("the package wandb is not installed", "pip install wandb")
    check_variables()
    if not has_account():
        return Failure(f"there is no key for {server}", "run `wandb login`, or set WANDB_API_KEY")
    if not answers(endpoint()):
        named = "WANDB_BASE_URL and " * bool(os.environ.get("WANDB_BASE_URL"))
        return Failure(f"{server} does not answer", f"check {named}the network")
    return None


def _download(location: str, path: str, version: str, needed: Collection[str], root: Path, folder: str) -> Path:
    """ROOT/NAME-vN-DIGEST with an artifact's files in `folder`. A copy whose digests are wrong is replaced."""
    import wandb

    try:
        artifact = _ask(location, lambda: wandb.Api(timeout=_TIMEOUT).artifact(f"{path}:{version}"))
        names = _ask(location, lambda: artifact.manifest.entries)
        if missing := [name for name in needed if name not in names]:
            raise UserError(
                f"{location} is not one that train.py uploaded (a {artifact.type} without {missing[0]}): name another"
            )
        digest = hashlib.sha256(artifact.digest.encode()).hexdigest()[:8]
        entry = root / f"{path.rpartition('/')[2]}-{artifact.version}-{digest}"
        with contextlib.suppress(ValueError, OSError):
            artifact.verify(str(entry / folder))
            return entry
        with tempfile.TemporaryDirectory(dir=root, prefix=f"{entry.name}.building-") as aside:
            inside = Path(aside, "entry")
            _ask(location, lambda: artifact.download(str(inside / folder), skip_cache=True))
            _ask(location, lambda: artifact.verify(str(inside / folder)))
            if folder and "recipe.yaml" in names:
                shutil.copy(inside / folder / "recipe.yaml", inside)
            shutil.rmtree(entry, ignore_errors=True)
            try:
                inside.rename(entry)
            except OSError:
                if not entry.is_dir():  # otherwise a process of another machine was faster
                    raise
        return entry
    finally:
        if wandb.run is None:
            wandb.teardown()  # a tracker of this process sets it up in its own way


def _ask(location: str, ask: Callable[[], T]) -> T:
    """`ask()`; an error of W&B's library becomes a UserError."""
    import requests
    import wandb

    fix = "check the name, the alias, and whether this account can read it"
    try:
        return ask()
    except wandb.errors.AuthenticationError as error:
        reason, fix = str(error), "check the key of WANDB_API_KEY or `wandb login`, or try again later"
    except OSError as error:
        if not isinstance(error, requests.RequestException):
            raise  # the disk
        reason = str(error)
    except Exception as error:
        reason = str(error) or type(error).__name__
    raise UserError(
        f"{location} cannot be loaded, W&B ({endpoint()}) says: {' '.join(reason.split())[:200]}; {fix}"
    ) from None
