"""train.py --profile-steps N: a trace of N steps, and a run that is what it would have been."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
from starting import assert_same_run, train

from resnet_cifar.config.loading import read_recipe
from resnet_cifar.config.schema import Recipe
from resnet_cifar.config.train_options import TrainOptions
from resnet_cifar.training.profiler import SKIPPED

STEPS = 3


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_accelerator: None) -> None:
    monkeypatch.chdir(tmp_path)


def recipe(**words: str) -> Recipe:
    small = {
        "data.limit": "200",
        "data.image_size": "16",
        "batch_size": "16",
        "micro_batch": "8",
        "model.name": "test_resnet",
        "phases.0.epochs": "0.5",
        "phases.1.epochs": "0.6",
        "track.trackers": "none",
        "track.report": "False",
    }
    return read_recipe("debug", {**small, **words})


@pytest.mark.proof_only
def test_a_traced_run_is_the_same_run_and_leaves_a_trace(capsys: pytest.CaptureFixture) -> None:
    train(TrainOptions(recipe="debug", run="plain"), recipe())
    assert not Path("plain/profile").exists()
    capsys.readouterr()
    train(TrainOptions(recipe="debug", run="traced", profile_steps=STEPS), recipe())
    assert_same_run("traced", "plain")
    summary = Path("traced/profile/summary.txt").read_text()
    assert "aten::convolution_backward" in summary
    assert summary.splitlines()[2] in capsys.readouterr().out
    events = json.loads(gzip.decompress(Path("traced/profile/trace.json.gz").read_bytes()))["traceEvents"]
    named = Counter(event["name"] for event in events if event.get("cat") in ("user_annotation", "cpu_op"))
    assert {name for name in named if name.startswith("ProfilerStep#")} == {
        f"ProfilerStep#{step}" for step in range(SKIPPED, SKIPPED + STEPS)
    }
    assert named["batch"] == 3 * STEPS, "two micro-batches, and the look that finds no third"
    assert named["Optimizer.step#AdamW.step"] == STEPS
    assert named["autograd::engine::evaluate_function: ConvolutionBackward0"] >= STEPS


def test_a_run_that_is_too_short_says_so(capsys: pytest.CaptureFixture) -> None:
    words = {"phases.0.epochs": "0.2", "phases.0.warmup_epochs": "0", "phases.1.epochs": "0.1"}
    train(TrainOptions(recipe="debug", run="run", profile_steps=STEPS), recipe(**words))
    assert "no step was traced" in capsys.readouterr().out
    assert not Path("run/profile").exists()
    assert Path("run/result.json").exists()
