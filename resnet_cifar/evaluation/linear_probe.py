"""A linear probe: multinomial logistic regression on the features of a network that is not trained.

It tells in seconds what pretrained features are worth, and it is a head to start fine-tuning from: with any other one,
the first updates distort the features (Kumar et al. 2022, Fine-Tuning can Distort Pretrained Features).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from resnet_cifar.data.image_dataset import ImageDataset
from resnet_cifar.data.preprocess import Preprocess
from resnet_cifar.data.sampling import epoch_permutation
from resnet_cifar.distributed.context import DistributedContext
from resnet_cifar.evaluation.predict import predict
from resnet_cifar.models.mlp_head import head_module

IMAGES = 20_000  # at most; more hardly change the head
_TRIED = 5_000  # images on which the strength of the regularization is chosen
_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)  # C of scikit-learn, for standardized features
_FOLDS = 3
_ITERATIONS = 500  # of L-BFGS, at most


class _Features(nn.Module):
    """Images -> the input of the classifier of a timm model, [n, features]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.forward_head(self.model.forward_features(images), pre_logits=True)


def fit_head(
    context: DistributedContext,
    model: nn.Module,
    images: ImageDataset,
    preprocess: Preprocess,
    seed: int,
    class_weights: np.ndarray | None,
    check_stop: Callable[[], None],
) -> None:
    """Sets the head of the unwrapped `model`, an nn.Linear, to a linear probe of at most `IMAGES` training images.

    Ranks share the forward passes; rank 0 fits, and all get the same head. `class_weights`: [classes], the weight of an
    image by its class, or None. `check_stop`: see `predict`.
    """
    rows = np.sort(epoch_permutation(seed, 0, len(images))[:IMAGES])
    features, labels = predict(context, _Features(model), images, preprocess, check_stop, rows=rows)
    head = head_module(model)
    if context.is_main:
        weights = None if class_weights is None else class_weights[labels.numpy()]
        weight, bias = fit(features.double().numpy(), labels.numpy(), len(head.weight), seed, weights)
        with torch.no_grad():
            head.weight.copy_(torch.from_numpy(weight))
            head.bias.copy_(torch.from_numpy(bias))
    context.broadcast_(head)


def fit(
    features: np.ndarray, labels: np.ndarray, classes: int, seed: int, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(weight [classes, features], bias [classes]) of a logistic regression on features [n, features], float64.

    The regularization is the one with the lowest cross-validated loss. `weights`: of the images, [n]. A class without
    images gets the bias of the least probable one.
    """
    mean, deviation = features.mean(0), features.std(0)
    deviation[deviation < 1e-12] = 1.0  # of features that are constant
    scaled = (features - mean) / deviation
    model = _regression(_choose_strength(scaled, labels, seed, weights)).fit(scaled, labels, weights)
    coefficients, intercepts = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # scikit-learn has one row for two classes
        coefficients, intercepts = (
            np.vstack([-coefficients, coefficients]) / 2,
            np.hstack([-intercepts, intercepts]) / 2,
        )
    weight, bias = np.zeros((classes, features.shape[1])), np.full(classes, intercepts.min())
    weight[model.classes_] = coefficients / deviation
    bias[model.classes_] = intercepts - weight[model.classes_] @ mean
    return weight, bias


def _choose_strength(scaled: np.ndarray, labels: np.ndarray, seed: int, weights: np.ndarray | None) -> float:
    """The C of `_STRENGTHS` with the lowest log loss on held-out folds; the second one if a class is too small."""
    from sklearn.metrics import log_loss
    from sklearn.model_selection import StratifiedKFold

    if len(scaled) > _TRIED:  # at random: folders hold one class after the other
        some = np.sort(epoch_permutation(seed, 0, len(scaled))[:_TRIED])
        scaled, labels, weights = scaled[some], labels[some], None if weights is None else weights[some]
    present = np.unique(labels)
    if len(present) < 2 or np.bincount(labels)[present].min() < _FOLDS:
        return _STRENGTHS[1]
    losses = np.zeros(len(_STRENGTHS))
    for train, held_out in StratifiedKFold(_FOLDS, shuffle=True, random_state=seed % 2**32).split(scaled, labels):
        for place, strength in enumerate(_STRENGTHS):
            parts = [None if weights is None else weights[rows] for rows in (train, held_out)]
            model = _regression(strength).fit(scaled[train], labels[train], parts[0])
            found = model.predict_proba(scaled[held_out])
            losses[place] += log_loss(labels[held_out], found, labels=present, sample_weight=parts[1])
    return _STRENGTHS[losses.argmin()]


def _regression(strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, max_iter=_ITERATIONS)
