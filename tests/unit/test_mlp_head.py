"""models/mlp_head.py: one head for every family, timm's weight names, deterministic dropout, and export."""

from __future__ import annotations

import copy
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from resnet_cifar import rng
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Optimizer, Recipe
from resnet_cifar.config.validation import parse
from resnet_cifar.models.export import export_model
from resnet_cifar.models.factory import check_model_name, create_model
from resnet_cifar.models.ghost_batchnorm import apply_ghost_batchnorm
from resnet_cifar.models.mlp_head import DeterministicDropout, head_module
from resnet_cifar.models.precise_bn import estimate_bn_stats
from resnet_cifar.models.pretrained import find_init_weights, load_init_weights
from resnet_cifar.optim.factory import create_optimizer

CLASSES = tuple("abcdefghij")
DEEP = {"hidden_dims": "16,8", "norm": True, "dropout": 0.5}


def recipe_of(name: str = "test_resnet", size: int = 64, head: dict[str, Any] | None = None, **model: Any) -> Recipe:
    model = {"name": name, "pretrained": False, "head": DEEP if head is None else head, **model}
    return parse({"data": {"source": "synthetic", "image_size": size}, "model": model})


def built(name: str = "test_resnet", size: int = 64, classes: int = 10, **options: Any) -> nn.Module:
    return create_model(recipe_of(name, size, **options), classes, pretrained=True)


def images(count: int = 4, size: int = 64) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


# Features of a model that timm makes without a classifier, by its own documentation
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
@pytest.mark.parametrize("pool", ["model", "avg", "max", "flatten"])
def test_a_heads_features_are_timms_pooled_or_not(name: str, pool: str) -> None:
    model = built(name, head={**DEEP, "pool": pool}).eval()
    stock = timm.create_model(name, num_classes=0, **({"img_size": 64} if name == "test_vit" else {})).eval()
    if pool != "model":
        stock.reset_classifier(0, {"avg": "avg", "max": "max", "flatten": ""}[pool])
    stock.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("mlp_head.")})
    with torch.no_grad():
        features = stock(images()).flatten(1)
        torch.testing.assert_close(model.forward_head(model.forward_features(images()), pre_logits=True), features)
        torch.testing.assert_close(model(images()), model.mlp_head(features))
        assert model(images()).shape == (4, 10)
    assert model.mlp_head[0].num_features == features.shape[1]
    flat = {"test_resnet": 4 * 96, "test_vit": 17 * 64, "test_convnext": 4 * 64, "test_efficientnet": 4 * 256}
    assert (features.shape[1] == flat[name]) == (pool == "flatten")


def test_a_pooling_that_timm_refuses_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"head\.pool max: deit_tiny_distilled_patch16_224 has a pooling of its own"):
        built("deit_tiny_distilled_patch16_224", size=32, head={**DEEP, "pool": "max"})


def test_the_default_head_is_timms() -> None:
    """Weights, names and class, to the bit."""
    torch.manual_seed(rng.torch_seed(0, "init"))
    stock = timm.create_model("test_resnet", num_classes=10)
    model = built(head={})
    assert type(model) is type(stock)
    for (name, ours), (expected, theirs) in zip(model.state_dict().items(), stock.state_dict().items(), strict=True):
        assert name == expected
        assert torch.equal(ours, theirs)


def test_glorot_initialization_of_timms_own_head() -> None:
    model = built(head={"init": "glorot"})
    limit = (6 / (96 + 10)) ** 0.5
    assert 0.9 * limit < model.fc.weight.abs().max() <= limit
    assert not model.fc.bias.any()


@pytest.mark.parametrize(("init", "zero"), [("auto", True), ("glorot", False)])
def test_on_pretrained_weights_the_last_layer_starts_at_zero(init: str, zero: bool, monkeypatch) -> None:
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **options: create(name, **options))
    head = built(head={**DEEP, "init": init}, pretrained=True).mlp_head
    assert (head.classifier.weight.abs().sum() == 0) == zero
    assert head.dense0.weight.abs().sum() > 0


def test_an_mlp_head_counts_as_the_head() -> None:
    """For `phases.N.trainable head`, optimizer.head_lr_multiplier and layer decay."""
    model = built()
    assert head_module(model) is model.mlp_head
    optimizer = create_optimizer(model, Optimizer(head_lr_multiplier=10, layer_decay=0.5), 0.1, torch.device("cpu"))
    rates = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    assert {rates[id(p)] for p in model.mlp_head.parameters()} == {10}
    assert max(rates[id(p)] for name, p in model.named_parameters() if not name.startswith("mlp_head")) <= 1


def test_ghost_batchnorm_and_precise_bn_in_the_head_keep_weight_names() -> None:
    model = built(head={**DEEP, "dropout": 0}).double().train()
    grouped = copy.deepcopy(model)
    apply_ghost_batchnorm(grouped, 4)
    x = images(8).double()
    torch.testing.assert_close(grouped(x), torch.cat([model(rows) for rows in x.split(4)]))
    assert list(grouped.state_dict()) == list(model.state_dict())
    estimate_bn_stats(grouped, [x], lambda statistics: statistics)
    pooled = model.forward_head(model.forward_features(x), pre_logits=True)  # of norms that see the batch, as then
    torch.testing.assert_close(grouped.mlp_head.norm0.running_mean, pooled.mean(0))
    torch.testing.assert_close(grouped.mlp_head.norm0.running_var, pooled.var(0))


def test_kept_features_are_scaled_exactly_in_bfloat16() -> None:
    features = torch.ones(1, 1000, dtype=torch.bfloat16)
    dropout = DeterministicDropout(1000, 0.1)
    ours = dropout(features, torch.ones(1, 1000, dtype=torch.bool))
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, torch.full_like(features, 1 / 0.9))


def test_dropout_without_a_mask_is_torchs() -> None:
    """An exported model can be trained by code that does not pass masks."""
    model = built(head={"dropout": 0.5}).train()
    torch.manual_seed(0)
    ones = model.mlp_head.dropout(torch.ones(100, 96), None)
    assert set(ones.unique().tolist()) == {0, 2}
    assert 0.4 < (ones == 0).float().mean() < 0.6


FRESH = """
import sys
import {imports}
import torch
from safetensors.torch import load_file, save_file
torch.set_num_threads(1)
for folder in sys.argv[1:]:
    model = timm.create_model(f"local-dir:{{folder}}/model", pretrained=True).eval()
    with torch.no_grad():
        save_file({{"logits": model(load_file(f"{{folder}}/inputs")["inputs"])}}, f"{{folder}}/logits")
"""


def test_a_fresh_process_gets_the_same_logits(tmp_path: Path, run: Callable[..., subprocess.CompletedProcess]) -> None:
    """Flattened behind a CIFAR stem, a transformer at another size than its own, and without widths."""
    recipes = [
        recipe_of(size=32, head={**DEEP, "pool": "flatten"}, stem="cifar"),
        recipe_of("test_vit", size=48, head={**DEEP, "pool": "avg"}),
        recipe_of("test_convnext", head={"dropout": 0.2}),
    ]
    expected = {}
    for number, recipe in enumerate(recipes):
        folder, size = tmp_path / str(number), recipe.data.image_size
        folder.mkdir()
        model = create_model(recipe, 10, pretrained=False).eval()
        generator = torch.Generator().manual_seed(7)
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand(tensor.shape, generator=generator))
        save_file({"inputs": images(3, size)}, folder / "inputs")
        export_model(model, folder / "model", recipe, CLASSES, model.state_dict(), {}, {})
        with torch.no_grad():
            expected[folder] = model(images(3, size))
    done = run("-c", FRESH.format(imports="resnet_cifar, timm"), *expected)
    assert done.returncode == 0, done.stderr
    for folder, logits in expected.items():
        torch.testing.assert_close(load_file(folder / "logits")["logits"], logits, rtol=0, atol=0)
    loaded = timm.create_model(f"local-dir:{tmp_path / '0' / 'model'}", pretrained=True, num_classes=4)
    assert loaded.mlp_head.classifier.weight.shape == (4, 8), "other classes get a new last layer, as timm's do"


# Warm start


@pytest.fixture
def finished(tmp_path: Path) -> Callable[..., Path]:
    """`finished(**options)`: a run directory with such a model of ten classes."""

    def run(**options: Any) -> Path:
        (tmp_path / "run").mkdir()
        recipe = recipe_of(**options)
        model = create_model(recipe, 10, pretrained=False)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1)
        export_model(model, tmp_path / "run" / "model", recipe, CLASSES, model.state_dict(), {}, {})
        return tmp_path / "run"

    return run


@pytest.mark.parametrize(
    ("theirs", "ours", "classes", "taken"),
    [(DEEP, DEEP, 10, True), (DEEP, DEEP, 4, False), ({}, DEEP, 10, False), (DEEP, {}, 10, False)],
)
def test_a_warm_start_takes_a_head_whole_or_not_at_all(
    finished: Callable[..., Path], theirs: dict, ours: dict, classes: int, taken: bool
) -> None:
    model = built(classes=classes, head=ours)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    load_init_weights(model, find_init_weights(str(finished(head=theirs))), CLASSES[:classes])
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    learned = {name for name, _ in model.named_parameters()}
    head = {name for name in learned if name.startswith(("mlp_head.", "fc."))}
    assert changed == (learned if taken else learned - head)


def test_the_registered_name_cannot_be_trained() -> None:
    with pytest.raises(UserError, match=r"model\.name 'mlp_head': use the model itself"):
        check_model_name("mlp_head")
