"""TODO."""

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

_NO_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)  # what file systems answer that cannot


def read_json(file: Path) -> dict[str, Any] | None:
    """The file's object, or None where there is no such file. Raises UserError where it holds something else."""
    try:
        values = json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise UserError(
            f"{file} is damaged, it is not the JSON that was written: remove it, or start over with --restart"
        )
    return values


def write_json(file: Path, values: dict[str, Any]) -> None:
    """Writes aside and renames, so that a reader sees the old or the new file."""
    aside = file.with_name(f"{file.name}.writing-{secrets.token_hex(4)}")  # two starts may write at the same moment
    try:
        with aside.open("w") as stream:
            stream.write(json.dumps(values, indent=1) + "\n")
            stream.flush()
            fsync_path(aside)
        aside.replace(file)
        fsync_path(file.parent)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def fsync_path(path: Path) -> None:
    """Puts a file, or the names in a folder, on disk.

    Of a folder as far as its file system can: many that are mounted over a network (FUSE, SMB) refuse to flush one.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FLUSH or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def sha256(file: Path) -> str:
    """The file's digest, in hex."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def atomic_path(file: Path) -> Iterator[Path]:
    """A temporary path beside `file`: it replaces `file` at the end of the block and is removed if the block fails."""
    aside = file.with_name(f"{file.name}.writing-{secrets.token_hex(4)}")
    try:
        yield aside
        aside.replace(file)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
