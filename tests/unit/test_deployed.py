"""evaluation/deployed.py: the preprocessing inside an exported graph is that of prediction, for images of any size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from resnet_cifar.config.validation import parse
from resnet_cifar.data.preprocess import Preprocess
from resnet_cifar.data.sources import image_io
from resnet_cifar.data.sources.image_io import BORDER, Decoding
from resnet_cifar.evaluation.deployed import Deployed, cover, fit
from resnet_cifar.evaluation.loaded_model import LoadedModel

SHAPES = [
    (800, 1203),
    (1000, 433),
    (3, 5),
    (1, 1),
    (30, 2000),
    (900, 3),
    (32, 32),
    (33, 32),
    (64, 64),
    (3, 192),
    (3, 193),
]


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def test_images_of_every_shape_have_pillows_pixels() -> None:
    """Every pixel, for landscapes, portraits and strips longer than 64:1, that are shrunk or enlarged."""
    draw = np.random.default_rng(0)
    random = [tuple(map(int, draw.integers(1, 300, 2))) for _ in range(60)]
    for number, (height, width) in enumerate([*SHAPES, *random]):
        size = tuple(map(int, draw.integers(8, 80, 2))) if number % 2 else (32, 32)
        pixels = noise(number, height, width)
        image, batch = Image.fromarray(pixels), torch.from_numpy(pixels).permute(2, 0, 1)[None]
        expected = {cover: image_io.cover(image, *size), fit: image_io.fit(image, *size, BORDER)}
        if max(height, width) > 100 * min(height, width):
            expected.pop(fit)  # Pillow resizes such strips down first, which differs by a level here and there
        for prepare, picture in expected.items():
            found = prepare(batch, *size)[0].permute(1, 2, 0).numpy()
            what = f"{prepare.__name__}: {height} x {width} to {size}"
            np.testing.assert_array_equal(found, np.array(picture), err_msg=what)


def loaded(stored: tuple[int, int], dtype: torch.dtype = torch.float32, mode: str = "crop", **data: Any) -> LoadedModel:
    """A network whose logits are its input."""
    recipe = parse({"data": {"source": "synthetic", "image_size": 40, **data}})
    mean, std = torch.tensor([0.4, 0.5, 0.6], dtype=dtype), torch.tensor([0.2, 0.3, 0.25], dtype=dtype)
    plain, preprocess = nn.Flatten(), Preprocess(recipe.data, mean, std, Decoding(stored, mode=mode))
    return LoadedModel(plain, preprocess, ("a", "b"), "weights", None, 2.0, None, plain, True)


@pytest.mark.parametrize("mode", ["crop", "pad"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("stored", [(40, 40), (32, 32), (64, 64), (30, 45), (52, 44)])
def test_the_network_is_given_what_prediction_gives_it(stored: tuple[int, int], interpolation: str, mode: str) -> None:
    model = loaded(stored, mode=mode, interpolation=interpolation)
    deployed = Deployed(model)
    for height, width in [*SHAPES[:5], stored]:
        pixels = noise(1, 2, height, width)
        read = torch.stack([torch.from_numpy(model.preprocess.read(image)) for image in pixels])
        expected = model.preprocess(read).flatten(1)
        logits, probabilities = deployed(torch.from_numpy(pixels))
        torch.testing.assert_close(logits, expected, rtol=0, atol=3e-6)
        torch.testing.assert_close(probabilities, (expected / 2).softmax(1))


def test_a_model_in_double_precision_is_deployed_in_float32_without_calibration() -> None:
    model = loaded((32, 32), torch.float64)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * 40 * 40, 2, dtype=torch.float64))
    model = replace(model, model=layers, plain=layers, temperature=None)
    pixels = torch.from_numpy(noise(2, 1, 32, 32))
    logits, probabilities = Deployed(model)(pixels)
    assert logits.dtype == probabilities.dtype == torch.float32
    torch.testing.assert_close(logits.double(), layers(model.preprocess(pixels)), rtol=0, atol=1e-5)
    torch.testing.assert_close(probabilities, logits.softmax(1))
