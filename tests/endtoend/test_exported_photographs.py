"""A run on photographs of all shapes: card, timm, check and prediction read the same files alike."""

from __future__ import annotations

import json
import re
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from accelerate.state import AcceleratorState
from huggingface_hub import ModelCard
from PIL import Image, ImageOps
from starting import train

from resnet_cifar.cli import evaluate, predict
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.config.train_options import TrainOptions

CLASSES = ("left", "top")
WORDS = {
    "data.image_size": "32",
    "batch_size": "16",
    "phases.0.epochs": "1",
    "phases.1.epochs": "1",
    "track.trackers": "none",
    "track.report": "False",
}


def picture(kind: int, number: int, width: int, height: int) -> Image.Image:
    """Kind 0 has a bright left edge, kind 1 a dark top."""
    pixels = np.random.default_rng([kind, number]).integers(0, 60, (height, width, 3)) + (20 if kind == 0 else 160)
    if kind == 0:
        pixels[:, : width // 4] = 230
    else:
        pixels[: height // 4] = 10
    return Image.fromarray(pixels.astype(np.uint8))


def save(file: Path, kind: int, number: int) -> None:
    """A photograph in one of six forms: wide, tall, turned by EXIF, transparent, with a palette, gray."""
    form = number % 6
    image = picture(kind, number, *((96, 48) if form % 2 else (40, 81)))
    exif = Image.Exif()
    exif[0x0112] = 6 if form == 2 else 1
    if form == 2:
        image = image.rotate(90, expand=True)
    elif form == 3:
        image.putalpha(Image.fromarray(np.linspace(80, 255, 96, dtype=np.uint8)[None].repeat(48, 0)))
    elif form == 4:
        image = image.convert("P")
    elif form == 5:
        image = image.convert("L")
    image.save(file, exif=exif)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for kind, name in enumerate(CLASSES):
        (folder / name).mkdir()
        for number in range(36):
            ending = "heic" if number % 6 == 1 else "png"  # Pillow needs a package for those, in every process
            save(folder / name / f"{number:03}.{ending}", kind, number)
    return folder


# The second has ImageNet's mean, which the border's color is in timm's transform too.
MODES = {"crop": "test_resnet", "pad": "test_efficientnet"}


@pytest.fixture(scope="module", params=MODES)
def finished(photographs: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    run = tmp_path_factory.mktemp("photographed") / "run"
    words = {**WORDS, "data.source": str(photographs), "augment.random_resized_crop": "0.3"}
    words |= {"data.decode_mode": request.param, "model.name": MODES[request.param]}
    train(TrainOptions(recipe="debug", run=str(run)), read_recipe("debug", words))
    return run


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch, fresh_accelerator: None) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


def predicted(target: Path, folder: Path, capsys: pytest.CaptureFixture) -> dict[str, list[float]]:
    """File -> probabilities, by `resnet-cifar predict`."""
    AcceleratorState._reset_state(True)
    capsys.readouterr()
    predict.main([str(target), str(folder), "--json"])
    rows = map(json.loads, capsys.readouterr().out.splitlines())
    return {row["file"]: list(row["probabilities"].values()) for row in rows}


def test_the_cards_code_and_timm_give_what_predict_gives(
    finished: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The exported README's code is executed as it is; from a copy of the export, which knows nothing of the run."""
    model = Path(shutil.copytree(finished / "model", tmp_path / "model"))
    expected = predicted(finished, photographs, capsys)
    assert predicted(model, photographs, capsys) == expected and len(expected) == 72
    (code,) = re.findall(r"```python\n(.*?)```", ModelCard.load(model / "README.md").text, re.DOTALL)
    first = next(iter(expected))
    defined: dict = {}
    exec(code.replace("FOLDER", str(model)).replace("image.png", first), defined)
    printed = capsys.readouterr().out.split()
    assert float(printed[1]) == pytest.approx(max(expected[first]), abs=1e-4)
    timm_transform = timm.data.create_transform(**timm.data.resolve_model_data_config(defined["model"]))
    temperature = json.loads((model / "config.json").read_text()).get("temperature", 1.0)

    def share(pixels: torch.Tensor) -> list[float]:
        with torch.inference_mode():
            return (defined["model"](pixels[None])[0] / temperature).softmax(0).tolist()

    for file, probabilities in expected.items():
        image = Image.open(file)
        assert share(defined["to_input"](image)) == pytest.approx(probabilities, abs=2e-6), file
        if image.mode == "RGB":  # upright: PIL and timm leave EXIF to the caller
            assert share(timm_transform(ImageOps.exif_transpose(image))) == pytest.approx(probabilities, abs=2e-6), file


@pytest.mark.proof_only
@pytest.mark.parametrize("finished", ["crop", "pad"], indirect=True, scope="module")
def test_the_check_starts_from_original_files(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    evaluate.main([str(finished), "--verify-export"])
    printed = capsys.readouterr().out
    assert "on 7 test images (7 original files)" in printed and printed.count("all 7 predicted classes agree") == 3
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    config = json.loads((run / "model" / "config.json").read_text())
    config["preprocess"]["stored_size"] = None  # an export that squashes photographs
    (run / "model" / "config.json").write_text(json.dumps(config))
    AcceleratorState._reset_state(True)
    with pytest.raises(SystemExit):
        evaluate.main([str(run), "--verify-export"])
    assert "does not give the logits" in capsys.readouterr().err


def test_the_export_records_the_geometry(finished: Path) -> None:
    config = json.loads((finished / "model" / "config.json").read_text())
    timm_config = {name: config["pretrained_cfg"][name] for name in ("crop_mode", "crop_pct", "interpolation")}
    mode = read_recipe(str(finished / "recipe.yaml")).data.decode_mode
    crop_mode = {"crop": "center", "pad": "border"}[mode]
    assert timm_config == {"crop_mode": crop_mode, "crop_pct": 1.0, "interpolation": "bicubic"}
    known = {"stored_size": [32, 32], "decode_mode": mode, "exact_in_timm": True, "value_range": None}
    assert config["preprocess"].items() >= known.items()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (finished / "model").iterdir()}
    assert len(modes) == 1, "the weights are as readable as the rest"


def test_evaluation_of_other_images_sees_them_as_prediction_does(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """All of one size, which is not the model's: without the model's form they would be squashed."""
    for kind, name in enumerate(CLASSES):
        (tmp_path / "others" / name).mkdir(parents=True)
        for number in range(20):
            picture(kind, number, 120, 48).save(tmp_path / "others" / name / f"{number}.png")
    evaluate.evaluate(*evaluate.parse_arguments([str(finished), "--data.source", str(tmp_path / "others")]))
    import pyarrow.parquet

    (file,) = finished.glob("predictions-test-others-*.parquet")
    logits = torch.tensor(pyarrow.parquet.read_table(file)["logits"].to_pylist())
    found = json.loads(next(finished.glob("eval-test-others-*.json")).read_text())
    expected = predicted(finished, tmp_path / "others", capsys)
    shares = (logits / (found["temperature"] or 1)).softmax(1)
    torch.testing.assert_close(shares, torch.tensor(list(expected.values())), rtol=0, atol=1e-5)
