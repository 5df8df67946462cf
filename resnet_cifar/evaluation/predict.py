"""Exact predictions on any number of processes, precise BN, and the check that all ranks hold the same weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from resnet_cifar.data.image_dataset import ImageDataset
from resnet_cifar.data.prepared_data import ImageData
from resnet_cifar.data.preprocess import Preprocess
from resnet_cifar.distributed.context import DistributedContext
from resnet_cifar.models.factory import in_mode
from resnet_cifar.models.precise_bn import estimate_bn_stats

_PIXELS = 1 << 23  # per batch, at most
_BATCHES = 32  # at least, so that many ranks share the work
_NORM_ROWS = 32  # images per batch of precise BN, at least
T = TypeVar("T")
_FULL = 128  # images: smaller batches cost more per image (1.4 times at 32, ResNet-50 at 32 pixels on one core)


class Predictions(NamedTuple):
    """logits float32 or float64 [n, classes] and labels int64 [n], both on the CPU, in the split's order."""

    logits: Tensor
    labels: Tensor


def _never_stop() -> None:
    """The default `check_stop`."""


def _untracked(batches: Iterable[T], total: int) -> Iterable[T]:
    """The default `track`, which shows no progress through the `total` batches."""
    return batches


@torch.no_grad()
def predict(
    context: DistributedContext,
    model: nn.Module,
    images: ImageDataset,
    preprocess: Preprocess,
    check_stop: Callable[[], None] = _never_stop,
    track: Callable[[Iterable[Tensor], int], Iterable[Tensor]] = _untracked,
    rows: np.ndarray | None = None,
) -> Predictions:
    """Predicts every image, or those of `rows`, exactly once on any world size; all ranks get all predictions.

    Batches of one size are cut from the global index range and assigned to ranks in blocks; the end is padded with the
    last image, whose extra predictions are dropped. `check_stop` is called before each batch, equally often on every
    rank. `track`: see `_untracked`.
    """
    rows = np.arange(len(images)) if rows is None else rows
    size = batch_size(len(rows), preprocess.data.image_size, least=_FULL)
    batches = -(-len(rows) // size)
    each = -(-batches // context.size)
    logits = []
    mine = range(context.rank * each, (context.rank + 1) * each)
    with in_mode(model, training=False):
        read = images.read(rows[np.arange(n * size, (n + 1) * size).clip(max=len(rows) - 1)] for n in mine)
        for pixels in track(read, each):
            check_stop()
            logits.append(model(preprocess(pixels)))
    gathered = context.gather(torch.cat(logits))[: len(rows)]
    return Predictions(gathered.to("cpu"), images.labels.to("cpu")[rows])


def predict_held_out(
    context: DistributedContext,
    model: nn.Module,
    data: ImageData,
    preprocess: Preprocess,
    check_stop: Callable[[], None] = _never_stop,
    known: Predictions | None = None,
    track: Callable[[Iterable[Tensor], int], Iterable[Tensor]] = _untracked,
) -> Predictions | None:
    """Predictions of the validation images; None if there are none, or if they are the training images.

    `known`: existing predictions of these images, given on every rank or on none.
    """
    if not len(data.validation) or preprocess.data.overfit_images:
        return None
    return known or predict(context, model, data.validation, preprocess, check_stop, track)


def precise_bn(
    context: DistributedContext,
    model: nn.Module,
    images: ImageDataset,
    preprocess: Preprocess,
    rows: np.ndarray,
    check_stop: Callable[[], None] = _never_stop,
    track: Callable[[Iterable[int], int], Iterable[int]] = _untracked,
) -> None:
    """Precise BN of the unwrapped `model` on training images `rows`, shared by ranks; the others: see `predict`."""
    size = batch_size(len(rows), preprocess.data.image_size, least=_NORM_ROWS)
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    if len(batches) > 1 and len(batches[-1]) < size:
        batches.pop()  # every batch weighs the same
    mine = batches[context.rank :: context.size]

    def inputs() -> Iterator[Tensor]:
        pixels = images.read(mine)
        turns = -(-len(batches) // context.size)
        for turn in track(range(turns), turns):
            check_stop()
            if turn < len(mine):
                yield preprocess(next(pixels))

    estimate_bn_stats(model, inputs(), lambda statistics: context.weighted_mean(statistics, float(len(mine))))


def batch_size(images: int, image_size: int, least: int) -> int:
    """A power of two that depends on the number and size of images only, so that any world size computes the same.

    It is `least` if a larger one would leave fewer than 32 batches, and smaller for few or large images.
    """
    fits = _PIXELS // image_size**2
    shared = max(images // _BATCHES, min(least, 1 << (images - 1).bit_length()))
    return 1 << (min(fits, shared, 1024).bit_length() - 1)


@torch.no_grad()
def check_same_weights(context: DistributedContext, model: nn.Module) -> None:
    """Raises RuntimeError that names the ranks whose weights differ from those of rank 0."""
    kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = [p.detach().view(kinds[p.element_size()]).sum(dtype=torch.int64) for p in model.parameters()]
    weights = torch.arange(1, 2 * len(sums), 2, device=sums[0].device)  # order matters too
    checksums = context.gather((torch.stack(sums) * weights).sum()[None]).tolist()
    strays = [rank for rank, checksum in enumerate(checksums) if checksum != checksums[0]]
    if strays:
        raise RuntimeError(f"the weights of ranks {strays} differ from those of rank 0: this run cannot be trusted")
