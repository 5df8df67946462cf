"""Search spaces from words of the command line, and the arguments of tune."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from resnet_cifar.cli import tune
from resnet_cifar.cli.tune import TuneOptions
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.sweeps import search_space
from resnet_cifar.sweeps.search_space import Choices, Range


def found(path: str, word: str) -> Range | Choices | None:
    return search_space.read("scratch", {path: word}).ranges.get(path)


@pytest.mark.parametrize(
    ("path", "word", "range_", "said"),
    [
        ("phases.0.lr", "1e-4..1e-1", Range(1e-4, 1e-1), "0.0001 to 0.1, on a log scale"),
        ("phases.0.lr", "1..10", Range(1.0, 10.0), "1.0 to 10.0, on a log scale"),
        ("phases.0.lr", "0.1..0.9", Range(0.1, 0.9), "0.1 to 0.9, linear"),
        ("augment.mixup_alpha", "0..1", Range(0.0, 1.0), "0.0 to 1.0, linear"),
        ("augment.cutout", "0..16", Range(0, 16), "0 to 16, whole numbers"),
        ("micro_batch", "1..200", Range(1, 200), "1 to 200, whole numbers"),
        ("data.image_size", "32..64", Range(32, 64), "32 to 64, whole numbers"),
    ],
)
def test_a_range_of_numbers_is_of_the_fields_kind(path: str, word: str, range_: Range, said: str) -> None:
    assert found(path, word) == range_
    assert type(found(path, word).low) is type(range_.low)
    assert str(range_) == said


@pytest.mark.parametrize(
    ("path", "word", "choices"),
    [
        ("optimizer.name", "sgd,adamw,lamb", ("sgd", "adamw", "lamb")),
        ("phases.0.schedule", "cosine, linear", ("cosine", "linear")),
        ("batch_size", "64,128", ("64", "128")),
        ("model.pretrained", "True,False", ("True", "False")),
        ("model.ghost_batch_size", "32,null", ("32", "null")),
        ("micro_batch", "0,auto", ("0", "auto")),
        ("model.init_from", "runs/a,b;runs/c", ("runs/a,b", "runs/c")),
    ],
)
def test_choices_are_separated_by_commas_or_where_they_hold_some_by_semicolons(
    path: str, word: str, choices: tuple[str, ...]
) -> None:
    assert found(path, word) == Choices(choices)


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("track.trackers", "wandb,tensorboard"),
        ("data.source", "my,pictures"),
        ("model.init_from", "../runs/a"),
        ("track.project", "1..2"),
        ("phases.0.lr", "0.1"),
        ("seed", "3"),
    ],
)
def test_what_the_field_takes_as_it_is_stays_a_value(path: str, word: str) -> None:
    search = search_space.read("scratch", {path: word})
    assert search.ranges == {}
    assert search.recipe == read_recipe("scratch", {path: word})


@pytest.mark.parametrize(
    ("overrides", "start"),
    [
        ({"phases.0.lr": "1..0.1"}, "--phases.0.lr cannot be '1..0.1': it should be a value, a range LOW..HIGH"),
        ({"phases.0.lr": "1..1"}, "--phases.0.lr cannot be '1..1'"),
        ({"phases.0.lr": "1e-4.."}, "--phases.0.lr cannot be '1e-4..'"),
        ({"phases.0.lr": "..1"}, "--phases.0.lr cannot be '..1'"),
        ({"phases.0.lr": "1..2..3"}, "--phases.0.lr cannot be '1..2..3'"),
        ({"phases.0.lr": "0..1"}, "phases.0.lr cannot be '0': it should be greater than 0"),
        ({"data.image_size": "32..2000"}, "data.image_size cannot be '2000': it should be less than"),
        ({"phases.0.lr": "0.1,"}, "phases.0.lr cannot be ''"),
        ({"optimizer.name": "sgd,sgd"}, "--optimizer.name cannot be 'sgd,sgd': a choice is listed twice"),
        ({"phases.0.schedule": "cosine,linaer"}, "phases.0.schedule cannot be 'linaer'"),
        (
            {"track.trackers": "wandb,tensorbord"},
            "track.trackers cannot be 'wandb,tensorbord': 'tensorbord' is none of",
        ),
        ({"seed": "0..4"}, "--seed 0..4 cannot be searched, trials are compared on the same seed, images"),
        ({"data.limit": "100,200"}, "--data.limit 100,200 cannot be searched"),
        ({"evaluate.every_epochs": "0.5,1"}, "--evaluate.every_epochs 0.5,1 cannot be searched"),
        ({"batch_size": "33..64"}, "batch_size 33 is not a multiple of 32"),
        ({"batch_size": "64..128"}, "--batch_size 64..128 contains invalid numbers (batch_size 65 is not a"),
        (
            {"phases.0.warmup_epochs": "0..500", "phases.0.epochs": "10..100"},
            "phases.0.warmup_epochs 500 is longer than",
        ),
        ({"phases.1.lr": "0.1..1"}, "phases.1.epochs is missing"),
        ({"phases.7.lr": "0.1..1"}, "--phases.7.lr skips a phase"),
    ],
)
def test_a_range_that_can_have_no_trial_is_refused(overrides: dict[str, str], start: str) -> None:
    with pytest.raises(UserError, match=re.escape(start)):
        search_space.read("scratch", overrides)


def test_an_end_that_suits_another_searched_fields_end_is_taken() -> None:
    """A warm-up of 50 epochs is too long for the recipe's 10 epochs, and not for 100."""
    search = search_space.read("scratch", {"phases.0.warmup_epochs": "0..50", "phases.0.epochs": "10..100"})
    with pytest.raises(UserError, match="longer than the phase"):
        search.recipe_of({"phases.0.warmup_epochs": 50.0, "phases.0.epochs": 10.0})
    assert search.recipe_of({"phases.0.warmup_epochs": 50.0, "phases.0.epochs": 100.0}).phases[0].warmup_epochs == 50


def test_a_list_is_a_value_and_lists_are_chosen_from_with_semicolons() -> None:
    assert search_space.read("scratch", {"model.head.hidden_dims": "128,64"}).ranges == {}
    assert found("model.head.hidden_dims", "128,64;256;none") == Choices(("128,64", "256", "none"))
    with pytest.raises(UserError, match=re.escape("--model.head.hidden_dims cannot be '64..128'")):
        found("model.head.hidden_dims", "64..128")


def test_a_trials_recipe_has_the_values_and_the_rest_of_the_search() -> None:
    lr = 0.1 + 0.2  # 0.30000000000000004
    search = search_space.read("debug", {"phases.0.lr": "1e-4..1", "optimizer.name": "sgd,lamb", "data.limit": "50"})
    recipe = search.recipe_of({"phases.0.lr": lr, "optimizer.name": "lamb"})
    words = {"phases.0.lr": repr(lr), "optimizer.name": "lamb"}
    assert recipe == read_recipe("debug", {**words, "data.limit": "50"})
    assert search_space.words({"phases.0.lr": lr, "optimizer.name": "lamb"}) == words


# The command


def test_tune_reads_its_own_options_and_leaves_the_fields_as_they_were_written() -> None:
    words = [
        "debug",
        "--trials",
        "7",
        "--phases.0.lr",
        "1e-3..1",
        "--prune=3",
        "--run",
        "S",
        "--track.trackers",
        "none",
    ]
    command, overrides = tune.parse_arguments(words)
    assert command == TuneOptions(recipe="debug", trials=7, prune=3, run="S")
    assert overrides == {"phases.0.lr": "1e-3..1", "track.trackers": "none"}


@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        ((), "RECIPE is missing: resnet-cifar tune RECIPE"),
        (("debug", "demo"), "'demo' belongs to no option"),
        (("debug", "--trials", "0"), "--trials cannot be '0'"),
        (("debug", "--trials"), "--trials needs a value, for example --trials 10"),
        (("debug", "--prune", "some"), "--prune cannot be 'some'"),
        (("debug", "--launch", ""), "--launch cannot be ''"),
        (("debug", "--phases.0.lrr", "1..2"), "unknown field --phases.0.lrr; did you mean phases.0.lr?"),
    ],
)
def test_tune_answers_mistakes(arguments: tuple[str, ...], start: str) -> None:
    with pytest.raises(UserError, match=re.escape(start)):
        tune.parse_arguments(list(arguments))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("debugg --seed 1", "there is no recipe 'debugg'; did you mean debug?"),
        ("debug --seed 1", "tune needs a range: --phases.0.lr 1e-4..1e-1, or choices, --optimizer.name sgd,adamw,lamb"),
        (
            "debug --phases.0.lr 1..2 --data.validation_fraction 0",
            "data.validation_fraction 0 leaves no images to compare trials on",
        ),
        (
            "debug --phases.0.lr 1..2 --data.overfit_images 32",
            "data.overfit_images 32 validates on the images it trains on",
        ),
        ("debug --phases.0.lr 1..2 --run notes", "--run notes contains files but no search"),
        ("debug --phases.0.lr 1..2 --run notes/list", "--run notes/list cannot be used"),
    ],
)
def test_a_mistake_is_one_sentence_before_anything_is_started(words: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "list").write_text("")
    command = [sys.executable, "-X", "importtime", "-m", "resnet_cifar", "tune", *words.split()]
    done = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    *imported, said = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, "")
    assert said.startswith(f"error: {sentence}")
    assert all(line.startswith("import time:") for line in imported)
    assert not re.search(r"\b(torch|timm|datasets)$", "\n".join(imported), re.MULTILINE)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["list", "notes"]


@pytest.mark.parametrize(
    ("field", "word", "sentence"),
    [
        ("optimizer.name", "sgd,adamww", "optimizer.name 'adamww' is not one of timm's optimizers; did you mean adamw"),
        ("model.name", "resnet18,resnet5o", "model.name 'resnet5o'"),
    ],
)
def test_a_name_that_timm_does_not_know_is_refused_before_any_trial(
    field: str, word: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(sentence)):
        tune.main(["debug", f"--{field}", word])
    assert list(tmp_path.iterdir()) == []


def test_without_optuna_it_says_which_extra_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=re.escape("tune needs the package optuna: pip install -e '.[tune]'")):
        tune.main(["debug", "--phases.0.lr", "1..2"])
    assert list(tmp_path.iterdir()) == []
