"""Steps, epochs and phases, learning rates, and each rank's share of a batch. Pure arithmetic, no state."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Phase, Recipe
from resnet_cifar.config.validation import nearest_multiples, row_unit
from resnet_cifar.optim.schedules import phase_lr

LOGS_PER_EPOCH = 20  # rows of metrics.jsonl
CPU_MICRO_BATCH = 32  # images; CPUs are slower with more, whose activations leave their caches
SMALL_PER_RANK_BATCH = 32  # images; with fewer, a device mostly waits
_NO_PHASE = Phase(epochs=1.0, lr=1.0, trainable="head")  # what a recipe without phases would train


@dataclass(frozen=True)
class Plan:
    """The whole run as a function of the step. `images` is the number of images in an epoch, `world_size` of processes.

    `fitted_micro_batch`: the size found where the recipe says `auto`; 0: the per-rank batch, until another is found.
    `class_counts`: the number of training images of each class, by name; only loss.class_weights needs them.
    """

    recipe: Recipe
    images: int
    world_size: int
    fitted_micro_batch: int = 0
    class_counts: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.images:
            raise UserError(
                f"data.test_fraction {self.recipe.data.test_fraction:g} leaves no training images: lower it"
            )
        check_batch_size(self.recipe, self.world_size)
        steps, most = self.recipe.refit_steps, (self._schedule_ends or [0])[-1]
        if steps > most:
            raise UserError(f"refit_steps {steps} is more than the {most} updates of the phases: lower it to {most}")
        weights, names = self.recipe.loss.class_weights, list(self.class_counts)
        if isinstance(weights, tuple) and len(weights) != len(names):
            listed = ", ".join(names[:10]) + ", ..." * (len(names) > 10)
            raise UserError(
                f"loss.class_weights lists {len(weights)} weight{'s' * (len(weights) > 1)}, but data.source "
                f"{self.recipe.data.source!r} has {len(names)} classes: give one for each, in the order {listed}"
            )

    @cached_property
    def class_shares(self) -> dict[str, float]:
        """The share of each class among the images of an epoch, by name."""
        counts = self.class_counts
        if self.recipe.data.sampling == "balanced":
            counts = {name: int(count > 0) for name, count in counts.items()}
        return {name: count / sum(counts.values()) for name, count in counts.items()}

    @cached_property
    def image_uses(self) -> dict[str, float]:
        """How often an epoch uses an image of each class that has some, by name: once, unless data.sampling differs."""
        return {
            name: self.class_shares[name] * self.images / count for name, count in self.class_counts.items() if count
        }

    @cached_property
    def class_weights(self) -> dict[str, float] | None:
        """The weight of each class in the loss, by name; their mean over the images of an epoch is 1. None: no weights.

        They are constants, so that the loss of a batch, the mean over its rows, does not depend on how it is divided.
        torch's CrossEntropyLoss(weight) divides by the sum of the weights of the labels in the batch instead.
        """
        given, shares = self.recipe.loss.class_weights, self.class_shares
        if given == "none":
            return None
        balanced = [1 / share if share else 0.0 for share in shares.values()]  # a class without images has no rows
        weights = dict(zip(shares, balanced if given == "balanced" else given, strict=True))
        mean = sum(share * weights[name] for name, share in shares.items())
        return {name: weight / mean for name, weight in weights.items()}

    @property
    def per_rank_batch(self) -> int:
        """Images per step and process."""
        return self.recipe.batch_size // self.world_size

    @property
    def micro_batch(self) -> int:
        """Images per backward pass and process."""
        asked = self.recipe.micro_batch
        return (self.fitted_micro_batch if asked == "auto" else asked) or self.per_rank_batch

    def with_micro_batch(self, rows: int) -> Plan:
        """The same plan with micro-batches of `rows` images."""
        return replace(self, fitted_micro_batch=rows)

    @property
    def cpu_micro_batch(self) -> int:
        """The smallest micro-batch of whole ghost batches that is fast on CPUs."""
        unit, share = row_unit(self.recipe), self.per_rank_batch
        sizes = (rows for rows in range(unit, share, unit) if rows >= CPU_MICRO_BATCH and share % rows == 0)
        return next(sizes, share)

    @property
    def smaller_micro_batch(self) -> int | None:
        """The largest micro-batch of whole ghost batches that is at most half as large; None if there is none."""
        unit, half = row_unit(self.recipe), self.micro_batch // 2
        return next((rows for rows in range(half - half % unit, 0, -unit) if self.per_rank_batch % rows == 0), None)

    @cached_property
    def _schedule_ends(self) -> list[int]:
        """The step at which each phase ends, every phase having at least one, wherever `refit_steps` stops training."""
        ends: list[int] = []
        epochs, repeated = 0.0, 0  # `repeated`: the updates that min_steps has added so far
        for phase in self.recipe.phases:
            start, epochs = ends[-1] if ends else 0, epochs + phase.epochs
            repeated += max(0, start + phase.min_steps - self.step_at(epochs) - repeated)
            ends.append(max(self.step_at(epochs) + repeated, start + 1))
        return ends

    @cached_property
    def steps(self) -> int:
        """The number of updates of the whole run."""
        return self.recipe.refit_steps or (self._schedule_ends or [0])[-1]

    @cached_property
    def phase_ends(self) -> list[int]:
        """The step at which each phase ends, without the phases that a refit stops before."""
        ends = self._schedule_ends
        return [min(end, self.steps) for start, end in zip([0, *ends], ends, strict=False) if start < self.steps]

    def step_at(self, epochs: float) -> int:
        """The number of updates that is nearest to `epochs`."""
        return round(epochs * self.images / self.recipe.batch_size)

    def epoch(self, step: int) -> float:
        """Epochs seen after `step` updates."""
        return step * self.recipe.batch_size / self.images

    @property
    def longest_phase_start(self) -> int:
        """The first update of the phase with the most updates."""
        starts = [0, *self.phase_ends[:-1]]
        return max(zip(starts, self.phase_ends, strict=False), key=lambda each: each[1] - each[0], default=(0, 0))[0]

    def lr(self, step: int) -> float:
        """The learning rate of update `step` (the first is 0)."""
        start = 0
        for phase, end in zip(self.recipe.phases, self._schedule_ends, strict=True):
            if step < end:
                return phase_lr(phase, step - start, end - start, self.images / self.recipe.batch_size)
            start = end
        raise IndexError(f"step {step} of {self.steps}")

    def phase_at(self, step: int) -> Phase:
        """The phase of update `step`; that of the last update for steps beyond the end."""
        if not self.recipe.phases:
            return _NO_PHASE
        return self.recipe.phases[bisect_right(self._schedule_ends, min(step, self.steps - 1))]

    def image_size(self, step: int) -> int:
        """The image size of update `step`, pixels."""
        return self.phase_at(step).image_size or self.recipe.data.image_size

    def begins_stage(self, step: int) -> bool:
        """Whether update `step` is the first of a stage: consecutive phases that train the same weights."""
        return step == 0 or (step < self.steps and self.phase_at(step).trainable != self.phase_at(step - 1).trainable)

    def rows(self, rank: int) -> slice:
        """The rows of every global batch that belong to `rank`."""
        return slice(rank * self.per_rank_batch, (rank + 1) * self.per_rank_batch)

    def should_eval(self, done: int) -> bool:
        """Whether the model is evaluated after `done` updates: every `evaluate.every_epochs`, and as phases end.

        An extended run was evaluated where it ended before, so a run of all its phases must be, too, to select alike.
        """
        return done in self.phase_ends or self._is_multiple(done, self.recipe.evaluate.every_epochs)

    def should_save(self, done: int) -> bool:
        """Whether a checkpoint is written after `done` updates; `checkpoint.every_minutes` adds others."""
        settings = self.recipe.checkpoint
        return (
            self.should_eval(done)
            or (settings.every_steps > 0 and done % settings.every_steps == 0)
            or (settings.every_epochs > 0 and self._is_multiple(done, settings.every_epochs))
        )

    def should_log(self, done: int) -> bool:
        """Whether metrics.jsonl gets a row after `done` updates; every checkpoint does, so that its loss is checked."""
        return done % max(1, self.step_at(1 / LOGS_PER_EPOCH)) == 0 or self.should_save(done)

    def _is_multiple(self, done: int, epochs: float) -> bool:
        """Whether `done` is the number of updates nearest to a multiple of `epochs`."""
        near = int(self.epoch(done) / epochs)
        return any(k > 0 and self.step_at(epochs * k) == done for k in range(near - 1, near + 3))


def check_batch_size(recipe: Recipe, world_size: int) -> None:
    """Raises UserError where the batch does not divide over `world_size` processes, naming sizes that do."""
    batch, norm = recipe.batch_size, recipe.model.norm_rows
    micro = 0 if recipe.micro_batch == "auto" else recipe.micro_batch
    unit = row_unit(recipe)
    share, left = divmod(batch, world_size)
    if norm and share and not left and norm > share and norm % share == 0 and share % 2 == 0:
        # A ghost batch spans several processes.
        if micro and micro != share:
            raise UserError(f"micro_batch {micro} cuts BatchNorm's groups of {norm} rows: set it to 0 or {share}")
        return
    if batch % (world_size * unit):
        raise UserError(
            f"batch_size {batch} does not divide over {world_size} process{'es' * (world_size > 1)} in groups of "
            f"{unit} rows (model.ghost_batch_size {norm}): use {nearest_multiples(batch, world_size * unit)}"
        )
    if micro and (share % micro or micro % unit):
        fitting = [size for size in range(unit, share + 1, unit) if share % size == 0]
        nearest = sorted(sorted(fitting, key=lambda size: abs(size - micro))[:2])
        raise UserError(
            f"micro_batch {micro} does not divide the {share} rows of a process in groups of {unit}: use "
            + " or ".join(map(str, nearest))
        )
