"""One run on 1, 2, 3 and 4 processes, and one that hops between them where it was stopped: the same run to rounding.

Float64 tells a bug from rounding; the commands are the user's.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from metric_rows import rows_of
from safetensors.numpy import load_file

STOPPING = Path(__file__).with_name("stopping.py")
MODELS = ("test_resnet", "test_vit")  # with BatchNorm, and without
STEPS = 62


def long_form(value: object):
    """Left to `make proof`; of the ViT, test_world_sizes has the short form."""
    return pytest.param(value, marks=pytest.mark.proof_only)


# (processes, where to stop, the saved step): while the head is trained; as that ends and is yet to be evaluated;
# in the second evaluation of a start.
HOPS = [(4, ("update", 10), 11), (1, ("update", 32), 33), (2, ("evaluation", 6), 42)]  # an evaluation has five parts


def assert_equal_runs(run: Path, alone: Path, steps: int = STEPS) -> None:
    assert run.name == alone.name, "the folder is named after the recipe, not the machines"
    last = f"checkpoints/step-{steps:08d}"
    for file in ("model", "average", "optimizer"):
        ours, theirs = (load_file(folder / last / f"{file}.safetensors") for folder in (run, alone))
        assert ours.keys() == theirs.keys()
        if file == "model":  # the average is scored, with statistics of its own; those of the weights steer nothing
            learned = [name for name in ours if not re.search(r"\.(running_|num_batches_)", name)]
        else:
            learned = list(ours)
        for name in learned:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1e-9, err_msg=name)
    ours, theirs = rows_of(run), rows_of(alone)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, abs=1e-9, rel=0), a["step"]
    result, other = (json.loads((folder / "result.json").read_text()) for folder in (run, alone))
    for name in ("checkpoint", "selected_by", "refit_of"):
        assert result.pop(name, None) == other.pop(name, None)
    for values in (result, other):
        del values["seconds"], values["world_size"], values["weights_sha256"]
    assert result == pytest.approx(other, abs=1e-9, rel=0)


@pytest.mark.parametrize("processes", [long_form(2), long_form(3), long_form(4)])  # the run that hops has all of them
@pytest.mark.parametrize("model", [MODELS[0], long_form(MODELS[1])])
def test_several_processes_make_one_run_equal_to_that_of_one(whole, model, processes):
    alone, several = whole(model, 1), whole(model, processes)
    assert json.loads((several / "result.json").read_text())["world_size"] == processes
    if processes == 2:
        assert len(list((several / "wandb").glob("offline-run-*"))) == 1
    assert_equal_runs(several, alone)


@pytest.mark.parametrize("model", [MODELS[0], long_form(MODELS[1])])
def test_a_run_that_hops_from_4_to_1_to_2_to_3_processes_is_the_same_run(whole, train, tmp_path, model):
    alone = whole(model, 1)
    assert not {11, 47} & {row["step"] for row in rows_of(alone)}
    is_cut = model == "test_resnet"  # the ViT, without batches for BatchNorm, evaluates in one
    for processes, (kind, number), step in HOPS if is_cut else [*HOPS[:2], (2, ("update", 46), 47)]:
        stopped = train(tmp_path, model, processes, STOPPING, kind, number)
        # With one process accelerate uses no elastic launcher, and its own code is 1 whatever the command's is.
        assert "exit status 75" in stopped.stderr if processes == 1 else stopped.returncode == 0
        (run,) = (tmp_path / "runs").iterdir()
        status = json.loads((run / "status.json").read_text())
        assert (status["state"], status["step"]) == ("interrupted", step)
        assert max(row["step"] for row in rows_of(run)) < step
    state = json.loads((run / "checkpoints" / f"step-{step:08d}" / "state.json").read_text())
    assert not is_cut or state["pending_row"]["step"] == step, "the score that was cut off is taken up"
    finished = train(tmp_path, model, 3)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert f"resuming at step {step}, epoch 1." in finished.stdout
    assert_equal_runs(run, alone)


@pytest.mark.parametrize("processes", [long_form(2), long_form(3)])  # test_world_sizes has the short form
def test_several_processes_make_one_refit_equal_to_that_of_one(whole, launch, tmp_path, processes):
    first, folders = whole(MODELS[0], 1), [tmp_path / "alone", tmp_path / "several"]
    for folder, count in zip(folders, (1, processes), strict=True):
        folder.mkdir()
        words = (STOPPING.parents[2] / "train.py", "--refit", first, "--run", "refit")
        done = launch(folder, *words, config="cpu" if count == 1 else "cpu_ddp", processes=count)
        assert done.returncode == 0, done.stderr[-3000:]
    alone, several = (folder / "refit" for folder in folders)
    result = json.loads((several / "result.json").read_text())
    assert (result["world_size"], result["refit_of"]) == (processes, first.name)
    assert_equal_runs(several, alone, result["steps"])
