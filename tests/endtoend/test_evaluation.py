"""eval.py on every kind of target and source, and --images: one run, scored in processes that did not train it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from starting import train

from resnet_cifar.cli import evaluate, predict
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import read_recipe, with_overrides
from resnet_cifar.config.schema import Recipe
from resnet_cifar.config.train_options import TrainOptions
from resnet_cifar.data.preprocess import Preprocess
from resnet_cifar.data.sources import synthetic
from resnet_cifar.evaluation import classify_files, metrics, model_location, throughput, tta
from resnet_cifar.evaluation.predict import Predictions
from resnet_cifar.reporting import optional_outputs

ROOT = Path(__file__).parents[2]
IMAGES = 200  # of each split
WORDS = {
    "data.limit": str(IMAGES),
    "data.validation_fraction": "0.2",
    "data.image_size": "24",
    "batch_size": "16",
    "micro_batch": "0",
    "model.name": "test_resnet",
    "phases.0.epochs": "1.5",
    "phases.1.epochs": "1.5",
    "augment.mixup_alpha": "0",
    "augment.cutmix_alpha": "0",
    "evaluate.every_epochs": "1",
    "track.trackers": "none",
    "track.report": "False",
}
# Scores each line's words as eval.py would, in one process: importing torch takes longer than scoring.
SCORER = """
import json, sys
from accelerate.state import AcceleratorState
from resnet_cifar.cli.evaluate import evaluate, parse_arguments
from resnet_cifar.reporting import style
style.save = lambda *_: None  # the figures beside each page take longer than all else
for words in json.load(sys.stdin):
    AcceleratorState._reset_state(True)
    print("==", *words, flush=True)
    evaluate(*parse_arguments(words))
"""
NAMES = synthetic.CLASS_NAMES
DRAWN = 400  # synthetic images of which a stranger has some
STRANGER = ("dots", "ring", "disc", "cross")  # some of the classes, in another order


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `run`, copies of its best checkpoint and of its model, a stranger's model, data and pictures."""
    from accelerate.state import AcceleratorState

    place = tmp_path_factory.mktemp("evaluation")
    train(TrainOptions(recipe="debug", run=str(place / "run")), read_recipe("debug", WORDS))
    AcceleratorState._reset_state(True)
    run = place / "run"
    shutil.copytree(run / result(run)["checkpoint"], place / "saved")
    shutil.copytree(run / "model", place / "model-moved")
    _stock_export(run, place / "stock")
    _write_source(place / "strangers", STRANGER)
    _write_source(place / "foreign", ("disc", "frog", "truck"))
    _write_pictures(place / "pictures", run)
    return place


@pytest.fixture(scope="module")
def said(place: Path) -> dict[str, str]:
    """What scoring each target printed, by its first words, in a process of its own."""
    source = ["--data.source", "synthetic", "--data.limit", str(IMAGES)]
    other = ["--data.source", str(place / "strangers")]
    wanted = [
        ["run"],
        [f"run/{result(place / 'run')['checkpoint']}", "--out", "best"],
        [f"run/checkpoints/{_other_checkpoint(place / 'run')}"],
        ["run/model"],
        ["saved"],
        ["model-moved", *source],
        ["stock", *source, "--data.interpolation", "bilinear"],
        ["run", *other],
        ["run", "--tta", "flip", "--split", "validation"],
        ["run", "--split", "train"],
    ]
    done = python(place, "-c", SCORER, given=json.dumps(wanted))
    assert done.returncode == 0, done.stderr[-3000:]
    parts = [part.split("\n", 1) for part in done.stdout.split("== ")[1:]]
    return dict(parts)


def python(cwd: Path, *words: object, given: str = "") -> subprocess.CompletedProcess:
    command = [sys.executable, *map(str, words)]
    return subprocess.run(
        command, check=False, cwd=cwd, env=os.environ.copy(), input=given, capture_output=True, text=True, timeout=300
    )


def result(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())


def scores(folder: Path, pattern: str) -> dict:
    (file,) = folder.glob(f"eval-{pattern}.json")
    return json.loads(file.read_text())


def predictions(folder: Path, pattern: str) -> dict[str, list]:
    (file,) = folder.glob(f"predictions-{pattern}.parquet")
    return pyarrow.parquet.read_table(file).to_pydict()


def logits(folder: Path, pattern: str) -> np.ndarray:
    return np.array(predictions(folder, pattern)["logits"])


def _other_checkpoint(run: Path) -> str:
    """One that is not the best."""
    return min(
        path.name for path in (run / "checkpoints").iterdir() if path.name != Path(result(run)["checkpoint"]).name
    )


def _stock_export(run: Path, folder: Path) -> None:
    """The run's weights, as the one that has timm alone would save them."""
    model = timm.create_model("test_resnet", num_classes=len(NAMES))
    model.load_state_dict(load_file(run / "model" / "model.safetensors"))
    names = {str(number): name for number, name in enumerate(NAMES)}
    data = {"input_size": (3, 24, 24)}
    model.pretrained_cfg = {**model.pretrained_cfg, **data, "interpolation": "bicubic", "crop_pct": 0.95}
    timm.models.save_for_hf(model, folder, model_config={"label_names": names}, safe_serialization=True)


def _write_source(folder: Path, classes: tuple[str, ...]) -> None:
    """Synthetic images of the classes that are synthetic's, and black ones of the others, in the hub's layout."""
    import datasets

    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=list(classes))})
    for split in ("train", "test"):
        images, labels = synthetic.draw(split, DRAWN)
        rows: dict[str, list] = {"img": [], "label": []}
        for number, name in enumerate(classes):
            theirs = images[labels == NAMES.index(name)] if name in NAMES else images[:3] * 0
            rows["img"] += [Image.fromarray(pixels) for pixels in theirs]
            rows["label"] += [number] * len(theirs)
        (folder / "data").mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(rows, features).to_parquet(str(folder / "data" / f"{split}-00000.parquet"))


def _write_pictures(folder: Path, run: Path) -> None:
    """The first images of the run's test split, in many kinds of file, and what is not a picture."""
    (folder / "sub").mkdir(parents=True)
    pictures = [Image.fromarray(synthetic.draw("test")[0][index]) for index in predictions(run, "test")["index"][:6]]
    pictures[0].save(folder / "a[b].png")
    pictures[1].save(folder / "photo.JPG", "JPEG")
    pictures[2].convert("L").save(folder / "gray.png")
    pictures[3].convert("RGBA").save(folder / "sub" / "alpha.png")
    pictures[4].convert("P").save(folder / "sub" / "palette.gif")
    pictures[5].resize((50, 41)).save(folder / "sub" / "odd.webp")
    (folder / "broken.png").write_bytes((folder / "a[b].png").read_bytes()[:200])
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_text("")


def test_a_run_its_checkpoint_and_its_model_give_the_same_logits_wherever_they_lie(place: Path, said: dict) -> None:
    at_the_end = logits(place / "run", "test")
    for folder, pattern in (
        ("run", "test"),
        ("best", "test"),
        ("run", "test-model"),
        ("saved-scores", "test"),
        ("model-moved-scores", "test-synthetic-*"),
    ):
        np.testing.assert_array_equal(logits(place / folder, pattern), at_the_end, err_msg=folder)
        found, own = scores(place / folder, pattern), scores(place / "run", "test")
        assert found["temperature"] == own["temperature"] is not None, folder
        assert {**found, "checkpoint": "", "throughput": {}} == {**own, "checkpoint": "", "throughput": {}}, folder
    stock = logits(place / "stock-scores", "test-synthetic-*")
    np.testing.assert_allclose(stock, at_the_end, rtol=0, atol=1e-4)


def test_the_runs_own_result_keeps_its_file_and_all_others_are_named(place: Path, said: dict) -> None:
    run = place / "run"
    own, other = scores(run, "test"), _other_checkpoint(run)
    assert own["accuracy"] == result(run)["test/accuracy"] and own["checkpoint"] == result(run)["checkpoint"]
    names = {re.sub("-[0-9a-f]{6}.json", "-DIGEST.json", file.name) for file in run.glob("eval-*")}
    others = {f"eval-test-{other}.json", "eval-test-model.json", "eval-test-strangers-DIGEST.json"}
    assert names == {"eval-test.json", "eval-validation.json", "eval-train.json", "eval-validation-flip.json"} | others
    assert scores(run, f"test-{other}")["checkpoint"] == f"checkpoints/{other}"
    assert len(list((place / "saved").iterdir())) == 3, "a checkpoint holds its own files only"
    for words, text in said.items():
        for file in text.split("written: ")[1].strip().split(", "):
            assert (place / file).is_file(), words


def test_without_its_run_a_model_is_not_thought_to_have_the_division_of_a_default_recipe(
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    fresh_accelerator: None,
) -> None:
    """Its images are those of the default source here, divided otherwise: a tenth for validation, not a fifth."""
    from accelerate.state import AcceleratorState

    def by_default(values: dict, overrides: dict | None = None) -> Recipe:
        data = {"source": "synthetic", "limit": IMAGES, **values.get("data", {})}
        return with_overrides({**values, "data": data}, overrides)

    monkeypatch.setattr(model_location, "with_overrides", by_default)
    monkeypatch.setattr(optional_outputs, "write_report", lambda *_: None)
    shutil.copytree(place / "model-moved", tmp_path / "M")
    fitted = json.loads((tmp_path / "M" / "config.json").read_text())
    for temperature, split, is_doubtful in (
        (fitted["temperature"], "test", False),
        (None, "validation", True),
        (None, "train", True),
    ):
        (tmp_path / "M" / "config.json").write_text(json.dumps({**fitted, "temperature": temperature}))
        AcceleratorState._reset_state(True)
        words = [str(tmp_path / "M"), "--data.source", "synthetic", "--split", split, "--out", str(tmp_path / split)]
        evaluate.evaluate(*evaluate.parse_arguments(words))
        found, said = scores(tmp_path / split, split), capsys.readouterr().out
        assert found["temperature"] == temperature and "trained_on" not in found
        assert ("fitted before" if temperature else "these images may not be held out") in said
        assert ("the model may have been trained on some of these images" in said) == is_doubtful


def test_other_images_are_matched_by_the_names_of_their_classes(place: Path, said: dict) -> None:
    found = scores(place / "run", "test-strangers-*")
    assert list(found["classes"]) == list(NAMES)
    images = {name: values["images"] for name, values in found["classes"].items()}
    assert images == {name: DRAWN // 10 if name in STRANGER else 0 for name in NAMES}
    recall = [values["recall"] for values in found["classes"].values() if values["images"]]
    assert found["accuracy"] == pytest.approx(np.mean(recall), abs=1e-6)
    assert found["temperature"] == scores(place / "run", "test")["temperature"], "theirs may not be held out"
    assert found["fingerprint"] != scores(place / "run", "test")["fingerprint"]
    # Some of the images are among the run's own test images too.
    own, theirs = predictions(place / "run", "test"), predictions(place / "run", "test-strangers-*")
    labels = synthetic.draw("test", DRAWN)[1]
    origin = np.concatenate([np.flatnonzero(labels == NAMES.index(name)) for name in STRANGER])
    common, here, there = np.intersect1d(own["index"], origin, return_indices=True)
    assert len(common) > 5
    for column in ("label", "logits"):
        np.testing.assert_allclose(np.array(theirs[column])[there], np.array(own[column])[here], rtol=0, atol=1e-5)
    (text,) = (text for words, text in said.items() if "strangers" in words)
    assert "classes without images: square, triangle, horizontal stripes, ... (6)" in text


def test_a_class_that_the_head_lacks_is_refused_by_name(place: Path, fresh_accelerator: None) -> None:
    with pytest.raises(UserError, match=r"has classes that the model does not know: frog, truck; .*in any order"):
        evaluate.evaluate(*evaluate.parse_arguments([str(place / "run"), "--data.source", str(place / "foreign")]))
    assert evaluate.class_indices(("c", "a"), ("a", "b", "c"), "x") == [2, 0]


def test_the_training_split_is_evaluated_without_augmentation(place: Path, said: dict) -> None:
    run = place / "run"
    found, rows = scores(run, "train"), predictions(run, "train")
    assert (found["split"], found["trained_on"], found["images"]) == ("train", True, IMAGES * 0.8)
    assert "the model was trained on these images" in said["run --split train"]
    assert "trained_on" not in scores(run, "validation-flip") and scores(run, "test")["split"] == "test"
    held_out = predictions(run, "validation-flip")["index"]
    assert not set(rows["index"]) & set(held_out) and len(set(rows["index"]) | set(held_out)) == IMAGES
    assert set(rows["split"]) == {"train"} and set(rows["file"]) == {""}
    (line,) = (line for line in said["run --split train"].splitlines() if line.startswith("written: "))
    assert "run/report/train-suspect_labels.csv" in line and "eval-train.json" in line


def test_flips_are_reported_beside_the_plain_figure(place: Path, said: dict) -> None:
    run = place / "run"
    found, rows = scores(run, "validation-flip"), predictions(run, "validation-flip")
    plain, flipped, labels = (torch.tensor(rows[name]) for name in ("logits", "logits_flip", "label"))
    assert found["accuracy"] == result(run)["val/accuracy"], "the plain figure stays the figure"
    mean = tta.mean_logits(Predictions(plain, labels), Predictions(flipped, labels))
    assert found["flip"]["loss"] == pytest.approx(metrics.summary(*mean)["loss"], abs=1e-6)
    assert found["flip"]["loss"] != found["loss"]
    assert "with flip test-time augmentation" in said["run --tta flip --split validation"]


def test_a_mirror_image_is_what_torchvision_flips(place: Path) -> None:
    from torchvision.transforms.functional import hflip

    data = read_recipe("debug", WORDS).data
    images = torch.from_numpy(synthetic.draw("test", 4)[0])
    settings = (data, torch.full((3,), 0.4), torch.full((3,), 0.2))
    turned = hflip(images.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    assert torch.equal(tta.MirroredPreprocess(*settings)(images), Preprocess(*settings)(turned))


def test_the_first_batch_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    stopwatch = throughput.ThroughputTimer(torch.device("cpu"))
    stopwatch()
    assert stopwatch.images_per_second(30) is None
    stopwatch()
    stopwatch()
    assert stopwatch.images_per_second(30) == 10.0, "20 images in 2 seconds"


def test_what_is_damaged_or_does_not_fit_is_a_sentence(place: Path, tmp_path: Path, fresh_accelerator: None) -> None:
    shutil.copytree(place / "saved", tmp_path / "saved")
    shutil.copytree(place / "model-moved", tmp_path / "model-moved")
    (tmp_path / "saved" / "model.safetensors").write_bytes(b"\0" * 100)
    (tmp_path / "model-moved" / "model.safetensors").write_bytes(b"\0" * 100)
    shutil.copytree(place / "model-moved", tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps({**config, "architecture": "test_vit"}))
    shutil.copytree(place / "model-moved", tmp_path / "unknown")
    (tmp_path / "unknown" / "config.json").write_text(json.dumps({**config, "architecture": "resnet51"}))
    from accelerate.state import AcceleratorState

    for name, sentence in (
        ("saved", r"model.safetensors has changed since it was written"),
        ("model-moved", r"the weights of .* do not fit its model"),
        ("other", r"the weights of .* do not fit its model"),
        ("unknown", r"is a 'resnet51', which this timm does not know"),
    ):
        AcceleratorState._reset_state(True)
        with pytest.raises(UserError, match=sentence):
            evaluate.evaluate(*evaluate.parse_arguments([str(tmp_path / name), "--data.source", "synthetic"]))


def test_pictures_are_labelled_and_what_is_none_is_named(place: Path, said: dict) -> None:
    done = python(place, ROOT / "eval.py", "run", "--json", "--images", "pictures", "pictures/photo.JPG")
    assert done.returncode == predict.UNREADABLE == 3
    assert done.stderr == "error: 1 of 8 images cannot be read\n"
    lines = {line["file"]: line for line in map(json.loads, done.stdout.splitlines())}
    files = [f"pictures/{name}" for name in ("a[b].png", "broken.png", "gray.png", "photo.JPG")]
    assert list(lines) == [*files, *(f"pictures/sub/{name}" for name in ("alpha.png", "odd.webp", "palette.gif"))]
    assert len(done.stdout.splitlines()) == 8
    assert lines["pictures/broken.png"] == {"file": "pictures/broken.png", "error": "it cannot be read as an image"}
    for file, line in lines.items():
        if "error" not in line:
            assert sum(line["probabilities"].values()) == pytest.approx(1, abs=1e-4), file
            assert line["probability"] == max(line["probabilities"].values()) == line["probabilities"][line["label"]]
    # Two of the pictures hold the very pixels of test images: what evaluation gave them, at the run's temperature.
    temperature = scores(place / "run", "test")["temperature"]
    own = torch.tensor(logits(place / "run", "test")[[0, 3]], dtype=torch.float64)
    shares = (own / temperature).softmax(1).tolist()
    for file, expected in zip(("pictures/a[b].png", "pictures/sub/alpha.png"), shares, strict=True):
        assert list(lines[file]["probabilities"].values()) == pytest.approx(expected, abs=1e-5)


def test_the_table_names_every_picture(place: Path, capsys: pytest.CaptureFixture, fresh_accelerator: None) -> None:
    words = [
        str(place / "stock"),
        "--images",
        str(place / "pictures" / "a[b].png"),
        str(place / "pictures" / "notes.txt"),
    ]
    with pytest.raises(SystemExit) as ended:
        evaluate.main(words)
    assert ended.value.code == predict.UNREADABLE
    printed = capsys.readouterr().out
    assert "a[b].png" in printed and "notes.txt" in printed and "not calibrated" in printed
    assert "crop_pct 0.95" in printed


def test_a_folder_without_pictures_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UserError, match=r"contains no images"):
        classify_files.find_images([str(tmp_path)])
