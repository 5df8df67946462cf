"""A run that is stopped and resumed anywhere equals the undisturbed run bit for bit; so does one that saves more often.

An epoch is 30.4 steps, so that metrics.jsonl has a row every second step, besides those at scores.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from datasets import ClassLabel, Dataset, Features, Image
from metric_rows import rows_of
from safetensors import SafetensorError
from starting import assert_same_run, interrupt, train

from resnet_cifar.checkpoints import checkpoint
from resnet_cifar.checkpoints.run_dir import RunDir
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.config.schema import Recipe
from resnet_cifar.config.train_options import TrainOptions
from resnet_cifar.data import prepared_data
from resnet_cifar.training import finalize
from resnet_cifar.training.trainer import Trainer

RUN = TrainOptions(recipe="debug", run="run")
NORMS, VALIDATION = 8, 2  # evaluated batches of an evaluation


def small(**words: str) -> Recipe:
    overrides = {
        "data.limit": "540",
        "data.image_size": "16",
        "data.sampling": "balanced",
        "batch_size": "16",
        "micro_batch": "8",
        "model.name": "test_resnet",
        "phases.0.epochs": "0.5",
        "phases.1.epochs": "0.7",
        "track.trackers": "none",
        "track.report": "False",
    }
    return read_recipe("debug", {**overrides, **words})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The run that nobody stops: 36 steps, scores after 15, 30 and 36, checkpoints every 4."""
    run = str(tmp_path_factory.mktemp("whole") / "run")
    train(dataclasses.replace(RUN, run=run), small())
    return run


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_accelerator: None) -> None:
    monkeypatch.chdir(tmp_path)


def test_predictions_that_a_killed_attempt_had_begun_to_write_are_removed() -> None:
    recipe = small(**{"phases.0.epochs": "0.5", "phases.1.epochs": "0.1"})
    interrupt(RUN, recipe, "update", 1)
    left = Path("run/predictions-test.parquet.writing-ab12cd34")
    left.write_bytes(b"half")
    train(RUN, recipe)
    assert not left.exists() and Path("run/predictions-test.parquet").is_file()


def test_a_run_that_is_stopped_between_rows_and_in_every_kind_of_evaluation_is_the_same_run(
    whole: str, capsys: pytest.CaptureFixture
) -> None:
    assert 11 not in {row["step"] for row in rows_of(whole)}
    assert interrupt(RUN, small(), "update", 10)["step"] == 11
    assert "by SIGTERM at step 11, and saved: rerun the same command to resume from step 11" in capsys.readouterr().out
    # In BatchNorm's statistics, then among the validation images of the same score.
    assert interrupt(RUN, small(), "evaluation", 3)["step"] == 15
    assert interrupt(RUN, small(), "evaluation", NORMS + 1)["step"] == 15
    assert rows_of("run") == rows_of(whole)[:7], "the row waits for its score"
    assert interrupt(RUN, small(), "update", 26)["step"] == 27
    # Among the test images: two scores come before.
    assert interrupt(RUN, small(), "evaluation", 2 * (NORMS + VALIDATION) + 2)["step"] == 36
    assert not Path("run/result.json").exists()
    train(RUN, small())
    assert_same_run("run", whole)


def test_saves_at_the_start_and_right_after_a_resume_change_nothing(whole: str, monkeypatch) -> None:
    go_on = Trainer._train

    def save_first(self: Trainer) -> None:
        self._save(self.state.metrics.pending_sums(self.writer.done))
        go_on(self)

    def save_and_die(self: Trainer) -> None:
        self._save(self.state.metrics.pending_sums(self.writer.done))
        self.writer.wait()
        raise ConnectionAbortedError

    def die_after_a_save() -> None:
        with monkeypatch.context() as patch, pytest.raises(ConnectionAbortedError):
            patch.setattr(Trainer, "_train", save_and_die)
            train(RUN, small())

    die_after_a_save()
    assert [path.name for path in Path("run/checkpoints").iterdir()] == ["step-00000000"]
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train", save_first)
        assert interrupt(RUN, small(), "update", 12)["step"] == 13
    die_after_a_save()
    train(RUN, small())
    assert_same_run("run", whole)


def test_a_run_stops_early_at_the_same_step_whether_it_was_interrupted_or_not() -> None:
    recipe = small(
        **{
            "early_stopping.patience": "2",
            "evaluate.every_epochs": "0.1",
            "phases.0.lr": "1e-9",
            "data.sampling": "uniform",
            "loss.class_weights": "balanced",
            "evaluate.select_by": "loss",
        }
    )
    train(dataclasses.replace(RUN, run="undisturbed"), recipe)
    result = json.loads(Path("undisturbed/result.json").read_text())
    evaluated = [row for row in rows_of("undisturbed") if "val/accuracy" in row]
    scored = [row["step"] for row in evaluated]
    best = min(evaluated, key=lambda row: row["val/loss"])
    assert (result["selected_by"], result["step"], result["val/loss"]) == ("loss", best["step"], best["val/loss"])
    assert result["stopped_early"] and scored[-1] == result["steps"] < 36
    assert len(scored) > 2
    assert interrupt(RUN, recipe, "update", scored[-2])["step"] == scored[-2] + 1
    assert interrupt(RUN, recipe, "evaluation", NORMS + 1)["step"] == scored[-1], "in the score that ends it"
    assert interrupt(RUN, recipe, "evaluation", NORMS + VALIDATION + 2)["step"] == scored[-1], "after it"
    train(RUN, recipe)
    assert_same_run("run", "undisturbed")


@pytest.mark.parametrize(("every", "is_early"), [("0.1", True), ("9", False)], ids=["before its end", "at its end"])
def test_a_run_whose_patience_runs_out_is_finished(every: str, is_early: bool, capsys: pytest.CaptureFixture) -> None:
    stops = {"early_stopping.patience": "1", "early_stopping.min_delta": "1", "evaluate.every_epochs": every}
    recipe = small(**stops, **{"phases.0.epochs": "0.2", "phases.0.warmup_epochs": "0", "phases.1.epochs": "0.1"})
    train(RUN, recipe)
    assert ("stopped early at step 6" in capsys.readouterr().out) == is_early
    train(RUN, recipe)
    printed = capsys.readouterr().out
    assert "this run is finished (--restart starts it over)" in printed
    assert ("stopped early at step 6" in printed) == is_early
    with pytest.raises(UserError, match=r"--extend-epochs: early_stopping\.patience 1 of the run in run has run out"):
        train(dataclasses.replace(RUN, extend_epochs=1.0), recipe)


def test_other_images_are_refused_with_both_fingerprints_and_the_same_ones_may_move() -> None:
    recipe = small(**{"data.source": str(write_images(0).resolve()), "data.limit": "0"})
    interrupt(RUN, recipe, "update", 3)
    ours = json.loads(Path("run/environment.json").read_text())["data"]
    write_images(1)
    with pytest.raises(UserError, match=r"data\.source '/.*/images' is not what this run was trained on") as refused:
        train(RUN, recipe)
    theirs = prepared_data.load(prepared_data.prepare(recipe.data), recipe, torch.device("cpu")).fingerprint
    assert ours != theirs
    assert f"{theirs}, not {ours}" in str(refused.value) and "--restart" in str(refused.value)
    moved = write_images(0).rename("moved").resolve()
    train(RUN, dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, source=str(moved))))
    assert json.loads(Path("run/status.json").read_text())["state"] == "finished"
    assert read_recipe("run/recipe.yaml").data.source == str(moved)


def write_images(seed: int) -> Path:
    """The folder `images` in the hub's layout: noise of two classes."""
    folder = Path("images")
    folder.mkdir(exist_ok=True)
    noise = np.random.default_rng(seed)
    features = Features({"img": Image(), "label": ClassLabel(names=["a", "b"])})
    for split, count in (("train", 80), ("test", 20)):
        pixels = noise.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        columns = {"img": list(pixels), "label": [row % 2 for row in range(count)]}
        Dataset.from_dict(columns, features=features).to_parquet(folder / f"{split}-00000.parquet")
    return folder


def test_the_debug_recipe_runs_with_deterministic_operations_only(monkeypatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as the run would, but not for later tests
    recipe = small(deterministic="True", **{"phases.0.epochs": "0.5", "phases.1.epochs": "0.1"})
    try:
        train(RUN, recipe)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert json.loads(Path("run/status.json").read_text())["state"] == "finished"
    assert read_recipe("run/recipe.yaml").deterministic


def test_an_extension_that_is_refused_leaves_the_finished_run_as_it_was() -> None:
    recipe = small(**{"data.source": str(write_images(0).resolve()), "data.limit": "0"})
    train(RUN, recipe)
    kept = {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()}
    write_images(1)
    with pytest.raises(UserError, match="is not what this run was trained on"):
        train(dataclasses.replace(RUN, extend_epochs=1.0), recipe)
    assert {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()} == kept


@pytest.fixture
def trained(whole: str) -> set[str]:
    """RUN, killed after its last checkpoint; the names in it."""
    shutil.copytree(whole, "run", ignore=shutil.ignore_patterns("result.json", "model", "eval-*", "predictions-*"))
    return {path.name for path in Path("run").iterdir()}


@pytest.mark.parametrize(("owner", "name"), [(finalize, "predict"), (timm.models, "save_for_hf"), (finalize, "sha256")])
def test_an_attempt_that_is_replaced_at_its_end_writes_nothing_into_the_directory_of_the_other(
    owner: object, name: str, trained: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original, other = getattr(owner, name), RunDir(Path("run"))

    def replaced(*arguments: object, **named: object) -> object:
        found = original(*arguments, **named)
        if other.lease is None:
            other.move_aside()
            other.acquire(small(seed="3"), {})
        return found

    monkeypatch.setattr(owner, name, replaced)
    with pytest.raises(UserError, match=r"--run run was taken over by attempt 1 .*: stopping"):
        train(RUN, small())
    assert {path.name for path in Path("run").iterdir()} == {"recipe.yaml", "environment.json", "lease.json"}


def test_a_disk_that_is_full_at_the_end_is_one_sentence(trained: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(UserError, match=r"run cannot be written \(No space left on device\): make room, and rerun"):
        train(RUN, small())
    assert {path.name for path in Path("run").iterdir()} - trained == {
        "eval-test.json",
        "predictions-test.parquet",
        "eval-validation.json",
        "predictions-validation.parquet",
    }


def test_the_best_that_is_left_counts_if_the_best_is_damaged_after_the_last_evaluation(
    whole: str, trained: set[str], capsys: pytest.CaptureFixture
) -> None:
    older, newest = (Path(f"run/checkpoints/step-000000{step}") for step in (30, 36))
    state = json.loads((newest / "state.json").read_text())
    state["best"] |= {"step": 30, "val/accuracy": 0.9}
    del state["checksum"]
    (newest / "state.json").write_text(json.dumps({**state, "checksum": checkpoint._state_checksum(state)}))
    (older / "model.safetensors").write_text("garbage")
    train(RUN, small())
    said = capsys.readouterr()
    assert "it was the best so far; that of step 36 is the best that is left" in said.out + said.err
    assert_same_run("run", whole)
