"""Flip test-time augmentation: the mean of the logits of an image and its mirror image (Jordan 2024, airbench)."""

from __future__ import annotations

from torch import Tensor

from resnet_cifar.data.preprocess import Preprocess
from resnet_cifar.evaluation.predict import Predictions


class MirroredPreprocess(Preprocess):
    """Mirrors the images, then preprocesses them."""

    def __call__(self, images: Tensor, size: int = 0) -> Tensor:
        """See Preprocess."""
        return super().__call__(images.flip(2), size)


def mean_logits(plain: Predictions, mirrored: Predictions) -> Predictions:
    """Predictions with the mean of both logits."""
    return Predictions((plain.logits + mirrored.logits) / 2, plain.labels)
