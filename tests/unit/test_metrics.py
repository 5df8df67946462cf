"""reporting/metrics.py against scikit-learn."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn
from torch import Tensor

from resnet_cifar.reporting import metrics

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


def test_top_5_and_each_classs_accuracy_are_scikit_learns() -> None:
    logits, labels = predictions()
    found = metrics.full(logits, labels, NAMES)
    assert found["top5"] == pytest.approx(sklearn.top_k_accuracy_score(labels, logits, k=5), abs=1e-6)
    recall = sklearn.recall_score(labels, logits.argmax(1), average=None)
    assert list(found["class_accuracy"]) == list(NAMES)
    np.testing.assert_allclose(list(found["class_accuracy"].values()), recall, atol=1e-6)
    assert found["images"] == 500
    assert metrics.summary(logits, labels).items() <= found.items()


def test_with_fewer_than_five_classes_every_image_is_among_the_top_5() -> None:
    logits, labels = predictions(classes=3)
    assert metrics.full(logits, labels, NAMES[:3])["top5"] == 1


def test_scores_are_plain_json_even_where_a_class_has_no_image() -> None:
    logits, labels = predictions(20)
    labels[labels == 6] = 0
    found = metrics.full(logits, labels, NAMES)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_confident_mistake_costs_what_its_logits_say() -> None:
    assert metrics.summary(torch.tensor([[1000.0, 0.0]]), torch.tensor([1])) == {"loss": 1000.0, "accuracy": 0.0}
