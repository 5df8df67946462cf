"""The default recipe's model, ResNet-50 with its BatchNorm: what the README says about exactness, on three processes.

With 25 million weights DDP fills several buckets, and the order in which three processes sum them is the first thing
that a resumed run gets wrong. Random weights stand for the hub's, and 32 pixels for 224.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[2]
STOPPING = Path(__file__).with_name("stopping.py")
WORDS = "--recipe finetune --model.pretrained False --track.trackers none --data.source synthetic --data.limit 120"
WORDS += " --track.report False"
# Four steps, and an evaluation in the middle, where the run is stopped, and at the end.
SMALL = "--data.image_size 32 --batch_size 96 --phases.0.epochs 3.6 --evaluate.every_epochs 1.8 --phases.0.lr 0.005"
SMALL += " --run run"


@pytest.fixture(scope="module")
def train(launch):
    """Runs `before` (train.py, or what stops it) in folder `cwd`; returns its output."""

    def start(cwd: Path, processes: int, *more: object, before: tuple = (ROOT / "train.py",)) -> str:
        words = [*before, *WORDS.split(), *SMALL.split(), *more]
        finished = launch(cwd, *words, config="cpu" if processes == 1 else "cpu_ddp", processes=processes)
        assert finished.returncode == 0, finished.stderr[-3000:]
        return finished.stdout

    return start


def tensors(run: Path) -> dict[str, np.ndarray]:
    last = max((run / "checkpoints").iterdir())
    return {
        f"{file} {name}": tensor
        for file in ("model", "optimizer")
        for name, tensor in load_file(last / f"{file}.safetensors").items()
    }


@pytest.mark.proof_only
def test_resuming_is_exact_to_the_bit(train, tmp_path):
    for name in ("undisturbed", "interrupted"):
        (tmp_path / name).mkdir()
    train(tmp_path / "undisturbed", 3)
    train(tmp_path / "interrupted", 3, before=(STOPPING, "update", 2))
    status = json.loads((tmp_path / "interrupted" / "run" / "status.json").read_text())
    assert (status["state"], status["step"]) == ("interrupted", 3)
    assert "resuming at step 3" in train(tmp_path / "interrupted", 3)
    ours, theirs = (tensors(tmp_path / name / "run") for name in ("interrupted", "undisturbed"))
    assert ours.keys() == theirs.keys() and len(ours) > 300
    for name, tensor in ours.items():
        np.testing.assert_array_equal(tensor, theirs[name], err_msg=name)
    scores = [
        json.loads((tmp_path / name / "run" / "eval-test.json").read_text()) for name in ("interrupted", "undisturbed")
    ]
    assert scores[0] == scores[1]


@pytest.mark.proof_only
def test_one_and_three_processes_are_equal_to_rounding(train, tmp_path, capsys):
    weights = {}
    for processes in (1, 3):
        (tmp_path / f"{processes}").mkdir()
        train(tmp_path / f"{processes}", processes, "--precision", "fp64", "--phases.0.epochs", 1.8)
        weights[processes] = tensors(tmp_path / f"{processes}" / "run")
    apart = max(np.abs(tensor - weights[3][name]).max() for name, tensor in weights[1].items())
    with capsys.disabled():
        print(f"\nResNet-50, 1 and 3 processes, float64, two steps: at most {apart:.1e} apart")
    assert apart < 1e-9
