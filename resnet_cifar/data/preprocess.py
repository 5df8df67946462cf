"""From an image of any kind to the input of the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from resnet_cifar.config.schema import Data
from resnet_cifar.data import transforms
from resnet_cifar.data.sources import image_io
from resnet_cifar.data.sources.image_io import AS_IS, BORDER, NO_LIMITS, WHOLE_RANGE, Decoding, Limits


@dataclass(frozen=True)
class Preprocess:
    """Decoding, resizing and normalization, in training, evaluation, prediction, the export and its model card.

    mean and std: [3] in 0..1, on the device, in the dtype of the network's input. `decoding`: of the training images.
    """

    data: Data
    mean: Tensor
    std: Tensor
    decoding: Decoding = AS_IS

    def read(self, image: Any, limits: Limits = NO_LIMITS) -> np.ndarray:
        """An image as uint8 [h, w, 3], decoded like the training images (see `to_rgb`). Raises UndecodableImage."""
        return image_io.to_rgb(image, self.decoding, limits=limits)

    def __call__(self, images: Tensor, size: int = 0, boxes: Tensor | None = None) -> Tensor:
        """uint8 [n, h, w, 3] -> normalized [n, 3, size, size], channels_last; `size` 0 is data.image_size.

        `boxes`: int64 [n, 4], the part of each image to use; None: all of it.
        """
        size, interpolation = size or self.data.image_size, self.data.interpolation
        return transforms.to_input(images, size, interpolation, self.mean, self.std, boxes)

    @property
    def is_exact_in_timm(self) -> bool:
        """Whether timm's transform of decoded images, built from `timm_config`, is this one up to rounding."""
        is_border_timms = self.decoding.mode == "crop" or tuple((255 * self.mean).round().tolist()) == BORDER
        return self.decoding.size == (self.data.image_size, self.data.image_size) and is_border_timms

    @property
    def timm_config(self) -> dict[str, Any]:
        """The fields of timm's `pretrained_cfg` that describe the resizing, as closely as they can."""
        # Images that are stored at the network's size have been resized by Pillow; others are again, by torch.
        is_resized_once = self.decoding.size == (self.data.image_size, self.data.image_size)
        interpolation = "bicubic" if is_resized_once else self.data.interpolation
        is_square = self.decoding.size is not None and len(set(self.decoding.size)) == 1
        mode = {"crop": "center", "pad": "border"}[self.decoding.mode] if is_square else "squash"
        return {"interpolation": interpolation, "crop_pct": 1.0, "crop_mode": mode}

    @property
    def facts(self) -> dict[str, Any]:
        """Plain values for config.json, with all steps that timm's transform lacks."""
        size, value_range = self.decoding.size, self.decoding.value_range
        deep = "values of more than 8 bits scaled from {:g}..{:g} to 0..255".format(*(value_range or WHOLE_RANGE))
        lacks = ["EXIF orientation", "transparency on white", deep]
        if size is not None and not self.is_exact_in_timm:
            covering = f"images resized to cover {size[0]} x {size[1]} and center-cropped"
            fitting = f"images resized to fit {size[0]} x {size[1]} and padded with the color {BORDER}"
            final = " before the final resizing" if size != (self.data.image_size, self.data.image_size) else ""
            lacks.append((covering if self.decoding.mode == "crop" else fitting) + final)
        return {
            "stored_size": size and list(size),
            "decode_mode": self.decoding.mode,
            "exact_in_timm": self.is_exact_in_timm,
            "value_range": value_range and list(value_range),
            "interpolation": self.data.interpolation,
            "timm_transform_lacks": lacks,
        }
