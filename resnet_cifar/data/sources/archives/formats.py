"""What is asked of an archive's library, and .zip and .tar.gz by Python's own; py7zr is in `seven_zip`."""

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

    def copy(self, members: dict[str, Member], spool: MemberSpool) -> None:
        """Fills `spool` with the content of these, by their names in it."""


def kind_of(mode: int) -> str:
    """A member's kind, from its Unix mode (0 where the packing system knew none: a file)."""
    kinds = {0: "file", stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "symbolic link"}
    return kinds.get(stat.S_IFMT(mode), "device")


class Zip:
    """An open .zip file."""

    def __init__(self, file: BinaryIO) -> None:
        self._zip = zipfile.ZipFile(file)

    def members(self) -> Iterator[Member]:
        """All of them, in the archive's order."""
        for info in self._zip.infolist():
            if info.flag_bits & 1:
                raise Encrypted
            kind = "folder" if info.is_dir() else kind_of(info.external_attr >> 16)
            yield Member(info.filename, info.file_size, kind, info)

    def copy(self, members: dict[str, Member], spool: MemberSpool) -> None:
        """Fills `spool` with the content of these, by their names in it."""
        for name, member in members.items():
            # Python unpacks a whole chunk of the others at once, whatever comes of it.
            if member.handle.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise zipfile.BadZipFile(f"{name} is packed in another way than deflate")
            spool.begin(name)
            with self._zip.open(member.handle) as stream:
                shutil.copyfileobj(stream, spool, _CHUNK)


class Tar:
    """An open .tar or .tar.gz file."""

    def __init__(self, file: BinaryIO) -> None:
        is_packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        self._tar = tarfile.open(fileobj=_InChunks(fileobj=file) if is_packed else file, mode="r:")  # noqa: SIM115

    def members(self) -> Iterator[Member]:
        """All of them, in the archive's order."""
        for info in self._tar:
            kind = "file" if info.isreg() else "folder" if info.isdir() else "link or device"
            yield Member(info.name, info.size, kind, info)
        while self._tar.fileobj.read(_CHUNK):  # the checksum is at the end, where tarfile does not go
            pass

    def copy(self, members: dict[str, Member], spool: MemberSpool) -> None:
        """Fills `spool` with the content of these, by their names in it."""
        for name, member in sorted(members.items(), key=lambda item: item[1].handle.offset):
            spool.begin(name)
            with self._tar.extractfile(member.handle) as stream:
                shutil.copyfileobj(stream, spool, _CHUNK)


class _InChunks(gzip.GzipFile):
    """tarfile takes a header of any length into memory, and zeros by the gigabyte pack into a small file."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= 16 * _CHUNK:
            raise tarfile.ReadError("a header that is as long as a file")
        return super().read(size)
