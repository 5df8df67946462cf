"""What `formats` asks of py7zr."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import BinaryIO

import py7zr
from py7zr.compressor import SupportedMethods

from resnet_cifar.data.paths import cache_root
from resnet_cifar.data.sources.archives.formats import Encrypted, Member, kind_of
from resnet_cifar.data.sources.archives.spool import MemberSpool

# py7zr takes what others have packed into memory, all that a chunk of them unpacks to, whatever the header says.
_IN_CHUNKS = {"COPY", "LZMA", "LZMA2", "BZip2"}
_FILTERS = {"DELTA", "BCJ", "PPC", "IA64", "ARM", "ARMT", "SPARC"}


class SevenZip:
    """An open .7z file. What is not asked for is passed through where it lies before what is, and spool nowhere."""

    def __init__(self, file: BinaryIO) -> None:
        try:
            self._archive = py7zr.SevenZipFile(file)
        except py7zr.PasswordRequired:  # its list of files is encrypted too
            raise Encrypted from None
        if self._archive.needs_password():
            raise Encrypted

    def members(self) -> Iterator[Member]:
        """All of them, in the archive's order."""
        for file in self._archive.files:
            kind = "folder" if file.is_directory else kind_of(file.st_fmt or 0)
            if file.is_symlink or file.is_junction:
                kind = "symbolic link"
            yield Member(file.filename, file.uncompressed, kind, file.filename)

    def copy(self, members: dict[str, Member], spool: MemberSpool) -> None:
        """Fills `spool` with the content of these, by their names in it."""
        if others := self._methods() - _IN_CHUNKS - _FILTERS:
            raise py7zr.UnsupportedCompressionMethodError(None, f"packed with {', '.join(others)}: pack it with LZMA2")
        # py7zr checks names against the links in a folder of the disk, although it writes none there: not the user's.
        root = cache_root().resolve()
        names = [member.handle for member in members.values()]
        self._archive.reset()  # it reads on from where it was
        self._archive.extract(root, targets=names, factory=_Writers(spool, PurePosixPath(root)))

    def _methods(self) -> set[str]:
        """How it is packed, in py7zr's words."""
        streams = self._archive.header.main_streams
        folders = streams.unpackinfo.folders if streams else []
        names = {method["id"]: method["name"] for method in SupportedMethods.methods}
        return {names.get(coder["method"], "something unknown") for folder in folders for coder in folder.coders}


class _Writers(py7zr.WriterFactory):
    """py7zr asks for a writer when it comes to a member; one follows another, as the archive is given as a file."""

    def __init__(self, spool: MemberSpool, root: PurePosixPath) -> None:
        self._spool, self._root = spool, root

    def create(self, filename: str) -> py7zr.Py7zIO:
        self._spool.begin(str(PurePosixPath(filename).relative_to(self._root)))
        return _Writer(self._spool)


class _Writer(py7zr.Py7zIO):
    """Takes bytes and gives none back: py7zr goes back to the start only so that others may read."""

    def __init__(self, spool: MemberSpool) -> None:
        self._spool = spool

    def write(self, s: bytes | bytearray) -> int:
        return self._spool.write(s)

    def read(self, size: int | None = None) -> bytes:
        return b""

    def seek(self, offset: int, whence: int = 0) -> int:
        return 0

    def flush(self) -> None: ...

    def size(self) -> int:
        return 0
