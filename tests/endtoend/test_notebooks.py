"""The three notebooks' work, as their recipes and commands, on real images in the files that each notebook reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import layouts
import numpy as np
import pytest
import torch
from PIL import Image

from resnet_cifar.config.schema import Data
from resnet_cifar.data import prepared_data
from resnet_cifar.data.sources.registry import find_source

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.real_data

# Of the real images in the long form, and small everywhere.
_TRAIN, _TEST = 240, 60
_SMALL = ("--model.name=test_resnet", "--data.image_size=64", "--batch_size=32", "--model.ghost_batch_size=16")
_QUICK = ("--model.pretrained=False", "--phases.0.epochs=1", "--track.trackers=none")


def read(folder: Path, split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of the first of a split's real images."""
    found = find_source(str(folder)).read(Data(source=str(folder)))
    part = {"train": found.train, "test": found.test}[split]
    from resnet_cifar.data.sources import image_io

    return np.stack([image_io.to_rgb(picture) for picture in part.images[:count]]), part.labels[:count]


@pytest.fixture(scope="module")
def sources(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """What each notebook reads, built from the real images."""
    home = tmp_path_factory.mktemp("sources")
    train, test = read(real_data, "train", _TRAIN), read(real_data, "test", _TEST)
    unpacked = layouts.kaggle(home / "kaggle", *train)
    competition = layouts.competition(home / "competition", unpacked)
    return {
        "keras_upsample": competition / "train.7z",
        "keras_transfer": unpacked,
        "torch_notebook": layouts.tarball(home / "cifar-10-python.tar.gz", layouts.pickles(home, train, test)),
    }


def command(*words: str | Path, code: int = 0) -> str:
    """What a command of the project prints."""
    done = subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, check=False, cwd=ROOT, env=os.environ
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def phases(name: str) -> list[str]:
    return ["--phases.1.epochs", "1"] if name == "keras_transfer" else []


@pytest.mark.proof_only
@pytest.mark.parametrize("name", ["keras_upsample", "keras_transfer", "torch_notebook"])
def test_a_notebook_is_a_recipe_and_a_source(name: str, sources: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    start = ["train.py", "--recipe", name, "--data.source", sources[name], "--run", run, *_SMALL, *_QUICK]
    printed = command(*start, *phases(name))
    assert str(run / "report" / "index.html") in printed.replace("\n", "")

    tested = _TEST if name == "torch_notebook" else round(0.2 * _TRAIN)
    scores = json.loads((run / "eval-test.json").read_text())
    assert scores["images"] == tested
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for curve in ("train/loss", "train/accuracy"):
        assert all(np.isfinite(row[curve]) for row in rows)
    scored = [row for row in rows if "val/loss" in row]
    assert len(scored) == (2 if phases(name) else 1)
    assert all(0 <= row["val/accuracy"] <= 1 for row in scored)

    page = (run / "report" / "index.html").read_text()
    assert "airplane" in page and "data:image/png" in page
    for figure in ("curves", "confusion"):
        assert list((run / "report" / "figures").glob(f"*{figure}*.svg")), figure

    # The model saved and loaded again, and a picture labelled: one of the three will do.
    if name != "keras_upsample":
        return
    command("eval.py", run, "--verify-export", "16")
    picture = tmp_path / "picture.png"
    Image.fromarray(np.full((32, 32, 3), 99, np.uint8)).save(picture)
    (labelled,) = (json.loads(line) for line in command("eval.py", run, "--images", picture, "--json").splitlines())
    assert sum(labelled["probabilities"].values()) == pytest.approx(1, abs=1e-4)


def test_the_wishes_of_the_first_are_fields(sources: dict[str, Path], tmp_path: Path) -> None:
    """Augmentation, other architectures, other optimizers, checkpointing and early stopping."""
    run = tmp_path / "run"
    words = {
        "model.name": "test_convnext",
        "optimizer.name": "adamw",
        "augment.crop_padding": "4",
        "augment.flip": "random",
        "augment.trivial_augment": "True",
        "checkpoint.every_steps": "2",
        "early_stopping.patience": "1",
        "early_stopping.min_delta": "1",
        "phases.0.epochs": "5",
    }
    asked = [f"--{name}={word}" for name, word in words.items()]
    source = ["--data.source", sources["keras_upsample"], "--run", run]
    command(
        "train.py",
        "--recipe",
        "keras_upsample",
        *source,
        *_SMALL,
        *_QUICK,
        *asked,
    )
    result = json.loads((run / "result.json").read_text())
    assert result["stopped_early"] and result["steps"] < 5 * 5
    assert (run / result["checkpoint"] / "model.safetensors").is_file()


@pytest.mark.proof_only
@pytest.mark.parametrize("name", ["keras_upsample", "keras_transfer", "torch_notebook"])
def test_the_notebooks_own_networks_at_their_own_sizes(name: str, sources: dict[str, Path], tmp_path: Path) -> None:
    """ResNet-50 at 256 and 224 pixels, flattened under the Dense layers or not: a step or two of each phase."""
    run = tmp_path / "run"
    few = ["--phases.0.epochs", "0.4", "--data.limit", "160", *(["--phases.1.epochs", "0.4"] if phases(name) else [])]
    command("train.py", "--recipe", name, "--data.source", sources[name], "--run", run, *_QUICK, *few)
    assert json.loads((run / "result.json").read_text())["steps"] >= (2 if phases(name) else 1)
    command("eval.py", run, "--verify-export", "8")


def test_every_layout_gives_the_hubs_arrays(sources: dict[str, Path], real_data: Path, tmp_path: Path) -> None:
    images, labels = read(real_data, "train", _TRAIN)
    for name, source in sources.items():
        data = Data(source=str(source), test_fraction=0.1)
        folder = prepared_data.prepare(data)
        assert np.array_equal(np.load(folder / "train-images.npy"), images), name
        assert np.array_equal(np.load(folder / "train-labels.npy"), labels), name
        assert torch.tensor(labels).unique().numel() == 10
