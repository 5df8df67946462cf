"""VGG, Inception, ConvNeXt, ViT and EfficientNet by name: every recipe suits them, and both heads can be trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch

from resnet_cifar import rng
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import read_recipe, recipe_names
from resnet_cifar.config.validation import parse
from resnet_cifar.data.image_dataset import ImageDataset
from resnet_cifar.data.loader import Batch, Loader
from resnet_cifar.distributed.context import DistributedContext
from resnet_cifar.evaluation.predict import precise_bn, predict
from resnet_cifar.training import preflight
from resnet_cifar.training.plan import Plan
from resnet_cifar.training.train_state import TrainState
from resnet_cifar.training.train_step import train_step

pytestmark = pytest.mark.usefixtures("fresh_accelerator", "narrow_vgg")

IMAGES, BATCH = 16, 8
REAL = ("vgg16", "inception_v3", "convnext_tiny", "vit_small_patch16_224", "efficientnet_b0")
DEEP = {"pool": "flatten", "hidden_dims": "16,8", "norm": True, "dropout": 0.5, "init": "glorot"}


FAMILIES = ("vgg11", "inception_v3", "test_convnext", "test_vit", "test_efficientnet")


@pytest.fixture
def narrow_vgg(monkeypatch: pytest.MonkeyPatch) -> None:
    """VGGs with 40 hidden units where theirs have 4,096, which use 100 million weights."""
    create = timm.create_model

    def narrow(name: str, **options: object) -> torch.nn.Module:
        return create(name, **options, **({"mlp_ratio": 0.01} if name.startswith("vgg") else {}))

    monkeypatch.setattr(timm, "create_model", narrow)


def start(name: str, head: dict, stages: tuple[str, ...] = ("all",)) -> tuple[TrainState, Loader, ImageDataset]:
    values = {
        "batch_size": BATCH,
        "micro_batch": 4,
        "data": {"source": "synthetic", "image_size": 32},
        "augment": {"crop_padding": 0},
        "model": {"name": name, "pretrained": False, "ghost_batch_size": 4, "head": head},
        "phases": [{"epochs": BATCH / IMAGES, "lr": 1e-3, "schedule": "constant", "trainable": s} for s in stages],
    }
    context = DistributedContext("no")
    recipe = preflight.resolve(parse(values))
    preflight.check(recipe, context)
    pixels = (rng.words(0, "pixels", count=IMAGES * 32 * 32 * 3) & np.uint64(255)).astype(np.uint8)
    images = torch.from_numpy(pixels).view(IMAGES, 32, 32, 3)
    training = ImageDataset(images, torch.arange(IMAGES) % 10, np.arange(IMAGES))
    plan = Plan(recipe, IMAGES, context.size)
    state = TrainState(plan, context, classes=tuple("abcdefghij"))
    return state, Loader(recipe, training, 10, state.preprocess, plan.rows(0)), training


def batch_of(state: TrainState, loader: Loader, step: int) -> Iterator[Batch]:
    return loader.batch(step, state.plan.image_size(step), state.plan.micro_batch)


def changed_by(state: TrainState, loader: Loader, step: int) -> set[str]:
    before = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    train_step(state, step, batch_of(state, loader, step), state.plan.lr(step))
    return {name for name, p in state.model.named_parameters() if not torch.equal(p, before[name])}


@pytest.mark.parametrize("head", [{}, DEEP], ids=["plain", "deep"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_trains_and_is_evaluated(name: str, head: dict) -> None:
    state, loader, training = start(name, head)
    changed = changed_by(state, loader, 0)
    assert {name.split(".")[0] for name in changed} >= {"mlp_head"} if head else changed
    assert len(changed) > 0.5 * len(list(state.model.parameters()))
    state.metrics.flush_async(1)
    (sums,) = state.metrics.poll(wait=True)
    assert np.isfinite(sums.loss)
    precise_bn(state.context, state.model, training, state.preprocess, np.arange(IMAGES))
    predictions = predict(state.context, state.wrapped, training, state.preprocess)
    assert predictions.logits.shape == (IMAGES, 10) and predictions.logits.isfinite().all()


@pytest.mark.parametrize("head", [{}, DEEP], ids=["plain", "deep"])
@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit"])
def test_the_head_is_trained_first_and_then_all_weights(name: str, head: dict) -> None:
    """In the head's phase its own BatchNorm goes by the batch, and the frozen one by its statistics."""
    state, loader, _ = start(name, head, stages=("head", "all"))
    parts = {"head" if name.startswith("mlp_head.") else "body" for name in changed_by(state, loader, 0)}
    training = {name for name, module in state.model.named_modules() if module.training}
    if head:
        assert parts == {"head"}
        assert training == {name for name, _ in state.model.named_modules() if name.startswith("mlp_head")}
    state.start_stage("all")
    state.prime_ddp(*next(batch_of(state, loader, 1)))
    body = {name for name in changed_by(state, loader, 1) if not name.startswith("mlp_head.")}
    assert len(body) > 10
    assert all(module.training for module in state.model.modules())


@pytest.mark.parametrize("recipe", recipe_names())
@pytest.mark.parametrize("name", REAL)
def test_every_recipe_suits_every_family(name: str, recipe: str) -> None:
    """The stem and the size that it has; on paper, for these are large."""
    said: list[str] = []
    asked = read_recipe(recipe, {"model.name": name, "data.source": "synthetic"})
    found = preflight.resolve(asked, said.append)
    preflight._check_input(found)
    assert found.model.stem == "imagenet"
    size = asked.data.image_size
    assert found.data.image_size == (max(size, 75) if name == "inception_v3" else size)
    raised = f"data.image_size {size} is raised to 75, the smallest that model.name {name!r} accepts"
    why = f"as model.name {name!r} does not accept it"
    small = f"phases.0.image_size 24 is raised to data.image_size, {found.data.image_size}, {why}"
    assert said == [raised] * (found.data != asked.data) + [small] * (found.phases != asked.phases)
    assert preflight.resolve(found, said.append) == found, "the resolved recipe is what it is"


def test_auto_is_the_cifar_stem_of_a_resnet_and_what_a_user_asks_for_stays() -> None:
    assert preflight.resolve(read_recipe("scratch")).model.stem == "cifar"
    words = {"model.name": "resnet50", "model.stem": "imagenet"}
    assert preflight.resolve(read_recipe("scratch", words)).model.stem == "imagenet"
    wrong = read_recipe("scratch", {"model.name": "vgg11", "model.stem": "cifar"})
    with pytest.raises(UserError, match=r"model\.stem cifar is for timm's ResNets"):
        preflight.resolve(wrong)


def test_a_transformer_gets_whole_patches() -> None:
    recipe = read_recipe("debug", {"model.name": "test_vit", "data.image_size": "20"})
    assert preflight.resolve(recipe).data.image_size == 32


def test_a_size_without_a_valid_neighbor_is_refused() -> None:
    recipe = read_recipe("debug", {"model.name": "test_vit", "data.image_size": "200"})
    assert preflight.resolve(recipe).data.image_size == 200
    with pytest.raises(UserError, match=r"data\.image_size 200 does not fit model.name 'test_vit'"):
        preflight._check_input(replace(recipe, precision="no"))
