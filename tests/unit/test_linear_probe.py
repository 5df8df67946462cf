"""evaluation/linear_probe.py: the head that is fitted to features, against scikit-learn's own pipeline."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from resnet_cifar.evaluation import linear_probe


def blobs(classes: int, images: int = 240, features: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping classes, features of very different scales, the last one constant."""
    draw = np.random.default_rng(0)
    labels = np.arange(images) % classes
    found = draw.normal(size=(classes, features))[labels] + draw.normal(size=(images, features)) * 1.5
    found = found * 10.0 ** np.linspace(-2, 2, features) + 5
    found[:, -1] = 3.0
    return found, labels


def probabilities(features: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    logits = features @ weight.T + bias
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_the_head_is_scikit_learns_pipeline(classes: int) -> None:
    features, labels = blobs(classes)
    strengths = {"logisticregression__C": linear_probe._STRENGTHS}
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    folds = StratifiedKFold(linear_probe._FOLDS, shuffle=True, random_state=7)
    search = GridSearchCV(pipeline, strengths, scoring="neg_log_loss", cv=folds).fit(features, labels)
    weight, bias = linear_probe.fit(features, labels, classes, seed=7)
    np.testing.assert_allclose(probabilities(features, weight, bias), search.predict_proba(features), atol=2e-3)


def test_a_class_without_images_is_never_the_most_probable() -> None:
    features, labels = blobs(3)
    weight, bias = linear_probe.fit(features, labels + (labels > 0), classes=4, seed=0)
    assert weight.shape == (4, features.shape[1]) and not weight[1].any()
    assert set(probabilities(features, weight, bias).argmax(1)) == {0, 2, 3}


def test_a_weight_of_two_is_an_image_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scaled alike: the mean and deviation of the features are those of the images, not of their weights."""
    monkeypatch.setattr(linear_probe, "_STRENGTHS", (0.01, 0.01))
    features, labels = blobs(3)
    mirrored, twice = np.vstack([features, 10 - features]), np.hstack([labels, labels])
    weighted = linear_probe.fit(mirrored, twice, 3, 0, np.full(len(twice), 2.0))
    repeated = linear_probe.fit(np.vstack([mirrored, mirrored]), np.hstack([twice, twice]), 3, 0)
    np.testing.assert_allclose(
        probabilities(features, *weighted), probabilities(features, *repeated), atol=1e-4, err_msg="not equal"
    )


def test_a_class_of_two_images_is_fitted_without_folds() -> None:
    features, labels = blobs(2, images=40)
    labels[:] = 0
    labels[:2] = 1
    weight, bias = linear_probe.fit(features, labels, 2, seed=0)
    assert np.isfinite(weight).all() and np.isfinite(bias).all()


def test_images_in_the_order_of_their_classes_are_fitted_like_others() -> None:
    """As class folders hold them: the first 5,000 are of one class."""
    features, labels = blobs(2, images=12_000, features=2)
    order = np.argsort(labels, kind="stable")
    weight, bias = linear_probe.fit(features[order], labels[order], 2, seed=0)
    found = probabilities(features, weight, bias)
    expected = probabilities(features, *linear_probe.fit(features, labels, 2, seed=0))
    np.testing.assert_allclose(found, expected, atol=0.01)
