"""Every shipped recipe runs; its values are what the plan says; a model can learn; a finished run is found again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from metric_rows import rows_of
from starting import train

from resnet_cifar.checkpoints.run_dir import default_run_path
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import read_recipe, recipe_names
from resnet_cifar.config.schema import Recipe
from resnet_cifar.config.train_options import TrainOptions
from resnet_cifar.training import preflight, trainer
from resnet_cifar.training.plan import Plan

TRAINING_IMAGES = 45_000  # of CIFAR-10, after the validation cut

# steps of an epoch, of the run, and the rates at the start, after the warm-up, in the middle and at the end
SHIPPED = {
    "finetune": (176, 3516, {0: 0.0, 88: 5e-4, 1802: 2.5e-4, 3515: 0.0}),
    "scratch": (176, 17578, {0: 0.0, 176: 0.01, 8877: 0.005, 17577: 0.0}),
    "keras_upsample": (1406, 14062, {0: 2e-5, 14061: 2e-5}),
    "keras_transfer": (1406, 21094, {0: 1e-3, 7030: 1e-3, 7031: 1e-5, 21093: 1e-5}),
    "torch_notebook": (703, 7031, {0: 1e-3, 7030: 1e-3}),
}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_accelerator: None) -> None:
    monkeypatch.chdir(tmp_path)


def tiny(name: str, **overrides: str) -> Recipe:
    """The recipe with model, images and batch made small: two steps."""
    words = {
        "data.source": "synthetic",
        "data.limit": "120",
        "data.image_size": "32",
        "batch_size": "16",
        "micro_batch": "0",
        "model.name": "test_resnet",
        "model.pretrained": "False",
        "model.ghost_batch_size": "8",
        "phases.0.epochs": "0.3",
        "phases.0.warmup_epochs": "0",
        "phases.0.min_steps": "0",
        "data.decode_size": "0",
        "data.validation_fraction": "0.1",
        "track.trackers": "none",
        "track.report": "False",
        **overrides,
    }
    recipe = read_recipe(name, words)
    return replace(recipe, phases=recipe.phases[:1])


@pytest.mark.parametrize("name", [name for name in recipe_names() if read_recipe(name).phases])
def test_every_recipe_runs_two_steps(name: str) -> None:
    recipe = tiny(name)
    train(TrainOptions(recipe=name, run="run"), recipe)
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 2
    names = {"step", "epoch", "images", "lr", "train/loss", "train/accuracy", "images_per_second", "wait_share"}
    names |= {"gradient_norm"} if recipe.optimizer.clip_grad_norm else set()
    only_on_gpus = rows[0].keys() - names
    assert rows[0].keys() >= names and only_on_gpus <= {"mfu", "memory_gib", "gpu_utilization"}
    assert torch.cuda.is_available() or not only_on_gpus
    assert all(0 <= row["wait_share"] <= 1 for row in rows)
    assert 0 <= rows[-1]["val/accuracy"] <= 1 and rows[-1]["val/loss"] > 0
    result = json.loads(Path("run/result.json").read_text())
    assert {"val/accuracy", "test/accuracy", "test/loss", "checkpoint", "seconds", "world_size"} <= result.keys()
    assert (Path("run") / result["checkpoint"] / "model.safetensors").is_file()
    status = json.loads(Path("run/status.json").read_text())
    assert status["state"] == "finished"
    parts = "imports data model first_step steps precise_bn evaluation checkpoint export other"  # and report
    assert status["seconds_by_part"].keys() == set(parts.split())
    expected = preflight.resolve(replace(recipe, precision="no"))
    assert read_recipe("run/recipe.yaml") == expected, "the resolved recipe runs again"


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_values_give_this_plan(name: str) -> None:
    plan = Plan(read_recipe(name), TRAINING_IMAGES, world_size=1)
    epoch, steps, rates = SHIPPED[name]
    assert (plan.step_at(1), plan.steps) == (epoch, steps)
    for step, rate in rates.items():
        assert plan.lr(step) == pytest.approx(rate, abs=plan.recipe.phases[0].lr * 1e-3)


def test_the_default_recipe_fits_one_to_eight_devices() -> None:
    recipe = read_recipe("finetune")
    assert [Plan(recipe, TRAINING_IMAGES, world).per_rank_batch for world in (1, 2, 4, 8)] == [256, 128, 64, 32]
    assert recipe.model.name == "resnet50.a1_in1k" and recipe.model.pretrained and recipe.data.image_size == 224


def test_a_model_can_learn_a_few_images_by_heart() -> None:
    words = {
        "data.overfit_images": "32",
        "phases.0.epochs": "40",
        "evaluate.every_epochs": "40",
        "model.ghost_batch_size": "16",
    }
    train(TrainOptions(recipe="debug", run="run"), tiny("debug", **words))
    assert json.loads(Path("run/result.json").read_text())["val/accuracy"] == 1.0


def test_a_finished_run_is_reported_and_not_trained_again(capsys: pytest.CaptureFixture) -> None:
    recipe = tiny("debug")
    train(TrainOptions(recipe="debug"), recipe)
    (folder,) = Path("runs").iterdir()
    assert folder == default_run_path("debug", replace(recipe, precision="no"))
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    capsys.readouterr()
    train(TrainOptions(recipe="debug"), recipe)
    assert "this run is finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == written
    train(TrainOptions(recipe="debug", restart=True), recipe)
    assert sorted(path.name for path in Path("runs").iterdir()) == [folder.name, folder.name + ".before-1"]


def test_a_folder_of_another_recipe_is_refused_naming_the_fields() -> None:
    train(TrainOptions(recipe="debug", run="run"), tiny("debug"))
    with pytest.raises(UserError, match=r"seed: 1, not 0.*--restart"):
        train(TrainOptions(recipe="debug", run="run"), tiny("debug", seed="1"))


def test_the_plan_is_printed_and_nothing_is_left_behind(capsys: pytest.CaptureFixture) -> None:
    train(TrainOptions(recipe="debug", dry_run=True), tiny("debug"))
    printed = capsys.readouterr().out
    for word in (
        "steps 0 to 2",
        "micro-batches of 16",
        "BatchNorm over 8 rows",
        "GiB per device",
        "images/s per device",
    ):
        assert word in printed
    assert not list(Path().iterdir())


def test_a_loss_that_is_not_finite_ends_the_run_naming_the_step() -> None:
    words = {"optimizer.name": "sgd", "optimizer.clip_grad_norm": "0", "phases.0.lr": "1e30", "phases.0.epochs": "1"}
    with pytest.raises(UserError, match=r"the loss of step 1 is not finite"):
        train(TrainOptions(recipe="debug", run="run"), tiny("debug", **words))
    assert json.loads(Path("run/status.json").read_text())["state"] == "failed"


def test_a_run_goes_on_from_its_newest_checkpoint_to_the_same_weights() -> None:
    """The short form: the same process count, an exception in mid-epoch; kills come with the checkpoint's own tests."""
    recipe = tiny("debug", **{"phases.0.epochs": "1", "checkpoint.every_steps": "2"})
    train(TrainOptions(recipe="debug", run="whole"), recipe)
    _stop_after(3, recipe)
    train(TrainOptions(recipe="debug", run="stopped"), recipe)
    assert rows_of("whole") == rows_of("stopped")
    from safetensors.torch import load_file

    whole, stopped = (load_file(f"{run}/model/model.safetensors") for run in ("whole", "stopped"))
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


def _stop_after(steps: int, recipe: Recipe) -> None:
    from accelerate.state import AcceleratorState

    from resnet_cifar.training import trainer

    AcceleratorState._reset_state(True)
    train_step = trainer.train_step

    def stop(state: object, step: int, *rest: object) -> None:
        if step == steps:
            raise InterruptedError
        train_step(state, step, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "train_step", stop)
        with pytest.raises(InterruptedError):
            train(TrainOptions(recipe="debug", run="stopped"), recipe)
    AcceleratorState._reset_state(True)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"model.name": "resnet51"}, r"model.name 'resnet51' is not one of timm's models; did you mean resnet5\d"),
        ({"optimizer.name": "sdg"}, r"optimizer.name 'sdg' is not one of timm's optimizers; did you mean sgd"),
        ({"data.source": "nowhere"}, r"data.source 'nowhere' is not a folder, archive or .npz file here"),
        ({"model.stem": "cifar", "model.name": "test_vit"}, r"model.stem cifar is for timm's ResNets"),
        ({"precision": "fp16"}, r"precision fp16 needs a GPU"),
        ({"model.init_from": "no-run"}, r"model.init_from 'no-run' has no file or folder of that name"),
        (
            {"data.validation_fraction": "0.02"},
            r"data.validation_fraction 0.02 of 120 images leaves 8 of 10 classes out",
        ),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="fp16 works on this machine")
def test_mistakes_leave_no_folder(words: dict[str, str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        train(TrainOptions(recipe="debug", run="run"), tiny("debug", **words))
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("select_by", "accuracies", "losses", "best"),
    [
        ("accuracy", [0.5, 0.7, 0.7, 0.7], [0.2, 0.9, 0.5, 0.5], 3),  # the lower loss, then the earlier one
        ("accuracy", [0.7, 0.7, 0.7, 0.6], [float("nan"), 0.5, 0.6, 0.1], 2),
        ("loss", [0.5, 0.7, 0.8, 0.9], [0.2, 0.1, 0.1, 0.3], 2),
    ],
)
def test_of_equal_evaluations_the_one_with_the_lowest_loss_is_selected(
    select_by: str, accuracies: list[float], losses: list[float], best: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [{"accuracy": a, "loss": b} for a, b in zip(accuracies, losses, strict=True)]
    monkeypatch.setattr(trainer.metrics, "summary", lambda *predictions: found.pop(0))
    words = {"phases.0.epochs": "0.6", "evaluate.every_epochs": "0.15", "evaluate.select_by": select_by}
    train(TrainOptions(recipe="debug", run="run"), tiny("debug", **words))
    result = json.loads(Path("run/result.json").read_text())
    assert not found
    assert result["step"] == best
    assert result["val/accuracy"] == accuracies[best - 1]


def test_warm_start_takes_another_runs_weights() -> None:
    train(TrainOptions(recipe="debug", run="first"), tiny("debug"))
    recipe = tiny("debug", **{"model.init_from": "first", "phases.0.lr": "1e-12", "seed": "5"})
    train(TrainOptions(recipe="debug", run="second"), recipe)
    from safetensors.torch import load_file

    first, second = (load_file(f"{run}/model/model.safetensors") for run in ("first", "second"))
    torch.testing.assert_close(second["layer1.0.conv1.weight"], first["layer1.0.conv1.weight"], rtol=0, atol=1e-6)
