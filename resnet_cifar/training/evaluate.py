"""Exact scores over any number of processes, and the check that all ranks hold the same weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from resnet_cifar import model as models
from resnet_cifar import run_folder
from resnet_cifar.cli import EvalCommand
from resnet_cifar.data import store
from resnet_cifar.data.batches import InputFormat
from resnet_cifar.data.store import ImageSet
from resnet_cifar.recipe import Mistake, Recipe
from resnet_cifar.reporting import metrics
from resnet_cifar.reporting.console import Screen
from resnet_cifar.run_folder import RunFolder
from resnet_cifar.training import checkpoint
from resnet_cifar.training.world import World

_PIXELS = 1 << 23  # of one batch
_BATCHES = 32  # at the least, so that many ranks share the work


class Predictions(NamedTuple):
    """logits float32 or float64 [n, classes] and labels int64 [n], both on the CPU, in the split's order."""

    logits: Tensor
    labels: Tensor


def _go_on() -> None:
    """Nobody asks a run that is only scored to stop."""


@torch.no_grad()
def predict(
    world: World,
    model: nn.Module,
    images: ImageSet,
    input_format: InputFormat,
    tick: Callable[[], None] = _go_on,
) -> Predictions:
    """Scores every image exactly once, whatever the world size; all ranks get all predictions.

    Batches are cut from the global index range, all of one size, and dealt to ranks in blocks; what lies beyond the
    end is filled up with the last image and dropped. `tick` is called before each, on all ranks equally often.
    """
    size = batch_size(len(images), input_format.data.image_size)
    batches = -(-len(images) // size)
    each = -(-batches // world.size)
    was_training = model.training
    model.eval()
    logits = []
    mine = range(world.rank * each, (world.rank + 1) * each)
    for pixels in images.read(np.arange(n * size, (n + 1) * size).clip(max=len(images) - 1) for n in mine):
        tick()
        logits.append(model(input_format(pixels)))
    model.train(was_training)
    gathered = world.gather(torch.cat(logits))[: len(images)]
    return Predictions(gathered.to("cpu"), images.labels.to("cpu"))


def refresh_norms(
    world: World,
    model: nn.Module,
    images: ImageSet,
    input_format: InputFormat,
    rows: np.ndarray,
    tick: Callable[[], None] = _go_on,
) -> None:
    """Precise BN of `model` (not wrapped) on the training images `rows`, shared by the ranks; `tick`: see `predict`."""
    size = batch_size(len(rows), input_format.data.image_size)
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    if len(batches) > 1 and len(batches[-1]) < size:
        batches.pop()  # every batch weighs the same
    mine = batches[world.rank :: world.size]

    def inputs() -> Iterator[Tensor]:
        pixels = images.read(mine)
        for turn in range(-(-len(batches) // world.size)):
            tick()
            if turn < len(mine):
                yield input_format(next(pixels))

    models.estimate_norms(model, inputs(), lambda statistics: world.mean(statistics, float(len(mine))))


def batch_size(images: int, image_size: int) -> int:
    """A power of two that suits the number and size of images; the world size has no say, so that scores are equal."""
    fits = _PIXELS // image_size**2
    shared = max(images // _BATCHES, 32)
    return 1 << (min(fits, shared, 1024).bit_length() - 1)


@torch.no_grad()
def check_same_weights(world: World, model: nn.Module) -> None:
    """Raises RuntimeError where ranks hold different weights, naming the ranks."""
    kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = [p.detach().view(kinds[p.element_size()]).sum(dtype=torch.int64) for p in model.parameters()]
    weights = torch.arange(1, 2 * len(sums), 2, device=sums[0].device)  # order matters too
    checksums = world.gather((torch.stack(sums) * weights).sum()[None]).tolist()
    strays = [rank for rank, checksum in enumerate(checksums) if checksum != checksums[0]]
    if strays:
        raise RuntimeError(f"the weights of ranks {strays} differ from rank 0's: this run is not to be trusted")


def evaluate(command: EvalCommand, recipe: Recipe) -> None:
    """Scores the best checkpoint of a run on one of its splits, or on those of another source. Raises Mistake."""
    world = World(recipe.precision)
    recipe = dataclasses.replace(recipe, precision=world.precision)
    screen = Screen(shown=world.is_main)
    folder = RunFolder(Path(command.run))
    chosen, state = _chosen_checkpoint(folder)
    entry = world.main_first(lambda: str(store.ensure(recipe.data)), per_node=True)
    data = store.load(Path(entry), recipe, world.device)
    known = tuple(state["classes"])
    if data.classes != known:
        raise Mistake(
            f"data.source {recipe.data.source!r} has the classes {_short(data.classes)} and the run's model knows "
            f"{_short(known)}: take a source with the same ones in the same order"
        )
    model = models.build(recipe, len(known), pretrained=False)
    model.to(dtype=world.dtype, memory_format=torch.channels_last)
    model.load_state_dict(checkpoint.weights(chosen))
    mean, std = (torch.tensor(v, dtype=world.dtype, device=world.device) for v in models.normalisation(model, recipe))
    images = data.test if command.split == "test" else data.validation
    if not len(images):
        raise Mistake("--split validation is empty, the run held no images out (data.validation 0): take test")
    predictions = predict(world, world.prepare_to_score(model), images, InputFormat(recipe.data, mean, std))
    if world.is_main:
        try:
            scores = write_scores(folder.path, command.split, recipe, chosen, predictions, images.indices, known)
        except OSError as error:
            summary = metrics.summary(*predictions)
            raise Mistake(
                f"{folder.path} cannot be written ({error.strerror}), and the scores were {summary}: make it writable"
            ) from None
        rows = [
            (name, "recall {recall:.4f}, precision {precision:.4f}, F1 {f1:.4f}, {images} images".format(**values))
            for name, values in scores["classes"].items()
        ]
        low, high = scores["accuracy_interval"]
        summary = (
            f"accuracy {scores['accuracy']:.4f} (95 %: {low:.4f} to {high:.4f}), top-5 {scores['top5']:.4f}, "
            f"loss {scores['loss']:.4f}, calibration error {scores['calibration_error']:.4f}"
        )
        if folder.result() is None:
            screen.warn("this run is not finished: these are the scores of its best checkpoint so far")
        screen.table(f"{command.split} split of {recipe.data.source}, {scores['checkpoint']}: {summary}", rows)
    world.close()


def write_scores(
    run: Path,
    split: str,
    recipe: Recipe,
    chosen: Path,
    predictions: Predictions,
    indices: np.ndarray,
    classes: tuple[str, ...],
) -> dict[str, Any]:
    """Writes RUN/eval-SPLIT.json and RUN/predictions-SPLIT.parquet; returns the scores and what was scored.

    `chosen`: the checkpoint; `indices`: which images of the source's split these are.
    """
    import pyarrow
    import pyarrow.parquet

    scores = {
        "split": split,
        "source": recipe.data.source,
        "checkpoint": str(chosen.relative_to(run)),
        "limit": recipe.data.limit,
        "precision": recipe.precision,
        **metrics.full(predictions.logits, predictions.labels, classes),
    }
    run_folder.write_json(run / f"eval-{split}.json", scores)
    table = pyarrow.table(
        {
            "index": indices,
            "label": predictions.labels.numpy(),
            "predicted": predictions.logits.argmax(1).numpy(),
            "logits": list(predictions.logits.numpy()),
        }
    )
    file = run / f"predictions-{split}.parquet"
    aside = file.with_name(file.name + ".writing")
    pyarrow.parquet.write_table(table, aside)
    aside.replace(file)
    return scores


def _chosen_checkpoint(folder: RunFolder) -> tuple[Path, dict[str, Any]]:
    """The best checkpoint, or the newest of a run without validation, and its verified state. Raises Mistake."""
    steps = checkpoint.steps(folder.checkpoints)
    if not steps:
        raise Mistake(f"{folder.path} has no checkpoint yet: let train.py reach its first one")
    chosen = folder.checkpoints / checkpoint.name(steps[-1])
    try:
        state = checkpoint.read_state(chosen)
        if state["best"] is not None and state["best"]["step"] != steps[-1]:
            chosen = folder.checkpoints / checkpoint.name(state["best"]["step"])
            state = checkpoint.read_state(chosen)
    except Mistake as mistake:
        raise Mistake(f"{mistake}: move it away to score the one before") from None
    return chosen, state


def _short(classes: tuple[str, ...]) -> str:
    return ", ".join(classes[:3]) + f", ... ({len(classes)})" * (len(classes) > 3)
