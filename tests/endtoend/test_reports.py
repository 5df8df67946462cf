"""Training ends with a page and eval.py renews it; what goes wrong with a page is a warning and nothing more."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from starting import interrupt, train

from resnet_cifar.cli import evaluate as evaluate_command
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.config.schema import Recipe
from resnet_cifar.config.train_options import TrainOptions
from resnet_cifar.reporting import gallery, html_page, prediction_arrays, style

RUN = TrainOptions(recipe="debug", run="run")
INDEX = Path("run/report/index.html")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_accelerator: None) -> None:
    monkeypatch.chdir(tmp_path)


def small(**words: str) -> Recipe:
    sizes = {"data.limit": "200", "data.image_size": "16", "batch_size": "16", "micro_batch": "8"}
    sizes |= {"model.name": "test_resnet", "phases.0.epochs": "0.5", "phases.1.epochs": "0.6", "track.trackers": "none"}
    return read_recipe("debug", {**sizes, **words})


def evaluate(*words: str) -> None:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    evaluate_command.evaluate(*evaluate_command.parse_arguments(list(words)))


def test_a_run_that_was_stopped_once_ends_with_a_page_and_scores_renew_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    interrupt(RUN, small(), "update", 5)
    assert not INDEX.exists(), "the one that asks a run to stop is in a hurry"
    train(RUN, small())
    assert f"report       {INDEX}" in capsys.readouterr().out
    text, starts = INDEX.read_text(), json.loads(Path("run/attempts.json").read_text())["attempts"]
    assert [(each["from_step"], each["step"], each["state"]) for each in starts] == [
        (0, 6, "interrupted"),
        (6, 12, "finished"),
    ]
    assert "interrupted (SIGTERM)" in text
    # Each kept picture is the image that its prediction is of.
    kept = gallery.load_images(Path("run/report/pictures-test.npz"))
    logits, labels, index, _ = prediction_arrays.read_predictions(Path("run/predictions-test.parquet"))
    found = prediction_arrays.from_logits(logits, labels, index)
    from resnet_cifar.data.sources import synthetic

    images, theirs = synthetic.draw("test")
    for row, place in kept.places(found).items():
        assert (kept.images[place] == images[index[row]]).all() and labels[row] == theirs[index[row]]
    assert len(kept.index) == 200, "all of so few"

    monkeypatch.setattr(style, "save", lambda *_: None)  # most of a page's time
    INDEX.write_text("old")
    evaluate("run")
    assert capsys.readouterr().out.rstrip().endswith(f", {INDEX}")
    assert "are classified correctly" in INDEX.read_text()
    evaluate("run", "--split", "validation")
    assert '<a href="validation.html">validation</a>' in INDEX.read_text()
    assert Path("run/report/validation.html").is_file()


@pytest.mark.parametrize("broken", ["pictures", "page"])
def test_a_report_that_cannot_be_written_leaves_a_finished_run_and_a_warning(
    broken: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def bug(*_: object) -> None:
        raise TypeError("matplotlib has changed")

    with monkeypatch.context() as patch:
        patch.setattr(style, "save", lambda *_: None)
        patch.setattr(*((gallery, "save_images", full) if broken == "pictures" else (html_page, "write_page", bug)))
        train(RUN, small())
    said = capsys.readouterr().out
    assert json.loads(Path("run/status.json").read_text())["state"] == "finished"
    assert "Finished in" in said
    if broken == "pictures":
        assert "warning: run/report/pictures-test.npz could not be written" in said and "No space left" in said
        assert "No example images were stored" in INDEX.read_text()
    else:
        assert (
            "run/report could not be written: TypeError: matplotlib has changed; retry with: resnet-cifar report run"
            in said
        )
        assert "report       none yet: resnet-cifar report run" in said


def test_a_report_that_nobody_wants_is_not_written(capsys: pytest.CaptureFixture) -> None:
    train(RUN, small(**{"track.report": "False"}))
    assert not Path("run/report").exists()
    assert "report       none yet" in capsys.readouterr().out
