"""From a stranger's folder of pictures, one of them broken, to a trained model; from memory and from the disk alike."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from accelerate.state import AcceleratorState
from PIL import Image
from starting import assert_same_run, train

from resnet_cifar.checkpoints import checkpoint
from resnet_cifar.cli import evaluate
from resnet_cifar.cli.evaluate import parse_arguments
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.config.schema import Recipe
from resnet_cifar.config.train_options import TrainOptions
from resnet_cifar.reporting import optional_outputs

Run = Callable[..., subprocess.CompletedProcess]
WORDS = {
    "model.name": "test_resnet",
    "model.pretrained": "False",
    "data.image_size": "32",
    "phases.0.epochs": "2",
    "phases.1.epochs": "1",
    "track.trackers": "none",
    "track.report": "False",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """90 images of three colors: PNG and JPEG, gray levels varying, odd sizes, and a JPEG that is none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RESNET_CIFAR_CACHE", str(tmp_path / "cache"))
    noise = np.random.default_rng(0)
    for place, name in enumerate(("blue", "green", "red")):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for number in range(30):
            height, width = noise.integers(30, 60, 2)
            pixels = noise.integers(0, 60, (height, width, 3), dtype=np.uint8)
            pixels[..., 2 - place] += 190
            ending = ("png", "jpg", "jpeg")[number % 3]
            Image.fromarray(pixels).save(tmp_path / "mine" / name / f"{number}.{ending}")
    (tmp_path / "mine" / "green" / "holiday.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut off")
    return tmp_path / "mine"


def recipe_of(folder: Path, **words: str) -> Recipe:
    return read_recipe("debug", {**WORDS, "data.source": str(folder), **words})


def test_a_broken_image_is_named_and_skipped_and_the_rest_is_trained_on(
    folder: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(UserError, match=r"train 60 \(green/holiday\.jpg\).*--data\.skip_broken True"):
        train(TrainOptions(recipe="debug", run="run"), recipe_of(folder))
    assert not Path("run").exists()
    train(TrainOptions(recipe="debug", run="device"), recipe_of(folder, **{"data.skip_broken": "True"}))
    said = capsys.readouterr().out
    for line in (
        "skipped (data.skip_broken): 1 image does not decode (train 60 (green/holiday.jpg))",
        "images of several sizes: the shortest side is resized to 32",
        "test: 9 of 90 images of 'train' (data.test_fraction 0.1)",
        "73 to train on, 8 to validate, 9 to test; 3 classes, stored 32x32",
        "free in memory",
    ):
        assert line in said
    assert json.loads(Path("device/result.json").read_text())["test/accuracy"] > 0.5

    train(
        TrainOptions(recipe="debug", run="host"),
        recipe_of(folder, **{"data.skip_broken": "True", "data.storage": "host"}),
    )
    assert "on local disk, prefetched (data.storage)" in capsys.readouterr().out
    assert_same_run("host", "device")


def test_three_commands_lead_from_a_folder_to_classified_images(
    folder: Path, run: Run, fresh_accelerator: None
) -> None:
    """The README's, with a model that fits a test; one of the images to label is none, and four labels are wrong."""
    wrong = [folder / "green" / f"planted-{number}.png" for number in range(4)]
    for number, file in enumerate(wrong):
        shutil.copy(folder / "red" / f"{3 * number}.png", file)
    small = ["--recipe", "debug", "--track.trackers", "none", "--track.report", "False", "--data.limit", 0]
    small += [word for name in ("model.name", "data.image_size") for word in (f"--{name}", WORDS[name])]
    small += ["--augment.mixup_alpha", 0, "--augment.cutmix_alpha", 0, "--phases.0.epochs", 2, "--phases.0.lr", 0.01]
    train_it = ["train.py", "--data.source", "mine", "--run", "runs/mine", *small]
    refused = run(*train_it)
    assert refused.returncode == 2
    (sentence,) = refused.stderr.splitlines()
    assert "green/holiday.jpg" in sentence and "--data.skip_broken True" in sentence
    trained = run(*train_it, "--data.skip_broken", "True")
    assert trained.returncode == 0, trained.stderr
    assert "green/holiday.jpg" in trained.stdout
    labelled = run("eval.py", "runs/mine", "--images", "mine", "--json")
    assert labelled.returncode == 3, labelled.stderr
    rows = [json.loads(line) for line in labelled.stdout.splitlines()]
    assert len(rows) == 95
    assert [Path(row["file"]).name for row in rows if "error" in row] == ["holiday.jpg"]
    right = [row["label"] == Path(row["file"]).parent.name for row in rows if "label" in row]
    assert sum(right) > 80
    assert all(sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-4) for row in rows if "label" in row)

    # The wrong labels come first in the list of all splits; every prediction names its file.
    own = Path("runs/mine/eval-test.json").read_bytes()
    evaluate.evaluate(*parse_arguments(["runs/mine", "--split", "train"]))
    assert Path("runs/mine/eval-test.json").read_bytes() == own
    trained_on = json.loads(Path("runs/mine/eval-train.json").read_text())
    assert trained_on["split"] == "train" and trained_on["trained_on"]
    with Path("runs/mine/report/suspect_labels.csv").open(newline="") as stream:
        suspects = list(csv.DictReader(stream))
    assert {row["file"] for row in suspects[:4]} == {str(file.relative_to(folder)) for file in wrong}
    assert {(row["label"], row["predicted"]) for row in suspects[:4]} == {("green", "red")}
    tables = [pyarrow.parquet.read_table(file).to_pylist() for file in Path("runs/mine").glob("predictions-*.parquet")]
    predictions = [row for table in tables for row in table]
    files = {str(file.relative_to(folder)) for file in folder.glob("*/*") if file.name != "holiday.jpg"}
    assert {row["file"] for row in predictions} == files and len(predictions) == 94
    counts = json.loads(Path("runs/mine/environment.json").read_text())["class_counts"]
    assert {name: sum(each[name] for each in counts.values()) for name in counts["test"]} == {
        "blue": 30,
        "green": 34,
        "red": 30,
    }


NAMES = ("\U0001f431", "\u05e9\u05dc\u05d5\u05dd", "a\"b'c", "<script>x<", "a,b", " lead", "Cat", "cat", "x" * 200)
NAMES += ("[red]b[", "%s{name}", "back\\slash", "|pipe|`", "\u00e9", "e\u0301")


@pytest.mark.proof_only
def test_names_of_any_kind_get_through_to_the_end_on_a_console_without_them(tmp_path: Path, run: Run) -> None:
    """Class folders, files, the source and the run; and train/, val/ and test/ keep their roles."""
    noise = np.random.default_rng(0)
    source = tmp_path / "\u00fcn\u00efcode, <b>"
    for split, count in (("train", 3), ("val", 1), ("test", 1)):
        for name in NAMES:
            (source / split / name).mkdir(parents=True)
            for number in range(count):
                picture = Image.fromarray(noise.integers(0, 256, (32, 32, 3), dtype=np.uint8))
                picture.save(os.fsencode(source / split / name) + f"/\u00e9 <i>,{number}".encode() + b"\xe9.png")
    small = ["--recipe", "debug", "--data.limit", 0, "--track.trackers", "none", "--phases.0.epochs", 1]
    small += [word for name in ("model.name", "data.image_size") for word in (f"--{name}", WORDS[name])]
    console = {"PYTHONIOENCODING": "ascii"}
    trained = run("train.py", "--data.source", source, "--run", "r\u00fcn <b>", *small, env=console)
    assert trained.returncode == 0, trained.stderr
    assert "train: 45 of 45 images of 'train'; validation: 15 of 15 images of 'val'; test: 15 of 15" in trained.stdout
    assert "classes whose names look alike: 'Cat' and 'cat', 'e\\u0301' and '\\xe9'" in trained.stdout
    folder = tmp_path / "r\u00fcn <b>"
    config = json.loads((folder / "model" / "config.json").read_text())
    assert config["label_names"] == sorted(NAMES)
    page = (folder / "report" / "index.html").read_text(encoding="utf-8")
    assert NAMES[0] in page and "<script>x<" not in page


def test_a_moved_folder_is_recognized_as_the_same_images(
    folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, fresh_accelerator: None
) -> None:
    """Its class folders have no test split: of the same images the same half is scored, of others all are, however
    few they are. If images were added, the half is not the same any more.
    """
    for number in range(3, 30):
        next((folder / "blue").glob(f"{number}.*")).unlink()  # three are left, of which one or two are tested
    words = {"data.skip_broken": "True", "data.test_fraction": "0.5", "data.validation_fraction": "0.2"}
    train(TrainOptions(recipe="debug", run="run"), recipe_of(folder, **words))
    monkeypatch.setattr(optional_outputs, "write_report", lambda *_: None)  # the pages take longer than all else
    shutil.copytree(folder, "elsewhere")
    shutil.copytree(folder, "others")
    (Path("others") / "red" / "0.png").unlink()
    for name, word, file in (("few", "red", "0.png"), ("few", "blue", "0.png"), ("one", "red", "6.png")):
        (Path(name) / word).mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / word / file, Path(name) / word)
    for name, count in (("elsewhere", 32), ("others", 62), ("few", 2), ("one", 1)):
        AcceleratorState._reset_state(True)
        evaluate.evaluate(*parse_arguments(["run", "--data.source", name]))
        (file,) = Path("run").glob(f"eval-test-{name}-*.json")
        assert json.loads(file.read_text())["images"] == count
    (moved,) = Path("run").glob("predictions-test-elsewhere-*.parquet")
    assert pyarrow.parquet.read_table(moved).equals(pyarrow.parquet.read_table("run/predictions-test.parquet"))
    assert "may have been trained on" not in capsys.readouterr().out
    shutil.copy("elsewhere/red/3.png", folder / "red" / "added.png")
    AcceleratorState._reset_state(True)
    evaluate.evaluate(*parse_arguments(["run"]))
    said = capsys.readouterr().out
    assert "they have changed since" in said and "may have been trained on some of these images" in said


def test_a_checkpoint_between_two_evaluations_gets_precise_bn(
    folder: Path, monkeypatch: pytest.MonkeyPatch, fresh_accelerator: None
) -> None:
    """It is scored as the same step is in a run that scores every step."""
    monkeypatch.setattr(optional_outputs, "write_report", lambda *_: None)  # the pages take longer than all else
    words = {
        "data.skip_broken": "True",
        "model.ema_decay": "0.5",
        "checkpoint.every_steps": "1",
        "checkpoint.keep_last": "9",
    }
    logits = []
    for run, every in (("seldom", "9"), ("often", "0.1")):
        train(TrainOptions(recipe="debug", run=run), recipe_of(folder, **words, **{"evaluate.every_epochs": every}))
        saved = Path(run, "checkpoints", "step-00000003")
        assert checkpoint.read_state(saved)["bn_stats_current"] == (run == "often")
        AcceleratorState._reset_state(True)
        evaluate.evaluate(*parse_arguments([str(saved), "--split", "test"]))
        (file,) = Path(run).glob("predictions-test*-step-00000003.parquet")
        logits.append(np.array(pyarrow.parquet.read_table(file)["logits"].to_pylist()))
    np.testing.assert_array_equal(*logits)
    AcceleratorState._reset_state(True)
    other = ["--data.validation_fraction", "0.5", "--out", "other"]  # its statistics stay those of its training images
    evaluate.evaluate(*parse_arguments(["seldom/checkpoints/step-00000003", *other]))
    (file,) = Path("other").glob("predictions-*.parquet")
    np.testing.assert_array_equal(pyarrow.parquet.read_table(file)["logits"].to_pylist(), logits[0])
    AcceleratorState._reset_state(True)
    with pytest.raises(UserError, match=r"was saved between two evaluations.*use a checkpoint that was evaluated"):
        evaluate.main(["seldom/checkpoints/step-00000003", "--images", "mine/red"])
