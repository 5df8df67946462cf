"""Members of a .tar.gz, .zip or .7z file, read without unpacking it.

The members that are needed are extracted to one anonymous file, which the system deletes with the process, however that
ends. Paths outside the archive, links, devices, duplicate names, encryption, damage and zip bombs are refused, each in
one sentence.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Data
from resnet_cifar.data.cache import check_space
from resnet_cifar.data.sources.archives.formats import Encrypted, Format, Member, Tar, Unsupported, Zip
from resnet_cifar.data.sources.archives.spool import MemberSpool

_GIB = 2**30
# An archive may unpack to this many bytes, or this many times its size: images hardly compress, bombs a thousandfold.
_FREE, _RATIO = _GIB, 100
_LARGEST = 2**28  # bytes of an image or a table
_MEMBERS = 2_000_000


@dataclass(frozen=True)
class Archive:
    """An open archive with checked members. `where`: its name in messages; `limit`: bytes that it may unpack to."""

    where: str
    limit: int
    _format: Format
    _members: dict[str, Member] = field(repr=False)

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of every file by name, in the order of the archive."""
        return {name: member.size for name, member in self._members.items()}

    def extract(self, names: Iterable[str], largest: int = _LARGEST) -> MemberSpool:
        """Extracts these files. Raises UserError if one is too large for an image or table, or damaged."""
        wanted = {name: self._members[name] for name in names}
        if large := next((name for name, member in wanted.items() if member.size > largest), None):
            raise UserError(
                f"{self.where} holds {large!r} of {_in_gib(wanted[large].size)}, too large for an image or table: "
                "unpack the archive"
            )
        check_space(sum(member.size for member in wanted.values()))
        spool = MemberSpool()
        with contextlib.ExitStack() as on_error:
            on_error.callback(spool.close)
            with user_errors(self.where):
                self._format.copy(wanted, spool)
                if short := [name for name, member in wanted.items() if spool.size(name) != member.size]:
                    raise EOFError(f"{short[0]} is truncated")
            spool.flush()
            on_error.pop_all()
        return spool

    @contextlib.contextmanager
    def nested(self, name: str) -> Iterator[Archive]:
        """Opens an archive inside this one; the limit of this one applies to it as well."""
        file = self.extract([name], self.limit).as_file()
        with contextlib.closing(file), _open(file, name, f"{self.where}: {name}", self.limit) as archive:
            yield archive


@contextlib.contextmanager
def open_archive(path: Path, data: Data) -> Iterator[Archive]:
    """Opens an archive that is data.source or lies in it. Raises UserError."""
    source = Path(data.source).expanduser()
    with open_file(path, f"data.source {data.source!r}" + ("" if path == source else f": {path.name}")) as archive:
        yield archive


@contextlib.contextmanager
def open_file(path: Path, where: str) -> Iterator[Archive]:
    """Opens any archive; `where`: its name in messages. Raises UserError."""
    with user_errors(where):
        limit, file = max(_FREE, _RATIO * path.stat().st_size), path.open("rb")
    with file, _open(file, path.name, where, limit) as archive:
        yield archive


@contextlib.contextmanager
def _open(file: BinaryIO, name: str, where: str, limit: int) -> Iterator[Archive]:
    with user_errors(where):
        opened = _format(name)(file)
        members = _check_members(opened.members(), where, limit)
    yield Archive(where, limit, opened, members)


def _format(name: str) -> Callable[[BinaryIO], Format]:
    name = name.lower()
    if name.endswith(".7z"):
        from resnet_cifar.data.sources.archives.seven_zip import SevenZip

        return SevenZip
    return Zip if name.endswith(".zip") else Tar


@contextlib.contextmanager
def user_errors(where: str) -> Iterator[None]:
    """Turns any error of reading a user's file into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Unsupported as found:
        raise UserError(f"{where} {found}") from None
    except Encrypted:
        raise UserError(f"{where} is encrypted: unpack it") from None
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(": ")
        raise UserError(f"{where} cannot be read ({reason}): download it again") from None


def _check_members(members: Iterable[Member], where: str, limit: int) -> dict[str, Member]:
    """The files by name. Raises UserError for members that are not safe to extract."""
    files: dict[str, Member] = {}
    total = 0
    for count, member in enumerate(members):
        name = member.name.replace("\\", "/")
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:", name):
            raise UserError(f"{where} holds {member.name!r}, a path outside the archive: do not trust it")
        if member.kind not in ("file", "folder"):
            raise UserError(f"{where} holds {member.name!r}, a {member.kind}: pack files and folders only")
        total += member.size
        if total > limit or count >= _MEMBERS:
            raise UserError(
                f"{where} unpacks to more than {_in_gib(limit)} or {_MEMBERS:,} files, as zip bombs do: do not trust it"
            )
        if member.kind == "file":
            if str(path) in files:
                raise UserError(f"{where} holds {str(path)!r} twice: pack it once")
            files[str(path)] = member
    return files


def _in_gib(nbytes: int) -> str:
    return f"{nbytes / _GIB:.3g} GiB"
