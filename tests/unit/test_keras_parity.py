"""The Keras notebook's parts against the formulas of Keras's documentation, in plain NumPy, and numbers by hand.

https://keras.io/api/layers (BatchNormalization, Dense, Dropout, UpSampling2D), /api/optimizers/rmsprop, /api/losses.
"""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn
from torch.nn import functional as F

from resnet_cifar.config.loading import read_recipe
from resnet_cifar.config.schema import Optimizer
from resnet_cifar.data.loader import Preprocess
from resnet_cifar.models.factory import create_model
from resnet_cifar.models.mlp_head import DeterministicDropout, MlpHead
from resnet_cifar.optim.factory import create_optimizer, set_lr
from resnet_cifar.optim.rmsprop_keras import RMSpropKeras

WORDS = {"data.source": "synthetic", "data.image_size": "64", "model.name": "test_resnet", "model.pretrained": "False"}
EPSILON, MOMENTUM = 1e-3, 0.99  # of Keras's BatchNormalization


@pytest.fixture
def head() -> MlpHead:
    """The recipe's head over a model whose last feature map is 2 x 2 of 96."""
    return create_model(read_recipe("keras_upsample", WORDS), 10, pretrained=False).get_classifier()


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def test_the_recipe_has_the_notebooks_settings() -> None:
    recipe = read_recipe("keras_upsample")
    assert (recipe.optimizer.name, recipe.optimizer.weight_decay) == ("rmsprop_keras", 0)
    (phase,) = recipe.phases
    assert (phase.epochs, phase.lr, phase.warmup_epochs) == (10, 2e-5, 0)
    assert (phase.schedule, phase.trainable) == ("constant", "all")
    assert (recipe.data.image_size, recipe.data.interpolation, recipe.data.normalize) == (256, "nearest", "none")
    assert (recipe.data.test_fraction, recipe.data.validation_fraction) == (0.2, 0.1)
    assert (recipe.augment.crop_padding, recipe.augment.flip, recipe.loss.label_smoothing) == (0, "none", 0)
    assert recipe.model.ghost_batch_size == recipe.batch_size, "BatchNorm sees the whole batch"


def test_layers_and_their_order(head: MlpHead) -> None:
    """Flatten is the model's last feature map, not pooled: 2 x 2 x 96 at 64 pixels."""
    found = [(type(layer), getattr(layer, "out_features", None)) for layer in head]
    hidden = [(nn.BatchNorm1d, None), (nn.Linear, 128), (nn.ReLU, None), (DeterministicDropout, None)]
    hidden += [(nn.BatchNorm1d, None), (nn.Linear, 64), (nn.ReLU, None), (DeterministicDropout, None)]
    assert found == [*hidden, (nn.BatchNorm1d, None), (nn.Linear, 10)]
    assert [layer.p for layer in head if isinstance(layer, DeterministicDropout)] == [0.5, 0.5]
    assert [layer.in_features for layer in head if isinstance(layer, nn.Linear)] == [4 * 96, 128, 64]


def test_first_weights(head: MlpHead) -> None:
    """Glorot-uniform kernels, told from other laws by Kolmogorov and Smirnov's test; zero biases; norms at rest."""
    for layer in head:
        if isinstance(layer, nn.Linear):
            limit = np.sqrt(6 / (layer.in_features + layer.out_features))
            weights = array(layer.weight).ravel()
            assert np.abs(weights).max() <= limit
            assert scipy.stats.kstest(weights, scipy.stats.uniform(-limit, 2 * limit).cdf).pvalue > 1e-3
            assert not layer.bias.any()
        if isinstance(layer, nn.BatchNorm1d):
            assert (layer.eps, 1 - layer.momentum) == (EPSILON, MOMENTUM)
            assert (layer.weight == 1).all() and not layer.bias.any()
            assert not layer.running_mean.any() and (layer.running_var == 1).all()


def test_batch_norm_in_training_and_its_moving_average(head: MlpHead) -> None:
    """The moving variance is Keras's but for torch's n / (n - 1); it is estimated again before evaluations."""
    norm = head[4].double().train()
    rows, gamma, beta = 3 * noise(32, 128) + 1, noise(128, seed=1), noise(128, seed=2)
    norm.weight.data, norm.bias.data = torch.tensor(gamma), torch.tensor(beta)
    mean, variance = rows.mean(0), rows.var(0)
    expected = gamma * (rows - mean) / np.sqrt(variance + EPSILON) + beta
    np.testing.assert_allclose(array(norm(torch.tensor(rows))), expected, rtol=1e-9, atol=1e-12)
    moving_mean = 0 * MOMENTUM + mean * (1 - MOMENTUM)
    moving_variance = 1 * MOMENTUM + variance * (1 - MOMENTUM) * 32 / 31
    np.testing.assert_allclose(array(norm.running_mean), moving_mean, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(array(norm.running_var), moving_variance, rtol=1e-6)
    inference = gamma * (rows - moving_mean) / np.sqrt(moving_variance + EPSILON) + beta
    np.testing.assert_allclose(array(norm.eval()(torch.tensor(rows))), inference, rtol=1e-6, atol=1e-7)


def test_dropout_keeps_the_mean_and_does_nothing_in_eval_mode() -> None:
    dropout = DeterministicDropout(4, 0.5)
    features, kept = torch.tensor([[1.0, 2, 3, 4]]), torch.tensor([[True, False, False, True]])
    assert dropout.train()(features, kept).tolist() == [[2, 0, 0, 8]]
    assert dropout.eval()(features, kept).tolist() == [[1, 2, 3, 4]]
    assert DeterministicDropout(4, 0.2).train()(features, kept).tolist() == [pytest.approx([1.25, 0, 0, 5])]


def test_the_whole_head(head: MlpHead) -> None:
    """Logits of a batch in training, layer by layer."""
    head = head.double().train()
    rows, kept = noise(32, 4 * 96), noise(32, 192, seed=1) > 0

    def norm(x: np.ndarray) -> np.ndarray:
        return (x - x.mean(0)) / np.sqrt(x.var(0) + EPSILON)

    def dense(x: np.ndarray, layer: nn.Linear) -> np.ndarray:
        return x @ array(layer.weight).T + array(layer.bias)

    x = np.maximum(dense(norm(rows), head[1]), 0) * kept[:, :128] / 0.5
    x = np.maximum(dense(norm(x), head[5]), 0) * kept[:, 128:] / 0.5
    expected = dense(norm(x), head[9])
    np.testing.assert_allclose(array(head(torch.tensor(rows), torch.tensor(kept))), expected, rtol=1e-9, atol=1e-12)


def test_rmsprop_by_hand() -> None:
    """v = 0.1 0.5^2 = 0.025, then 0.9 0.025 + 0.1 0.5^2 = 0.0475; steps of 0.1 0.5 / sqrt(v + 1e-7)."""
    weight = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = RMSpropKeras([weight], lr=0.1)
    for expected in (1 - 0.31622713356322, 1 - 0.31622713356322 - 0.22941549068):
        weight.grad = torch.tensor([0.5], dtype=torch.float64)
        optimizer.step()
        assert weight.item() == pytest.approx(expected, abs=1e-8)


def test_rmsprop_over_several_steps_with_epsilon_inside_the_root() -> None:
    """Gradients as small as epsilon's root tell where epsilon stands, and the first step where v begins."""
    model = nn.Linear(5, 3, bias=False).double()
    model.get_classifier = lambda: model
    optimizer = create_optimizer(model, Optimizer(name="rmsprop_keras", weight_decay=0.01), 1.0, torch.device("cpu"))
    weights, v = array(model.weight).copy(), np.zeros((3, 5))
    for step in range(5):
        rate, gradient = 2e-5 * (step + 1), noise(3, 5, seed=step) * 10.0 ** -(step + 1)
        model.weight.grad = torch.tensor(gradient)
        set_lr(optimizer, rate)
        optimizer.step()
        weights = weights - weights * 0.01 * rate  # Keras's weight decay is decoupled
        v = 0.9 * v + 0.1 * gradient**2
        weights = weights - rate * gradient / np.sqrt(v + 1e-7)
        np.testing.assert_allclose(array(model.weight), weights, rtol=1e-12)


def test_sparse_categorical_cross_entropy_from_logits() -> None:
    """Of odds 1 : 3 the likelier is right: -ln 0.75. The trainer's labels are shares of one, and these are whole."""
    by_hand = F.cross_entropy(torch.tensor([[0.0, np.log(3)]]), torch.tensor([[0.0, 1.0]]))
    assert by_hand.item() == pytest.approx(0.287682, abs=1e-6)
    logits, labels = noise(8, 10), np.arange(8)
    exponents = np.exp(logits - logits.max(1, keepdims=True))
    expected = -np.log((exponents / exponents.sum(1, keepdims=True))[np.arange(8), labels]).mean()
    shares = F.one_hot(torch.tensor(labels), 10).double()
    assert F.cross_entropy(torch.tensor(logits), shares).item() == pytest.approx(expected, rel=1e-12)


def test_three_upsamplings_are_the_recipes_image_size() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8))
    data = read_recipe("keras_upsample").data
    found = Preprocess(data, torch.zeros(3), torch.ones(3))(images)
    twice = nn.Upsample(scale_factor=2, mode="nearest")
    expected = twice(twice(twice((images.float() / 255).permute(0, 3, 1, 2))))
    torch.testing.assert_close(found, expected)
    repeated = np.repeat(np.repeat(images.numpy(), 8, axis=1), 8, axis=2) / 255
    np.testing.assert_allclose(found.permute(0, 2, 3, 1).numpy(), repeated, rtol=0, atol=1e-7)
