"""Files and folders that are complete or absent: each is written aside, flushed to disk and renamed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from resnet_cifar.config.errors import UserError

_CANNOT_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)


def read_json(file: Path) -> dict[str, Any] | None:
    """The JSON object in the file, or None if there is no such file. Raises UserError if it holds anything else."""
    try:
        values = json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise UserError(f"{file} is damaged, it is not valid JSON: remove it, or train again with --restart")
    return values


@contextlib.contextmanager
def atomic_write(file: Path, flush: bool = True, before_rename: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Yields a temporary path beside `file` to write to; it replaces `file` at the end, or is deleted on an error.

    `flush`: the content and then the name reach the disk before this returns. `before_rename` may refuse by raising.
    """
    temporary = file.with_name(f"{file.name}.writing-{secrets.token_hex(4)}")  # unique: others may write the same file
    try:
        yield temporary
        if flush:
            fsync_path(temporary)
        before_rename()
        temporary.replace(file)
        if flush:
            fsync_path(file.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_folder(folder: Path, before_rename: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """The same for a folder of files: yields a temporary path, at which a folder is to be created.

    All is flushed to disk. What earlier processes left there because they were killed is removed.
    """
    for left in folder.parent.glob(f"{folder.name}.writing*"):
        shutil.rmtree(left, ignore_errors=True)
    temporary = folder.with_name(f"{folder.name}.writing-{secrets.token_hex(4)}")
    try:
        yield temporary
        for path in (*temporary.iterdir(), temporary):
            fsync_path(path)
        before_rename()
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
        fsync_path(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_json(file: Path, values: dict[str, Any], before_rename: Callable[[], None] = lambda: None) -> None:
    """Writes the object atomically; `before_rename` as in `atomic_write`."""
    with atomic_write(file, before_rename=before_rename) as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n")


def fsync_path(path: Path) -> None:
    """Flushes a file, or the entries of a directory, to disk.

    A directory is flushed if its file system supports it: many network mounts (FUSE, SMB) refuse.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def sha256(file: Path) -> str:
    """The file's SHA-256 in hex."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
