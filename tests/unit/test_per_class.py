"""Per-class metrics of a report, and the bins of its reliability diagram."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reported import prediction

from resnet_cifar.evaluation import calibration, metrics
from resnet_cifar.evaluation.calibration import reliability
from resnet_cifar.reporting import per_class, prediction_arrays


def scores(labels: list[int], predicted: list[int], classes: tuple[str, ...]) -> dict:
    logits = torch.nn.functional.one_hot(torch.tensor(predicted), len(classes)).double() * 3
    return metrics.full(logits, torch.tensor(labels), classes)


@pytest.mark.parametrize("temperature", [None, 0.5, 3.0])
def test_the_diagram_has_the_calibration_error_that_is_reported(temperature: float | None) -> None:
    logits, labels = prediction(500, 7)
    found = prediction_arrays.from_logits(logits.numpy(), labels.numpy(), np.arange(500), temperature)
    bins = reliability(found.confidence, found.correct)
    assert bins.images.sum() == 500
    assert bins.error == pytest.approx(calibration.calibration_error(logits, labels, temperature or 1.0), abs=1e-6)


def test_confidence_is_the_largest_softmax() -> None:
    logits, _ = prediction(50, 5)
    expected = (logits.double() / 2).softmax(1).max(1).values.numpy()
    np.testing.assert_allclose(prediction_arrays.max_probability(logits.numpy(), 2.0), expected, rtol=1e-12)
    large = np.array([[1000.0, 0.0]])
    assert prediction_arrays.max_probability(large, 1.0).tolist() == [1.0]


def test_cells_are_counts_shares_and_shades_that_show_the_worst_mistake() -> None:
    counts = np.array([[8, 2, 0], [0, 5, 5], [0, 0, 0]])
    table = per_class.cells(counts)
    assert [[cell.count for cell in row] for row in table] == counts.tolist()
    assert (table[0][1].share, table[1][2].share, table[2][2].share) == (0.2, 0.5, 0.0)
    assert table[1][2].shade == max(cell.shade for row in table for cell in row if cell.actual != cell.predicted)
    assert all(cell.shade == 0 for row in table for cell in row if not cell.count)


def test_pairs_are_the_commonest_mistakes_first_and_never_a_class_with_itself() -> None:
    counts = np.array([[90, 4, 0], [7, 50, 4], [0, 0, 9]])
    found = [(pair.actual, pair.predicted, pair.count) for pair in per_class.confused_pairs(counts)]
    assert found == [(1, 0, 7), (0, 1, 4), (1, 2, 4)]
    assert len(per_class.confused_pairs(np.ones((200, 200), np.int64))) == per_class.MAX_PAIRS


def test_the_verdict_names_the_best_and_the_worst_class_and_its_mistake() -> None:
    labels = [0] * 20 + [1] * 20 + [2] * 20
    predicted = [0] * 20 + [1] * 15 + [2] * 5 + [2] * 18 + [0] * 2
    said = per_class.summary_sentence(scores(labels, predicted, ("a", "b", "c"))).replace("\u00a0", " ")
    assert said.startswith("53 of 60 images are classified correctly (88.3 %; 95 % interval 77.8 % to 94.2 %)")
    assert said.endswith(": a best (100.0 %), b worst (75.0 %), which is most often predicted as c.")


@pytest.mark.parametrize(
    ("labels", "predicted", "said"),
    [
        ([0, 0, 0, 1], [0, 0, 0, 0], "which is not significantly better than always predicting a (75.0 %)."),
        ([0] * 30 + [1] * 30, [0] * 30 + [1] * 30, ", every class equally well."),
        ([0, 0, 0], [0, 0, 1], "; all are of one class."),
    ],
)
def test_the_verdict_claims_nothing_that_is_not_so(labels: list[int], predicted: list[int], said: str) -> None:
    assert per_class.summary_sentence(scores(labels, predicted, ("a", "b"))).replace("\u00a0", " ").endswith(said)


def test_classes_have_what_is_taken_for_them_and_the_worst_have_images() -> None:
    told = per_class.by_class(scores([0, 0, 1], [0, 1, 1], ("a", "b", "c")))
    assert [(each.name, each.images, each.predicted) for each in told] == [("a", 2, 1), ("b", 1, 2), ("c", 0, 0)]
    assert [each.name for each in per_class.worst(told)] == ["a", "b"]
    assert told[2].f1 is None


@pytest.mark.parametrize(
    ("share", "said"),
    [(0.5, "50.0 %"), (0.9996, "99.96 %"), (0.001, "0.10 %"), (1, "100.0 %"), (0, "0.0 %"), (0.99998, "99.998 %")],
)
def test_a_share_is_never_rounded_to_all_or_nothing(share: float, said: str) -> None:
    assert per_class.percent(share).replace("\u00a0", " ") == said


@pytest.mark.parametrize(("images", "said"), [(999, "97.3 %"), (1000, "97.34 %"), (None, "97.34 %")])
def test_an_accuracy_has_as_many_digits_as_its_images_give(images: int | None, said: str) -> None:
    assert per_class.accuracy(0.97341, images).replace("\u00a0", " ") == said


def test_bars_stand_in_the_middle_of_their_bins() -> None:
    bins = reliability(np.array([0.01, 0.99, 1.0]), np.array([False, True, True]))
    assert bins.middle.tolist() == pytest.approx([1 / 30, 29 / 30])
