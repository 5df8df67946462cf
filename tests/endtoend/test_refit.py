"""--refit: the selected updates of a finished run, on its training and validation images together."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from metric_rows import rows_of
from PIL import Image
from starting import assert_same_run, interrupt, train

from resnet_cifar.cli import compare, evaluate
from resnet_cifar.cli.train import parse_arguments
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.config.train_options import TrainOptions
from resnet_cifar.data.image_dataset import ImageDataset
from resnet_cifar.reporting import style
from resnet_cifar.training import finalize, trainer

RUN = TrainOptions(recipe="debug", run="run")
WORDS = {
    "data.limit": "200",
    "data.image_size": "16",
    "data.sampling": "balanced",
    "loss.class_weights": "1,2,3,4,5,6,7,8,9,10",
    "batch_size": "16",
    "model.name": "test_resnet",
    "model.ema_decay": "0.9",
    "phases.0.epochs": "0.8",
    "phases.0.trainable": "head",
    "phases.1.epochs": "2",
    "evaluate.every_epochs": "0.4",
    "evaluate.select_by": "macro_f1",
    "early_stopping.patience": "1",
    "early_stopping.metric": "macro_f1",
    "track.trackers": "none",
    "track.report": "False",
}
HEAD = 9  # updates of the phase that trains the head; an epoch is 11.25


class Watched(trainer.Trainer):
    """Remembers its data, its initial weights, and the training images that are read."""

    made: list[Watched]

    def __init__(self, *given: object) -> None:
        super().__init__(*given)
        self.made.append(self)
        self.first = {name: value.clone() for name, value in self.state.model.state_dict().items()}
        self.read: set[int] = set()

    def run(self) -> None:
        prefetch = ImageDataset.prefetch

        def remember(images: ImageDataset, rows: np.ndarray) -> object:
            if images is self.data.train:
                self.read |= set(images.indices[rows].tolist())
            return prefetch(images, rows)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ImageDataset, "prefetch", remember)
            super().run()


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_accelerator: None) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Watched]:
    monkeypatch.setattr(Watched, "made", [], raising=False)
    monkeypatch.setattr(trainer, "Trainer", Watched)
    return Watched.made


def result_of(run: str) -> dict[str, object]:
    return json.loads(Path(run, "result.json").read_text())


def test_a_refit_trains_the_selected_updates_of_the_run_on_all_of_its_images(
    made: list[Watched], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(RUN, read_recipe("debug", WORDS))
    selected, first_rows = result_of("run")["step"], rows_of("run")
    assert selected < result_of("run")["steps"]
    options, recipe = parse_arguments(["--refit", "run", "--track.report", "True"])
    monkeypatch.setattr(style, "save", lambda *given: None)  # drawing takes seconds
    monkeypatch.setattr(style, "inline", lambda *given: "")
    assert (options.run, recipe.refit_steps, recipe.refit_of) == ("run-refit", selected, "run")
    capsys.readouterr()
    train(options, recipe)
    first, second = made

    # The same start, rates and number of updates; other images.
    assert second.first.keys() == first.first.keys()
    assert all(torch.equal(value, first.first[name]) for name, value in second.first.items())
    rows = rows_of("run-refit")
    assert rows[-1]["step"] == second.plan.steps == selected
    assert [second.plan.lr(step) for step in range(selected)] == [first.plan.lr(step) for step in range(selected)]
    facts = ("step", "epoch", "images", "lr")
    logged = {row["step"]: [row[name] for name in facts] for row in first_rows}
    assert [[row[name] for name in facts] for row in rows] == [logged[row["step"]] for row in rows]
    assert not [row for row in rows if "val/accuracy" in row]
    train_images, validation, test = (
        set(each.indices.tolist()) for each in (first.data.train, first.data.validation, first.data.test)
    )
    assert first.read <= train_images
    assert second.read == set(second.data.train.indices.tolist()) == train_images | validation
    assert second.data.test.indices.tolist() == sorted(test)
    assert len(second.data.validation) == 0
    assert second.data.class_counts()["train"] == dict.fromkeys(second.data.classes, 20)

    # Said wherever the run is shown.
    said = f"trained on training and validation images together for {selected} updates, as selected in run"
    shown = capsys.readouterr().out
    assert f"refit        {said}; an epoch is 180 images, as before" in shown
    assert f"no validation (refit_steps {selected})" in shown
    assert f"none: {said}; the last model counts" in shown
    assert said in Path("run-refit/report/index.html").read_text()
    assert said.capitalize() in Path("run-refit/model/README.md").read_text()
    result = result_of("run-refit")
    assert (result["refit_of"], result["step"], result["steps"]) == ("run", selected, selected)
    assert not [name for name in result if name.startswith("val/")]
    assert not Path("run-refit/eval-validation.json").exists()
    assert "temperature" not in json.loads(Path("run-refit/model/config.json").read_text())
    compare.main(["run", "run-refit"])
    monkeypatch.setattr("resnet_cifar.reporting.optional_outputs.write_report", lambda *given: None)
    evaluate.main(["run-refit"])
    shown = capsys.readouterr().out
    assert f"accuracy {result['test/accuracy']:.4f}" in shown
    assert "temperature: none" in shown
    with pytest.raises(UserError, match=rf"the model was trained on its images \(refit_steps {selected}\)"):
        evaluate.main(["run-refit", "--split", "validation"])
    for number, name in itertools.product(range(10), ("disc", "ring")):  # of other images, a split is held out
        Path("other", name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (20 * number, 90, 9)).save(Path("other", name, f"{number}.png"))
    evaluate.main(["run-refit", "--split", "validation", "--data.source", "other", "--data.validation_fraction", "0.2"])
    [file] = Path("run-refit").glob("eval-validation-other-*.json")
    assert json.loads(file.read_text())["images"] == 4

    # A finished refit is reported, and its recipe alone gives the same run.
    train(options, recipe)
    shown = capsys.readouterr().out
    assert "this run is finished (--restart starts it over)" in shown
    assert f"none: {said}" in shown
    train(*parse_arguments(["--recipe", "run-refit/recipe.yaml", "--run", "again"]))
    assert_same_run("again", "run-refit")


def test_a_refit_that_is_stopped_and_killed_is_the_same_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after its last update, which is also the last of a stage: no other stage follows."""
    words = {**WORDS, "early_stopping.patience": "0", "evaluate.select_by": "accuracy", "refit_steps": str(HEAD)}
    recipe = read_recipe("debug", words)
    train(dataclasses.replace(RUN, run="whole"), recipe)
    assert interrupt(RUN, recipe, "update", 4)["step"] == 5
    with monkeypatch.context() as patch, pytest.raises(ConnectionAbortedError):
        patch.setattr(finalize, "test_and_export", die)
        train(RUN, recipe)
    assert max(Path("run/checkpoints").iterdir()).name == f"step-{HEAD:08d}"
    train(RUN, recipe)
    assert_same_run("run", "whole")


def die(state: object, data: object, writer: trainer.RunWriter, *others: object) -> None:
    writer.wait()
    raise ConnectionAbortedError
