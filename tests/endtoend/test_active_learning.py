"""The loop of active learning, by its command lines: predict --review, correct the labels, train on them."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from accelerate.state import AcceleratorState
from PIL import Image
from starting import train

from resnet_cifar.cli import evaluate, predict
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.config.train_options import TrainOptions

Run = Callable[..., subprocess.CompletedProcess]
COLORS = ("blue", "green", "red")
WORDS = {
    "model.name": "test_resnet",
    "data.image_size": "24",
    "data.limit": "0",
    "augment.mixup_alpha": "0",
    "augment.cutmix_alpha": "0",
    "phases.0.lr": "0.01",
    "track.trackers": "none",
    "track.report": "False",
}


def draw(file: Path, color: str, number: int) -> None:
    """Noise on a color; the larger `number`, the less of the color."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 150, (30, 26, 3), dtype=np.uint8)
    pixels[..., 2 - COLORS.index(color)] += 100 - 3 * number
    Image.fromarray(pixels).save(file)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Class folders `photos`, a run on them, and `new`: unlabeled images in folders that are no classes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RESNET_CIFAR_CACHE", str(tmp_path / "cache"))
    for color in COLORS:
        for number in range(16):
            draw(tmp_path / "photos" / color / f"{number}.png", color, number)
        for number in range(20, 32):
            draw(tmp_path / "new" / f"day {number % 2}" / f"{color}, {number}.png", color, number)
    (tmp_path / "new" / "cut.png").write_bytes(b"\x89PNG")
    train(TrainOptions(recipe="debug", run="runs/first"), read_recipe("debug", {**WORDS, "data.source": "photos"}))
    return tmp_path


def test_the_loop_ends_with_training_on_exactly_the_corrected_labels(
    place: Path, run: Run, capsys: pytest.CaptureFixture, fresh_accelerator: None
) -> None:
    done = run("-m", "resnet_cifar", "predict", "runs/first", "new/", "--csv", "--review", "review.html")
    assert done.returncode == predict.UNREADABLE, done.stderr
    table = list(csv.DictReader(io.StringIO(done.stdout, newline=""), strict=True))
    assert list(table[0]) == ["file", "label", "probability", *COLORS, "error"]
    assert table[-1] == {
        "file": "new/cut.png",
        **dict.fromkeys(("label", "probability", *COLORS), ""),
        "error": "it cannot be read as an image",
    }
    margins = []
    for row in table[:-1]:
        shares = {color: float(row[color]) for color in COLORS}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert shares[row["label"]] == float(row["probability"]) == max(shares.values())
        assert row["error"] == ""
        second, first = sorted(shares.values())[1:]
        margins.append(first - second)
    assert len(margins) == 36 and margins == pytest.approx(sorted(margins), abs=2e-6), "the least certain first"
    page, predictions, corrected, command, error = done.stderr.splitlines()
    assert page.startswith("page         review.html (36 of 36 images, ")
    assert predictions == "predictions  review-labels.csv (36 images)"
    assert corrected == "corrected    new/labels.csv, beside the images"
    assert error == "error: 1 of 37 images cannot be read"

    with Path("review-labels.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [f"new/{row['file']}" for row in rows] == [row["file"] for row in table[:-1]]
    assert [row["label"] for row in rows] == [row["label"] for row in table[:-1]]

    # By hand: every label becomes the right one, but one that is wrong on purpose; two images are left out.
    labels = {row["file"]: Path(row["file"]).name.partition(",")[0] for row in rows[2:]}
    mistaken = next(iter(labels))
    labels[mistaken] = COLORS[COLORS.index(labels[mistaken]) - 1]
    with Path("new/labels.csv").open("w", newline="") as lines:
        csv.writer(lines).writerows([("file", "label"), *labels.items()])
    Path("new/cut.png").unlink()

    small = [word for name, value in WORDS.items() for word in (f"--{name}", value)]
    words = command.removeprefix("train        python ").split()
    trained = run(*words, "--recipe", "debug", "--run", "runs/second", *small)
    assert trained.returncode == 0, trained.stderr
    assert "labels are read from the column 'label' of labels.csv, file names from 'file'" in trained.stdout
    assert "not used: images that no CSV lists: " in trained.stdout
    AcceleratorState._reset_state(True)
    evaluate.evaluate(*evaluate.parse_arguments(["runs/second", "--split", "train"]))
    tables = [
        pyarrow.parquet.read_table(file).to_pylist() for file in Path("runs/second").glob("predictions-*.parquet")
    ]
    used = [(row["file"], COLORS[row["label"]]) for table in tables for row in table]
    assert sorted(used) == sorted(labels.items()), "training, validation and test images together"

    # The next round adds to these labels: only the two others are reviewed.
    capsys.readouterr()
    AcceleratorState._reset_state(True)
    predict.main(["runs/second", "new", "--json", "--review", "next.html"])
    printed = capsys.readouterr()
    assert len([json.loads(line) for line in printed.out.splitlines()]) == 36
    assert "next-labels.csv (2 images, and 34 labels of new/labels.csv)" in printed.err
    with Path("next-labels.csv").open(newline="") as lines:
        rows = [(row["file"], row["label"]) for row in csv.DictReader(lines)]
    assert rows[2:] == list(labels.items()) and not {file for file, _ in rows[:2]} & labels.keys()


def test_archives_and_patterns_are_classified_like_the_files_in_them(
    place: Path, capsys: pytest.CaptureFixture, fresh_accelerator: None
) -> None:
    shutil.make_archive("new", "gztar", "new/day 0")
    draw(Path("a\x1b[31m\n.png"), "red", 0)
    predict.main(["runs/first", "new/day 0", "new.tar.gz", "new/**/*, 2[02].png", "--json"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    files = [line["file"] for line in lines]
    assert files[:18] == [f"new/day 0/{file.name}" for file in sorted(Path("new/day 0").iterdir())]
    assert files[18:36] == [file.replace("new/day 0/", "new.tar.gz/") for file in files[:18]]
    assert files[36:] == [f"new/day 0/{color}, {number}.png" for color in COLORS for number in (20, 22)]
    shares = {line["file"]: line["probabilities"] for line in lines}
    for file in files[18:36]:
        # Batches of other sizes may sum in another order.
        assert shares[file] == pytest.approx(shares[file.replace("new.tar.gz", "new/day 0")], abs=2e-6)
    AcceleratorState._reset_state(True)
    predict.main(["runs/first", "a\x1b[31m\n.png"])
    assert "a\\x1b[31m\\n.png" in capsys.readouterr().out, "a file name cannot color the terminal or forge a line"
