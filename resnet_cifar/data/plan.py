"""Steps, epochs and phases; which images make step k; what share of it is this rank's. Pure arithmetic, no state."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise

import numpy as np

from resnet_cifar.data import draws
from resnet_cifar.optim import phase_rate
from resnet_cifar.recipe import Mistake, Phase, Recipe, multiples_beside, row_unit

ROWS_AN_EPOCH = 20  # of metrics.jsonl: enough for a curve, few enough for a file
SMALL_SHARE = 32  # images; below, a device is mostly waiting
NORM_IMAGES = 256, 2048  # for precise BN: a tenth of the training images, within these bounds


@dataclass(frozen=True)
class Plan:
    """The whole run as a function of the step. `images` is the number of training images, `world` of processes.

    `fitted`: the micro-batch that was found where the recipe says `auto`; 0: the share, until another is found.
    """

    recipe: Recipe
    images: int
    world: int
    fitted: int = 0

    def __post_init__(self) -> None:
        if not self.images:
            raise Mistake(
                f"data.test_fraction {self.recipe.data.test_fraction:g} leaves no image to train on: lower it"
            )
        check_share(self.recipe, self.world)

    @property
    def share(self) -> int:
        """Rows of every step on one process."""
        return self.recipe.batch_size // self.world

    @property
    def micro_batch(self) -> int:
        """Rows of one backward pass on one process."""
        asked = self.recipe.micro_batch
        return (self.fitted if asked == "auto" else asked) or self.share

    def with_micro_batch(self, rows: int) -> Plan:
        """The same plan, in micro-batches of `rows`."""
        return replace(self, fitted=rows)

    @property
    def smaller_micro_batch(self) -> int | None:
        """The largest micro-batch of whole norm groups that is at most half as large; None where there is none."""
        unit, half = row_unit(self.recipe), self.micro_batch // 2
        return next((rows for rows in range(half - half % unit, 0, -unit) if self.share % rows == 0), None)

    @cached_property
    def phase_ends(self) -> list[int]:
        """The step at which each phase is over; every phase has at least one step."""
        ends: list[int] = []
        epochs = 0.0
        for phase in self.recipe.phases:
            epochs += phase.epochs
            ends.append(max(self.step_at(epochs), (ends[-1] if ends else 0) + 1))
        return ends

    @cached_property
    def steps(self) -> int:
        """Updates of the whole run."""
        return self.phase_ends[-1]

    def step_at(self, epochs: float) -> int:
        """The number of updates that is nearest to so many epochs."""
        return round(epochs * self.images / self.recipe.batch_size)

    def epoch(self, step: int) -> float:
        """Epochs seen after `step` updates."""
        return step * self.recipe.batch_size / self.images

    def rate(self, step: int) -> float:
        """The learning rate of update `step` (the first is 0)."""
        start = 0
        for phase, end in zip(self.recipe.phases, self.phase_ends, strict=True):
            if step < end:
                return phase_rate(phase, step - start, end - start, self.images / self.recipe.batch_size)
            start = end
        raise IndexError(f"step {step} of {self.steps}")

    def phase_at(self, step: int) -> Phase:
        """The phase of update `step`; of what would come after the last one, the last."""
        return self.recipe.phases[min(bisect_right(self.phase_ends, step), len(self.phase_ends) - 1)]

    def image_size(self, step: int) -> int:
        """Side of the square that the network is trained at in update `step`."""
        return self.phase_at(step).image_size or self.recipe.data.image_size

    def begins_stage(self, step: int) -> bool:
        """Whether update `step` is the first of a stage: a stretch of phases in which the same weights learn."""
        return step == 0 or (step < self.steps and self.phase_at(step).train != self.phase_at(step - 1).train)

    def stages(self, start: int) -> list[tuple[int, int]]:
        """(first update, end) of every stage that is left from update `start` on."""
        ends = [end for end in self.phase_ends if end > start and (end == self.steps or self.begins_stage(end))]
        return list(pairwise([start, *ends]))

    def rows(self, rank: int) -> slice:
        """The rows of every step that are rank `rank`'s."""
        return slice(rank * self.share, (rank + 1) * self.share)

    def order(self, step: int, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """(image indices, their epochs) of rows `rows` of step `step`, both int64 [n].

        The stream is one permutation of the training images after the other, cut into full steps.
        """
        positions = step * self.recipe.batch_size + np.arange(rows.start, rows.stop)
        epochs, places = np.divmod(positions, self.images)
        indices = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = _epoch_order(self.recipe.seed, int(epoch), self.images)[places[here]]
        return indices, epochs

    def norm_rows(self) -> np.ndarray:
        """The training images that BatchNorm's statistics are estimated on, always the same: int64, sorted.

        A tenth of them, so that a score of a small set costs no second epoch; from 20,480 images on always 2,048.
        """
        least, most = NORM_IMAGES
        return np.sort(_epoch_order(self.recipe.seed, 0, self.images)[: min(max(self.images // 10, least), most)])

    def is_score(self, done: int) -> bool:
        """Whether the model is scored after `done` updates: every so many epochs, and at the end of the run."""
        return done == self.steps or self._is_multiple(done, self.recipe.evaluate.every)

    def is_checkpoint(self, done: int) -> bool:
        """Whether a checkpoint is written after `done` updates, whatever the time."""
        settings = self.recipe.checkpoint
        return (
            self.is_score(done)
            or (settings.every_steps > 0 and done % settings.every_steps == 0)
            or (settings.every_epochs > 0 and self._is_multiple(done, settings.every_epochs))
        )

    def is_row(self, done: int) -> bool:
        """Whether metrics.jsonl gets a row after `done` updates; checkpoints are rows, for the finite check."""
        return done % max(1, self.step_at(1 / ROWS_AN_EPOCH)) == 0 or self.is_checkpoint(done)

    def _is_multiple(self, done: int, epochs: float) -> bool:
        """Whether `done` updates are nearest to a multiple of so many epochs."""
        near = int(self.epoch(done) / epochs)
        return any(k > 0 and self.step_at(epochs * k) == done for k in range(near - 1, near + 3))


def check_share(recipe: Recipe, world: int) -> None:
    """Raises Mistake where a batch does not divide over `world` processes, naming sizes that do."""
    batch, norm = recipe.batch_size, recipe.model.norm_batch
    micro = 0 if recipe.micro_batch == "auto" else recipe.micro_batch
    unit = row_unit(recipe)
    share, left = divmod(batch, world)
    if norm and share and not left and norm > share and norm % share == 0 and share % 2 == 0:
        # A group spans the shares of several processes.
        if micro and micro != share:
            raise Mistake(f"micro_batch {micro} cuts BatchNorm's groups of {norm} rows: set it to 0 or {share}")
        return
    if batch % (world * unit):
        raise Mistake(
            f"batch_size {batch} does not divide over {world} process{'es' * (world > 1)} in groups of {unit} rows "
            f"(model.norm_batch {norm}): take {multiples_beside(batch, world * unit)}"
        )
    if micro and (share % micro or micro % unit):
        fitting = [size for size in range(unit, share + 1, unit) if share % size == 0]
        nearest = sorted(sorted(fitting, key=lambda size: abs(size - micro))[:2])
        raise Mistake(
            f"micro_batch {micro} does not divide a process's {share} rows in groups of {unit}: take "
            + " or ".join(map(str, nearest))
        )


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, images: int) -> np.ndarray:
    return draws.permutation(seed, "order", epoch, images)
