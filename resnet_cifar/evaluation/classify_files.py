"""Class probabilities of image files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from resnet_cifar.config.errors import UserError
from resnet_cifar.data.sources import image_io
from resnet_cifar.distributed.context import DistributedContext
from resnet_cifar.evaluation.loaded_model import LoadedModel

_BATCH = 32


def image_files(paths: Sequence[str]) -> list[str]:
    """The files that `paths` name; directories are searched in sorted order for files with an extension PIL can open.

    Files that are named themselves are included whatever their extension; hidden files in a directory are not. Raises
    UserError.
    """
    extensions = {extension for extension, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    extensions.update(image_io.HEIC)  # without pillow-heif, to be told that it is needed
    files: list[str] = []
    for word in paths:
        path = Path(word)
        if not path.is_dir():
            files.append(word)
            continue
        found = sorted(
            file
            for file in path.rglob("*")
            if file.suffix.lower() in extensions
            and not any(part.startswith(".") for part in file.relative_to(path).parts)
            and file.is_file()
        )
        if not found:
            raise UserError(f"{word} contains no images: name another directory, or files")
        files.extend(map(str, found))
    return files


def class_probabilities(
    context: DistributedContext,
    model: LoadedModel,
    files: Sequence[str],
    track: Callable[[Iterable[int], int], Iterable[int]] = lambda batches, total: batches,
) -> list[Tensor | None]:
    """The class probabilities of each file, float64 [classes] on the CPU, or None if it cannot be read.

    Each rank classifies one block of files; all get all results.
    `track` shows the progress through batches, of which there are `total`.
    """
    each = -(-len(files) // context.size)
    mine = files[context.rank * each : (context.rank + 1) * each]
    logits = torch.zeros(each, len(model.classes), dtype=torch.float64, device=context.device)
    is_read = torch.zeros(each, dtype=torch.int64, device=context.device)

    def read(file: str) -> Tensor | None:
        try:
            return model.read(file)
        except image_io.UndecodableImage:
            return None

    with ThreadPoolExecutor() as threads:  # PIL decodes outside the interpreter's lock
        starts = range(0, len(mine), _BATCH)
        for start in track(starts, len(starts)):
            decoded = list(threads.map(read, mine[start : start + _BATCH]))
            rows = [start + offset for offset, pixels in enumerate(decoded) if pixels is not None]
            if rows:
                logits[rows] = model.logits([pixels for pixels in decoded if pixels is not None])
                is_read[rows] = 1
    probabilities = model.probabilities(context.gather(logits)[: len(files)].cpu())
    is_read = context.gather(is_read).tolist()
    return [row if ok else None for row, ok in zip(probabilities, is_read, strict=False)]
