"""A linear probe as a recipe, and fine-tuning that starts from one, with BatchNorm's statistics frozen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from metric_rows import rows_of
from safetensors.torch import load_file, save_file
from starting import assert_same_run, interrupt, train

from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.config.schema import Recipe
from resnet_cifar.config.train_options import TrainOptions
from resnet_cifar.data.image_dataset import ImageDataset
from resnet_cifar.distributed.context import DistributedContext
from resnet_cifar.evaluation import linear_probe
from resnet_cifar.models.factory import create_model
from resnet_cifar.training import preflight
from resnet_cifar.training.plan import Plan
from resnet_cifar.training.train_state import TrainState

RUN = TrainOptions(recipe="probe", run="run")
SMALL = {
    "data.source": "synthetic",
    "data.limit": "400",
    "data.image_size": "24",
    "batch_size": "20",
    "model.name": "test_resnet",
    "model.init_from": "features.safetensors",
    "checkpoint.every_steps": "3",
    "track.trackers": "none",
    "track.report": "False",
}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_accelerator: None) -> None:
    """With weights whose BatchNorm has statistics that are not those of any batch here."""
    monkeypatch.chdir(tmp_path)
    model = create_model(read_recipe("scratch", {"model.name": "test_resnet", "model.stem": "imagenet"}), 7, False)
    weights = model.state_dict()
    for number, (name, tensor) in enumerate(weights.items()):
        drawn = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(number))
        if name.endswith("running_mean"):
            tensor.copy_(drawn - 0.5)
        if name.endswith("running_var"):
            tensor.copy_(drawn + 0.5)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, "features.safetensors")


def finetune(**words: str) -> Recipe:
    trained = {"phases.0.epochs": "0.5", "phases.0.lr": "5e-4", "optimizer.name": "adamw"}
    return read_recipe("probe", {**SMALL, **trained, **words})


def test_the_recipe_probe_fits_a_head_and_trains_nothing(capsys: pytest.CaptureFixture) -> None:
    recipe = read_recipe("probe", {**SMALL, "track.report": "True"})
    train(RUN, recipe)
    (row,), result = rows_of("run"), json.loads(Path("run/result.json").read_text())
    assert (row["step"], result["step"], result["steps"]) == (0, 0, 0)
    assert row["val/accuracy"] == result["val/accuracy"] > 0.2, "better than one of ten classes"
    start, end = load_file("features.safetensors"), load_file("run/model/model.safetensors")
    body = [name for name in start if not name.startswith("fc.")]
    assert all(torch.equal(start[name], end[name]) for name in body)
    assert Path("run/report/index.html").is_file()
    capsys.readouterr()
    train(RUN, recipe)
    assert "this run is finished" in capsys.readouterr().out


def test_fine_tuning_starts_from_the_probe_and_keeps_the_statistics() -> None:
    train(RUN, finetune())
    train(TrainOptions(run="probe"), read_recipe("probe", SMALL))
    rows = rows_of("run")
    assert [row["step"] for row in rows if "val/loss" in row] == [0, 9]
    assert rows[0] == rows_of("probe")[0]
    start, end = load_file("features.safetensors"), load_file("run/checkpoints/step-00000009/model.safetensors")
    statistics = [name for name in start if "running" in name]
    assert statistics and all(torch.equal(start[name], end[name]) for name in statistics)
    trained = [name for name in start if name.startswith("layer") and name.endswith(("weight", "bias"))]
    assert trained and not any(torch.equal(start[name], end[name]) for name in trained)


def test_a_fine_tuning_that_only_harms_exports_the_probe() -> None:
    train(RUN, finetune(**{"phases.0.lr": "3", "phases.0.schedule": "constant"}))
    rows, result = rows_of("run"), json.loads(Path("run/result.json").read_text())
    assert result["step"] == 0 and result["steps"] == 9
    assert result["val/accuracy"] == rows[0]["val/accuracy"] > rows[-1]["val/accuracy"]


@pytest.mark.parametrize(("kind", "number"), [("evaluation", 1), ("update", 1), ("update", 5)])
def test_a_run_from_a_probe_is_the_same_wherever_it_was_stopped(kind: str, number: int) -> None:
    recipe = finetune(**{"model.ema_decay": "0.9"})
    train(TrainOptions(run="whole"), recipe)
    interrupt(RUN, recipe, kind, number)
    train(RUN, recipe)
    assert_same_run("whole", "run")


def test_without_pretrained_features_a_probe_is_no_start(capsys: pytest.CaptureFixture) -> None:
    said: list[str] = []
    words = {"model.init_from": "", "model.pretrained": "False"}
    model = preflight.resolve(finetune(**words), said.append).model
    assert (model.batchnorm, model.head.init) == ("batch", "auto")
    assert [text.split(" needs")[0] for text in said] == ["model.batchnorm frozen", "model.head.init probe"]
    model = preflight.resolve(finetune(**{"model.head.hidden_dims": "16"}), said.append).model
    assert (model.batchnorm, model.head.init) == ("frozen", "auto")
    with pytest.raises(UserError, match="nothing else is trained"):
        preflight.resolve(read_recipe("probe", {**SMALL, **words}))
    with pytest.raises(UserError, match="phases is empty"):
        read_recipe("probe", {**SMALL, "model.head.init": "auto"})


@pytest.mark.parametrize(
    ("words", "weights"),
    [
        ({}, None),
        ({"loss.class_weights": "balanced"}, (0.625, 2.5)),
        ({"data.sampling": "balanced"}, (0.625, 2.5)),
        ({"loss.class_weights": "1,3"}, (1 / 1.4, 3 / 1.4)),
        ({"loss.class_weights": "1,3", "data.sampling": "balanced"}, (0.3125, 3.75)),
    ],
)
def test_an_image_weighs_in_the_probe_what_it_weighs_in_training(
    words: dict[str, str], weights: tuple[float, float] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """80 images of one class and 20 of the other: by how often an epoch uses them, times their weight in the loss."""
    given: list[np.ndarray | None] = []
    fit = linear_probe.fit
    monkeypatch.setattr(linear_probe, "fit", lambda *rest: given.append(rest[-1]) or fit(*rest))
    recipe = preflight.resolve(finetune(**{"micro_batch": "0", **words}))
    labels = (torch.arange(100) >= 80).long()
    images = ImageDataset(torch.randint(0, 256, (100, 32, 32, 3), dtype=torch.uint8), labels, np.arange(100))
    plan = Plan(recipe, 100, 1, class_counts={"a": 80, "b": 20})
    state = TrainState(plan, DistributedContext("no"), ("a", "b"))
    state.fit_probe(images, np.arange(100), lambda: None)
    (found,) = given
    assert found is None if weights is None else found.tolist() == pytest.approx(np.array(weights)[labels].tolist())
