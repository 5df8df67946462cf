"""The arguments of seeds, explore, evaluate, predict, export, serve, report and compare."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from resnet_cifar.cli import evaluate, explore, export, report, seeds, serve, train
from resnet_cifar.cli.evaluate import EvaluateOptions
from resnet_cifar.cli.explore import ExploreOptions
from resnet_cifar.cli.seeds import SeedsOptions, seed_numbers
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import read_recipe, write_recipe
from resnet_cifar.evaluation import model_location

# seeds


@pytest.mark.parametrize(
    ("word", "numbers"),
    [("0..4", [0, 1, 2, 3, 4]), ("7..7", [7]), ("0,3,7", [0, 3, 7]), ("5", [5]), ("9,1", [9, 1])],
)
def test_seeds_are_a_range_with_both_ends_or_a_list(word: str, numbers: list[int]) -> None:
    assert seed_numbers(word) == numbers


@pytest.mark.parametrize(
    "word", ["4..0", "0..", "..4", "0...4", "0-4", "a", "", "1,1", "1,,2", "-1..2", "0..4,7", "1.5"]
)
def test_seeds_of_another_form_are_refused(word: str) -> None:
    with pytest.raises(UserError, match=r"--seeds cannot be .*it should be FIRST\.\.LAST, such as 0\.\.4, or a list"):
        seed_numbers(word)


def test_seeds_hands_its_words_on() -> None:
    command, recipe, words = seeds.parse_arguments(
        ["debug", "--seeds", "0,1", "--phases.0.lr", "0.5", "--data.limit=50"]
    )
    assert command == SeedsOptions(recipe="debug", seeds="0,1")
    assert (recipe.phases[0].lr, recipe.data.limit) == (0.5, 50)
    assert train.parse_arguments(["--recipe", "debug", *words])[1] == recipe


@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        ((), "RECIPE is missing: resnet-cifar seeds RECIPE"),
        (("debug", "demo"), "'demo' belongs to no option: resnet-cifar seeds RECIPE"),
        (("debugg",), "there is no recipe 'debugg'; did you mean debug?"),
        (("debug", "--seed", "3"), "--seed 3 and --seeds are the same"),
        (("debug", "--seeds"), "--seeds needs a value, for example --seeds 0..4"),
        (("debug", "--restart"), "unknown field --restart"),
        (("debug", "--launch", ""), "--launch cannot be ''"),
        (("debug", "--launch", "accelerate 'launch"), "--launch cannot be"),
        (("debug", "--data.limitt", "3"), "unknown field --data.limitt; did you mean data.limit?"),
    ],
)
def test_seeds_answers_mistakes(arguments: tuple[str, ...], start: str) -> None:
    with pytest.raises(UserError) as caught:
        seeds.parse_arguments(list(arguments))
    assert str(caught.value).startswith(start)


# explore


def test_explore_is_a_recipe_with_another_source() -> None:
    words = ["synthetic", "--recipe", "debug", "--data.limit", "50", "--out", "a.html"]
    command, recipe = explore.parse_arguments(words)
    assert command == ExploreOptions(source="synthetic", recipe="debug", out="a.html")
    assert recipe == read_recipe("debug", {"data.source": "synthetic", "data.limit": "50"})


@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        ((), "SOURCE is missing: resnet-cifar explore SOURCE"),
        (("a", "b"), "'b' belongs to no option"),
        (("synthetic", "--data.source", "x/y"), "--data.source x/y and synthetic both name the source"),
        (("synthetic", "--recipe", "debugg"), "there is no recipe 'debugg'; did you mean debug?"),
        (("synthetic", "--run", "x"), "unknown field --run"),
    ],
)
def test_explore_answers_mistakes(arguments: tuple[str, ...], start: str) -> None:
    with pytest.raises(UserError) as caught:
        explore.parse_arguments(list(arguments))
    assert str(caught.value).startswith(start)


# eval.py


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """What eval.py needs to accept a folder as a run."""
    folder = tmp_path / "a-run"
    folder.mkdir()
    write_recipe(read_recipe("debug"), folder / "recipe.yaml")
    return folder


def test_eval_reads_the_runs_recipe_and_changes_of_its_data(run_dir: Path) -> None:
    command, recipe = evaluate.parse_arguments([str(run_dir), "--split", "validation", "--data.limit", "50"])
    assert command == EvaluateOptions(target=str(run_dir), split="validation")
    assert recipe == read_recipe("debug", {"data.limit": "50"})


@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        ((), "TARGET is missing: resnet-cifar evaluate TARGET"),
        (("a", "b"), "'b' belongs to no option"),
        (("nowhere",), "nowhere is not a run directory"),
        (("nowhere", "--split", "valid"), "--split cannot be 'valid'"),
        (
            ("nowhere", "--model.name", "resnet18"),
            "--model.name cannot be changed here: only --data.* and --precision can",
        ),
        (("nowhere", "--tta", "crop"), "--tta cannot be 'crop': it should be none or flip"),
        (("nowhere", "--images"), "--images needs a value, for example --images PATH"),
        (("nowhere", "--images", "a.png"), "--images a.png: there is no such file"),
        (("--images", "nowhere", "a.png"), "TARGET is missing"),
        (("nowhere", "--images", "a.png", "--split", "test"), "--split is for evaluations"),
        (("nowhere", "--images", "a.png", "--out", "o"), "--out is for evaluations"),
        (
            ("nowhere", "--images", "tests", "--data.image-size", "64", "--data.value_range=0,4095"),
            "--data.value_range is for evaluations, and --images classifies images: remove one of them",
        ),
        (("nowhere", "--json"), "--json is for --images"),
        (
            ("nowhere", "--verify-export", "--split", "test"),
            "--verify-export compares with the run's own evaluation: remove --split",
        ),
        (
            ("nowhere", "--data.limit", "9", "--verify-export"),
            "--verify-export compares with the run's own evaluation: remove --data.",
        ),
        (("nowhere", "--imags", "a"), "unknown field --imags; did you mean images?"),
    ],
)
def test_eval_answers_mistakes(arguments: tuple[str, ...], start: str) -> None:
    with pytest.raises(UserError, match=re.escape(start)):
        evaluate.parse_arguments(list(arguments))


def test_eval_takes_all_words_after_images_up_to_the_next_option(run_dir: Path, tmp_path: Path) -> None:
    files = [str(tmp_path / name) for name in ("a.png", "b.jpg", "c.png")]
    for file in files:
        Path(file).write_text("")
    command, _ = evaluate.parse_arguments([str(run_dir), "--images", *files[:2], "--json", "--images", files[2]])
    assert (command.images, command.json) == (tuple(files), True)
    assert evaluate.parse_arguments([f"--images={files[0]}", str(run_dir)])[0].images == (files[0],)


@pytest.mark.parametrize(
    ("words", "images"),
    [
        (["RUN"], 0),
        (["RUN", "--verify-export"], 256),
        (["--verify-export", "RUN"], 256),
        (["--verify-export", "9", "RUN"], 9),
        (["RUN", "--verify-export=12"], 12),
        (["RUN", "--verify-export", "99999"], 99999),
    ],
)
def test_check_takes_a_number_or_none(run_dir: Path, words: list[str], images: int) -> None:
    (run_dir / "model").mkdir()
    for file in ("result.json", "model/config.json", "predictions-test.parquet"):
        (run_dir / file).write_text("")
    command, _ = evaluate.parse_arguments([str(run_dir) if word == "RUN" else word for word in words])
    assert command == EvaluateOptions(target=str(run_dir), verify_export=images)


@pytest.mark.parametrize("number", ["0", "many", "-3"])
def test_check_refuses_other_numbers(run_dir: Path, number: str) -> None:
    with pytest.raises(UserError, match=f"--verify-export cannot be '{number}': it should be a whole number above 0"):
        evaluate.parse_arguments([str(run_dir), f"--verify-export={number}"])


# export


@pytest.mark.parametrize(
    ("words", "formats"),
    [
        ([], {"onnx"}),
        (["--to", "onnx,pt2,timm"], {"onnx", "pt2", "timm"}),
        (["--to=timm"], {"timm"}),
        (["--quantize", "int8"], {"onnx", "int8"}),
    ],
)
def test_export_takes_a_list_of_formats(run_dir: Path, words: list[str], formats: set[str]) -> None:
    (run_dir / "model").mkdir()
    (run_dir / "model" / "config.json").write_text("")
    options, recipe = export.parse_arguments([str(run_dir), *words, "--data.source", "a/b"])
    assert (options.formats, recipe.data.source) == (formats, "a/b")


@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        ((), "RUN is missing: resnet-cifar export RUN"),
        (("nowhere",), "nowhere is not a run directory"),
        (("nowhere", "--to", "onnx,tflite"), "--to cannot be 'onnx,tflite': it should be a list of onnx, pt2, timm"),
        (("nowhere", "--to", ""), "--to cannot be ''"),
        (("nowhere", "--quantize", "int4"), "--quantize cannot be 'int4': it should be none or int8"),
        (
            ("nowhere", "--quantize", "int8", "--to", "pt2"),
            "--quantize int8 makes a second ONNX model: add onnx to --to",
        ),
        (("nowhere", "--data.limit", "5"), "--data.limit cannot be changed here: only --data.source can"),
    ],
)
def test_export_answers_mistakes(arguments: tuple[str, ...], start: str) -> None:
    with pytest.raises(UserError, match=re.escape(start)):
        export.parse_arguments(list(arguments))


def test_export_says_which_package_is_missing(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run_dir / "model").mkdir()
    (run_dir / "model" / "config.json").write_text("")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=re.escape("--to onnx needs the package onnx: pip install -e '.[onnx]'")):
        export.parse_arguments([str(run_dir)])
    assert export.parse_arguments([str(run_dir), "--to", "pt2,timm"])


# serve


def test_serve_runs_a_run_with_torch_and_an_export_with_onnxruntime(run_dir: Path) -> None:
    assert serve.parse_arguments([str(run_dir)])[1] == read_recipe("debug")
    assert serve.parse_arguments([str(run_dir), "--precision", "bf16"])[1].precision == "bf16"
    (run_dir / "export").mkdir()
    (run_dir / "export" / "model.onnx").write_text("")
    onnx = [[str(run_dir / "export")], [str(run_dir / "export" / "model.onnx")], [str(run_dir), "--backend", "onnx"]]
    assert [serve.parse_arguments(words)[1] for words in onnx] == [None, None, None]
    assert serve.parse_arguments([str(run_dir), "--port", "0"])[1] is not None


@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        ((), "RUN is missing: resnet-cifar serve RUN"),
        (("nowhere",), "nowhere is not a run directory"),
        (("nowhere", "--port", "http"), "--port cannot be 'http': it should be a number up to 65535"),
        (("nowhere", "--port", "65536"), "--port cannot be '65536'"),
        (("nowhere.onnx",), "nowhere.onnx: there is no such file"),
        (("nowhere", "--backend", "tensorrt"), "--backend cannot be 'tensorrt': it should be auto or torch or onnx"),
        (("nowhere", "--max-batch", "0"), "--max-batch cannot be '0'"),
        (("nowhere", "--data.limit", "5"), "--data.limit cannot be changed here: only --precision can"),
    ],
)
def test_serve_answers_mistakes(arguments: tuple[str, ...], start: str) -> None:
    with pytest.raises(UserError, match=re.escape(start)):
        serve.parse_arguments(list(arguments))


def test_serve_says_which_package_is_missing(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "python_multipart" else name)
    with pytest.raises(
        UserError, match=re.escape("serve needs the package python-multipart: pip install -e '.[serve]'")
    ):
        serve.parse_arguments([str(run_dir)])


@pytest.mark.parametrize(
    ("split", "keep_test", "fractions"),
    [("test", False, (0, 1)), ("test", True, (0, 0.1)), ("train", False, (0, 0.1)), ("validation", False, (0.1, 0.1))],
)
def test_other_images_are_not_cut_for_a_split_that_is_not_evaluated(
    split: str, keep_test: bool, fractions: tuple[float, float]
) -> None:
    refit = read_recipe("debug", {"refit_steps": "3"})
    found = evaluate.for_unseen_images(refit, split, keep_test)
    assert (found.data.validation_fraction, found.data.test_fraction) == fractions and found.refit_steps == 0


@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        ((), "RUN is missing: resnet-cifar report RUN"),
        (("nowhere",), "nowhere is not a run directory"),
        (("--runs", "x"), "unknown option --runs"),
        (("a", "b"), "'b' belongs to no option: resnet-cifar report RUN (to compare runs: resnet-cifar compare"),
    ],
)
def test_report_answers_mistakes(arguments: tuple[str, ...], start: str) -> None:
    with pytest.raises(UserError, match=re.escape(start)):
        report.parse_arguments(list(arguments))


def test_another_source_drops_what_described_the_first_also_where_a_run_is_scored(tmp_path: Path) -> None:
    text = "data: {source: a/b, config_name: plain, columns: {image: img, label: fine}, splits: {train: all}}"
    (tmp_path / "recipe.yaml").write_text(text)
    kept = model_location.recipe(model_location.find_target(tmp_path))
    assert (kept.data.config_name, kept.data.columns.image, kept.data.splits.train) == ("plain", "img", "all")
    other = model_location.recipe(model_location.find_target(tmp_path), {"data.source": "synthetic"})
    assert (other.data.config_name, other.data.columns.image, other.data.splits.train) == ("", "", "")
