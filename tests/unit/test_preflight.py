"""What is told of a recipe before images or weights are fetched: names, shapes and batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from resnet_cifar.cli import train
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Recipe
from resnet_cifar.config.validation import parse
from resnet_cifar.distributed.context import DistributedContext
from resnet_cifar.training import preflight


@pytest.fixture
def context(fresh_accelerator) -> DistributedContext:
    return DistributedContext("no")


def recipe_of(name: str, size: int, **more: Any) -> Recipe:
    model = {"name": name, "pretrained": False, **more.pop("model", {})}
    return parse({"data": {"source": "synthetic", "image_size": size}, "model": model, **more})


@pytest.mark.parametrize(
    ("name", "size"),
    [("resnet50", 224), ("resnet50", 8), ("test_vit", 48), ("convnext_tiny", 32), ("swin_tiny_patch4_window7_224", 64)],
)
def test_sizes_that_a_model_takes_are_accepted(context: DistributedContext, name: str, size: int) -> None:
    preflight.check(recipe_of(name, size), context)


@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [
        ("inception_v3", 32, "Kernel size can't be greater than actual input size"),
        ("test_vit", 20, "should be divisible by patch size (16)"),
        ("densenet121", 16, "Output size is too small"),
    ],
)
def test_sizes_that_a_model_cannot_take_are_refused(
    context: DistributedContext, name: str, size: int, reason: str
) -> None:
    with pytest.raises(UserError) as caught:
        preflight.check(recipe_of(name, size), context)
    assert str(caught.value).startswith(f"data.image_size {size} does not fit model.name {name!r} (")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "start"),
    [
        ({"model": {"stem": "cifar"}}, "model.stem cifar is for timm's ResNets, not for model.name 'test_vit'"),
        ({"optimizer": {"name": "adammw"}}, "optimizer.name 'adammw' is not one of timm's optimizers"),
        ({"micro_batch": 48}, "micro_batch 48 does not divide the 256 rows of a process in groups of 32: use 32 or 64"),
    ],
)
def test_what_contradicts_itself_is_refused(context: DistributedContext, changes: dict[str, Any], start: str) -> None:
    with pytest.raises(UserError) as caught:
        preflight.check(recipe_of("test_vit", 32, **changes), context)
    assert str(caught.value).startswith(start)


def test_a_recipe_is_checked_for_a_job_of_any_number_of_processes(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`--check-for`, without images: this source does not exist. Ghost batches may span GPUs, and not CPUs."""
    monkeypatch.chdir(tmp_path)
    words = ["--recipe", "debug", "--data.source", "/nowhere", "--model.name", "test_resnet", "--micro_batch", "0"]
    train.main([*words, "--batch_size", "48", "--check-for", "6"])
    said = capsys.readouterr().out
    assert said.startswith("the recipe is valid for 6 processes (cuda), 8 of the 48 images of a batch each\n")
    with pytest.raises(UserError, match=r"batch_size 40 does not divide over 6 processes.*: use 48"):
        train.main([*words, "--batch_size", "40", "--check-for", "6"])
    spanning = [*words, "--batch_size", "48", "--model.ghost_batch_size", "24", "--check-for", "4"]
    train.main(spanning)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(UserError, match=r"model\.ghost_batch_size 24 is larger than the 12 rows of a process"):
        train.main(spanning)
    assert not list(tmp_path.iterdir())


def test_weights_that_timm_does_not_have_are_refused_where_they_are_wanted() -> None:
    wanted = {"data": {"source": "synthetic"}, "model": {"name": "seresnet18"}}
    with pytest.raises(UserError, match=r"'seresnet18' has no pretrained weights: use --model\.pretrained False"):
        preflight.check_names(parse(wanted))
    wanted["model"]["init_from"] = "a/run"
    preflight.check_names(parse(wanted))
