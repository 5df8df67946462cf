"""`resnet-cifar reproduce`: a second run is equal to the bit, or the first difference and its cause are named."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import starting
from receiver import Receiver
from safetensors.numpy import load_file, save_file

from resnet_cifar.cli import reproduce
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.config.train_options import TrainOptions

WORDS = {
    "data.limit": "300",
    "data.image_size": "32",
    "batch_size": "32",
    "micro_batch": "auto",
    "model.name": "test_resnet",
    "phases.0.epochs": "1",
    "track.trackers": "tensorboard",
    "track.report": "False",
    "track.notify": "env:HOOK",
}


def words(**changes: str) -> list[str]:
    """Arguments of train.py for `run`, which tells nobody."""
    fields = {**WORDS, "track.notify": "", **{name.replace("__", "."): word for name, word in changes.items()}}
    return ["train", "--recipe", "debug", "--run", "run", *(f"--{field}={word}" for field, word in fields.items())]


def reproduced(*options: str, **env: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "resnet_cifar", "reproduce", "run", *options]
    return subprocess.run(command, check=False, env={**os.environ, **env}, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`run`, which was interrupted once, and `run-again`, its reproduction."""
    home = tmp_path_factory.mktemp("reproduce")
    with pytest.MonkeyPatch.context() as patch, Receiver() as receiver:
        patch.chdir(home)
        patch.setenv("HOOK", receiver.url)
        recipe = read_recipe("debug", WORDS)
        options = TrainOptions(recipe="debug", run="run")
        starting.interrupt(options, recipe, "update", 3)
        starting.train(options, recipe)
        done = reproduced()
        (home / "messages").write_text(json.dumps(receiver.messages))
    assert done.returncode == 0, done.stdout + done.stderr
    (home / "said").write_text(done.stdout)
    return home


@pytest.fixture
def runs(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of both, to be changed."""
    home = shutil.copytree(finished, tmp_path / "copy")
    monkeypatch.chdir(home)
    return home


def test_the_second_run_is_equal_and_not_tracked(finished: Path) -> None:
    said, facts = (finished / "said").read_text(), json.loads((finished / "run-again/reproduction.json").read_text())
    assert "run-again is equal to run, bit for bit: " in said
    assert facts["equal"] and facts["rows"] >= 1 and facts["tensors"] > 20 and facts["scores"] >= 2
    assert facts["recorded"] == {}
    again = finished / "run-again"
    assert (finished / "run/tensorboard").is_dir() and not (again / "tensorboard").exists()
    ours, theirs = (load_file(folder / "model/model.safetensors") for folder in (again, finished / "run"))
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_each_end_of_an_attempt_is_told_but_not_that_of_the_reproduction(finished: Path) -> None:
    first, second = json.loads((finished / "messages").read_text())
    result = json.loads((finished / "run/result.json").read_text())
    assert (first["event"], first["run"], first["why"]) == ("interrupted", "run", "SIGTERM")
    assert (second["event"], second["step"], second["why"]) == ("finished", result["steps"], None)
    assert (second["val/accuracy"], second["test/accuracy"]) == (result["val/accuracy"], result["test/accuracy"])
    assert "127.0.0.1" not in (finished / "run/recipe.yaml").read_text()


def rows(change: Callable[[list[dict]], object]) -> None:
    file = Path("run/metrics.jsonl")
    found = [json.loads(line) for line in file.read_text().splitlines()]
    change(found)
    file.write_text("".join(json.dumps(row) + "\n" for row in found))


def test_differences_are_named_with_what_explains_them(runs: Path, capsys: pytest.CaptureFixture) -> None:
    """Everything is trained already, so only the comparison runs."""
    rows(lambda found: found[-1].update({"train/loss": found[-1]["train/loss"] * (1 + 1e-14)}))  # cut by a save
    reproduce.main(["run"])
    assert "bit for bit" in capsys.readouterr().out

    rows(lambda found: found[-1].update({"val/loss": np.nextafter(found[-1]["val/loss"], 9)}))
    weights = load_file("run/model/model.safetensors")
    name = sorted(weights)[0]
    weights[name] = weights[name] + np.float32(0.5)
    save_file(weights, "run/model/model.safetensors")
    result = json.loads(Path("run/result.json").read_text())
    Path("run/result.json").write_text(json.dumps(result | {"test/accuracy": -1.0}))
    with pytest.raises(SystemExit) as ended:
        reproduce.main(["run"])
    assert ended.value.code == 5
    said = capsys.readouterr().out
    steps = [json.loads(line)["step"] for line in Path("run/metrics.jsonl").read_text().splitlines()]
    where = f"equal until step {steps[-2]:,}" if len(steps) > 1 else "no step is equal"
    assert f"metrics: {where}; at step {steps[-1]} val/loss is " in said
    assert f"weights: 1 of {len(weights)} tensors, by up to 5.0e-01" in said
    assert f"scores: test/accuracy {result['test/accuracy']}, not -1.0" in said
    assert "no recorded difference explains it" in said

    environment = json.loads(Path("run/environment.json").read_text())
    environment |= {"threads": 7, "packages": {**environment["packages"], "torch": "0.1"}}
    Path("run/environment.json").write_text(json.dumps(environment))
    Path("run/code.diff").write_text("+ a line")
    with pytest.raises(SystemExit) as ended:
        reproduce.main(["run"])
    assert ended.value.code == 5
    said = capsys.readouterr().out
    assert "threads 1, not 7 (OMP_NUM_THREADS=7 repeats the run's); torch " in said
    assert "code.diff " in said
    assert json.loads(Path("run-again/reproduction.json").read_text())["recorded"]["threads"] == [1, 7]


def test_mistakes_are_answered_before_anything_is_trained(runs: Path) -> None:
    def refused(*given: str) -> str:
        with pytest.raises(UserError) as refusal:
            reproduce.main(list(given))
        return str(refusal.value)

    assert "--out run is the run to reproduce" in refused("run", "--out", "run")
    again = json.loads(Path("run/environment.json").read_text())
    Path("run/environment.json").write_text(json.dumps(again | {"data": "0"}))
    assert "reproduce run: data.source 'synthetic' is not what the run was trained on" in refused("run", "--out", "x")
    assert not Path("x").exists()
    recipe = Path("run-again/recipe.yaml")
    recipe.write_text(recipe.read_text().replace("seed: 0", "seed: 5"))
    assert "run-again belongs to another recipe (seed: 0, not 5)" in refused("run")
    Path("run/result.json").unlink()
    assert "run is not finished, so there is no result to reproduce" in refused("run")


@pytest.mark.proof_only
def test_another_number_of_threads_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-m", "resnet_cifar", *words(model__name="resnet18")]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "2"}, capture_output=True)
    same = reproduced("--out", "same", OMP_NUM_THREADS="2")
    assert same.returncode == 0, same.stdout + same.stderr
    other = reproduced("--out", "other", OMP_NUM_THREADS="1")
    assert other.returncode == 5, other.stdout + other.stderr
    assert "threads 1, not 2 (OMP_NUM_THREADS=2 repeats the run's)" in other.stdout


@pytest.mark.proof_only
def test_the_recorded_number_of_processes_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = Path(__file__).parents[2] / "accelerate_configs/cpu_ddp.yaml"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), "--num_processes", "2"]
    subprocess.run([*launch, "-m", "resnet_cifar", *words()], check=True, capture_output=True)
    done = reproduced()
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(Path("run-again/environment.json").read_text())["world_size"] == 2
