"""The cache's folder, and how processes that start at one moment ask for something once instead of each for itself."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from resnet_cifar.config.errors import UserError

_RECENT = 120.0  # seconds that an answer is passed on
_asked: dict[str, float] = {}  # what this process has asked for, and when: from then on only later answers count


def cache_root() -> Path:
    """$RESNET_CIFAR_CACHE, or resnet_cifar in the user's cache folder; created if missing. Raises UserError."""
    root = _place()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the cache folder {root} cannot be created ({error.strerror}): set RESNET_CIFAR_CACHE"
        ) from None
    return root


def artifacts_root() -> Path:
    """The folder of the cache with one directory per downloaded artifact of W&B; it may be missing."""
    return cache_root() / "wandb"


def mark_used(entry: Path) -> None:
    """Updates the entry's time of last use, if the cache is writable."""
    with contextlib.suppress(OSError):
        os.utime(entry)


def _place() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("RESNET_CIFAR_CACHE") or Path(home) / "resnet_cifar")


def ask_once(question: str, ask: Callable[[], str], waiting: str = "") -> str:
    """`ask()`, or what another process of this machine was told since this one started, two minutes ago at most.

    A user's processes that share a cache ask one after the other; `waiting` is printed if another one is at it. Where
    that cannot be arranged, each asks for itself, so `ask` must be right without this, too.
    """
    digest = hashlib.sha256(f"{_place().resolve()} {question}".encode()).hexdigest()[:16]
    with _turn(digest, waiting) as file:
        since = max(_asked.get(question) or _process_start(), time.time() - _RECENT)
        answer = _recent(file, since) if file else None
        if answer is None:
            answer = ask()
            if file:
                _pass_on(file, answer)
    _asked[question] = time.time()
    return answer


@contextlib.contextmanager
def _turn(digest: str, waiting: str) -> Iterator[IO[str] | None]:
    """The file of a question, while no other process has it; None where it cannot be opened or locked.

    It lies in this machine's folder of temporary files, where locks work whatever the cache is mounted from.
    """
    with contextlib.ExitStack() as stack:
        file = None
        with contextlib.suppress(OSError):
            folder = Path(tempfile.gettempdir(), f"resnet-cifar-{os.getuid()}")
            folder.mkdir(mode=0o700, exist_ok=True)
            if folder.lstat().st_uid != os.getuid():
                raise PermissionError  # another user would read and write it
            opened = stack.enter_context((folder / digest).open("a+"))
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if waiting:
                    print(waiting, flush=True)
                fcntl.flock(opened, fcntl.LOCK_EX)
            file = opened
        yield file


def _recent(file: IO[str], since: float) -> str | None:
    file.seek(0)
    with contextlib.suppress(ValueError, KeyError, TypeError):  # a new file, or one whose writer was killed
        said = json.loads(file.read())
        if since <= said["time"]:
            return said["answer"]
    return None


def _pass_on(file: IO[str], answer: str) -> None:
    with contextlib.suppress(OSError):  # a full disk: others ask for themselves
        file.truncate(0)
        file.write(json.dumps({"time": time.time(), "answer": answer}))
        file.flush()


def _process_start() -> float:
    import psutil

    return psutil.Process().create_time()
