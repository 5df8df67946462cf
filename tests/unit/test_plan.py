"""training/plan.py: the stream of images, the learning rate and the steps at which something happens."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Recipe
from resnet_cifar.config.validation import check_across, parse, row_unit
from resnet_cifar.data.sampling import bn_indices, sample_indices
from resnet_cifar.training.auto_micro_batch import first_try
from resnet_cifar.training.plan import CPU_MICRO_BATCH, Plan, check_batch_size
from resnet_cifar.training.plan_summary import few_steps_warning

some = settings(deadline=None, derandomize=True, max_examples=60)
many = settings(some, max_examples=300)


def recipe_of(batch_size: int = 10, **values: Any) -> Recipe:
    return parse({"batch_size": batch_size, "model": {"ghost_batch_size": None}, **values})


def plan_of(images: int = 100, batch_size: int = 10, world: int = 1, **phase: Any) -> Plan:
    """A plan of one phase; by default 10 steps an epoch."""
    return Plan(recipe_of(batch_size, phases=[{"epochs": 10, "lr": 0.5, **phase}]), images, world)


def rates(plan: Plan) -> list[float]:
    return [plan.lr(step) for step in range(plan.steps)]


def rows_of(plan: Plan, step: int, rows: slice) -> tuple[np.ndarray, np.ndarray]:
    return sample_indices(plan.recipe.seed, plan.images, plan.recipe.batch_size, step, rows)


def whole(plan: Plan, step: int) -> tuple[np.ndarray, np.ndarray]:
    return rows_of(plan, step, slice(0, plan.recipe.batch_size))


# Few updates


@many
@given(
    st.integers(1, 2000),
    st.integers(1, 40),
    st.integers(1, 3),
    st.sampled_from([None, 2, 8, 32]),
    st.sampled_from([0.5, 1, 3, 20]),
    st.booleans(),
)
def test_the_batch_size_that_a_plan_of_few_updates_names_gives_fifty(
    images: int, units: int, world: int, norm: int | None, epochs: float, split: bool
) -> None:
    unit = (norm or 2) * world
    model = {"ghost_batch_size": norm}
    phases = [{"epochs": epochs, "lr": 0.1}, {"epochs": epochs, "lr": 0.1}]
    micro = (norm or 2) if split else 0
    plan = Plan(
        parse({"batch_size": units * unit, "micro_batch": micro, "model": model, "phases": phases}), images, world
    )
    warning = few_steps_warning(plan)
    assert (warning is None) == (plan.steps >= 50)
    if warning and (named := re.search(r"set batch_size to (\d+)$", warning)):
        fewer = replace(plan.recipe, batch_size=int(named[1]))
        check_across(fewer)
        assert Plan(fewer, images, world).steps >= 50
        assert few_steps_warning(replace(plan, recipe=fewer)) is None
    elif warning:
        longer = re.search(r"raise phases.1.epochs to ([\d.]+)$", warning)
        last = replace(plan.recipe.phases[1], epochs=float(longer[1]))
        assert (
            few_steps_warning(replace(plan, recipe=replace(plan.recipe, phases=(plan.recipe.phases[0], last)))) is None
        )
        smallest = replace(plan.recipe, batch_size=unit)
        assert Plan(smallest, images, world).steps < 50


def test_fewer_than_fifty_updates_are_a_warning_unless_the_data_is_limited() -> None:
    few = plan_of(images=100, epochs=4)
    assert few_steps_warning(few) == "40 updates of 10 images are too few to learn much: set batch_size to 8"
    limited = replace(few.recipe, data=replace(few.recipe.data, limit=20))
    assert few_steps_warning(replace(few, recipe=limited)) is None


# The stream

shapes = st.tuples(st.integers(1, 150), st.integers(1, 6), st.integers(1, 8))


@some
@given(shapes, st.integers(0, 5))
def test_every_image_comes_exactly_once_an_epoch(shape: tuple[int, int, int], seed: int) -> None:
    images, pairs, world = shape
    plan = Plan(recipe_of(2 * pairs * world, seed=seed), images, world)
    steps = range(-(-3 * images // plan.recipe.batch_size))
    indices, epochs = (
        np.concatenate(part)[: 3 * images] for part in zip(*(whole(plan, s) for s in steps), strict=True)
    )
    np.testing.assert_array_equal(epochs, np.repeat([0, 1, 2], images))
    np.testing.assert_array_equal(np.sort(indices.reshape(3, images)), np.tile(np.arange(images), (3, 1)))


@some
@given(shapes, st.integers(0, 40))
def test_the_ranks_rows_are_the_global_batch_in_order_whatever_the_world(
    shape: tuple[int, int, int], step: int
) -> None:
    images, pairs, world = shape
    recipe = recipe_of(2 * pairs * world)
    plan, alone = Plan(recipe, images, world), Plan(recipe, images, 1)
    parts = [rows_of(plan, step, plan.rows(rank)) for rank in range(world)]
    assert {len(indices) for indices, _ in parts} == {plan.per_rank_batch}
    for ours, theirs in zip(zip(*parts, strict=True), whole(alone, step), strict=True):
        np.testing.assert_array_equal(np.concatenate(ours), theirs)


def test_the_stream_does_not_depend_on_the_batch_size() -> None:
    small, large = plan_of(37, 4), plan_of(37, 12)
    in_fours = np.concatenate([whole(small, step)[0] for step in range(30)])
    in_twelves = np.concatenate([whole(large, step)[0] for step in range(10)])
    np.testing.assert_array_equal(in_fours, in_twelves)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {
        whole(Plan(recipe_of(50, seed=seed), 50, 1), epoch)[0].tobytes() for seed in range(3) for epoch in range(3)
    }
    assert len(orders) == 9
    assert np.arange(50).tobytes() not in orders


def test_batchnorm_statistics_use_a_tenth_of_the_training_images_always_the_same() -> None:
    rows = bn_indices(0, 5000)
    assert len(rows) == len(np.unique(rows)) == 500
    assert [len(bn_indices(0, images)) for images in (100, 2000, 45_000)] == [100, 256, 2048]
    assert rows.min() >= 0
    assert rows.max() < 5000
    np.testing.assert_array_equal(bn_indices(0, 100), np.arange(100))


# Steps and epochs


@some
@given(st.integers(1, 500), st.integers(1, 50), st.floats(0.01, 30))
def test_epochs_are_rounded_to_the_nearest_step(images: int, half_batch: int, epochs: float) -> None:
    plan = plan_of(images, 2 * half_batch, epochs=epochs)
    assert abs(plan.step_at(epochs) * plan.recipe.batch_size - epochs * images) <= plan.recipe.batch_size / 2 + 1e-6
    assert plan.steps == max(1, plan.step_at(epochs))
    assert plan.epoch(plan.steps) == pytest.approx(plan.steps * plan.recipe.batch_size / images)


@some
@given(st.lists(st.floats(0.01, 4), min_size=1, max_size=5), st.integers(1, 200))
def test_phases_lie_end_to_end_each_with_a_step_and_rounding_does_not_add_up(lengths: list[float], images: int) -> None:
    plan = Plan(recipe_of(10, phases=[{"epochs": epochs, "lr": 1} for epochs in lengths]), images, 1)
    ends = plan.phase_ends
    assert all(later > earlier for earlier, later in zip([0, *ends[:-1]], ends, strict=True))
    assert plan.steps == ends[-1]
    assert abs(ends[-1] * 10 - sum(lengths) * images) <= 10 * (0.5 + len(lengths))
    if all(epochs * images >= 10 for epochs in lengths):  # no phase had to be stretched to a step
        assert abs(ends[-1] * 10 - sum(lengths) * images) <= 5 + 1e-6


def test_a_phase_of_few_images_is_repeated_and_later_phases_keep_their_length() -> None:
    phases = [{"epochs": 1, "lr": 1}, {"epochs": 2, "lr": 1, "min_steps": 50}, {"epochs": 3, "lr": 1}]
    assert Plan(recipe_of(10, phases=phases), 100, 1).phase_ends == [10, 60, 90]
    assert Plan(recipe_of(10, phases=phases), 1000, 1).phase_ends == [100, 300, 600], "large enough"


def test_each_phase_has_its_own_rate_from_its_own_first_step() -> None:
    phases = [
        {"epochs": 1, "lr": 0.3, "schedule": "constant"},
        {"epochs": 2, "lr": 0.8, "warmup_epochs": 0.5, "schedule": "linear"},
        {"epochs": 0.5, "lr": 0.1, "schedule": "constant"},
    ]
    found = rates(Plan(recipe_of(10, phases=phases), 100, 1))
    second = [0.8 * step / 5 for step in range(5)] + [0.8 * (1 - step / 15) for step in range(15)]
    np.testing.assert_allclose(found, [0.3] * 10 + second + [0.1] * 5, rtol=1e-12)


@pytest.mark.parametrize("step", [100, 101])
def test_there_is_no_rate_after_the_end(step: int) -> None:
    with pytest.raises(IndexError):
        plan_of().lr(step)


# The rate against torch's schedulers


def torch_rates(schedule: Callable[[torch.optim.Optimizer], Any], steps: int, peak: float) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    scheduler = schedule(optimizer)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


SCHEDULES = {
    "cosine": lambda steps: lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=steps),
    "linear": lambda steps: lambda o: lr_scheduler.LinearLR(o, start_factor=1, end_factor=0, total_iters=steps),
    "step": lambda steps: lambda o: lr_scheduler.MultiStepLR(o, [-(-steps // 2), -(-3 * steps // 4)], gamma=0.1),
    "polynomial": lambda steps: lambda o: lr_scheduler.PolynomialLR(o, total_iters=steps, power=1.0),
    "constant": lambda steps: lambda o: lr_scheduler.ConstantLR(o, factor=1),
}


@pytest.mark.parametrize("steps", [1, 7, 40, 101])
@pytest.mark.parametrize("decay", SCHEDULES)
def test_a_decay_is_torchs_at_every_step(decay: str, steps: int) -> None:
    plan = plan_of(epochs=steps / 10, schedule=decay)
    assert plan.steps == steps
    np.testing.assert_allclose(rates(plan), torch_rates(SCHEDULES[decay](steps), steps, 0.5), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("power", [0.5, 2.0])
def test_a_polynomial_decay_has_torchs_power(power: float) -> None:
    plan = plan_of(epochs=4, schedule="polynomial", power=power)
    expected = torch_rates(lambda o: lr_scheduler.PolynomialLR(o, total_iters=40, power=power), 40, 0.5)
    np.testing.assert_allclose(rates(plan), expected, rtol=1e-9, atol=1e-12)


def test_one_cycle_is_torchs_curve() -> None:
    """Torch's peak falls a step earlier (it counts to the last step), so a long run is compared, to a thousandth."""
    steps = 5000
    plan = plan_of(epochs=steps / 10, schedule="one-cycle")
    expected = torch_rates(lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.5, total_steps=steps), steps, 0.5)
    np.testing.assert_allclose(rates(plan), expected, rtol=0, atol=0.5e-3)


def test_one_cycle_starts_peaks_and_ends_where_torchs_does() -> None:
    """By the formula: a 25th of the peak at first, the peak after 30 %, near nothing at the end."""
    found = rates(plan_of(epochs=100, schedule="one-cycle"))
    assert found[0] == pytest.approx(0.5 / 25)
    assert max(found) == pytest.approx(0.5, rel=1e-4)
    assert int(np.argmax(found)) in (299, 300)
    assert found[-1] < 0.5 * 1e-4


@pytest.mark.parametrize("decay", SCHEDULES)
def test_warm_up_starts_at_0_and_reaches_the_peak_at_its_end(decay: str) -> None:
    found = rates(plan_of(warmup_epochs=2, schedule=decay))
    np.testing.assert_allclose(found[:20], 0.5 * np.arange(20) / 20, rtol=1e-12)
    assert found[20] == 0.5
    np.testing.assert_allclose(found[20:], torch_rates(SCHEDULES[decay](80), 80, 0.5), rtol=1e-9, atol=1e-12)


def test_a_phase_may_be_all_warm_up() -> None:
    np.testing.assert_allclose(rates(plan_of(epochs=1, warmup_epochs=1)), 0.5 * np.arange(10) / 10)


@some
@given(
    st.integers(1, 400),
    st.integers(1, 20),
    st.floats(0.05, 12),
    st.floats(0, 1),
    st.sampled_from(["cosine", "linear", "step", "constant"]),
)
def test_the_rate_lies_between_0_and_the_peak(
    images: int, half_batch: int, epochs: float, part: float, decay: str
) -> None:
    found = rates(plan_of(images, 2 * half_batch, epochs=epochs, warmup_epochs=part * epochs, schedule=decay))
    assert min(found) >= 0
    assert max(found) <= 0.5


# When something happens


def taken(happens: Callable[[int], bool], plan: Plan) -> list[int]:
    return [done for done in range(1, plan.steps + 1) if happens(done)]


def every_so_many_epochs(plan: Plan, epochs: float) -> set[int]:
    """The steps nearest to the multiples, by counting the multiples up."""
    steps, k = set(), 1
    while plan.step_at(epochs * k) <= plan.steps:
        steps.add(plan.step_at(epochs * k))
        k += 1
    return steps - {0}


def lists(plan: Plan) -> tuple[list[int], list[int], list[int]]:
    """Scores, checkpoints and rows, written out."""
    settings, last = plan.recipe.checkpoint, plan.steps
    scores = every_so_many_epochs(plan, plan.recipe.evaluate.every_epochs) | set(plan.phase_ends)
    checkpoints = set(scores)
    if settings.every_steps:
        checkpoints |= set(range(settings.every_steps, last + 1, settings.every_steps))
    if settings.every_epochs:
        checkpoints |= every_so_many_epochs(plan, settings.every_epochs)
    a_row = max(1, plan.step_at(1 / 20))
    rows = checkpoints | set(range(a_row, last + 1, a_row))
    return sorted(scores), sorted(checkpoints), sorted(rows)


lengths = st.floats(0.01, 8) | st.sampled_from([0.01, 0.05, 0.1, 0.3, 0.5, 1.0, 1.5, 2.0])


@many
@given(st.integers(5, 700), st.integers(1, 12), st.floats(0.05, 6), lengths, st.integers(0, 40), st.just(0.0) | lengths)
def test_what_happens_after_a_step_is_what_the_written_out_lists_say(
    images: int, half_batch: int, epochs: float, every: float, every_steps: int, every_epochs: float
) -> None:
    recipe = recipe_of(
        2 * half_batch,
        phases=[{"epochs": epochs / 2, "lr": 1}, {"epochs": epochs / 2, "lr": 1}],
        evaluate={"every_epochs": every},
        checkpoint={"every_steps": every_steps, "every_epochs": every_epochs},
    )
    plan = Plan(recipe, images, 1)
    scores, checkpoints, rows = lists(plan)
    assert taken(plan.should_eval, plan) == scores
    assert taken(plan.should_save, plan) == checkpoints
    assert taken(plan.should_log, plan) == rows
    assert set(scores) <= set(checkpoints) <= set(rows)
    assert scores[-1] == plan.steps


def test_scores_come_every_so_many_epochs_and_at_the_end_of_a_phase() -> None:
    phases = [{"epochs": 1.2, "lr": 1, "min_steps": 13}, {"epochs": 1.9, "lr": 1}]
    recipe = recipe_of(10, phases=phases, evaluate={"every_epochs": 1.5})
    seldom = replace(recipe, evaluate=replace(recipe.evaluate, every_epochs=9))
    for ours, steps in ((recipe, [13, 15, 30, 32]), (seldom, [13, 32])):
        plan = Plan(ours, 100, 1)
        assert taken(plan.should_eval, plan) == steps


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, [10, 20]),
        ({"every_steps": 8}, [8, 10, 16, 20]),
        ({"every_epochs": 0.7}, [7, 10, 14, 20]),
        ({"every_epochs": 0.7, "every_steps": 9}, [7, 9, 10, 14, 18, 20]),
        ({"every_epochs": 50}, [10, 20]),
        ({"every_minutes": 0.01}, [10, 20]),
    ],
    ids=str,
)
def test_checkpoints_come_every_so_many_steps_or_epochs_and_with_scores(
    settings: dict[str, Any], steps: list[int]
) -> None:
    plan = Plan(recipe_of(10, phases=[{"epochs": 2, "lr": 1}], checkpoint=settings), 100, 1)
    assert taken(plan.should_save, plan) == steps


def test_there_are_about_twenty_rows_an_epoch() -> None:
    plan = Plan(recipe_of(10, phases=[{"epochs": 2, "lr": 1}]), 2000, 1)
    assert taken(plan.should_log, plan) == list(range(10, 401, 10))


def test_a_longer_run_scores_and_saves_at_the_same_steps_before() -> None:
    """An extension must find what the run before it left."""
    short = recipe_of(10, phases=[{"epochs": 2.5, "lr": 1}], checkpoint={"every_epochs": 0.7})
    long = replace(short, phases=(*short.phases, *short.phases))
    ours, theirs = Plan(short, 100, 1), Plan(long, 100, 1)
    for happens, extended in ((ours.should_eval, theirs.should_eval), (ours.should_save, theirs.should_save)):
        assert taken(happens, ours) == [done for done in taken(extended, theirs) if done <= ours.steps]
    assert [ours.lr(step) for step in range(ours.steps)] == [theirs.lr(step) for step in range(ours.steps)]


# Shares


def batches(draw: st.DrawFn) -> tuple[Recipe, int]:
    """A recipe that passes its own checks, and a number of processes."""
    norm = draw(st.one_of(st.none(), st.integers(2, 48)))
    unit = 2 if norm is None else norm if norm % 2 == 0 else 2 * norm
    batch = unit * draw(st.integers(1, 40))
    micro = draw(st.one_of(st.just(0), st.integers(1, batch)))
    recipe = parse({"batch_size": batch, "micro_batch": micro, "model": {"ghost_batch_size": norm}})
    return recipe, draw(st.integers(1, 16))


shares = st.composite(batches)()


def refusal(recipe: Recipe, world: int) -> str:
    try:
        check_batch_size(recipe, world)
    except UserError as mistake:
        return str(mistake)
    return ""


def accept(recipe: Recipe, world: int) -> None:
    check_across(recipe)
    check_batch_size(recipe, world)


@many
@given(shares)
def test_what_is_accepted_divides(case: tuple[Recipe, int]) -> None:
    recipe, world = case
    if refusal(recipe, world):
        return
    plan = Plan(recipe, 1000, world)
    norm = recipe.model.ghost_batch_size
    assert plan.per_rank_batch * world == recipe.batch_size
    assert plan.per_rank_batch % plan.micro_batch == 0
    assert plan.micro_batch % 2 == 0, "Mixup's pairs stay together"
    if norm and norm > plan.per_rank_batch:  # a group of whole processes
        assert norm % plan.per_rank_batch == 0
        assert world % (norm // plan.per_rank_batch) == 0
        assert plan.micro_batch == plan.per_rank_batch
    elif norm:
        assert plan.micro_batch % norm == 0


@many
@given(shares)
def test_the_batch_sizes_that_a_refusal_names_are_accepted(case: tuple[Recipe, int]) -> None:
    recipe, world = case
    text = refusal(recipe, world)
    if text.startswith("batch_size"):
        sizes = [int(size) for size in text.rsplit("use ", 1)[1].split(" or ")]
        assert sizes
        for size in sizes:
            accept(replace(recipe, batch_size=size, micro_batch=0), world)


@many
@given(shares)
def test_the_micro_batches_that_a_refusal_names_are_accepted(case: tuple[Recipe, int]) -> None:
    recipe, world = case
    text = refusal(recipe, world)
    if text.startswith("micro_batch"):
        sizes = [int(size) for size in re.findall(r"\d+", re.split("use |set it to ", text)[-1])]
        assert sizes
        for size in sizes:
            accept(replace(recipe, micro_batch=size), world)


@many
@given(shares)
def test_the_norm_batch_that_a_refusal_names_is_accepted(case: tuple[Recipe, int]) -> None:
    recipe, world = case
    text = refusal(recipe, world)
    if text.startswith("model.ghost_batch_size"):
        for size in re.findall(r"--model.ghost_batch_size (\d+)", text):
            accept(replace(recipe, micro_batch=0, model=replace(recipe.model, ghost_batch_size=int(size))), world)


@pytest.mark.parametrize(
    ("batch", "norm", "world", "text"),
    [
        (
            256,
            32,
            3,
            "batch_size 256 does not divide over 3 processes in groups of 32 rows (model.ghost_batch_size 32): ",
        ),
        (10, None, 4, "batch_size 10 does not divide over 4 processes in groups of 2 rows"),
        (
            96,
            32,
            4,
            "batch_size 96 does not divide over 4 processes in groups of 32 rows (model.ghost_batch_size 32): use 128",
        ),
    ],
)
def test_a_refusal_names_field_value_and_processes(batch: int, norm: int | None, world: int, text: str) -> None:
    recipe = parse({"batch_size": batch, "model": {"ghost_batch_size": norm}})
    assert refusal(recipe, world).startswith(text)
    with pytest.raises(UserError):
        Plan(recipe, 1000, world)


def test_the_nearest_batch_sizes_are_named() -> None:
    assert refusal(parse({"batch_size": 256}), 3).endswith("use 192 or 288")
    assert refusal(parse({"batch_size": 256, "micro_batch": 96}), 1).endswith("use 64 or 128")


# Stages: stretches of phases in which the same weights learn


def staged(*phases: tuple[float, str, int | None]) -> Plan:
    """Ten steps an epoch."""
    values = [{"epochs": epochs, "lr": 1, "trainable": train, "image_size": size} for epochs, train, size in phases]
    return Plan(recipe_of(10, phases=values, data={"image_size": 32}), 100, 1)


def test_phases_of_the_same_weights_are_one_stage() -> None:
    plan = staged((1, "head", 16), (1, "head", None), (2, "all", 24), (1, "all", None), (1, "head", None))
    assert [step for step in range(plan.steps + 1) if plan.begins_stage(step)] == [0, 20, 50]


def test_a_phase_has_its_own_image_size() -> None:
    plan = staged((1, "all", 16), (1, "all", None))
    assert [plan.image_size(step) for step in (0, 9, 10, 19)] == [16, 16, 32, 32]
    assert [plan.phase_at(step).image_size for step in (9, 10, 20)] == [16, None, None]


# A refit, which stops after `refit_steps`


@pytest.mark.parametrize("steps", [1, 7, 20, 23, 60])
def test_a_refit_has_the_rates_and_sizes_of_the_run_before_it_and_stops(steps: int) -> None:
    values = {"warmup_epochs": 0.5, "schedule": "linear"}
    phases = [{"epochs": 2, "lr": 1, "trainable": "head", "image_size": 16, **values}, {"epochs": 4, "lr": 3, **values}]
    recipe = recipe_of(10, phases=phases, data={"image_size": 32})
    before, plan = Plan(recipe, 100, 1), Plan(replace(recipe, refit_steps=steps), 100, 1)
    assert rates(plan) == rates(before)[:steps]
    for step in range(steps):
        assert (plan.image_size(step), plan.epoch(step)) == (before.image_size(step), before.epoch(step))
        assert plan.begins_stage(step) == before.begins_stage(step)
    assert not plan.begins_stage(steps)
    assert plan.phase_at(steps) == plan.phase_at(steps - 1), "a run killed at its end resumes in its last stage"
    assert plan.phase_ends == ([20, steps] if steps > 20 else [steps])
    assert taken(plan.should_eval, plan) == sorted({*range(10, steps, 10), steps})


def test_a_refit_longer_than_its_phases_is_refused() -> None:
    recipe = recipe_of(10, phases=[{"epochs": 2, "lr": 1}], refit_steps=21)
    with pytest.raises(UserError, match="refit_steps 21 is more than the 20 updates of the phases: lower it to 20"):
        Plan(recipe, 100, 1)


@many
@given(shares)
def test_micro_batches_halve_down_to_a_ghost_batch(case: tuple[Recipe, int]) -> None:
    recipe, world = case
    if recipe.model.ghost_batch_size is None:
        return
    recipe = replace(recipe, micro_batch="auto")
    if refusal(recipe, world):
        return
    plan = Plan(recipe, 1000, world)
    assert plan.micro_batch == plan.per_rank_batch
    while (rows := plan.smaller_micro_batch) is not None:
        assert rows <= plan.micro_batch // 2
        plan = plan.with_micro_batch(rows)
        accept(replace(recipe, micro_batch=rows), world)
    unit = row_unit(recipe)
    assert plan.micro_batch == unit or plan.micro_batch == plan.per_rank_batch < 2 * unit


@many
@given(shares)
def test_cpus_take_small_micro_batches_of_whole_ghost_batches(case: tuple[Recipe, int]) -> None:
    recipe, world = case
    recipe = replace(recipe, micro_batch="auto")
    if recipe.model.ghost_batch_size is None or refusal(recipe, world):
        return
    plan = Plan(recipe, 1000, world)
    rows, share, unit = plan.cpu_micro_batch, plan.per_rank_batch, row_unit(recipe)
    accept(replace(recipe, micro_batch=rows), world)
    smaller = [size for size in range(unit, rows, unit) if share % size == 0 and size >= CPU_MICRO_BATCH]
    assert not smaller
    assert rows == share or rows >= CPU_MICRO_BATCH


@pytest.mark.parametrize(
    ("batch", "ghost", "world", "rows"),
    [
        (256, 32, 1, 32),
        (256, 64, 1, 64),
        (256, 2, 1, 32),
        (96, 32, 3, 32),
        (48, 8, 2, 24),
        (80, 8, 1, 40),
        (64, 64, 2, 32),
    ],
)
def test_the_micro_batch_of_cpus(batch: int, ghost: int, world: int, rows: int) -> None:
    recipe = parse({"batch_size": batch, "micro_batch": "auto", "model": {"ghost_batch_size": ghost}})
    cpu, cuda = (first_try(Plan(recipe, 1000, world), torch.device(kind)) for kind in ("cpu", "cuda"))
    assert (cpu.micro_batch, cuda.micro_batch) == (rows, batch // world)
    fixed = Plan(replace(recipe, micro_batch=0), 1000, world)
    assert first_try(fixed, torch.device("cpu")) == fixed
