"""config/: the fields, what a value may be, and the sentence that answers one that may not."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from resnet_cifar.config import diff
from resnet_cifar.config.diff import differences, field_paths, fingerprint, flatten, to_dict
from resnet_cifar.config.errors import RENAMED, UserError
from resnet_cifar.config.loading import is_field, read_recipe, recipe_names, write_recipe
from resnet_cifar.config.schema import Phase, Recipe, Track
from resnet_cifar.config.validation import parse

FIELDS = field_paths()
# These may differ between two attempts at one run; every other field decides the result.
NOT_DECISIVE = [
    "data.storage",
    "rank_timeout",
    "refit_of",
    *(path for path in FIELDS if path.startswith(("evaluate.every_epochs", "checkpoint.", "track."))),
]
DECISIVE = [path for path in FIELDS if path not in NOT_DECISIVE]


def another_value(path: str) -> Any:
    """A valid value of the field that is not its default, whatever its type."""
    default = value_at(Recipe(), path)
    numbers = [8, 64, 0.5, 0.25, 2]
    candidates = [not default] if isinstance(default, bool) else [*numbers, "none", "other", "resnet18", "0,9", "wandb"]
    kind: Any = Recipe
    for part in path.removeprefix("phases.0.").split("."):
        kind = typing.get_type_hints(Phase if path.startswith("phases.") else kind, include_extras=True)[part]
    candidates += [word for each in (kind, *typing.get_args(kind)) for word in typing.get_args(each)]  # of Literal
    for value in candidates:
        with contextlib.suppress(UserError, TypeError):
            found = value_at(parse(nested(path, value)), path)
            if found != default:
                return found
    raise AssertionError(f"no candidate is another value of {path}: add one")


def nested(path: str, value: Any) -> dict[str, Any]:
    """The values of a recipe in which only `path` is given."""
    if path.startswith("phases.0."):
        field = path.removeprefix("phases.0.")
        schedule = {"schedule": "polynomial"} if field == "power" else {}  # which it belongs to
        return {"phases": [{"epochs": 20, "lr": 0.02, **schedule, field: value}]}
    if path == "track.notify_accuracy":
        return {"track": {"notify": "wandb", "notify_accuracy": value}}  # somebody to tell
    for part in reversed(path.split(".")):
        value = {part: value}
    return value


def value_at(recipe: Recipe, path: str) -> Any:
    here: Any = recipe
    for part in path.split("."):
        here = here[int(part)] if part.isdigit() else getattr(here, part)
    return here


def sentence(values: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        parse(values)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_every_field_of_the_dataclasses_has_a_path_and_documentation() -> None:
    def paths(kind: type, prefix: str) -> Iterator[str]:
        documented = re.findall(r'^    (\w+): .*\n    """', inspect.getsource(kind), flags=re.MULTILINE)
        for field in dataclasses.fields(kind):
            if dataclasses.is_dataclass(default := getattr(Recipe() if kind is Recipe else kind(), field.name)):
                yield from paths(type(default), f"{prefix}{field.name}.")
            elif field.name == "phases":
                yield from (f"phases.0.{each.name}" for each in dataclasses.fields(Phase))
            else:
                assert field.name in documented, field.name
                yield f"{prefix}{field.name}"

    assert list(paths(Recipe, "")) == FIELDS


def test_what_only_the_proof_runs_names_fields_that_there_are() -> None:
    """A field that is renamed would otherwise break tests that CI leaves out, and nobody would see it for weeks."""
    rooms = ("slurm", "faults", "distributed", "endtoend", "hub", "tracking", "browser")
    named = {}
    for file in (file for room in rooms for file in (Path(__file__).parents[1] / room).rglob("*.py")):
        text = file.read_text()
        options = re.findall(r"\"--([a-z_]+(?:\.[a-z0-9_]+)+)\b", text)
        keywords = re.findall(r"\b([a-z]+(?:__[a-z0-9_]+?)+)=", text)
        named |= dict.fromkeys([*options, *(word.replace("__", ".") for word in keywords)], file.name)
    assert len(named) > 30
    assert {name: file for name, file in named.items() if not is_field(name)} == {"optimizer.nmae": "test_jobs.py"}


@pytest.mark.parametrize("name", recipe_names())
def test_a_shipped_recipe_is_the_same_after_a_round_trip_through_yaml(name: str, tmp_path: Path) -> None:
    shipped = read_recipe(name)
    write_recipe(shipped, tmp_path / "again.yaml")
    assert read_recipe(str(tmp_path / "again.yaml")) == shipped


def test_every_value_survives_a_round_trip_through_yaml(tmp_path: Path) -> None:
    """Words that YAML reads as something else (no, null) are the ones that could be lost."""
    phases = [{"epochs": 0.1, "lr": 1e-7, "schedule": "one-cycle"}, {"epochs": 3, "lr": 2, "warmup_epochs": 1}]
    ours = parse(
        {"precision": "no", "model": {"ghost_batch_size": None}, "track": {"trackers": "none"}, "phases": phases}
    )
    write_recipe(ours, tmp_path / "again.yaml")
    assert read_recipe(str(tmp_path / "again.yaml")) == ours


def test_a_rate_without_a_point_is_a_number() -> None:
    """YAML 1.1 reads 2e-5 as a string."""
    values = yaml.safe_load("phases: [{epochs: 1, lr: 2e-5}]")
    assert isinstance(values["phases"][0]["lr"], str)
    assert parse(values).phases[0].lr == 0.00002


@pytest.mark.parametrize("value", ["0,0,0,1,1,1", [0, 0, 0, 1.0, 1, 1], "[0, 0, 0, 1, 1, 1]"])
def test_images_may_be_normalized_with_numbers_of_ones_own(value: Any) -> None:
    assert parse({"data": {"normalize": value}}).data.normalize == (0.0, 0.0, 0.0, 1.0, 1.0, 1.0)


@pytest.mark.parametrize("value", ["imagenet", "0,0,0,1,1", "0,0,0,1,0,1", None, [], "0,0,0,1,1,1,1", True])
def test_other_normalizations_are_refused(value: Any) -> None:
    assert sentence({"data": {"normalize": value}}).startswith(
        f"data.normalize cannot be {value!r}: it should be model, none, or mean and std of red, green and blue: six"
    )


@pytest.mark.parametrize("word", ["no", "'no'"])
def test_precision_no_means_float32(word: str) -> None:
    assert parse(yaml.safe_load(f"precision: {word}")).precision == "no"


@pytest.mark.parametrize("word", ["null", "'null'", "~", "None"])
def test_ghost_batch_size_null_is_none_in_yaml(word: str) -> None:
    assert parse(yaml.safe_load(f"model: {{ghost_batch_size: {word}}}")).model.ghost_batch_size is None


def test_whole_numbers_of_the_command_line_are_words() -> None:
    values = {"batch_size": "64", "model": {"ghost_batch_size": "16", "pretrained": "False"}}
    ours = parse(values)
    assert (ours.batch_size, ours.model.ghost_batch_size, ours.model.pretrained) == (64, 16, False)


@pytest.mark.parametrize(
    ("values", "path"),
    [
        ({"batchsize": 4}, "batchsize"),
        ({"data": {"sizes": 4}}, "data.sizes"),
        ({"phases": [{"epochs": 1, "lr": 1, "wramup": 1}]}, "phases.0.wramup"),
        ({"phases": [{"epochs": 1, "lr": 1}, {"epochs": 1, "lr": 1, "momentum": 1}]}, "phases.1.momentum"),
    ],
)
def test_an_unknown_field_is_named_with_its_path(values: dict[str, Any], path: str) -> None:
    assert sentence(values).startswith(f"unknown field {path}")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ({"batch_sise": 4}, "batch_size"),
        ({"model": {"pretained": True}}, "model.pretrained"),
        ({"phases": [{"epochs": 1, "lr": 1, "wramup": 1}]}, "phases.0.warmup_epochs"),
    ],
)
def test_an_unknown_field_suggests_the_one_that_was_meant(written: dict[str, Any], meant: str) -> None:
    assert sentence(written).endswith(f"did you mean {meant}?")


def test_a_suggestion_stays_in_the_phase_that_was_written() -> None:
    phases = [{"epochs": 1, "lr": 1}, {"epochs": 1, "lr": 1, "wramup": 1}]
    assert "phases.0" not in sentence({"phases": phases})


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed", "first"),
        ("seed", True),
        ("batch_size", 2.5),
        ("batch_size", None),
        ("data.limit", "1e3"),
        ("data.source", ""),
        ("data.source", 5),
        ("data.validation_fraction", True),
        ("data.interpolation", "lanczos"),
        ("model.pretrained", "maybe"),
        ("model.ghost_batch_size", "many"),
        ("model.head.pool", "mean"),
        ("model.head.hidden_dims", "128;64"),
        ("model.head.hidden_dims", [128, 0]),
        ("model.head.hidden_dims", "65537"),
        ("model.head.hidden_dims", True),
        ("model.head.init", "he"),
        ("model.ghost_batch_size", True),
        ("phases.0.lr", "fast"),
        ("phases.0.schedule", "exponential"),
        ("track.trackers", "comet"),
        ("track.trackers", "wandb,comet"),
        ("track.trackers", ["wandb", "wandb"]),
        ("track.trackers", "wandb,none"),
        ("track.trackers", []),
        ("track.trackers", ""),
        ("track.trackers", True),
        ("deterministic", "perhaps"),
        ("rank_timeout", True),
        ("early_stopping.patience", 1.5),
        ("early_stopping.patience", True),
        ("early_stopping.metric", "top5"),
        ("checkpoint.every_minutes", "often"),
        ("data", None),
        ("phases", 5),
        ("data.source", "~no-such-user/photos"),
        ("model.init_from", "local-dir:~no-such-user/M"),
        ("model.name", "local-dir:~no-such-user/M"),
    ],
)
def test_a_wrong_type_is_answered_with_path_and_value(path: str, value: Any) -> None:
    assert sentence(nested(path, value)).startswith(f"{path} cannot be {value!r}: ")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed", -1),
        ("batch_size", 1),
        ("micro_batch", -1),
        ("data.limit", -1),
        ("data.validation_fraction", 1.0),
        ("data.validation_fraction", -0.1),
        ("data.image_size", 7),
        ("data.image_size", 1025),
        ("augment.crop_padding", 65),
        ("augment.random_erasing", 1.1),
        ("augment.mixup_alpha", -1.0),
        ("model.ghost_batch_size", 1),
        ("model.head.dropout", 1.0),
        ("optimizer.weight_decay", float("nan")),
        ("optimizer.head_lr_multiplier", 0.0),
        ("loss.label_smoothing", 1.0),
        ("phases.0.epochs", 0.0),
        ("phases.0.lr", float("inf")),
        ("phases.0.lr", -0.1),
        ("phases.0.warmup_epochs", -1.0),
        ("evaluate.every_epochs", 0.0),
        ("checkpoint.keep_last", 0),
        ("checkpoint.every_steps", -1),
        ("checkpoint.every_minutes", -0.5),
        ("checkpoint.every_minutes", float("inf")),
        ("checkpoint.every_epochs", -1.0),
        ("rank_timeout", 0.0),
        ("rank_timeout", -1.0),
        ("rank_timeout", float("nan")),
        ("early_stopping.patience", -1),
        ("early_stopping.min_delta", -0.1),
    ],
)
def test_a_value_out_of_range_is_answered_with_path_and_value(path: str, value: Any) -> None:
    assert sentence(nested(path, value)).startswith(f"{path} cannot be {value!r}: ")


@pytest.mark.parametrize("left_out", ["epochs", "lr"])
def test_what_is_missing_is_named_with_its_path(left_out: str) -> None:
    phase = {key: 1 for key in ("epochs", "lr") if key != left_out}
    assert sentence({"phases": [{"epochs": 1, "lr": 1}, phase]}) == f"phases.1.{left_out} is missing: give it a value"


def test_a_recipe_has_at_least_one_phase() -> None:
    assert sentence({"phases": []}).startswith("phases is empty, so nothing would be trained: add one")
    assert not parse({"phases": [], "model": {"head": {"init": "probe"}}}).phases, "the head is fitted"


@pytest.mark.parametrize(
    ("batch", "norm", "ending"), [(100, 32, "use 96 or 128"), (20, 32, "use 32"), (33, 32, "use 32 or 64")]
)
def test_a_batch_that_ghost_batches_do_not_divide_names_the_nearest_that_they_do(
    batch: int, norm: int, ending: str
) -> None:
    text = sentence({"batch_size": batch, "model": {"ghost_batch_size": norm}})
    assert text.startswith(f"batch_size {batch} is not a multiple of ")
    assert f"model.ghost_batch_size {norm}" in text
    assert text.endswith(f": {ending}")


def test_an_odd_batch_names_its_neighbours() -> None:
    text = sentence({"batch_size": 7, "model": {"ghost_batch_size": None}})
    assert text.startswith("batch_size 7 is ")
    assert text.endswith(": use 6 or 8")


@pytest.mark.parametrize("word", ["none", "None", "no", "'no'", "null", "~", "[none]", "false"])
def test_no_tracker_may_be_written_in_many_ways(word: str) -> None:
    assert parse(yaml.safe_load(f"track: {{trackers: {word}}}")).track.trackers == "none"


@pytest.mark.parametrize("word", ["[wandb, tensorboard]", "'wandb,tensorboard'", "'wandb, tensorboard'"])
def test_several_trackers_are_a_list_or_words_with_commas(word: str) -> None:
    ours = parse(yaml.safe_load(f"track: {{trackers: {word}}}"))
    assert ours.track.trackers == "wandb,tensorboard"
    assert parse(to_dict(ours)) == ours


def test_a_wrong_tracker_is_answered_with_those_that_there_are() -> None:
    assert sentence({"track": {"trackers": "wandb,comet"}}) == (
        "track.trackers cannot be 'wandb,comet': 'comet' is none of wandb, trackio, tensorboard, mlflow and none"
    )
    assert sentence({"track": {"trackers": "wandb,wandb"}}).endswith(": wandb is listed twice: name it once")
    assert sentence({"track": {"trackers": "none,wandb"}}).endswith(": name trackers, or none alone")


@pytest.mark.parametrize(("batch", "norm"), [(7, None), (9, 3), (10, 3), (45, 5), (100, 32), (104, 7)])
def test_the_batches_that_are_named_are_accepted(batch: int, norm: int | None) -> None:
    """With an odd ghost batch the nearest multiple may be odd, and the nearest even number no multiple."""
    text = sentence({"batch_size": batch, "model": {"ghost_batch_size": norm}})
    for size in text.split("use ")[1].split(" or "):
        parse({"batch_size": int(size), "model": {"ghost_batch_size": norm}})


def test_a_micro_batch_larger_than_the_batch_is_refused() -> None:
    assert sentence({"micro_batch": 512}).startswith("micro_batch 512 is larger than batch_size 256")


def test_a_warm_up_longer_than_its_phase_is_refused() -> None:
    phases = [{"epochs": 5, "lr": 1}, {"epochs": 2, "lr": 1, "warmup_epochs": 2.5}]
    assert sentence({"phases": phases}).startswith("phases.1.warmup_epochs 2.5 is longer than the phase's 2 epochs")


def test_one_cycle_brings_its_own_warm_up() -> None:
    phases = [{"epochs": 5, "lr": 1, "warmup_epochs": 1, "schedule": "one-cycle"}]
    assert sentence({"phases": phases}).startswith("phases.0.warmup_epochs 1: one-cycle has its own warm-up")


def test_a_power_belongs_to_the_polynomial_schedule() -> None:
    phases = [{"epochs": 5, "lr": 1, "power": 2.0}]
    expected = "phases.0.power 2 belongs to schedule polynomial, not to cosine: set phases.0.schedule to polynomial"
    assert sentence({"phases": phases}).startswith(expected)
    assert parse({"phases": [{**phases[0], "schedule": "polynomial"}]}).phases[0].power == 2


@pytest.mark.parametrize("value", ["0.9,0.95", [0.9, 0.95], (0.9, 0.95), ["0.9", "0.95"]])
def test_betas_are_a_list_however_they_are_written(value: Any) -> None:
    assert parse({"optimizer": {"betas": value}}).optimizer.betas == (0.9, 0.95)


@pytest.mark.parametrize("value", ["0.9,1", "0.9 0.95", "a", [0.9, None], -0.1])
def test_betas_that_are_none_are_one_sentence(value: Any) -> None:
    assert sentence({"optimizer": {"betas": value}}).endswith("numbers from 0 to below 1, such as `0.9,0.95`, or none")


@pytest.mark.parametrize("path", NOT_DECISIVE)
def test_the_fingerprint_ignores_what_does_not_decide_the_result(path: str) -> None:
    ours, theirs = Recipe(), parse(nested(path, another_value(path)))
    assert value_at(theirs, path) != value_at(ours, path)
    assert fingerprint(ours) == fingerprint(theirs)
    assert differences(ours, theirs) == []


@pytest.mark.parametrize("path", DECISIVE)
def test_the_fingerprint_changes_with_every_decisive_field_and_the_difference_names_it(path: str) -> None:
    ours = parse(nested(path, 1.0)) if path == "phases.0.power" else Recipe()
    theirs = parse(nested(path, another_value(path)))
    assert value_at(theirs, path) != value_at(ours, path)
    assert fingerprint(ours) != fingerprint(theirs)
    assert f"{path}: {flatten(theirs)[path]}, not {flatten(ours)[path]}" in differences(ours, theirs)
    assert [text for text in differences(ours, theirs) if not text.startswith((path, "evaluate."))] == []


def test_a_field_at_its_default_does_not_enter_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    """A field that a later version adds leaves the names of all runs as they are."""
    recipes = [Recipe(), read_recipe("scratch"), read_recipe("keras_transfer")]
    before = [fingerprint(recipe) for recipe in recipes]
    known = diff.flatten
    monkeypatch.setattr(diff, "flatten", lambda recipe: {**known(recipe), "model.added_later": False})
    assert [fingerprint(recipe) for recipe in recipes] == before
    monkeypatch.setattr(diff, "flatten", lambda recipe: {**known(recipe), "phases.0.added_later": None})
    assert [fingerprint(recipe) for recipe in recipes] == before


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_a_renamed_field_is_answered_with_its_new_name(old: str, new: str) -> None:
    if new not in FIELDS:  # a flag: see test_cli
        return
    old, new = old.replace("phases.0", "phases.1"), new.replace("phases.0", "phases.1")
    first = {"epochs": 1, "lr": 1}
    if old.startswith("phases.1."):
        values: dict[str, Any] = {"phases": [first, {**first, old.removeprefix("phases.1."): 1}]}
    else:
        values = nested(old, 1)
    assert sentence(values) == f"unknown field {old}: it is now called {new}"


def stopping(patience: int, **values: Any) -> Recipe:
    return parse({"early_stopping": {"patience": patience}, **values})


@pytest.mark.parametrize("patience", [0, 1, 3])
def test_when_scores_are_taken_decides_only_where_they_end_training(patience: int) -> None:
    often, seldom = (stopping(patience, evaluate={"every_epochs": every}) for every in (1, 3))
    assert (fingerprint(often) == fingerprint(seldom)) == (patience == 0)
    assert differences(often, seldom) == (["evaluate.every_epochs: 3.0, not 1.0"] if patience else [])


@pytest.mark.parametrize("path", [path for path in NOT_DECISIVE if path != "evaluate.every_epochs"])
def test_with_early_stopping_the_rest_still_does_not_decide(path: str) -> None:
    assert fingerprint(stopping(3, **nested(path, another_value(path)))) == fingerprint(stopping(3))


def test_early_stopping_needs_a_validation_split() -> None:
    without = {"data": {"validation_fraction": 0}}
    assert sentence({"early_stopping": {"patience": 3}, **without}) == (
        "early_stopping.patience 3 needs a validation split: set data.validation_fraction or data.splits.validation, "
        "or patience to 0"
    )
    assert sentence({"evaluate": {"select_by": "macro_f1"}, **without}) == (
        "evaluate.select_by macro_f1 needs a validation split: set data.validation_fraction or data.splits.validation, "
        "or select_by to accuracy"
    )
    assert stopping(0, **without).data.validation_fraction == 0
    assert stopping(3, data={"validation_fraction": 0, "overfit_images": 8}).early_stopping.patience == 3


def test_two_checkpoints_are_kept_so_that_a_damaged_one_has_one_before_it() -> None:
    assert Recipe().checkpoint.keep_last == 2


def test_the_fingerprint_is_eight_hex_digits_and_counts_the_phases() -> None:
    one = Recipe()
    two = replace(one, phases=(*one.phases, Phase(epochs=1, lr=0.1)))
    for name in (fingerprint(one), fingerprint(two)):
        assert len(name) == 8
        assert int(name, 16) >= 0
    assert fingerprint(one) != fingerprint(two)
    assert "phases.1.lr: 0.1, not absent" in differences(one, two)


def test_a_field_that_was_not_written_and_its_default_are_one_experiment() -> None:
    """The folder's name must not change when the resolved recipe is run again."""
    assert fingerprint(parse({"phases": [{"epochs": 20, "lr": "2e-2"}]})) == fingerprint(Recipe())


def test_plain_values_read_back_to_the_same_recipe() -> None:
    ours = parse({"phases": [{"epochs": 1, "lr": 1}, {"epochs": 2, "lr": 0.5}], "track": {"trackers": "none"}})
    assert parse(to_dict(ours)) == ours
    assert ours.track == Track(trackers="none")


@pytest.mark.parametrize(("word", "value"), [("auto", "auto"), ("64", 64), (0, 0)])
def test_micro_batch_is_a_number_or_auto(word: Any, value: Any) -> None:
    assert parse({"micro_batch": word}).micro_batch == value


@pytest.mark.parametrize("word", ["many", -1, 1.5, True, None])
def test_another_micro_batch_is_refused(word: Any) -> None:
    text = sentence({"micro_batch": word})
    assert text == f"micro_batch cannot be {word!r}: it should be `auto` or a whole number, 0 or more"


def test_what_fits_may_not_decide_what_batchnorm_sees() -> None:
    assert "micro_batch auto needs model.ghost_batch_size" in sentence(
        {"micro_batch": "auto", "model": {"ghost_batch_size": None}}
    )


@pytest.mark.parametrize("word", ["[128, 64]", "'128,64'", "'128, 64'"])
def test_hidden_dims_are_a_list_or_words_with_commas(word: str) -> None:
    ours = parse(yaml.safe_load(f"model: {{head: {{hidden_dims: {word}}}}}"))
    assert ours.model.head.hidden_dims == (128, 64)
    assert parse(to_dict(ours)) == ours


@pytest.mark.parametrize("word", ["[]", "''", "none", "null"])
def test_no_hidden_dims_may_be_written_in_many_ways(word: str) -> None:
    assert parse(yaml.safe_load(f"model: {{head: {{hidden_dims: {word}}}}}")).model.head.hidden_dims == ()


def test_one_hidden_dim_needs_no_list() -> None:
    assert parse({"model": {"head": {"hidden_dims": 128}}}).model.head.hidden_dims == (128,)


@pytest.mark.parametrize("word", ["[1, 2.5]", "'1,2.5'", "'1, 2.5'"])
def test_class_weights_are_a_list_or_words_with_commas(word: str) -> None:
    ours = parse(yaml.safe_load(f"loss: {{class_weights: {word}}}"))
    assert ours.loss.class_weights == (1.0, 2.5)
    assert parse(to_dict(ours)) == ours


@pytest.mark.parametrize("word", ["none", "null", "None", "no", "balanced", "[balanced]"])
def test_class_weights_may_be_words(word: str) -> None:
    expected = "balanced" if "balanced" in word else "none"
    assert parse(yaml.safe_load(f"loss: {{class_weights: {word}}}")).loss.class_weights == expected


@pytest.mark.parametrize("value", ["1,0", "1,-2", "1,inf", "1,nan", "1,", "equal", [], [1, True], {"cat": 2}, [[1, 2]]])
def test_class_weights_are_positive_numbers(value: Any) -> None:
    assert sentence({"loss": {"class_weights": value}}) == (
        f"loss.class_weights cannot be {value!r}: it should be none, balanced, or one number above 0 per class, such "
        "as `1,2.5`"
    )


def test_class_sizes_are_corrected_for_once() -> None:
    text = sentence({"loss": {"class_weights": "balanced"}, "data": {"sampling": "balanced"}})
    assert text.startswith("loss.class_weights balanced and data.sampling balanced both correct for class sizes")
    parse({"loss": {"class_weights": "1,2"}, "data": {"sampling": "balanced"}})


def test_a_head_is_deep_where_timm_has_none_like_it() -> None:
    assert not parse({"model": {"head": {"init": "glorot"}}}).model.head.is_deep
    for field, value in {"pool": "max", "hidden_dims": "8", "norm": True, "dropout": 0.1}.items():
        assert parse({"model": {"head": {field: value}}}).model.head.is_deep


def test_a_flattened_head_takes_images_of_one_size() -> None:
    values = {"model": {"head": {"pool": "flatten"}}, "phases": [{"epochs": 1, "lr": 1, "image_size": 128}]}
    assert sentence(values).startswith("phases.0.image_size 128: model.head.pool flatten takes images of one size")
