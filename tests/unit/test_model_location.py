"""target.py: runs, checkpoints and exported models told apart, where their scores go, and what is none of these."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from resnet_cifar.cli.evaluate import parse_arguments
from resnet_cifar.config.diff import to_dict
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import read_recipe, write_recipe
from resnet_cifar.evaluation import model_location

CONFIG = {
    "architecture": "test_resnet",
    "num_classes": 3,
    "label_names": ["ant", "bee", "cat"],
    "pretrained_cfg": {"input_size": [3, 48, 48], "interpolation": "bilinear", "crop_pct": 0.9},
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory with a checkpoint and a model, as far as their small files go."""
    run = tmp_path / "runs" / "a"
    checkpoint = run / "checkpoints" / "step-00000004"
    checkpoint.mkdir(parents=True)
    recipe = read_recipe("debug")
    write_recipe(recipe, run / "recipe.yaml")
    (checkpoint / "state.json").write_text(json.dumps({"recipe": to_dict(recipe)}))
    export(run / "model")
    return run


def export(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = {name: value for name, value in {**CONFIG, **changes}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def test_what_lies_in_a_run_is_scored_in_the_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, kind in ((run, "run"), (run / "checkpoints" / "step-00000004", "checkpoint"), (run / "model", "model")):
        target = model_location.find_target(path)
        assert (target.kind, target.run, target.results) == (kind, run, run)
        with monkeypatch.context() as patch:
            patch.chdir(path)
            assert model_location.find_target(Path()).results.resolve() == run


def test_what_stands_alone_is_scored_beside_it(run: Path, tmp_path: Path) -> None:
    (run / "checkpoints" / "step-00000004").rename(tmp_path / "saved")
    (run / "model").rename(tmp_path / "mine")
    for name in ("saved", "mine"):
        target = model_location.find_target(tmp_path / name)
        assert (target.run, target.results) == (None, tmp_path / f"{name}-scores")


def test_a_checkpoint_brings_its_recipe_and_a_model_its_input(run: Path, tmp_path: Path) -> None:
    checkpoint = (run / "checkpoints" / "step-00000004").rename(tmp_path / "saved")
    assert model_location.recipe(model_location.find_target(checkpoint), {"data.limit": "7"}) == read_recipe(
        "debug", {"data.limit": "7"}
    )
    data = model_location.recipe(model_location.find_target(run / "model")).data
    assert (data.source, data.image_size, data.interpolation) == ("synthetic", 48, "bilinear")
    alone = model_location.recipe(model_location.find_target(export(tmp_path / "alone")), {"data.image_size": "64"})
    assert (alone.model.name, alone.model.pretrained, alone.data.image_size) == ("test_resnet", False, 64)


def test_a_model_alone_needs_a_source_to_be_scored_and_none_to_label(tmp_path: Path) -> None:
    alone, picture = str(export(tmp_path / "alone")), tmp_path / "a.png"
    picture.write_text("")
    with pytest.raises(
        UserError, match=r"alone is a model without a recipe: name its evaluation data with --data.source"
    ):
        parse_arguments([alone])
    assert parse_arguments([alone, "--data.source", "synthetic"])[1].data.source == "synthetic"
    assert parse_arguments([alone, "--images", str(picture)])[0].images == (str(picture),)


def test_names_of_classes_may_be_keyed_by_number_and_lie_where_older_timm_puts_them(tmp_path: Path) -> None:
    names = {str(number): f"class {number}" for number in reversed(range(11))}
    found = model_location.read_export_config(export(tmp_path / "numbered", num_classes=11, label_names=names))
    assert found.classes == tuple(f"class {number}" for number in range(11))
    old = {"input_size": [3, 8, 8], "label_names": ["x", "y", "z"]}
    found = model_location.read_export_config(export(tmp_path / "old", label_names=None, pretrained_cfg=old))
    assert found.classes == ("x", "y", "z")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"label_names": None}, "names 0 classes for 3 outputs"),
        ({"label_names": ["a", "b", "b"]}, "names 2 classes for 3 outputs"),
        ({"architecture": None}, "is not that of a timm model (KeyError: 'architecture')"),
        ({"pretrained_cfg": {}}, "is not that of a timm model (KeyError: 'input_size')"),
        ({"pretrained_cfg": 3}, "is not that of a timm model"),
        ({"pretrained_cfg": {"input_size": [1, 28, 28]}}, "has input_size [1, 28, 28]: only square RGB images"),
        ({"pretrained_cfg": {"input_size": [3, 32, 64]}}, "has input_size [3, 32, 64]: only square RGB images"),
    ],
)
def test_an_export_that_is_none_says_what_it_lacks(changes: dict, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)) as caught:
        model_location.read_export_config(export(tmp_path / "model", **changes))
    assert str(tmp_path / "model" / "config.json") in str(caught.value)


def test_an_export_without_safetensors_is_told_how_to_get_them(tmp_path: Path) -> None:
    (export(tmp_path / "model") / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no model.safetensors: export with .*safe_serialization=True"):
        model_location.read_export_config(tmp_path / "model")


@pytest.mark.parametrize(
    ("content", "sentence"), [("{", "Expecting"), ("[]", "holds no object"), ('{"step": 1}', "holds no recipe")]
)
def test_a_checkpoint_that_is_none_is_a_sentence(content: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(UserError, match=f"state.json is not a checkpoint's .*{sentence}"):
        parse_arguments([str(tmp_path)])


@pytest.mark.parametrize("name", ["nowhere", "a-file", "empty"])
def test_what_is_no_folder_of_ours_is_a_sentence(name: str, tmp_path: Path) -> None:
    (tmp_path / "a-file").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"is not a run directory, checkpoint or exported model"):
        model_location.find_target(tmp_path / name)
