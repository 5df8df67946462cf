"""From uint8 images to the input of the network."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from resnet_cifar.config.schema import Data
from resnet_cifar.data import transforms


@dataclass(frozen=True)
class Preprocess:
    """Resizing and normalization. mean and std: [3] in 0..1, on the device, in the dtype of the network's input."""

    data: Data
    mean: Tensor
    std: Tensor

    def __call__(self, images: Tensor, size: int = 0) -> Tensor:
        """uint8 [n, h, w, 3] -> normalized [n, 3, size, size], channels_last; `size` 0 is data.image_size."""
        return transforms.to_input(images, size or self.data.image_size, self.data.interpolation, self.mean, self.std)
