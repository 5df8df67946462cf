"""`micro_batch auto` on two processes of which one is short of memory: both take what fits, and the run is the same."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from resnet_cifar.distributed.watchdog import RESUME_HINT

ROOT = Path(__file__).parents[2]
SHORT = Path(__file__).with_name("short_of_memory.py")
WORDS = "--recipe debug --precision fp64 --data.limit 300 --data.image_size 16 --model.name test_resnet"
WORDS += " --track.trackers none --track.report False"
WORDS += " --batch_size 48 --model.ghost_batch_size 4 --phases.0.epochs 1 --phases.1.epochs 1 --run run"


@pytest.fixture
def start(launch, tmp_path: Path):
    def two(micro_batch: object, *before: object, name: str = ""):
        words = [*(before or [ROOT / "train.py"]), *WORDS.split(), "--micro_batch", micro_batch]
        cwd = tmp_path / name
        cwd.mkdir(exist_ok=True)
        return launch(cwd, *words, processes=2)

    return two


def found(run: Path) -> int:
    return json.loads((run / "micro_batch.json").read_text())["micro_batch"]


def weights(run: Path) -> dict[str, np.ndarray]:
    return load_file(run / "model" / "model.safetensors")


def test_ranks_agree_on_what_fits_all(start, tmp_path: Path) -> None:
    agreed = start("auto", SHORT, 1, 12, 0)
    assert agreed.returncode == 0, agreed.stderr[-3000:]
    assert agreed.stdout.count("micro_batch auto: 12 images per backward pass fit the device") == 1
    assert found(tmp_path / "run") == 12


def test_a_micro_batch_that_does_not_fit_one_rank_is_one_sentence(start) -> None:
    """The first pass is the one that lets DDP build its buckets, before any update."""
    short = start(24, SHORT, 1, 12, 0)
    assert short.returncode != 0
    (sentence,) = re.findall(r"^error: .*$", short.stderr, re.MULTILINE)
    assert "rank 1 " in sentence and "ran out of memory before update 0, with micro_batch 24" in sentence
    assert sentence.endswith("set --micro_batch 12 or auto")
    assert 'resnet_cifar/training/trainer.py"' not in short.stderr, "no traceback"


@pytest.mark.proof_only
def test_memory_that_runs_out_later_ends_the_start_and_the_next_one_goes_on_with_less(start, tmp_path: Path) -> None:
    by_hand = start(4, name="hand")
    assert by_hand.returncode == 0, by_hand.stderr[-3000:]
    ran_out = start("auto", SHORT, 1, 4, 5)
    assert ran_out.returncode != 0
    (sentence,) = re.findall(r"^error: .*$", ran_out.stderr, re.MULTILINE)
    assert sentence.startswith("error: rank 1 failed at step 5: ")
    assert "ran out of memory in update 5, with micro-batches of 24" in sentence
    assert sentence.endswith(f"{RESUME_HINT}, with smaller ones")
    assert found(tmp_path / "run") == 12
    finished = start("auto", SHORT, 1, 4, 0)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "resuming at step 4" in finished.stdout
    assert found(tmp_path / "run") == 4
    ours, theirs = weights(tmp_path / "run"), weights(tmp_path / "hand" / "run")
    for name, tensor in ours.items():
        np.testing.assert_allclose(tensor, theirs[name], rtol=0, atol=1e-9, err_msg=name)
