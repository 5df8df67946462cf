"""An archive of class folders, of images and a CSV of labels, of Kaggle's CIFAR-10 or of CIFAR's pickles."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from resnet_cifar.config.schema import Data
from resnet_cifar.data.sources import archives, cifar_batches, kaggle
from resnet_cifar.data.sources.archives.spool import SpooledImages
from resnet_cifar.data.sources.base import SourceData, check_fields
from resnet_cifar.data.sources.image_tree import SPLIT_NAMES, is_image_file, read_tree
from resnet_cifar.data.sources.walk import file_stamps, is_hidden

FIELDS = ("splits", "columns")
ENDINGS = (".zip", ".7z", ".tar", ".tar.gz", ".tgz")


def identity(data: Data) -> str:
    """Path, size and modification time of the archive, and of a table of labels beside it."""
    source = Path(data.source).expanduser()
    table = kaggle.table_beside(source)
    return f"archive {file_stamps(source)} {file_stamps(table) if table.is_file() else ''}"


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
    """The files of an archive, or of the only folder in it, without hidden ones."""

    remarks = ()

    def __init__(self, archive: archives.Archive, source: Path, data: Data) -> None:
        self.archive, self.root = archive, source
        paths = [PurePosixPath(name) for name in archive.sizes]
        self.prefix = ""
        files = [str(path) for path in paths if not any(map(is_hidden, path.parts))]
        named = (*SPLIT_NAMES, data.splits.train, data.splits.validation, data.splits.test)
        while files and (top := files[0].partition("/")[0]) not in named and _is_only_folder(top, files):
            self.prefix += f"{top}/"
            files = [file.removeprefix(f"{top}/") for file in files]
        self.files = sorted(files, key=lambda file: (str(PurePosixPath(file).parent), file))
        folders = {str(folder) for file in files for folder in PurePosixPath(file).parents}
        self.folders = sorted(folders - {"."})

    def read(self, file: str) -> bytes:
        """The content of a file."""
        with contextlib.closing(self.archive.extract([self.prefix + file])) as spool:
            return spool.read(self.prefix + file)

    def images(self, files: Sequence[str]) -> SpooledImages:
        """These files, extracted to a temporary file."""
        names = [self.prefix + file for file in files]
        return SpooledImages(self.archive.extract(names), names, self.root)


def _is_only_folder(top: str, files: list[str]) -> bool:
    """Whether a folder contains everything, images in folders included."""
    return all(file.startswith(f"{top}/") for file in files) and any(
        file.count("/") > 1 and is_image_file(PurePosixPath(file).name) for file in files
    )
