"""The format .7z, by py7zr."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import BinaryIO

import py7zr
from py7zr.compressor import SupportedMethods

from resnet_cifar.cache_folder import cache_root
from resnet_cifar.data.sources.archives.formats import Encrypted, Member, Unsupported, kind_of
from resnet_cifar.data.sources.archives.spool import MemberSpool

# With other methods, py7zr holds all that a chunk unpacks to in memory, whatever the header says.
_IN_CHUNKS = {"COPY", "LZMA", "LZMA2", "BZip2"}
_FILTERS = {"DELTA", "BCJ", "PPC", "IA64", "ARM", "ARMT", "SPARC"}


class SevenZip:
    """An open .7z file."""

    def __init__(self, file: BinaryIO) -> None:
        try:
            self._archive = py7zr.SevenZipFile(file)
        except py7zr.PasswordRequired:  # the list of files is encrypted too
            raise Encrypted from None
        if self._archive.needs_password():
            raise Encrypted

    def members(self) -> Iterator[Member]:
        """All members, in the order of the archive."""
        for file in self._archive.files:
            kind = "folder" if file.is_directory else kind_of(file.st_fmt or 0)
            if file.is_symlink or file.is_junction:
                kind = "symbolic link"
            yield Member(file.filename, file.uncompressed, kind, file.filename)

    def copy(self, members: dict[str, Member], spool: MemberSpool) -> None:
        """Extracts `members`, by the names they get in `spool`."""
        if others := self._methods() - _IN_CHUNKS - _FILTERS:
            raise Unsupported(f"is compressed with {', '.join(others)}: pack it again with LZMA2")
        # py7zr checks names against symbolic links below this directory, although it writes nothing there.
        root = cache_root().resolve()
        names = [member.handle for member in members.values()]
        self._archive.reset()  # it would continue from its last position
        self._archive.extract(root, targets=names, factory=_Writers(spool, PurePosixPath(root)))

    def _methods(self) -> set[str]:
        """The compression methods, by py7zr's names."""
        streams = self._archive.header.main_streams
        folders = streams.unpackinfo.folders if streams else []
        names = {method["id"]: method["name"] for method in SupportedMethods.methods}
        return {names.get(coder["method"], "an unknown method") for folder in folders for coder in folder.coders}


class _Writers(py7zr.WriterFactory):
    """py7zr requests a writer when it reaches a member, one after the other."""

    def __init__(self, spool: MemberSpool, root: PurePosixPath) -> None:
        self._spool, self._root = spool, root

    def create(self, filename: str) -> py7zr.Py7zIO:
        self._spool.begin(str(PurePosixPath(filename).relative_to(self._root)))
        return _Writer(self._spool)


class _Writer(py7zr.Py7zIO):
    """A write-only file: py7zr rewinds it only for readers."""

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
