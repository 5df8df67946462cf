"""--extend-epochs: a finished run resumes from its end."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from metric_rows import rows_of
from starting import assert_same_weights, interrupt, train

from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.config.train_options import TrainOptions

RUN = TrainOptions(recipe="debug", run="run")
MORE = dataclasses.replace(RUN, extend_epochs=1.0)
WORDS = {
    "data.limit": "200",
    "data.image_size": "16",
    "batch_size": "16",
    "model.name": "test_resnet",
    "phases.0.epochs": "0.5",
    "phases.1.epochs": "0.4",
    "evaluate.every_epochs": "0.4",
    "track.trackers": "none",
    "track.report": "False",
}
THIRD = {"phases.2.epochs": "1.0", "phases.2.lr": "5e-4", "phases.2.schedule": "linear"}
FIRST_END, END = 10, 21  # an epoch is 11.25 steps


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_accelerator: None) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_finished_run_goes_on_to_what_a_recipe_with_all_phases_gives(capsys: pytest.CaptureFixture) -> None:
    recipe = read_recipe("debug", WORDS)
    train(RUN, recipe)
    shutil.copytree("run", "own")
    rows, result = Path("run/metrics.jsonl").read_bytes(), json.loads(Path("run/result.json").read_text())
    assert result["steps"] == FIRST_END

    # Stopped in the phase that is new, and gone on with by the same command.
    assert interrupt(MORE, recipe, "update", FIRST_END + 2)["step"] == FIRST_END + 3
    assert not Path("run/result.json").exists()
    with pytest.raises(UserError, match=r"give the same --extend-epochs again"):
        train(RUN, recipe)
    train(MORE, recipe)
    assert f"resuming at step {FIRST_END + 3}" in capsys.readouterr().out
    assert json.loads(Path(f"run/result-step-{FIRST_END}.json").read_text()) == {**result, "phases": 2}
    assert json.loads(Path("run/result.json").read_text())["steps"] == END
    assert Path("run/metrics.jsonl").read_bytes().startswith(rows)
    assert rows_of("run")[-1]["step"] == END

    written = {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")}
    train(MORE, recipe)
    assert "this run is finished" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"phases\.2\.epochs.*give the same --extend-epochs again"):
        train(RUN, recipe)
    with pytest.raises(UserError, match=r"phases\.2\.epochs: 1\.0, not 2\.0|phases\.2\.epochs: 2\.0, not 1\.0"):
        train(dataclasses.replace(MORE, extend_epochs=2.0), recipe)
    assert {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")} == written

    train(dataclasses.replace(RUN, run="at-once"), read_recipe("debug", {**WORDS, **THIRD}))
    assert_same_weights("run", "at-once")
    ours, theirs = ([row["step"] for row in rows_of(run) if "val/accuracy" in row] for run in ("run", "at-once"))
    assert ours == theirs and FIRST_END in ours, "so both select among the same models"

    # By the command that the end of an extended run prints, whose --recipe becomes longer with the first attempt.
    by_own = dataclasses.replace(MORE, run="own", recipe="own/recipe.yaml")
    assert interrupt(by_own, read_recipe(by_own.recipe), "update", FIRST_END + 2)["steps"] == END
    assert interrupt(by_own, read_recipe(by_own.recipe), "update", FIRST_END + 4)["steps"] == END
    train(by_own, read_recipe(by_own.recipe))
    assert read_recipe("own/recipe.yaml") == read_recipe("run/recipe.yaml")
    assert_same_weights("own", "at-once")


@pytest.mark.proof_only
def test_extending_a_run_that_is_not_finished_is_one_run_of_all_phases() -> None:
    recipe = read_recipe("debug", WORDS)
    interrupt(RUN, recipe, "update", 5)
    train(MORE, recipe)
    train(dataclasses.replace(RUN, run="at-once"), read_recipe("debug", {**WORDS, **THIRD}))
    assert_same_weights("run", "at-once")
    assert [row["lr"] for row in rows_of("run")] == [row["lr"] for row in rows_of("at-once")]
