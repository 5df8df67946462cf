"""What an exported model says of itself, and whether timm gets the run's logits out of it in a process of its own."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from starting import train

from resnet_cifar.cli import evaluate, verify_export
from resnet_cifar.cli.verify_export import Comparison
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.config.train_options import TrainOptions
from resnet_cifar.data.preprocess import Preprocess
from resnet_cifar.data.sources.image_io import Decoding
from resnet_cifar.reporting import model_card

WORDS = {
    "data.limit": "60",
    "data.validation_fraction": "0.2",
    "data.image_size": "40",
    "data.interpolation": "bicubic",
    "batch_size": "16",
    "micro_batch": "0",
    "phases.0.epochs": "1",
    "phases.1.epochs": "1",
    "evaluate.every_epochs": "1",
    "track.trackers": "none",
    "track.report": "False",
}


def trained(run: Path, **words: str) -> Path:
    train(TrainOptions(recipe="debug", run=str(run)), read_recipe("debug", WORDS | words))
    AcceleratorState._reset_state(True)
    return run


@pytest.fixture(scope="module")
def stemmed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of what timm knows after `import resnet_cifar` alone, on images that are resized."""
    return trained(tmp_path_factory.mktemp("stemmed") / "run", **{"model.name": "test_resnet", "model.stem": "cifar"})


@pytest.fixture(scope="module")
def halved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of timm's own model, scored in bfloat16."""
    return trained(tmp_path_factory.mktemp("halved") / "run", **{"model.name": "test_resnet", "precision": "bf16"})


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch, fresh_accelerator: None) -> None:
    """--verify-export says so to Accelerate, and other tests must not hear it."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


def read(file: Path) -> dict:
    return json.loads(file.read_text())


def compared(run: Path, *words: str) -> None:
    evaluate.main([str(run), "--verify-export", *words])


def largest(printed: str) -> list[float]:
    return [float(number) for number in re.findall(r"largest difference (\S+) ", printed)]


def test_a_card_carries_the_measured_numbers(stemmed: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(stemmed / "model", tmp_path / "moved")
    card, found, result = (
        ModelCard.load(moved / "README.md"),
        read(stemmed / "eval-test.json"),
        read(stemmed / "result.json"),
    )
    assert card.data.library_name == "timm" and card.data.license is None and card.data.datasets is None
    measured = {each.metric_type: each.metric_value for each in card.data.eval_results}
    assert measured == {name: round(found[name], 6) for name in ("accuracy", "top5", "loss")}
    assert {(each.dataset_name, each.dataset_split) for each in card.data.eval_results} == {("synthetic", "test")}
    low, high = found["accuracy_interval"]
    assert f"| accuracy | {found['accuracy']:.4f} (95 % interval, Wilson: {low:.4f} to {high:.4f}) |" in card.text
    for name in ("top5", "loss", "calibration_error", "balanced_accuracy", "macro_f1"):
        assert f"| {found[name]:.4f} |" in card.text, name
    selected = f"| validation accuracy, which selected these weights | {result['val/accuracy']:.4f} |"
    assert selected in card.text
    for name, values in found["classes"].items():
        row = [*(f"{values[key]:.4f}" for key in ("recall", "precision", "f1")), str(values["images"])]
        assert f"| {name} | {' | '.join(row)} |" in card.text
    assert f"{result['steps']:,} steps of 16 images" in card.text and f"`{found['fingerprint']}`" in card.text
    assert "| `model.stem` | cifar | imagenet |" in card.text and "| `data.limit` | 60 | 0 |" in card.text
    assert f"torch {torch.__version__.partition('+')[0]}" in card.text
    assert "--data.source synthetic --data.limit 60" in card.text
    preprocess = read(moved / "config.json")["preprocess"]
    assert "\n\n\n" not in card.text.replace(model_card.loading_code("FOLDER", preprocess, needs_package=True), "code")


def test_a_card_says_what_a_hub_set_and_pretrained_weights_are_and_no_folder() -> None:
    config = {"architecture": "resnet50", "hf_hub_id": "timm/resnet50.a1_in1k", "license": "apache-2.0"}
    classes = {"a|b": {"precision": 0.5, "recall": 0.5, "f1": 0.5, "images": 3}}
    classes["none"] = {"precision": None, "recall": None, "f1": None, "images": 0}
    found = {
        "accuracy": 0.5,
        "accuracy_interval": [0.4, 0.6],
        "loss": 1.0,
        "balanced_accuracy": 0.5,
        "macro_f1": 0.5,
        "images": 3,
        "classes": classes,
    }
    found |= {"calibration_error": 0.1, "temperature": None, "precision": "bf16"}
    result = {"steps": 9, "step": 5, "stopped_early": True, "fingerprint": "0"}
    result["preprocess"] = Preprocess(read_recipe("finetune").data, *torch.zeros(2, 3), Decoding((32, 32))).facts
    here = {"packages": {"timm": "1.0"}, "python": "3.11", "gpus": ["A GPU"] * 4, "world_size": 2}
    text = model_card.render_card(read_recipe("finetune"), config, found, result, here, needs_package=False)
    data = ModelCard(text).data
    assert "top-5" not in text, "there are two classes"
    assert (data.license, data.base_model, data.datasets) == (
        "apache-2.0",
        "timm/resnet50.a1_in1k",
        ["uoft-cs/cifar10"],
    )
    assert "The default recipe of resnet-cifar, unchanged." in text and "2 processes (A GPU)" in text
    assert "(stopped early), of which step 5 was the best" in text
    assert "| a\\|b | 0.5000" in text and "| none |" not in text and "temperature" not in text
    assert "import resnet_cifar" not in text and "= logits.softmax(1)" in text
    own = read_recipe("finetune", {"data.source": "synthetic"})
    own = own.__class__(**{**vars(own), "data": own.data.__class__(**{**vars(own.data), "source": "/a/b/photos"})})
    found |= {"temperature": 1.25, "calibration_error_scaled": 0.0625}
    text = model_card.render_card(own, config, found, result, here, needs_package=False)
    assert "| 1.2500 |" in text and "| 0.0625 |" in text and "= (logits / 1.250000).softmax(1)" in text
    assert "--data.source photos" in text and "/a/b" not in text and ModelCard(text).data.datasets is None


def test_timm_gets_the_runs_logits_out_of_a_model_that_is_ours(stemmed: Path, capsys: pytest.CaptureFixture) -> None:
    compared(stemmed)
    printed = capsys.readouterr().out
    assert "on 60 test images" in printed, "there are no more"
    assert printed.count("all 60 predicted classes agree") == 2
    assert len(largest(printed)) == 2 and max(largest(printed)) < 1e-4


def test_weights_that_have_changed_are_found(stemmed: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = shutil.copytree(stemmed, tmp_path / "run")
    weights = load_file(run / "model" / "model.safetensors")
    weights["conv1.weight"] = weights["conv1.weight"] * 1.01  # one tensor, by one per cent
    save_file(weights, run / "model" / "model.safetensors")
    with pytest.raises(SystemExit) as ended:
        compared(run, "16")
    assert ended.value.code == verify_export.DIFFERENT == 4
    said = capsys.readouterr().err
    assert re.fullmatch(
        r"error: .*/run/model does not give the logits of checkpoints/step-\d+, evaluated here .*\n", said
    )


@pytest.mark.proof_only
def test_scores_in_another_precision_are_told_apart_from_other_weights(
    halved: Path, capsys: pytest.CaptureFixture
) -> None:
    compared(halved, "20")
    printed = capsys.readouterr().out
    here, stored = largest(printed)
    assert here < 1e-4 < stored, "bfloat16 rounds"
    assert "on 20 test images" in printed and "precision bf16 on a CPU" in printed


def test_other_scores_than_the_runs_are_not_compared(halved: Path, tmp_path: Path) -> None:
    run = shutil.copytree(halved, tmp_path / "run")
    (run / "eval-test.json").write_text(json.dumps({**read(run / "eval-test.json"), "fingerprint": "other"}))
    with pytest.raises(
        UserError, match=r"eval-test.json does not belong to checkpoints/step-\d+ and the present images"
    ):
        compared(run)


def test_a_difference_that_is_no_number_does_not_hold() -> None:
    logits = np.array([[1.0, 2.0], [4.0, 3.0]])
    assert Comparison(logits, logits + 0.1, 0.2).holds and not Comparison(logits, logits + 0.3, 0.2).holds
    assert not Comparison(logits, logits * np.nan, 0.2).holds
    assert Comparison(logits, logits[:, ::-1], 2.0).sentence().endswith("2 of 2 predicted classes differ")


def test_several_processes_are_asked_to_be_one(halved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launched = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"--verify-export starts a process of its own: run it without a launcher"):
        compared(halved)
