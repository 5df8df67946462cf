"""Class probabilities of image files, also of those in archives."""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from resnet_cifar.config.errors import UserError
from resnet_cifar.data.sources import archives, image_io
from resnet_cifar.data.sources.archive import ENDINGS
from resnet_cifar.data.sources.archives.spool import MemberSpool
from resnet_cifar.distributed.context import DistributedContext
from resnet_cifar.evaluation.loaded_model import LoadedModel

_BATCH = 32


class ImageFile(NamedTuple):
    """An image file, or the `member` of the archive `path`."""

    path: str
    member: str = ""

    @property
    def name(self) -> str:
        """The path, with the archive as a folder: `photos.zip/inner/a.jpg`."""
        return f"{self.path}/{self.member}" if self.member else self.path


@dataclass(frozen=True)
class ImageFiles:
    """Images, read when they are needed: members of archives from a temporary file, which holds what was extracted."""

    files: list[ImageFile]
    _spools: dict[str, MemberSpool] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The names of the files."""
        return [file.name for file in self.files]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> Any:
        """What `image_io.to_rgb` accepts."""
        file = self.files[row]
        if not file.member:
            return file.path
        return {"bytes": self._spools[file.path].read(file.member), "path": file.name}

    def extract(self, rows: range) -> None:
        """Extracts the members among `rows`. Raises UserError."""
        wanted: dict[str, dict[str, None]] = {}
        for file in (self.files[row] for row in rows):
            if file.member and file.path not in self._spools:
                wanted.setdefault(file.path, {})[file.member] = None
        for path, members in wanted.items():
            with archives.open_file(Path(path), path) as archive:
                self._spools[path] = archive.extract(members)

    def unreadable_reason(self, row: int) -> str:
        """See `image_io.unreadable_reason`."""
        return image_io.unreadable_reason(self[row])


def find_images(paths: Sequence[str]) -> list[ImageFile]:
    """The images that `paths` name; directories, archives and the matches of patterns are searched in sorted order.

    They are searched for files with an extension that PIL can open; hidden ones are left out. Files that are named
    themselves are included whatever their extension, and a file whose name is a pattern is that file. Archives in
    directories are not searched. Raises UserError.
    """
    files: list[ImageFile] = []
    for word in paths:
        if Path(word).exists():
            found = _search(word)
        else:
            matched = sorted(str(Path(match)) for match in glob.iglob(word, recursive=True))  # noqa: PTH207
            found = list(dict.fromkeys(file for match in matched for file in _search(match, is_match=True)))
        if not found:
            raise UserError(f"{word} contains no images: name another directory, archive or pattern, or files")
        files.extend(found)
    return files


def _search(word: str, is_match: bool = False) -> list[ImageFile]:
    """The images in a directory or archive; any other file itself, if it is an image by its name or `is_match` not."""
    path = Path(word)
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if _is_image(file.relative_to(path)))
        return [ImageFile(str(file)) for file in found if file.is_file()]
    if word.lower().endswith(ENDINGS):
        with archives.open_file(path, word) as archive:
            return [ImageFile(word, name) for name in sorted(archive.sizes) if _is_image(PurePath(name))]
    return [ImageFile(word)] if not is_match or _is_image(PurePath(path.name)) else []


def _is_image(name: PurePath) -> bool:
    extension = name.suffix.lower()
    # HEIC also without pillow-heif, to be told that it is needed.
    is_known = Image.registered_extensions().get(extension) in Image.OPEN or extension in image_io.HEIC
    return is_known and not any(part.startswith(".") for part in name.parts)


def share(context: DistributedContext, count: int) -> range:
    """The rows that this rank classifies: one block of `count`."""
    each = -(-count // context.size)
    return range(count)[context.rank * each : (context.rank + 1) * each]


def class_probabilities(
    context: DistributedContext,
    model: LoadedModel,
    images: ImageFiles,
    track: Callable[[Iterable[int], int], Iterable[int]] = lambda batches, total: batches,
) -> list[Tensor | None]:
    """The class probabilities of each image, float64 [classes] on the CPU, or None if it cannot be read.

    Each rank classifies its `share`; all get all results.
    `track` shows the progress through batches, of which there are `total`.
    """
    each, mine = -(-len(images) // context.size), share(context, len(images))
    logits = torch.zeros(each, len(model.classes), dtype=torch.float64, device=context.device)
    is_read = torch.zeros(each, dtype=torch.int64, device=context.device)

    def read(row: int) -> Tensor | None:
        with contextlib.suppress(image_io.UndecodableImage):
            return model.read(images[row])

    with ThreadPoolExecutor() as threads:  # PIL decodes outside the interpreter's lock
        starts = range(0, len(mine), _BATCH)
        for start in track(starts, len(starts)):
            decoded = list(threads.map(read, mine[start : start + _BATCH]))
            rows = [start + offset for offset, pixels in enumerate(decoded) if pixels is not None]
            if rows:
                logits[rows] = model.logits([pixels for pixels in decoded if pixels is not None])
                is_read[rows] = 1
    probabilities = model.probabilities(context.gather(logits)[: len(images)].cpu())
    is_read = context.gather(is_read).tolist()
    return [row if ok else None for row, ok in zip(probabilities, is_read, strict=False)]
