"""What becomes black and white in images with more than 8 bits per value, such as 12-bit X-rays in 16-bit files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Data
from resnet_cifar.data.sources import image_io
from resnet_cifar.data.sources.image_io import WHOLE_RANGE

_CHUNK = 128  # images decoded at a time
_CORE = (2, 98)  # percentiles of an image's values
_FEW = 1 / 8  # of the range: 32 of the 256 levels that are stored


def measure(images: Sequence[Any], data: Data) -> tuple[tuple[float, float], str]:
    """The range of the values in the (training) images with more than 8 bits, and a remark on it. Raises UserError.

    All 16 bits if the values take up half of them or more; the smallest and the largest value otherwise.
    """
    found = np.array(list(_statistics(images)))
    if not len(found):  # only test images have more than 8 bits
        return WHOLE_RANGE, "images with more than 8 bits: 0 becomes 0, 65535 becomes 255 (data.value_range)"
    low, high = float(found[:, 0].min()), float(found[:, 1].max())
    if low == high:
        raise UserError(
            f"data.source {data.source!r}: all values of its images with more than 8 bits are {low:g}: use other images"
        )
    if low >= 0 and high <= WHOLE_RANGE[1] and high - low > WHOLE_RANGE[1] / 2:
        low, high = WHOLE_RANGE
    elif found[:, 4].any():
        raise UserError(
            f"data.source {data.source!r} has images of 16 bits per color whose values reach about {high:g} of 65535, "
            "and Pillow reads only the upper 8 of their bits: convert them to 8 bits per color, or take these with "
            "--data.value_range 0,65535"
        )
    low, high = (int(value) if value.is_integer() else value for value in map(float, (low, high)))
    remark = f"images with more than 8 bits: {low:g} becomes 0, {high:g} becomes 255 (data.value_range)"
    core_low, core_high = np.median(found[:, 2:4], axis=0)
    if 0 < core_high - core_low < _FEW * (high - low) and not found[:, 4].any():
        remark += (
            f"; most values lie between {core_low:g} and {core_high:g}, which leaves them few of the 256 levels: "
            f"--data.value_range {core_low:g},{core_high:g} spreads these and clips the others"
        )
    return (low, high), remark


def _statistics(images: Sequence[Any]) -> Iterator[tuple[float, ...]]:
    """Smallest and largest value, percentiles _CORE, and whether it is a color image, of each deep image."""
    with ThreadPoolExecutor() as threads:
        for start in range(0, len(images), _CHUNK):
            yield from filter(None, threads.map(_image_statistics, images[start : start + _CHUNK]))


def _image_statistics(image: Any) -> tuple[float, ...] | None:
    try:
        values = image_io.deep_values(image)
    except image_io.UndecodableImage:
        return None  # it is named when all images are decoded
    if values is None:
        return None
    is_encoded_color = values.ndim == 3 and not isinstance(image, np.ndarray)
    return values.min(), values.max(), *np.percentile(values, _CORE), is_encoded_color
