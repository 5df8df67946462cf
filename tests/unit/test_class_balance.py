"""data.sampling balanced and loss.class_weights: functions of the seed, the step and the class sizes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import count, islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from resnet_cifar import rng
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.validation import parse
from resnet_cifar.data.image_dataset import ImageDataset
from resnet_cifar.data.loader import Loader
from resnet_cifar.data.preprocess import Preprocess
from resnet_cifar.data.sampling import BalancedOrder, bn_indices, epoch_permutation, position_of, sample_indices
from resnet_cifar.training import plan_summary
from resnet_cifar.training.plan import Plan

some = settings(deadline=None, derandomize=True, max_examples=60)
EPOCHS = 4
# Class sizes in the source's order; a class of the source may have no training images.
sizes = st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any)


def labels_of(sizes: Sequence[int]) -> np.ndarray:
    """The labels of classes of these sizes, shuffled."""
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))


def stream(labels: np.ndarray, seed: int = 0, epochs: int = EPOCHS) -> tuple[np.ndarray, np.ndarray]:
    """(image indices, earlier uses) of the first epochs, as one batch."""
    images = len(labels)
    return sample_indices(seed, images, epochs * images, 0, slice(0, epochs * images), BalancedOrder(seed, labels))


def one_by_one(labels: np.ndarray, seed: int) -> Iterator[tuple[int, int]]:
    """(image, earlier uses) of the slots of a run before epochs are shuffled, by the definition: classes in turn."""

    def images_of(label: int) -> Iterator[tuple[int, int]]:
        members = np.flatnonzero(labels == label)
        padded = -(-len(members) // 4) * 4
        for use in count():
            words = rng.words(seed, "class_order", label, start=use * padded, count=len(members))
            yield from ((int(image), use) for image in members[np.argsort(words, kind="stable")])

    classes = [images_of(int(label)) for label in np.unique(labels)]
    while True:
        yield from (next(each) for each in classes)


@some
@given(sizes, st.integers(0, 5))
def test_an_epoch_is_shuffled_slots_of_all_classes_in_turn(sizes: list[int], seed: int) -> None:
    labels = labels_of(sizes)
    images = len(labels)
    expected = np.array(list(islice(one_by_one(labels, seed), EPOCHS * images))).reshape(EPOCHS, images, 2)
    shuffled = [slots[epoch_permutation(seed, epoch, images)] for epoch, slots in enumerate(expected)]
    np.testing.assert_array_equal(np.stack(stream(labels, seed), axis=1), np.concatenate(shuffled))


@some
@given(sizes)
def test_every_class_has_an_equal_share_and_every_image_of_a_class_its_turn(sizes: list[int]) -> None:
    labels = labels_of(sizes)
    indices, uses = stream(labels)
    for epochs in range(1, EPOCHS + 1):
        so_far, latest = indices[: epochs * len(labels)], indices[(epochs - 1) * len(labels) : epochs * len(labels)]
        for seen in (so_far, latest):
            shares = np.bincount(labels[seen], minlength=len(sizes))[np.array(sizes) > 0]
            assert np.ptp(shares) <= 1, "over all epochs, and in each"
        times = np.bincount(so_far, minlength=len(labels))
        assert all(np.ptp(times[labels == label]) <= 1 for label in np.unique(labels))
    for image in range(len(labels)):
        assert sorted(uses[indices == image]) == list(range((indices == image).sum()))


@some
@given(sizes, st.integers(1, 4), st.integers(1, 5), st.integers(0, 30))
def test_ranks_take_their_rows_at_any_step_without_the_steps_before(
    sizes: list[int], world: int, share: int, step: int
) -> None:
    labels = labels_of(sizes)
    batch = 2 * share * world
    images, _ = stream(labels, epochs=-(-(step + 1) * batch // len(labels)))
    rows = [slice(2 * share * rank, 2 * share * (rank + 1)) for rank in range(world)]
    parts = [sample_indices(0, len(labels), batch, step, mine, BalancedOrder(0, labels))[0] for mine in rows]
    np.testing.assert_array_equal(np.concatenate(parts), images[step * batch : (step + 1) * batch])


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    labels = labels_of([40, 10])
    orders = {epoch.tobytes() for seed in range(3) for epoch in stream(labels, seed)[0].reshape(EPOCHS, 50)}
    assert len(orders) == 3 * EPOCHS
    chosen = {np.sort(epoch[labels[epoch] == 0]).tobytes() for epoch in stream(labels)[0].reshape(EPOCHS, 50)}
    assert len(chosen) == EPOCHS, "of the large class, other images"


@pytest.mark.parametrize("balanced", [False, True])
def test_a_use_of_an_image_has_a_position(balanced: bool) -> None:
    labels = labels_of([0, 12, 3])
    order = BalancedOrder(0, labels) if balanced else None
    indices, uses = sample_indices(0, 15, 150, 0, slice(0, 150), order)
    for image in range(15):
        for use in range(3):
            [position] = np.flatnonzero((indices == image) & (uses == use))
            assert position_of(0, 15, image, use, order) == position


def loader_of(labels: np.ndarray, **values: object) -> Loader:
    recipe = parse({"batch_size": 10, "model": {"ghost_batch_size": None}, **values})
    pixels = torch.arange(8, dtype=torch.uint8)[None, None, :, None].expand(len(labels), 8, 8, 3).contiguous()
    data = ImageDataset(pixels, torch.from_numpy(labels), np.arange(len(labels)))
    preprocess = Preprocess(recipe.data, torch.zeros(3), torch.ones(3))
    return Loader(recipe, data, int(labels.max()) + 1, preprocess, slice(0, 10))


def test_the_loader_takes_the_classes_equally_often_and_alternates_flips_from_use_to_use() -> None:
    labels = labels_of([30, 6, 4])
    augment = {"flip": "alternating", "crop_padding": 0}
    loader = loader_of(labels, data={"sampling": "balanced", "image_size": 8}, augment=augment)
    seen: list[int] = []
    flips: dict[int, list[bool]] = {}
    for step in range(12):
        indices, _ = sample_indices(0, 40, 10, step, slice(0, 10), BalancedOrder(0, labels))
        [(inputs, targets)] = loader.batch(step)
        assert targets.argmax(1).tolist() == labels[indices].tolist()
        seen += labels[indices].tolist()
        for image, row in zip(indices.tolist(), inputs, strict=True):
            flips.setdefault(image, []).append(bool(row[0, 0, 0] > row[0, 0, -1]))
    assert np.bincount(seen).tolist() == [40, 40, 40]
    small = [image for image in flips if labels[image] > 0]
    assert len(small) == 10
    # An image is used several times per epoch, in random order: as often flipped as not.
    assert all(abs(sum(flips[image]) - len(flips[image]) / 2) <= 1 for image in small)


def test_uniform_sampling_and_batchnorm_statistics_are_unchanged() -> None:
    labels = labels_of([30, 6, 4])
    uniform = loader_of(labels, data={"image_size": 8})
    assert uniform._balanced is None
    epoch = np.concatenate([sample_indices(0, 40, 10, step, slice(0, 10))[0] for step in range(4)])
    np.testing.assert_array_equal(epoch, rng.permutation(0, "order", 0, 40))
    np.testing.assert_array_equal(bn_indices(0, 40), np.arange(40))


# Class weights


def plan_of(sizes: Sequence[int], weights: object, sampling: str = "uniform") -> Plan:
    recipe = parse({"loss": {"class_weights": weights}, "data": {"sampling": sampling, "source": "synthetic"}})
    return Plan(recipe, sum(sizes), 1, class_counts={f"class {n}": size for n, size in enumerate(sizes)})


@pytest.mark.parametrize("sizes", [(30, 6, 4), (5, 5), (1, 1000, 30, 7)])
def test_balanced_weights_are_scikit_learns(sizes: tuple[int, ...]) -> None:
    expected = compute_class_weight("balanced", classes=np.arange(len(sizes)), y=labels_of(sizes))
    assert list(plan_of(sizes, "balanced").class_weights.values()) == pytest.approx(expected.tolist(), rel=1e-12)


@pytest.mark.parametrize("sampling", ["uniform", "balanced"])
def test_the_mean_weight_of_an_epochs_images_is_one(sampling: str) -> None:
    sizes = (30, 6, 4)
    labels = labels_of(sizes)
    weights = plan_of(sizes, "1,2.5,7", sampling).class_weights
    values = np.array(list(weights.values()))
    np.testing.assert_allclose(values / values[0], [1, 2.5, 7])
    drawn = labels if sampling == "uniform" else labels[stream(labels, epochs=3)[0]]
    assert values[drawn].mean() == pytest.approx(1, rel=1e-12)


def test_a_class_without_training_images_has_no_weight_and_changes_none() -> None:
    weights = plan_of((30, 0, 10), "balanced").class_weights
    assert weights == pytest.approx({"class 0": 40 / 60, "class 1": 0, "class 2": 2})
    assert plan_of((30, 10), "none").class_weights is None


@pytest.mark.parametrize(("weights", "listed"), [("1,2", "2 weights"), ("3", "1 weight"), ("1,2,3,4", "4 weights")])
def test_a_wrong_number_of_weights_is_one_sentence_with_both_numbers_and_the_classes(weights: str, listed: str) -> None:
    expected = (
        f"loss.class_weights lists {listed}, but data.source 'synthetic' has 3 classes: give one for each, in the "
        "order class 0, class 1, class 2"
    )
    with pytest.raises(UserError, match=f"^{re.escape(expected)}$"):
        plan_of((30, 6, 4), weights)


def test_the_plan_says_what_sampling_and_weights_do() -> None:
    assert plan_summary.describe_balance(plan_of((30, 6, 4), "none")) == []
    assert plan_summary.describe_balance(plan_of((30, 6, 4), "balanced")) == [
        ("loss", "class weights from 0.444 for 'class 0' (30 images) to 3.33 for 'class 2' (4 images)")
    ]
    assert plan_summary.describe_balance(plan_of((30, 0, 6, 4), "1,1,1,2", "balanced")) == [
        (
            "sampling",
            "balanced: per epoch, an image of 'class 3' (4 images) is used 3.33 times, of 'class 0' (30 images) 0.444 "
            "times",
        ),
        ("loss", "class weights from 0.75 for 'class 0' (30 images) to 1.5 for 'class 3' (4 images)"),
    ]
