"""One to four processes: the same rows, draws and rates, and the same result to rounding.

Float64 tells a bug from rounding (float32 drifts by up to 1e-4 in a correct program), so it carries the proof.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from worker import CASES, CLASSES, COMBINED, SCORED, SPLITS

WORKER = Path(__file__).with_name("worker.py")
# Three processes are the hardest: DDP's buckets change the order of sums from three on, and shares are uneven.
SEVERAL = (pytest.param(2, marks=pytest.mark.proof_only), 3, pytest.param(4, marks=pytest.mark.proof_only))
# One thing at a time is left to the proof: it tells what is broken, and the combined cases that something is.
EACH = [case if case in COMBINED else pytest.param(case, marks=pytest.mark.proof_only) for case in CASES]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory, launch, proof) -> dict[int, Path]:
    """The worker's files for each world size, made when they are asked for."""

    cases = CASES if proof else COMBINED

    class Made(dict):
        def __missing__(self, size: int) -> Path:
            self[size] = folder = tmp_path_factory.mktemp(f"world{size}")
            if size == 1:
                command = [sys.executable, str(WORKER), str(folder), *cases]
                process = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
            else:
                process = launch(folder, WORKER, folder, *cases, processes=size)
            assert process.returncode == 0, process.stderr[-3000:]
            return folder

    return Made()


@pytest.mark.parametrize("size", SEVERAL)
@pytest.mark.parametrize("case", EACH)
def test_indices_draws_and_rates_are_identical(outputs, case, size):
    alone = np.load(outputs[1] / f"{case} fp64 rank 0.npz")
    ranks = [np.load(outputs[size] / f"{case} fp64 rank {rank}.npz") for rank in range(size)]
    for name in ("indices", "uniforms"):
        np.testing.assert_array_equal(np.concatenate([r[name] for r in ranks], axis=1), alone[name])
    rates = [np.load(outputs[n] / f"{case} fp64.npz")["rates"] for n in (1, size)]
    np.testing.assert_array_equal(*rates)


@pytest.mark.parametrize("size", SEVERAL)
@pytest.mark.parametrize("case", EACH)
def test_float64_gradients_weights_and_metrics_are_equal(outputs, case, size):
    alone, several = (np.load(outputs[n] / f"{case} fp64.npz") for n in (1, size))
    assert alone.files == several.files
    assert alone["loss"][-1] != alone["loss"][0]
    for name in alone.files:
        tolerance = 1e-12 if name.startswith("gradient") else 1e-9
        np.testing.assert_allclose(several[name], alone[name], rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("size", SEVERAL)
@pytest.mark.parametrize("case", EACH)
def test_float32_first_gradients_are_equal_to_rounding(outputs, case, size, capsys):
    alone, several = (np.load(outputs[n] / f"{case} no.npz") for n in (1, size))

    def flat(arrays, prefix):
        return np.concatenate([arrays[name].ravel() for name in alone.files if name.startswith(prefix)])

    gradient, other = flat(alone, "gradient"), flat(several, "gradient")
    relative = np.linalg.norm(other - gradient) / np.linalg.norm(gradient)
    learned = [name.replace("gradient", "weight", 1) for name in alone.files if name.startswith("gradient")]
    drift = max(np.abs(several[name] - alone[name]).max() for name in learned)
    with capsys.disabled():
        print(f"\n{case}, {size} processes, float32: gradients {relative:.1e} relative, weights drift {drift:.1e}")
    assert relative < 1e-5


@pytest.mark.parametrize("name", SCORED)
def test_every_image_of_a_split_of_any_size_is_predicted_once_and_in_order(outputs, name):
    alone = np.load(outputs[1] / f"{name} scored rank 0.npz")
    one_by_one = alone["one by one"]
    assert len(np.unique(one_by_one.round(3), axis=0)) == len(one_by_one), "images can be told apart by their logits"
    assert len(np.unique(one_by_one.argmax(1))) >= CLASSES - 2
    for count in SPLITS:
        logits = alone[str(count)]
        assert logits.shape == (count, CLASSES)
        np.testing.assert_allclose(logits[:70], one_by_one[:count], rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", SEVERAL)
@pytest.mark.parametrize("name", SCORED)
def test_predictions_and_confusion_are_identical_on_every_rank(outputs, name, size):
    """To the bit: batches are cut from the split alike, the one that scores them."""
    alone = np.load(outputs[1] / f"{name} scored rank 0.npz")
    scores = json.loads((outputs[1] / f"{name} rank 0.json").read_text())
    for rank in range(size):
        several = np.load(outputs[size] / f"{name} scored rank {rank}.npz")
        for count in SPLITS:
            np.testing.assert_array_equal(several[str(count)], alone[str(count)])
            np.testing.assert_array_equal(*(confusion(found, count) for found in (several, alone)))
        assert json.loads((outputs[size] / f"{name} rank {rank}.json").read_text()) == scores


def confusion(found, count: int) -> np.ndarray:
    """[label, prediction] -> images."""
    matrix = np.zeros((CLASSES, CLASSES), dtype=np.int64)
    np.add.at(matrix, (found["labels"][:count], found[str(count)].argmax(1)), 1)
    assert matrix.sum() == count
    return matrix
