"""Files that are replaced atomically: a reader sees the old or the new content, also after a crash."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from resnet_cifar.config.errors import UserError

# Errors of file systems (FUSE, SMB and other network mounts) that cannot flush a directory.
_NO_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)


def read_json(file: Path) -> dict[str, Any] | None:
    """The object in a JSON file, or None if the file does not exist. Raises UserError for anything else in it."""
    try:
        values = json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise UserError(f"{file} is damaged, it is not valid JSON: remove it, or start over with --restart")
    return values


def write_json(file: Path, values: dict[str, Any]) -> None:
    """Writes the file atomically, and to disk."""
    with write_atomically(file, flush=True) as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n")


@contextlib.contextmanager
def write_atomically(file: Path, flush: bool = False) -> Iterator[Path]:
    """Yields a temporary path in the same directory, which replaces `file` at the end, or is deleted on an OSError.

    `flush`: the file is on disk before it gets its name, and the name is on disk at the end.
    """
    temporary = file.with_name(f"{file.name}.writing-{secrets.token_hex(4)}")  # unique: others may write the same file
    try:
        yield temporary
        if flush:
            fsync_path(temporary)
        temporary.replace(file)
        if flush:
            fsync_path(file.parent)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def fsync_path(path: Path) -> None:
    """Flushes a file, or the names in a directory, to disk; skips directories that the file system cannot flush."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FLUSH or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def sha256(file: Path) -> str:
    """The SHA-256 digest of a file, in hex."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
