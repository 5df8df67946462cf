"""A folder of images, labeled by class folders or by CSV files; see `image_tree`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePath

from resnet_cifar.config.schema import Data
from resnet_cifar.data.sources.base import SourceData
from resnet_cifar.data.sources.image_tree import SPLIT_NAMES, has_class_folders, is_image_file, read_tree
from resnet_cifar.data.sources.walk import file_stamps, is_hidden, walk

FIELDS = ("splits", "columns")


def recognizes(folder: Path) -> bool:
    """Whether there are images and no tables of the hub's layout anywhere in the folder."""
    files = [folder / file for file in walk(folder).files]
    if not any(is_image_file(file.name) for file in files) or any(map(_is_table, files)):
        return False
    if not any(file.suffix == ".tar" for file in files):
        return True
    tree = _Folder(Data(source=str(folder)))  # beside class folders a .tar is a backup, elsewhere part of a WebDataset
    return has_class_folders(tree, [file for file in tree.files if is_image_file(PurePath(file).name)])


def _is_table(file: Path) -> bool:
    return file.name.endswith((".parquet", ".arrow")) or is_metadata(file)


def is_metadata(file: Path) -> bool:
    """Whether it is one of the files from which `datasets` takes the labels of images."""
    if file.name in ("metadata.csv", "metadata.jsonl") and file.is_file():
        with file.open(encoding="utf-8", errors="replace") as lines:
            return "file_name" in lines.readline()  # `datasets` requires this column
    return file.name == "metadata.parquet"


def identity(data: Data) -> str:
    """Path, size and modification time of every file."""
    return f"tree 2 {file_stamps(Path(data.source))}"


def read(data: Data) -> SourceData:
    """The paths of the images and their labels. Raises UserError."""
    return read_tree(_Folder(data), data)


class _Folder:
    """The files of a folder, or of the only folder in it."""

    def __init__(self, data: Data) -> None:
        self.root = Path(data.source).expanduser()
        named = (data.splits.train, data.splits.validation, data.splits.test)
        while inside := self._only_folder(named):
            self.root = inside
        found = walk(self.root, lambda name: name.lower() in SPLIT_NAMES or name in named)
        self.files, self.folders, self.remarks = found.files, found.folders, found.remarks

    def _only_folder(self, named: Sequence[str]) -> Path | None:
        """The folder that contains everything, if it contains class folders or splits."""
        paths = [path for path in self.root.iterdir() if not is_hidden(path.name)]
        if len(paths) != 1 or paths[0].is_symlink() or paths[0].name.lower() in SPLIT_NAMES or paths[0].name in named:
            return None
        inner = paths[0].is_dir() and [
            path for path in paths[0].iterdir() if path.is_dir() and not is_hidden(path.name)
        ]
        return paths[0] if inner else None

    def read(self, file: str) -> bytes:
        """The content of a file."""
        return (self.root / file).read_bytes()

    def images(self, files: Sequence[str]) -> list[str]:
        """The paths of these files."""
        return [str(self.root / file) for file in files]
