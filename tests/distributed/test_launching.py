"""eval.py with one and three processes, and launchers that do not start what they were requested."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image
from safetensors.numpy import load_file

from resnet_cifar.cli import predict
from resnet_cifar.data.sources import synthetic

ROOT = Path(__file__).parents[2]
TINY = {
    "--recipe": "debug",
    "--data.image_size": 32,
    "--model.name": "test_resnet",
    "--batch_size": 48,
    "--micro_batch": 8,
    "--precision": "fp64",
}


def words(**more: object) -> list[object]:
    """train.py with the debug recipe made tiny."""
    options = {**TINY, **{f"--{name}": value for name, value in more.items()}}
    return [ROOT / "train.py", *(word for pair in options.items() for word in pair)]


@pytest.mark.proof_only  # test_world_sizes compares the predictions of several processes
def test_eval_gives_the_same_scores_on_several_processes(whole, tmp_path, launch):
    run = whole("test_resnet", 2)
    at_the_end = json.loads((run / "eval-test.json").read_text())
    before = pyarrow.parquet.read_table(run / "predictions-test.parquet").to_pydict()
    for processes in (1, 3):
        config = "cpu" if processes == 1 else "cpu_ddp"
        finished = launch(tmp_path, ROOT / "eval.py", run, config=config, processes=processes)
        assert finished.returncode == 0, finished.stderr[-3000:]
        again = json.loads((run / "eval-test.json").read_text())
        for name in ("accuracy", "loss", "top5", "images", "class_accuracy"):
            assert again[name] == pytest.approx(at_the_end[name], abs=1e-9, rel=0)
        after = pyarrow.parquet.read_table(run / "predictions-test.parquet").to_pydict()
        assert after["index"] == before["index"] and after["label"] == before["label"]
        np.testing.assert_allclose(np.array(after["logits"]), np.array(before["logits"]), rtol=0, atol=1e-9)


def test_several_processes_predict_and_one_writes(whole, tmp_path, launch, monkeypatch, capsys, fresh_accelerator):
    """Each process reads its own members of an archive; one process has the same results."""
    run = whole("test_resnet", 2)
    monkeypatch.chdir(tmp_path)
    drawn, _ = synthetic.draw("test", 10)
    with zipfile.ZipFile("photos.zip", "w") as archive:
        for number, image in enumerate(drawn):
            Image.fromarray(image).save(f"{number}.png")
            archive.write(f"{number}.png", f"inner/{number}.png")
    words = [run, "photos.zip", "--json", "--review"]
    finished = launch(tmp_path, "-m", "resnet_cifar", "predict", *words, "several.html", processes=2)
    assert finished.returncode == 0, finished.stderr[-3000:]
    predict.main([*map(str, words), "one.html"])
    several, one = (map(json.loads, text.splitlines()) for text in (finished.stdout, capsys.readouterr().out))
    for found, expected in zip(several, one, strict=True):
        assert (found["file"], found["label"]) == (expected["file"], expected["label"])
        assert found["probabilities"] == pytest.approx(expected["probabilities"], abs=2e-6)
    tables = [Path(f"{name}-labels.csv").read_text().splitlines() for name in ("several", "one")]
    assert len(tables[0]) == 11 and tables[0] == tables[1]
    assert Path("several.html").is_file() and finished.stderr.count("page         several.html") == 1


@pytest.mark.proof_only
def test_a_run_goes_on_compiled_or_not_whichever_it_was(tmp_path, launch):
    """Behind the `eager` backend, which wraps the model as the others do and takes no minutes to compile."""
    stopping, arguments = Path(__file__).with_name("stopping.py"), words(run="run")[1:]
    compiled = ("--dynamo_backend", "eager")
    for launcher, at in ((compiled, 3), ((), 6)):
        stopped = launch(tmp_path, *launcher, stopping, "update", at, *arguments, config="cpu")
        assert "returned non-zero exit status 75" in stopped.stderr, stopped.stderr[-3000:]
        assert json.loads((tmp_path / "run" / "status.json").read_text())["step"] == at + 1
        (saved,) = (tmp_path / "run" / "checkpoints").glob(f"step-{at + 1:08d}")
        assert {"fc.weight", "conv1.0.weight"} <= load_file(saved / "model.safetensors").keys()
    finished = launch(tmp_path, *compiled, *words(run="run"), config="cpu")
    assert "compiled with eager" in finished.stdout
    assert "resuming at step 7" in finished.stdout
    assert finished.returncode == 0, finished.stderr[-3000:]


def test_the_launcher_that_starts_one_process_for_two_is_caught(tmp_path, launch):
    finished = launch(tmp_path, "--cpu", *words(), config="", processes=2)
    assert "asked for several processes (accelerate launch --num_processes) and started one" in finished.stderr
    assert "cpu_ddp.yaml" in finished.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("config", ["multi_gpu", "single_gpu"])
def test_a_gpu_configuration_without_gpus_is_refused(tmp_path, launch, config):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    finished = launch(tmp_path, *words(), config=config, processes=2 if config == "multi_gpu" else None)
    assert finished.returncode != 0
    assert finished.stderr.count("error: accelerate launch was configured for GPUs") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.proof_only  # test_plan has the sentence, and tests/mistakes another one that all ranks find at that place
def test_a_batch_that_does_not_divide_is_said_once(tmp_path, launch):
    finished = launch(tmp_path, *words(batch_size=40), processes=2)
    assert finished.returncode != 0
    assert finished.stderr.count("error: batch_size 40 does not divide over 2 processes") == 1
    assert "32 or 48" in finished.stderr


def test_what_only_rank_0_finds_ends_every_rank_and_is_said_once(tmp_path, launch):
    (tmp_path / "empty").mkdir()
    finished = launch(tmp_path, *words(**{"data.source": "empty"}), processes=2)
    assert finished.returncode != 0
    assert finished.stderr.count("error: data.source") == 1
    assert "has an unknown layout" in finished.stderr
    assert not (tmp_path / "runs").exists()


def test_a_mistake_while_ranks_watch_each_other_ends_rank_0_with_its_own_code(tmp_path, launch):
    """Not with the abort of a Python whose end finds a thread inside torch."""
    finished = launch(tmp_path, *words(run="/proc/run"), processes=2)
    assert finished.stderr.count("error: --run /proc/run cannot be written") == 1
    assert "terminate called" not in finished.stderr
    assert re.search(r"rank +: 0 \(local_rank: 0\)\n +exitcode +: 2 ", finished.stderr), finished.stderr
