"""`resnet-cifar export`: the files predict what the run predicts, and one that does not is found."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file
from starting import train

from resnet_cifar.atomic_io import sha256
from resnet_cifar.cli import export, export_files, predict
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.config.train_options import TrainOptions
from resnet_cifar.data import prepared_data
from resnet_cifar.data.image_dataset import ImageDataset
from resnet_cifar.data.preprocess import Preprocess
from resnet_cifar.data.sources.image_io import Decoding
from resnet_cifar.distributed.context import DistributedContext
from resnet_cifar.evaluation import export_formats, loaded_model, model_location
from resnet_cifar.evaluation.deployed import Deployed
from resnet_cifar.models.export import export_model
from resnet_cifar.models.factory import create_model, normalization

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

# A CIFAR stem, a deep head, ghost BatchNorm and EMA.
WORDS = {
    "data.limit": "100",
    "data.validation_fraction": "0.2",
    "batch_size": "16",
    "micro_batch": "0",
    "model.name": "test_resnet",
    "model.stem": "cifar",
    "model.head.hidden_dims": "8",
    "model.head.norm": "True",
    "model.ema_decay": "0.5",
    "track.trackers": "none",
    "track.report": "False",
}


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch, fresh_accelerator: None) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in bfloat16, exported in every format but timm's."""
    run = tmp_path_factory.mktemp("exported") / "run"
    recipe = read_recipe("debug", {**WORDS, "precision": "bf16"})
    train(TrainOptions(recipe="debug", run=str(run)), recipe)
    assert recipe.model.ghost_batch_size
    AcceleratorState._reset_state(True)
    before = os.environ.get("ACCELERATE_USE_CPU")
    export.main([str(run), "--to", "onnx,pt2", "--quantize", "int8"])  # tests of --verify-export have timm
    assert os.environ.get("ACCELERATE_USE_CPU") == before, "another run of this process may use a GPU"
    return run


def test_every_format_predicts_what_the_run_predicts(finished: Path) -> None:
    found = json.loads((finished / "export" / "export.json").read_text())
    files = found["files"]
    assert list(files) == ["model.onnx", "model-int8.onnx", "model.pt2"]
    for name, each in files.items():
        assert name == "model-int8.onnx" or (each["agrees"] and not each["differing"]), name
        assert name == "model-int8.onnx" or 0 < each["largest_difference"] < 1e-5
        assert each["bytes"] == (finished / "export" / name).stat().st_size
    int8 = files["model-int8.onnx"]
    assert int8["largest_difference"] > 1e-4 and abs(int8["accuracy"] - found["accuracy"]) < 0.1
    nodes = onnx.load(finished / "export" / "model-int8.onnx").graph.node
    makers = {output: node.op_type for node in nodes for output in node.output}
    assert {makers[node.input[0]] for node in nodes if node.op_type == "Relu"} <= {"Add"}, (
        "ranges are those behind ReLU"
    )
    assert int8["bytes"] < 0.6 * files["model.onnx"]["bytes"]
    assert not (finished / "export" / "unverified").exists()
    card = (finished / "export" / "README.md").read_text()
    assert card.startswith("---\n") and "| `model.onnx` (ONNX) | 100 of 100 | " in card


def test_the_onnx_model_has_the_names_that_other_programs_rely_on(finished: Path) -> None:
    session = onnxruntime.InferenceSession(finished / "export" / "model.onnx")
    (images,) = session.get_inputs()
    assert (images.type, images.shape) == ("tensor(uint8)", ["n", "height", "width", 3])
    outputs = {each.name: each.shape for each in session.get_outputs()}
    assert outputs == {"logits": ["n", 10], "probabilities": ["n", 10]}
    config, found = json.loads((finished / "model" / "config.json").read_text()), session.get_modelmeta()
    assert json.loads(found.custom_metadata_map["class_names"]) == config["label_names"]
    assert float(found.custom_metadata_map["temperature"]) == config["temperature"]
    quantized = onnxruntime.InferenceSession(finished / "export" / "model-int8.onnx").get_modelmeta()
    assert found.custom_metadata_map.items() <= quantized.custom_metadata_map.items()
    assert onnx.load(finished / "export" / "model.onnx").opset_import[0].version == 20
    extra = {"metadata.json": ""}
    torch.export.load(finished / "export" / "model.pt2", extra_files=extra)
    assert json.loads(extra["metadata.json"]) == found.custom_metadata_map


def test_the_cards_code_labels_photographs_like_predict_without_this_project(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """In a process that imports onnxruntime, NumPy and Pillow only."""
    draw = np.random.default_rng(0)
    for number, (width, height) in enumerate([(301, 200), (90, 240), (48, 48), (5, 3)]):
        pixels = draw.integers(0, 256, (height, width, 4 if number else 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(draw.integers(0, 256, (60, 90, 3), dtype=np.uint8)).save(tmp_path / "4.jpg", exif=exif)
    photographs = [*(Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg")]
    assert len(photographs) >= 2, "a temple and a flower, 640 x 427"
    for photograph in photographs:
        shutil.copy(photograph, tmp_path)
        upright = Image.open(photograph)
        upright.rotate(90, expand=True).convert("CMYK").save(tmp_path / f"turned-{photograph.name}", exif=exif)
    files = sorted(tmp_path.iterdir())
    predict.main([str(finished), str(tmp_path), "--json", "--precision", "no"])  # the run was in bfloat16
    expected = list(map(json.loads, capsys.readouterr().out.splitlines()))
    card = (finished / "export" / "README.md").read_text()
    (code,) = (code for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if "import onnxruntime" in code)
    setup, each = code.replace("FOLDER", str(finished / "export")).split('image = Image.open("image.png")\n')
    each = "".join(f"    {line}\n" for line in each.splitlines())
    script = f"{setup}\nimport sys\nfor file in sys.argv[1:]:\n    image = Image.open(file)\n{each}"
    script += "assert not {'torch', 'timm', 'onnx', 'resnet_cifar'} & {*sys.modules}\n"
    done = subprocess.run([sys.executable, "-c", script, *files], check=True, capture_output=True, text=True)
    for line, row in zip(done.stdout.splitlines(), expected, strict=True):
        label, _, probability = line.rpartition(" ")
        assert label == row["label"] and float(probability) == pytest.approx(row["probability"], abs=2e-6)


def test_a_graph_with_another_weight_is_found_and_not_published(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The last bias of the verified graph is changed: the class of many images, and the indices are those."""

    def broken(program: None, file: Path, metadata: object) -> None:
        model = onnx.load(finished / "export" / "model.onnx")
        (bias,) = (each for each in model.graph.initializer if each.name.endswith("classifier.bias"))
        changed = onnx.numpy_helper.to_array(bias).copy()
        changed[3] += 0.05
        bias.CopyFrom(onnx.numpy_helper.from_array(changed, bias.name))
        onnx.save(model, file)

    monkeypatch.setattr(export_formats, "capture", lambda deployed: None)
    monkeypatch.setattr(export_formats, "write_onnx", broken)
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        export.main([str(finished), "--out", str(out)])
    assert ended.value.code == 4
    assert [path.name for path in out.iterdir()] == ["unverified"]
    found = json.loads((out / "unverified" / "export.json").read_text())["files"]["model.onnx"]
    recipe = read_recipe(str(finished / "recipe.yaml"))
    test = prepared_data.load(prepared_data.prepare(recipe.data), recipe, torch.device("cpu")).test
    models = (finished / "export" / "model.onnx", out / "unverified" / "model.onnx")
    before, after = (
        onnxruntime.InferenceSession(model).run(["logits"], {"images": test.images.numpy()})[0].argmax(1)
        for model in models
    )
    assert found["differing"] == test.indices[before != after].tolist() and 0 < len(found["differing"]) < 100
    assert found["largest_difference"] == pytest.approx(0.05, abs=1e-5)
    shown = ", ".join(map(str, found["differing"][:50]))
    assert f"{len(found['differing'])} classes differ (test images {shown}" in capsys.readouterr().err


def test_agreement_takes_equal_classes_and_equal_logits_up_to_rounding() -> None:
    """An offset of all logits keeps the classes, and rounding may change one."""
    logits = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    images = ImageDataset(torch.zeros(9, 1, 1, 3), torch.from_numpy(logits.argmax(1)), np.arange(9))
    shifted = export_files.compare(logits + 0.01, logits, images)
    assert not shifted["agrees"] and not shifted["differing"] and shifted["accuracy"] == 1
    assert export_files.compare(logits + 1e-6, logits, images)["agrees"]
    assert not export_files.compare(logits * np.nan, logits, images)["agrees"]
    tie = logits.copy()
    tie[4] = tie.max()
    near = tie + np.float32([0, 0, 1e-6])  # rounding alone gives image 4 another class
    found = export_files.compare(near, tie, images)
    assert found["differing"] == [4] and found["largest_difference"] <= found["rounding"] and not found["agrees"]


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("test_vit", torch.float16),
        pytest.param("test_efficientnet", torch.bfloat16, marks=pytest.mark.proof_only),
        pytest.param("test_convnext", torch.float32, marks=pytest.mark.proof_only),
    ],
)
def test_families_and_16_bit_weights(name: str, stored: torch.dtype, tmp_path: Path) -> None:
    """An exported model in timm's format, as another program has rounded its weights."""
    recipe = read_recipe("debug", {"model.name": name, "data.image_size": "32", "data.interpolation": "bicubic"})
    model = create_model(recipe, 3, pretrained=False)
    preprocess = Preprocess(recipe.data, *map(torch.tensor, normalization(model, recipe)), Decoding((24, 24)))
    weights = {name: each.to(stored if each.is_floating_point() else None) for name, each in model.state_dict().items()}
    facts = {"preprocess": preprocess.facts}
    export_model(model, tmp_path / "model", recipe, tuple("abc"), weights, preprocess.timm_config, facts)
    assert {each.dtype for each in load_file(tmp_path / "model" / "model.safetensors").values()} - {torch.int64} == {
        stored
    }
    target = model_location.find_target(tmp_path / "model")
    loaded = loaded_model.load_model(target, model_location.recipe(target), DistributedContext("no"))
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (64, 24, 24, 3), dtype=np.uint8))
    with torch.no_grad():
        expected = loaded.model(loaded.preprocess(images)).numpy()
    program = export_formats.capture(Deployed(loaded))
    export_formats.write_onnx(program, tmp_path / "model.onnx", {})
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for logits in (
        session.run(["logits"], {"images": images.numpy()})[0],
        program.module()(images)[0].detach().numpy(),
    ):
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        assert (logits.argmax(1) == expected.argmax(1)).all() and len(set(expected.argmax(1))) > 1


def test_files_of_an_earlier_export_stay_with_the_same_weights_and_are_removed_with_others(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """What is not known to be of an earlier export is left alone."""
    compared = json.loads((finished / "export" / "export.json").read_text())

    def write(formats: set[str], model: object, target: object, folder: Path, calibration: object) -> None:
        names = {"onnx": ["model.onnx"], "int8": ["model-int8.onnx"], "pt2": ["model.pt2"]}
        for name in ["config.json", "model.safetensors"] if formats == {"timm"} else names[min(formats)]:
            (folder / name).write_text(name)

    def run_all(folder: Path, *_: object) -> dict:
        names = [file.name for file in folder.iterdir() if file.name != "config.json"]
        found = {name: {**compared["files"]["model.onnx"], "sha256": sha256(folder / name)} for name in names}
        return {**compared, "files": found}

    def files() -> set[str]:
        return {file.name for file in tmp_path.iterdir()}

    monkeypatch.setattr(export_files, "write_formats", write)
    monkeypatch.setattr(export_files, "_run_all", run_all)
    (tmp_path / "notes.txt").write_text("")
    for formats in ("timm", "pt2"):
        AcceleratorState._reset_state(True)
        export.main([str(finished), "--to", formats, "--out", str(tmp_path)])
    earlier = {"config.json", "model.safetensors", "model.pt2"}
    always = {"notes.txt", "README.md", "export.json"}
    assert files() == earlier | always
    found = json.loads((tmp_path / "export.json").read_text())
    assert list(found["files"]) == ["model.pt2", "model.safetensors"], "push uploads both"
    (tmp_path / "export.json").write_text(json.dumps({**found, "model": "other weights"}))
    (tmp_path / "model.pt2").write_text("of another program")
    AcceleratorState._reset_state(True)
    capsys.readouterr()
    export.main([str(finished), "--out", str(tmp_path)])
    assert files() == {"model.onnx", "model.pt2"} | always
    names = f"{tmp_path / 'model.safetensors'}, {tmp_path / 'config.json'}"
    assert f"removed, of other weights: {names}" in capsys.readouterr().out


def test_only_a_model_that_has_seen_these_images_is_exported(finished: Path, tmp_path: Path) -> None:
    config = json.loads(Path(shutil.copytree(finished / "model", tmp_path / "model"), "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "fingerprint": "f00d"}))
    with pytest.raises(
        UserError, match="is not known to be trained on the present images of 'synthetic': name its own"
    ):
        export.main([str(tmp_path / "model"), "--data.source", "synthetic", "--to", "pt2"])


def test_a_model_that_torch_cannot_export_is_named(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(deployed: Deployed) -> None:
        raise RuntimeError("a data-dependent\n   branch")

    monkeypatch.setattr(export_formats, "capture", refuse)
    with pytest.raises(UserError, match=r"torch cannot export mlp_head \(a data-dependent branch\): use --to timm"):
        export.main([str(finished), "--to", "pt2", "--out", str(tmp_path)])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="export starts processes of its own: run it without a launcher"):
        export_files.export(model_location.find_target(finished), read_recipe("debug"), {"pt2"}, tmp_path)
