"""data/value_range.py: 12-bit X-rays and other images with more than 8 bits keep their contrast."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel
from PIL import Image
from read_sources import both, encoded, in_memory, sentence, split_of
from test_preprocess import png_of_16_bits

LABEL = (ClassLabel(names=["left", "right"]), [0, 1, 0, 1])


def files(images: Iterable[np.ndarray], kind: str = "TIFF") -> list[dict[str, Any]]:
    found = []
    for array in images:
        stream = io.BytesIO()
        Image.fromarray(array).save(stream, kind)
        found.append({"bytes": stream.getvalue(), "path": None})
    return found


def values(low: float, high: float, dtype: str = "u2", count: int = 4) -> np.ndarray:
    """Four images; the first pixel of all is `low` and the last is `high`."""
    found = np.random.default_rng(0).uniform(low, high, (count, 6, 8)).astype(dtype)
    found[0, 0, 0], found[-1, -1, -1] = low, high
    return found


def decoded(images: list[Any], **fields: Any) -> Any:
    return in_memory(both(split_of(images, label=LABEL)), **fields)


@pytest.mark.parametrize(
    ("low", "high", "dtype", "black", "white"),
    [
        (1800, 3600, "u2", 1800, 3600),  # 12-bit X-rays
        (29_000, 31_000, "u2", 29_000, 31_000),  # a thermal camera
        (5, 65_000, "u2", 0, 65_535),  # photographs with 16 bits
        (-1000, 3000, "i4", -1000, 3000),  # Hounsfield units
        (-0.5, 0.75, "f4", -0.5, 0.75),
    ],
)
def test_the_datas_own_range_becomes_black_and_white(
    low: float, high: float, dtype: str, black: float, white: float
) -> None:
    images = values(low, high, dtype)
    found = decoded(files(images))
    scaled = np.round((images.astype(float) - black) * (255 / (white - black)))
    np.testing.assert_array_equal(found.images["train"], np.repeat(scaled[..., None], 3, axis=3))
    assert found.decoded.value_range == (black, white)
    remark = f"images with more than 8 bits: {black:g} becomes 0, {white:g} becomes 255 (data.value_range)"
    assert found.decoded.remarks == (remark,)


def test_the_range_is_the_training_images_and_others_are_clipped() -> None:
    train, test = values(1000, 2000), values(500, 4000)
    found = in_memory(both(split_of(files(train), label=LABEL), split_of(files(test), label=LABEL)))
    assert found.decoded.value_range == (1000, 2000)
    assert found.images["test"].min() == 0 and found.images["test"].max() == 255


def test_the_range_of_the_recipe_is_used() -> None:
    images = values(1800, 3600)
    found = decoded(files(images), value_range=(0, 4095))
    np.testing.assert_array_equal(found.images["train"][..., 0], np.round(images * (255 / 4095)))
    assert found.decoded.value_range == (0, 4095)


def test_a_few_values_far_from_the_others_are_said_with_a_range_that_helps() -> None:
    """A burned-in marker in X-rays."""
    images = values(1800, 2200).repeat(4, axis=1)
    images[:, 0, 0] = 65_535
    (remark,) = decoded(files(images)).decoded.remarks
    low, high = map(float, remark.partition("--data.value_range ")[2].split()[0].split(","))
    assert 1800 <= low < 1850 and 2150 < high <= 2200
    assert decoded(files(images), value_range=(low, high)).images["train"].std() > 50


def test_images_of_8_bits_beside_them_stay_as_they_are() -> None:
    eight = np.random.default_rng(0).integers(0, 256, (2, 6, 8, 3), dtype=np.uint8)
    found = decoded([*map(encoded, eight), *files(values(0, 4000, count=2))])
    np.testing.assert_array_equal(found.images["train"][:2], eight)
    assert found.decoded.value_range == (0, 4000)
    assert decoded([encoded(eight[0])] * 4).decoded.value_range is None


def test_several_sizes_and_many_bits_are_both_handled() -> None:
    images = [*values(0, 1000, count=3), values(0, 1000)[0].repeat(2, axis=0)]
    found = decoded(files(images), image_size=8)
    assert (found.decoded.size, found.decoded.value_range, len(found.decoded.remarks)) == ((8, 8), (0, 1000), 2)


def test_what_cannot_be_scaled_is_refused_in_one_sentence() -> None:
    colors = np.repeat(values(0, 4095)[..., None], 3, axis=3)
    colors = [{"bytes": png_of_16_bits(image), "path": None} for image in colors]
    text = sentence(both(split_of(colors, label=LABEL)))
    assert "16 bits per color whose values reach about 3855 of 65535" in text and "convert them to 8 bits" in text
    assert decoded(colors, value_range=(0, 65535)).images["train"].max() == 15
    assert "are 7: use other images" in sentence(both(split_of(files(np.full((4, 6, 8), 7, "u2")), label=LABEL)))
    broken = values(0, 1, "f4")
    broken[2, 0, 0] = np.nan
    assert "2 images do not decode (train 2; test 2)" in sentence(both(split_of(files(broken), label=LABEL)))
