"""Members of a .tar.gz, .zip or .7z file, read without unpacking it.

What is needed of an archive goes into one file without a name, which the system takes away with the process, however
that ends. Refused, each in one sentence: what would lie outside, links and devices, a name given twice, what is
encrypted or damaged, and bombs.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol

from resnet_cifar.data.cache import writing
from resnet_cifar.data.sources import cache_root
from resnet_cifar.recipe import Data, Mistake

_GIB = 2**30
# An archive may unpack to so many bytes, or to so many times its size: pictures hardly shrink when they are packed,
# bombs shrink a thousandfold.
_FREE, _RATIO = _GIB, 100
_LARGEST = 2**28  # bytes of a picture or a table
_MEMBERS = 2_000_000
_CHUNK = 2**16


@dataclass(frozen=True)
class Member:
    """What an archive says of one of its entries. `kind`: file, folder, or what else it is; `handle`: the library's."""

    name: str
    size: int
    kind: str
    handle: Any


class Encrypted(Exception):
    """An archive, or one of its members, asks for a password."""


class Format(Protocol):
    """What is asked of a library. Damaged archives make them raise almost anything of Exception."""

    def members(self) -> Iterable[Member]:
        """All of them, in the archive's order."""

    def copy(self, members: dict[str, Member], kept: Kept) -> None:
        """Fills `kept` with the content of these, by their names in it."""


class Kept:
    """Many members' bytes in one file without a name. Raises Mistake where there is no room."""

    def __init__(self) -> None:
        with writing():
            self._file = tempfile.TemporaryFile(dir=cache_root())  # noqa: SIM115
        self._places: dict[str, list[int]] = {}
        self._end = 0

    def begin(self, name: str) -> None:
        """What is written from now on belongs to this member."""
        self._last = self._places[name] = [self._end, 0]

    def write(self, content: bytes) -> int:
        """Appends, as files do."""
        with writing():
            self._file.write(content)
        self._end += len(content)
        self._last[1] += len(content)
        return len(content)

    def flush(self) -> None:
        """Makes readable what was written."""
        with writing():
            self._file.flush()

    def size(self, name: str) -> int:
        """Bytes of a member, 0 where it has not come."""
        return self._places.get(name, (0, 0))[1]

    def read(self, name: str) -> bytes:
        """A member; threads may read at the same time."""
        start, size = self._places[name]
        return os.pread(self._file.fileno(), size, start)

    def file(self) -> BinaryIO:
        """All of it, as a file."""
        self._file.seek(0)
        return self._file

    def close(self) -> None:
        """Gives the room back at once, not only with the last picture."""
        with contextlib.suppress(OSError):  # of a full disk, again
            self._file.close()


@dataclass(frozen=True)
class Pictures(Sequence):
    """Encoded pictures as `pixels.rgb` takes them, read where they are sliced; their names are shown below `root`."""

    kept: Kept
    names: list[str]
    root: Path

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, rows: Any) -> Any:
        if isinstance(rows, slice):
            return [self[row] for row in range(*rows.indices(len(self)))]
        return {"bytes": self.kept.read(self.names[rows]), "path": str(self.root / self.names[rows])}


@dataclass(frozen=True)
class Archive:
    """An open archive whose members have been checked. `where`: how a sentence names it; `limit`: bytes, unpacked."""

    where: str
    limit: int
    _format: Format
    _members: dict[str, Member] = field(repr=False)

    @property
    def sizes(self) -> dict[str, int]:
        """The files in it, by name, in its order, bytes."""
        return {name: member.size for name, member in self._members.items()}

    def keep(self, names: Iterable[str], largest: int = _LARGEST) -> Kept:
        """These files' bytes. Raises Mistake where one is too large to be what it is taken for, or damaged."""
        wanted, kept = {name: self._members[name] for name in names}, Kept()
        if large := next((name for name, member in wanted.items() if member.size > largest), None):
            raise Mistake(f"{self.where} holds {large!r} of {_size(wanted[large].size)}: unpack it by hand")
        with contextlib.ExitStack() as undo:
            undo.callback(kept.close)
            with told(self.where):
                self._format.copy(wanted, kept)
                if short := [name for name, member in wanted.items() if kept.size(name) != member.size]:
                    raise EOFError(f"{short[0]} is cut short")
            kept.flush()
            undo.pop_all()
        return kept

    @contextlib.contextmanager
    def nested(self, name: str) -> Iterator[Archive]:
        """An archive in this one, under the limit of this one: it is packed twice, and unpacks no further for it."""
        file = self.keep([name], self.limit).file()
        with contextlib.closing(file), _opened(file, name, f"{self.where}: {name}", self.limit) as archive:
            yield archive


@contextlib.contextmanager
def opened(path: Path, data: Data) -> Iterator[Archive]:
    """An archive that is data.source, or lies in it. Raises Mistake, also for what the caller finds in it damaged."""
    source = Path(data.source).expanduser()
    where = f"data.source {data.source!r}" + ("" if path == source else f": {path.name}")
    limit = max(_FREE, _RATIO * path.stat().st_size)
    with path.open("rb") as file, _opened(file, path.name, where, limit) as archive:
        yield archive


@contextlib.contextmanager
def _opened(file: BinaryIO, name: str, where: str, limit: int) -> Iterator[Archive]:
    with told(where):
        opened = _format(name)(file)
        members = _checked(opened.members(), where, limit)
    yield Archive(where, limit, opened, members)


def _format(name: str) -> Callable[[BinaryIO], Format]:
    if name.endswith(".7z"):
        from resnet_cifar.data.sources.seven_zip import SevenZip

        return SevenZip
    return _Zip if name.endswith(".zip") else _Tar


@contextlib.contextmanager
def told(where: str) -> Iterator[None]:
    """Around what reads a file of a user: raises Mistake for whatever goes wrong."""
    try:
        yield
    except Mistake:
        raise
    except Encrypted:
        raise Mistake(f"{where} is encrypted: unpack it by hand") from None
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(": ")
        raise Mistake(f"{where} cannot be read ({reason}): fetch it again, or unpack it by hand") from None


def _checked(members: Iterable[Member], where: str, limit: int) -> dict[str, Member]:
    """The files by their names. Raises Mistake."""
    found: dict[str, Member] = {}
    total = 0
    for count, member in enumerate(members):
        name = member.name.replace("\\", "/")
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:", name):
            raise Mistake(f"{where} holds {member.name!r}, which would lie outside of it: do not trust it")
        if member.kind not in ("file", "folder"):
            raise Mistake(f"{where} holds {member.name!r}, a {member.kind}: pack files and folders only")
        total += member.size
        if total > limit or count >= _MEMBERS:
            raise Mistake(
                f"{where} says that it unpacks to more than {_size(limit)} or {_MEMBERS:,} files, as bombs do: do not "
                "trust it"
            )
        if member.kind == "file":
            if str(path) in found:
                raise Mistake(f"{where} holds {str(path)!r} twice: pack it once")
            found[str(path)] = member
    return found


def _size(nbytes: int) -> str:
    return f"{nbytes / _GIB:.3g} GiB"


def kind_of(mode: int) -> str:
    """A member's kind, from its Unix mode (0 where the packing system knew none: a file)."""
    kinds = {0: "file", stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "symbolic link"}
    return kinds.get(stat.S_IFMT(mode), "device")


class _Zip:
    def __init__(self, file: BinaryIO) -> None:
        self._zip = zipfile.ZipFile(file)

    def members(self) -> Iterator[Member]:
        for info in self._zip.infolist():
            if info.flag_bits & 1:
                raise Encrypted
            kind = "folder" if info.is_dir() else kind_of(info.external_attr >> 16)
            yield Member(info.filename, info.file_size, kind, info)

    def copy(self, members: dict[str, Member], kept: Kept) -> None:
        for name, member in members.items():
            # Python unpacks a whole chunk of the others at once, whatever comes of it.
            if member.handle.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise zipfile.BadZipFile(f"{name} is packed in another way than deflate")
            kept.begin(name)
            with self._zip.open(member.handle) as stream:
                shutil.copyfileobj(stream, kept, _CHUNK)


class _Tar:
    def __init__(self, file: BinaryIO) -> None:
        is_packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        self._tar = tarfile.open(fileobj=_InChunks(fileobj=file) if is_packed else file, mode="r:")  # noqa: SIM115

    def members(self) -> Iterator[Member]:
        for info in self._tar:
            kind = "file" if info.isreg() else "folder" if info.isdir() else "link or device"
            yield Member(info.name, info.size, kind, info)
        while self._tar.fileobj.read(_CHUNK):  # the checksum is at the end, where tarfile does not go
            pass

    def copy(self, members: dict[str, Member], kept: Kept) -> None:
        for name, member in sorted(members.items(), key=lambda item: item[1].handle.offset):
            kept.begin(name)
            with self._tar.extractfile(member.handle) as stream:
                shutil.copyfileobj(stream, kept, _CHUNK)


class _InChunks(gzip.GzipFile):
    """tarfile takes a header of any length into memory, and zeros by the gigabyte pack into a small file."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= 16 * _CHUNK:
            raise tarfile.ReadError("a header that is as long as a file")
        return super().read(size)
