"""A deep head from the first step to labelled pictures: two phases, stopped on both sides of the change, scored."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file
from starting import assert_same_run, interrupt, train

from resnet_cifar.cli import evaluate
from resnet_cifar.cli.evaluate import parse_arguments
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.config.schema import Recipe
from resnet_cifar.config.train_options import TrainOptions
from resnet_cifar.data.sources import synthetic

RUN = TrainOptions(recipe="keras_upsample", run="run")


def recipe() -> Recipe:
    """The Keras notebook's head on a model that is tiny; first it learns alone, by steps 0 to 8, then all does."""
    words = {
        "data.source": "synthetic",
        "data.limit": "160",
        "data.image_size": "48",
        "batch_size": "16",
        "micro_batch": "8",
        "model.name": "test_resnet",
        "model.pretrained": "False",
        "model.ghost_batch_size": "4",
        "model.ema_decay": "0.5",
        "phases.0.epochs": "0.9",
        "phases.0.lr": "1e-3",
        "phases.0.trainable": "head",
        "phases.1.epochs": "0.6",
        "phases.1.lr": "1e-3",
        "checkpoint.every_steps": "3",
        "checkpoint.keep_last": "9",
        "track.trackers": "none",
        "track.report": "False",
    }
    return read_recipe("keras_upsample", words)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `run`, which nobody stops."""
    folder = tmp_path_factory.mktemp("heads")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(RUN, recipe())
    AcceleratorState._reset_state(True)
    return folder


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_accelerator: None) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_run_that_is_stopped_around_the_change_is_the_same_run(place: Path) -> None:
    assert interrupt(RUN, recipe(), "update", 5)["step"] == 6
    assert interrupt(RUN, recipe(), "update", 7)["step"] == 8, "the last step of the head's phase"
    assert interrupt(RUN, recipe(), "update", 9)["step"] == 10
    train(RUN, recipe())
    assert_same_run("run", str(place / "run"))


def test_the_heads_phase_trains_the_whole_head_and_nothing_else(place: Path) -> None:
    first, last = (load_file(place / f"run/checkpoints/step-{step:08d}/model.safetensors") for step in (3, 6))
    changed = {name for name in first if not torch.equal(first[name], last[name])}
    head = {name for name in first if name.startswith("mlp_head.")}
    assert {name for name in head if name.endswith((".weight", ".bias"))} <= changed <= head


def test_run_checkpoint_and_exported_model_score_alike(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    result = json.loads(Path("run/result.json").read_text())
    found = []
    for target in ("run", f"run/{result['checkpoint']}", "run/model"):
        AcceleratorState._reset_state(True)
        evaluate.evaluate(*parse_arguments([target, "--out", "scores"]))
        (file,) = Path("scores").glob("*.json")
        found.append(json.loads(file.read_text()))
        shutil.rmtree("scores")
    for scores in found:
        assert scores["accuracy"] == result["test/accuracy"]
        assert scores["loss"] == pytest.approx(result["test/loss"], rel=1e-6)


def test_pictures_are_labelled_by_the_exported_model(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    evaluate.main([str(place / "run/model"), "--images", "red.png", "--json"])
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["label"] in synthetic.CLASS_NAMES


@pytest.mark.parametrize("target", ["run", "run/model"])
def test_a_flattened_head_scores_images_of_its_own_size_only(place: Path, target: str) -> None:
    with pytest.raises(UserError, match=r"data\.image_size 128"):
        evaluate.evaluate(*parse_arguments([str(place / target), "--data.image_size", "128"]))
