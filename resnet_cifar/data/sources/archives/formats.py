"""The interface of archive formats, and .zip and .tar.gz by the standard library; .7z is in `seven_zip`."""

from __future__ import annotations

import gzip
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

from resnet_cifar.data.sources.archives.spool import MemberSpool

_CHUNK = 2**16


@dataclass(frozen=True)
class Member:
    """A member of an archive. `kind`: file, folder, or the name of another kind; `handle`: the library's object."""

    name: str
    size: int
    kind: str
    handle: Any


class Unsupported(Exception):
    """An archive that has to be packed in another way; the message follows its name."""


class Encrypted(Exception):
    """An archive, or one of its members, needs a password."""


class Format(Protocol):
    """An archive format. Damaged archives may raise almost any Exception."""

    def members(self) -> Iterable[Member]:
        """All members, in the order of the archive."""

    def copy(self, members: dict[str, Member], spool: MemberSpool) -> None:
        """Extracts `members`, by the names they get in `spool`."""


def kind_of(mode: int) -> str:
    """A member's kind, from its Unix mode (0 if the archive has none: a file)."""
    kinds = {0: "file", stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "symbolic link"}
    return kinds.get(stat.S_IFMT(mode), "device")


class Zip:
    """An open .zip file."""

    def __init__(self, file: BinaryIO) -> None:
        self._zip = zipfile.ZipFile(file)

    def members(self) -> Iterator[Member]:
        """All members, in the order of the archive."""
        for info in self._zip.infolist():
            if info.flag_bits & 1:
                raise Encrypted
            kind = "folder" if info.is_dir() else kind_of(info.external_attr >> 16)
            yield Member(info.filename, info.file_size, kind, info)

    def copy(self, members: dict[str, Member], spool: MemberSpool) -> None:
        """Extracts `members`, by the names they get in `spool`."""
        for name, member in members.items():
            # For other methods, zipfile unpacks a chunk at once, however large the result.
            if member.handle.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise Unsupported(f"holds {name!r}, which is not compressed by deflate: pack it again with that")
            spool.begin(name)
            with self._zip.open(member.handle) as stream:
                shutil.copyfileobj(stream, spool, _CHUNK)


class Tar:
    """An open .tar or .tar.gz file."""

    def __init__(self, file: BinaryIO) -> None:
        is_gzip = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        self._tar = tarfile.open(fileobj=_BoundedGzip(fileobj=file) if is_gzip else file, mode="r:")  # noqa: SIM115

    def members(self) -> Iterator[Member]:
        """All members, in the order of the archive."""
        for info in self._tar:
            kind = "file" if info.isreg() else "folder" if info.isdir() else "link or device"
            yield Member(info.name, info.size, kind, info)
        while self._tar.fileobj.read(_CHUNK):  # the checksum is at the end, which tarfile does not read
            pass

    def copy(self, members: dict[str, Member], spool: MemberSpool) -> None:
        """Extracts `members`, by the names they get in `spool`."""
        for name, member in sorted(members.items(), key=lambda item: item[1].handle.offset):
            spool.begin(name)
            with self._tar.extractfile(member.handle) as stream:
                shutil.copyfileobj(stream, spool, _CHUNK)


class _BoundedGzip(gzip.GzipFile):
    """Bounds the size of a header: tarfile reads it into memory whole, and gigabytes of zeros compress well."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= 16 * _CHUNK:
            raise tarfile.ReadError("a header is as long as a file")
        return super().read(size)
