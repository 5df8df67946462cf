"""An archive of class folders, of images and a CSV of labels, of Kaggle's CIFAR-10 or of CIFAR's pickles."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from resnet_cifar.config.schema import Data
from resnet_cifar.data.sources import archives, cifar_batches, kaggle
from resnet_cifar.data.sources.archives.spool import SpooledImages
from resnet_cifar.data.sources.base import SourceData, check_fields
from resnet_cifar.data.sources.image_tree import SPLIT_NAMES, is_image_file, read_tree
from resnet_cifar.data.sources.walk import Walk, file_stamps, is_hidden

FIELDS = ("splits", "columns")
ENDINGS = (".zip", ".7z", ".tar", ".tar.gz", ".tgz")


def identity(data: Data) -> str:
    """Path, size and modification time of the archive, and of a table of labels beside it."""
    source = Path(data.source).expanduser()
    table = kaggle.table_beside(source)
    return f"archive 2 {file_stamps(source)} {file_stamps(table) if table.is_file() else ''}"


def read(data: Data) -> SourceData:
    """The images and labels in the archive, read without unpacking it. Raises UserError."""
    source = Path(data.source).expanduser()
    with archives.open_archive(source, data) as archive:
        for kind in (cifar_batches, kaggle):
            if kind.recognizes_archive(archive, source):
                check_fields(data, kind.FIELDS)
                return kind.read_archive(archive, source, data)
        return read_tree(_Members(archive, source, data), data)


class _Members:
    """The files of an archive, or of the only folder in it, as `walk` lists those of a folder."""

    def __init__(self, archive: archives.Archive, source: Path, data: Data) -> None:
        self.archive, self.root = archive, source
        self.prefix, files = "", list(archive.sizes)
        named = (data.splits.train, data.splits.validation, data.splits.test)
        while (top := _only_folder(files)) and top.lower() not in SPLIT_NAMES and top not in named:
            self.prefix += f"{top}/"
            files = [file.removeprefix(f"{top}/") for file in files if file.startswith(f"{top}/")]
        hidden = {file: _hidden_folder(file) for file in files}
        self.files = sorted((file for file in files if not hidden[file]), key=os.path.split)
        self.folders = sorted({str(folder) for file in self.files for folder in PurePosixPath(file).parents} - {"."})
        self.remarks = Walk(hidden=sorted({*hidden.values()} - {""})).remarks

    def read(self, file: str) -> bytes:
        """The content of a file."""
        with contextlib.closing(self.archive.extract([self.prefix + file])) as spool:
            return spool.read(self.prefix + file)

    def images(self, files: Sequence[str]) -> SpooledImages:
        """These files, extracted to a temporary file."""
        names = [self.prefix + file for file in files]
        return SpooledImages(self.archive.extract(names), names, self.root)


def _only_folder(files: list[str]) -> str:
    """The folder that contains everything that is not hidden, images in folders included, or ""."""
    visible = [file for file in files if not is_hidden(file) and not _hidden_folder(file)]
    tops = {file.partition("/")[0] for file in visible}
    nested = any(file.count("/") > 1 and is_image_file(PurePosixPath(file).name) for file in visible)
    return tops.pop() if len(tops) == 1 and nested else ""


def _hidden_folder(file: str) -> str:
    """The outermost hidden folder that the file lies in, or ""."""
    folders = file.split("/")[:-1]
    return next(("/".join(folders[: n + 1]) for n, name in enumerate(folders) if is_hidden(name)), "")
