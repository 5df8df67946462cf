"""The commands on the real images, as a user types them: learn, score again, load the model elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.real_data, pytest.mark.proof_only]

LOAD_ELSEWHERE = """
import io, json, sys
import numpy as np, pyarrow.parquet as pq, timm, torch
from PIL import Image
model_folder, parquet, out = sys.argv[1:]
config = json.load(open(model_folder + "/config.json"))["pretrained_cfg"]
model = timm.create_model("local-dir:" + model_folder, pretrained=True).eval()
rows = pq.read_table(parquet).slice(0, 4000).column("img").to_pylist()
pixels = np.stack([np.asarray(Image.open(io.BytesIO(row["bytes"])).convert("RGB")) for row in rows])
x = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - torch.tensor(config["mean"])[:, None, None])
with torch.no_grad():
    logits = torch.cat([model(part) for part in (x / torch.tensor(config["std"])[:, None, None]).split(500)])
np.save(out, logits.numpy())
"""


def python(cwd: Path, *words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, *map(str, words)]
    finished = subprocess.run(
        command, check=False, cwd=cwd, env=os.environ.copy(), capture_output=True, text=True, timeout=600
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, real_data: Path) -> Path:
    cwd = tmp_path_factory.mktemp("real")
    words = {
        "--recipe": "scratch",
        "--run": "run",
        "--data.source": real_data,
        "--data.limit": 2000,
        "--model.name": "resnet18",
        "--model.stem": "imagenet",
        "--batch_size": 64,
        "--phases.0.epochs": 4,
        "--evaluate.every_epochs": 4,
        "--augment.mixup_alpha": 0,
        "--augment.cutmix_alpha": 0,
    }
    python(cwd, ROOT / "train.py", *(word for pair in words.items() for word in pair))
    return cwd / "run"


def test_it_learns(trained: Path) -> None:
    result = json.loads((trained / "result.json").read_text())
    assert result["test/accuracy"] > 0.25, "chance is 0.1; 2,000 images were requested"
    scores = json.loads((trained / "eval-test.json").read_text())
    assert scores["images"] == 2000 and len(scores["class_accuracy"]) == 10
    assert np.mean(list(scores["class_accuracy"].values())) == pytest.approx(scores["accuracy"], abs=1e-6)


def test_eval_repeats_the_score_and_takes_the_whole_split(trained: Path) -> None:
    before = json.loads((trained / "eval-test.json").read_text())
    predictions = pyarrow.parquet.read_table(trained / "predictions-test.parquet")
    python(trained.parent, ROOT / "eval.py", trained)
    again = json.loads((trained / "eval-test.json").read_text())
    assert again.pop("throughput")["images_per_second"] > 0
    assert again == before
    assert pyarrow.parquet.read_table(trained / "predictions-test.parquet") == predictions
    python(trained.parent, ROOT / "eval.py", trained, "--split", "validation")
    validation = json.loads((trained / "eval-validation.json").read_text())
    result = json.loads((trained / "result.json").read_text())
    assert validation["images"] == 200 and validation["accuracy"] == pytest.approx(result["val/accuracy"])


def test_the_model_gives_the_same_logits_in_a_stock_timm(trained: Path, real_data: Path, tmp_path: Path) -> None:
    """The images are read from the parquet file, past every line of this project."""
    script = tmp_path / "elsewhere.py"
    script.write_text(LOAD_ELSEWHERE)
    parquet = next((real_data / "plain_text").glob("test-*.parquet"))
    python(tmp_path, script, trained / "model", parquet, tmp_path / "logits.npy")
    elsewhere = np.load(tmp_path / "logits.npy")
    ours = pyarrow.parquet.read_table(trained / "predictions-test.parquet").to_pydict()
    indices = np.array(ours["index"])
    within = indices < len(elsewhere)
    assert within.sum() > 500
    np.testing.assert_allclose(elsewhere[indices[within]], np.array(ours["logits"])[within], rtol=0, atol=2e-4)
