"""evaluation/metrics.py against scikit-learn."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn
from torch import Tensor

from resnet_cifar.evaluation import metrics, results_io

NAMES = tuple("abcdefg")


def predictions(n: int = 500, classes: int = 7, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, classes, (n,), generator=generator)
    logits = 3 * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    logits[torch.arange(n), labels] += 2
    return logits.to(dtype), labels


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_and_accuracy_are_scikit_learns(dtype: torch.dtype) -> None:
    logits, labels = predictions(dtype=dtype)
    found = metrics.summary(logits, labels)
    probabilities = logits.double().softmax(1).numpy()
    assert found["loss"] == pytest.approx(sklearn.log_loss(labels, probabilities, labels=range(7)), rel=1e-9)
    assert found["accuracy"] == pytest.approx(sklearn.accuracy_score(labels, logits.argmax(1)), abs=1e-12)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("present", [range(7), (0, 1, 4, 5), (6,)], ids=list)
@pytest.mark.parametrize("never_predicted", [(), (5,), (0, 6)], ids=str)
def test_balanced_accuracy_and_macro_f1_are_scikit_learns(
    present: Sequence[int], never_predicted: tuple[int, ...]
) -> None:
    """Of classes of different sizes; also with classes that are absent from the split, or never predicted."""
    logits, _ = predictions(300)
    drawn = torch.rand(300, generator=torch.Generator().manual_seed(1)) ** 2
    labels = torch.tensor(present)[(drawn * len(present)).long()]
    logits[torch.arange(300), labels] += 2
    logits[:, list(never_predicted)] = -1e3
    found, predicted = metrics.summary(logits, labels), logits.argmax(1)
    assert found["balanced_accuracy"] == pytest.approx(sklearn.balanced_accuracy_score(labels, predicted), abs=1e-12)
    assert found["macro_f1"] == pytest.approx(sklearn.f1_score(labels, predicted, average="macro"), abs=1e-12)


def test_top_5_and_each_classs_accuracy_are_scikit_learns() -> None:
    logits, labels = predictions()
    found = metrics.full(logits, labels, NAMES)
    assert found["top5"] == pytest.approx(sklearn.top_k_accuracy_score(labels, logits, k=5), abs=1e-6)
    recall = sklearn.recall_score(labels, logits.argmax(1), average=None)
    assert list(found["class_accuracy"]) == list(NAMES)
    np.testing.assert_allclose(list(found["class_accuracy"].values()), recall, atol=1e-6)
    assert found["images"] == 500
    assert metrics.summary(logits, labels).items() <= found.items()


def test_precision_recall_f1_and_confusion_are_scikit_learns() -> None:
    logits, labels = predictions()
    found, predicted = metrics.full(logits, labels, NAMES), logits.argmax(1)
    for name, scored in (
        ("precision", sklearn.precision_score(labels, predicted, average=None)),
        ("recall", sklearn.recall_score(labels, predicted, average=None)),
        ("f1", sklearn.f1_score(labels, predicted, average=None)),
        ("images", np.bincount(labels)),
    ):
        np.testing.assert_allclose([values[name] for values in found["classes"].values()], scored, atol=1e-6)
    assert found["confusion"] == sklearn.confusion_matrix(labels, predicted).tolist()


@pytest.mark.parametrize(("right", "images"), [(0, 10), (5, 10), (81, 100), (10, 10)])
def test_the_interval_is_wilsons(right: int, images: int) -> None:
    logits = torch.tensor([[1.0, 0.0]]).repeat(images, 1)
    labels = torch.tensor([0] * right + [1] * (images - right))
    share, z = right / images, 1.959963984540054
    center = (share + z**2 / (2 * images)) / (1 + z**2 / images)
    width = z / (1 + z**2 / images) * (share * (1 - share) / images + z**2 / (4 * images**2)) ** 0.5
    found = metrics.full(logits, labels, ("a", "b"))["accuracy_interval"]
    assert found == pytest.approx([center - width, center + width], abs=1e-6)


def test_calibration_is_the_distance_of_confidence_from_accuracy() -> None:
    confidence = torch.tensor([0.9, 0.9, 0.9, 0.9, 0.6, 0.6], dtype=torch.float64)
    logits = torch.stack([confidence.log(), (1 - confidence).log()], dim=1)
    labels = torch.tensor([0, 0, 1, 1, 0, 1])  # right in half of the cases, in either bin
    assert metrics.full(logits, labels, ("a", "b"))["calibration_error"] == pytest.approx(4 / 6 * 0.4 + 2 / 6 * 0.1)


@pytest.mark.parametrize(("classes", "is_there"), [(2, False), (5, False), (6, True)])
def test_top_5_is_there_where_an_image_may_be_outside_of_it(classes: int, is_there: bool) -> None:
    logits, labels = predictions(classes=classes)
    found = metrics.full(logits, labels, NAMES[:classes])
    assert ("top5" in found) == is_there
    assert ("top-5" in results_io.summary_line(found)) == is_there


def test_a_class_without_images_has_no_scores_and_changes_none() -> None:
    """A source may lack classes of the model."""
    logits, labels = predictions(20)
    labels[labels == 6] = 0
    found = metrics.full(logits, labels, NAMES)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["classes"]["g"] == {"precision": None, "recall": None, "f1": None, "images": 0}
    assert found["class_accuracy"]["g"] is None
    present = [name for name in NAMES if found["classes"][name]["images"]]
    weights = [found["classes"][name]["images"] for name in present]
    recall = [found["classes"][name]["recall"] for name in present]
    assert np.average(recall, weights=weights) == pytest.approx(found["accuracy"], abs=1e-6)
    assert found["top5"] == pytest.approx(sklearn.top_k_accuracy_score(labels, logits, k=5, labels=range(7)), abs=1e-6)
    assert found["confusion"] == sklearn.confusion_matrix(labels, logits.argmax(1), labels=range(7)).tolist()


def test_with_a_temperature_the_calibration_error_comes_twice() -> None:
    logits, labels = predictions()
    plain, scaled = metrics.full(logits, labels, NAMES), metrics.full(logits, labels, NAMES, temperature=2.0)
    assert (plain["temperature"], plain["calibration_error_scaled"]) == (None, None)
    halved = metrics.full(logits / 2, labels, NAMES)
    assert scaled["calibration_error_scaled"] == halved["calibration_error"] != plain["calibration_error"]
    assert {**scaled, "temperature": None, "calibration_error_scaled": None} == plain, "nothing else is scaled"


def test_a_confident_mistake_costs_what_its_logits_say() -> None:
    found = metrics.summary(torch.tensor([[1000.0, 0.0]]), torch.tensor([1]))
    assert found == {"loss": 1000.0, "accuracy": 0.0, "balanced_accuracy": 0.0, "macro_f1": 0.0}
