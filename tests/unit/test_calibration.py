"""evaluation/calibration.py: the fitted temperature against a search by brute force and where it is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from resnet_cifar.evaluation.calibration import calibration_error, fit_temperature


def drawn(temperature: float, n: int = 20_000, classes: int = 6) -> tuple[Tensor, Tensor]:
    """Logits that are `temperature` times too sharp for their labels, which are drawn from softmax(z)."""
    generator = torch.Generator().manual_seed(1)
    z = 2 * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(z.softmax(1), 1, generator=generator).squeeze(1)
    return temperature * z, labels


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 2.5])
def test_it_finds_how_much_too_sharp_logits_are(sharpness: float) -> None:
    logits, labels = drawn(sharpness)
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(sharpness, rel=0.03)
    assert calibration_error(logits, labels, temperature) < 0.02
    if sharpness != 1:
        assert calibration_error(logits, labels) > 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_best_of_a_fine_grid(dtype: torch.dtype) -> None:
    logits, labels = drawn(1.7, n=400)
    logits = logits.to(dtype)
    grid = np.geomspace(0.5, 5, 4001)
    losses = [F.cross_entropy(logits.double() / t, labels).item() for t in grid]
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(grid[int(np.argmin(losses))], rel=1e-3)
    assert F.cross_entropy(logits.double() / temperature, labels).item() <= min(losses) + 1e-12


def test_it_repeats_to_the_last_digit() -> None:
    logits, labels = drawn(1.7, n=400)
    assert fit_temperature(logits, labels) == fit_temperature(logits.clone(), labels.clone())


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_where_every_image_is_right_there_is_no_optimum(scale: float) -> None:
    logits, _ = drawn(scale, n=500)
    assert fit_temperature(logits, logits.argmax(1)) is None


def test_where_logits_are_worse_than_chance_there_is_no_optimum() -> None:
    logits, _ = drawn(1.0, n=500)
    assert fit_temperature(logits, logits.argmin(1)) is None


def test_a_shift_of_all_logits_of_an_image_changes_nothing() -> None:
    logits, labels = drawn(2.0, n=400)
    shifted = logits + torch.linspace(-1e3, 1e3, 400, dtype=torch.float64)[:, None]
    assert fit_temperature(shifted, labels) == pytest.approx(fit_temperature(logits, labels), abs=2e-6)
