"""The eval command with --images: what a trained model takes pictures for."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from resnet_cifar.cli.scoring import EvalCommand
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Recipe
from resnet_cifar.data.sources.image_io import Unreadable, rgb
from resnet_cifar.distributed.context import DistributedContext
from resnet_cifar.evaluation import loaded_model
from resnet_cifar.evaluation import target as targets
from resnet_cifar.evaluation.loaded_model import LoadedModel
from resnet_cifar.reporting.console import Screen

UNREADABLE = 3  # the exit code where some pictures could not be read, and the others are labelled
_BATCH = 32
_SHOWN = 3  # classes of a picture in the table
_CANNOT = "it cannot be read as a picture"


def label_images(command: EvalCommand, recipe: Recipe) -> None:
    """Prints the classes and probabilities of every picture, in the order given; folders are walked, sorted.

    As a table, or as JSON lines. Raises UserError where there is no picture, SystemExit where some cannot be read.
    """
    target = targets.find_target(Path(command.target))
    context = DistributedContext(recipe.precision)
    recipe = dataclasses.replace(recipe, precision=context.precision)
    screen = Screen(shown=context.is_main and not command.json)
    files = json.loads(context.run_on_main(lambda: json.dumps(pictures(command.images))))
    model = loaded_model.load_model(target, recipe, context)
    model.check_fresh()
    found = probabilities(context, model, files)
    if context.is_main and command.json:
        _print_lines(files, found, model.classes)
    if model.remark:
        screen.warn(model.remark)
    scaled = f"at temperature {model.temperature:.4f}" if model.temperature else "not calibrated"
    title = f"{len(files)} pictures by {model.name}: classes and probabilities, {scaled}"
    screen.table(title, [(_printable(file), _top(row, model.classes)) for file, row in zip(files, found, strict=True)])
    context.close()
    unreadable = sum(row is None for row in found)
    if unreadable and context.is_main:  # a launcher ends all others when one fails: they must not while this one prints
        print(f"error: {unreadable} of {len(files)} pictures cannot be read", file=sys.stderr, flush=True)
        raise SystemExit(UNREADABLE)


def pictures(words: Sequence[str]) -> list[str]:
    """The files that `words` name; folders are walked in sorted order for files with an ending that PIL can open.

    A file that is named itself is taken whatever its ending, a hidden one in a folder is not. Raises UserError.
    """
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    files: list[str] = []
    for word in words:
        path = Path(word)
        if not path.is_dir():
            files.append(word)
            continue
        below = [file for file in path.rglob("*") if file.suffix.lower() in endings and file.is_file()]
        hidden = (any(part.startswith(".") for part in file.relative_to(path).parts) for file in below)
        inside = sorted(file for file, is_hidden in zip(below, hidden, strict=True) if not is_hidden)
        if not inside:
            raise UserError(f"--images {word} holds no pictures: name another folder, or files")
        files.extend(map(str, inside))
    return files


def read_picture(file: str, side: int) -> np.ndarray | None:
    """uint8 [height, width, 3], as the store holds an image of a source; None where it is none. `side`: see `rgb`."""
    try:
        return rgb(file, side)
    except Unreadable:
        return None


@torch.no_grad()
def probabilities(context: DistributedContext, model: LoadedModel, files: Sequence[str]) -> list[Tensor | None]:
    """For each file its classes' probabilities, float64 [classes] on the CPU, or None where it cannot be read.

    softmax(logits / temperature), where the model has one. The ranks take blocks of the files, and all get everything.
    """
    each = -(-len(files) // context.size)
    mine = files[context.rank * each : (context.rank + 1) * each]
    logits = torch.zeros(each, len(model.classes), dtype=torch.float64, device=context.device)
    is_read = torch.zeros(each, dtype=torch.int64, device=context.device)
    read = partial(read_picture, side=model.decode_size)
    with ThreadPoolExecutor() as threads:  # PIL decodes outside the interpreter's lock
        for start in range(0, len(mine), _BATCH):
            decoded = list(threads.map(read, mine[start : start + _BATCH]))
            rows = [start + offset for offset, pixels in enumerate(decoded) if pixels is not None]
            if rows:
                images = (torch.from_numpy(pixels)[None].to(context.device) for pixels in decoded if pixels is not None)
                inputs = torch.cat([model.preprocess(image) for image in images])
                logits[rows] = model.model(inputs.contiguous(memory_format=torch.channels_last)).double()
                is_read[rows] = 1
    shares = (context.gather(logits)[: len(files)].cpu() / (model.temperature or 1.0)).softmax(1)
    return [row if read else None for row, read in zip(shares, context.gather(is_read).tolist(), strict=False)]


def _print_lines(files: Sequence[str], found: Sequence[Tensor | None], classes: tuple[str, ...]) -> None:
    for file, row in zip(files, found, strict=True):
        if row is None:
            print(json.dumps({"file": file, "error": _CANNOT}))
            continue
        shares = dict(zip(classes, (round(share, 6) for share in row.tolist()), strict=True))
        best = classes[int(row.argmax())]
        print(json.dumps({"file": file, "label": best, "probability": shares[best], "probabilities": shares}))


def _top(row: Tensor | None, classes: tuple[str, ...]) -> str:
    if row is None:
        return _CANNOT
    best = row.topk(min(_SHOWN, len(classes)))
    return ", ".join(f"{classes[place]} {share:.4f}" for share, place in zip(*map(Tensor.tolist, best), strict=True))


def _printable(file: str) -> str:
    """A name that is no UTF-8, which a file may have, as far as a terminal can show it."""
    return os.fsencode(file).decode("utf-8", "replace")
