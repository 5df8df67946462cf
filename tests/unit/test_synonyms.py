"""Names of other tools are answered with ours, on the command line, in YAML and in Python; each answer is followed."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
import yaml

from resnet_cifar import notebook
from resnet_cifar.cli import evaluate, explore, predict, report, seeds, train, tune
from resnet_cifar.config import synonyms
from resnet_cifar.config.diff import field_paths, flatten
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Recipe
from resnet_cifar.config.validation import parse

TABLES = (synonyms._FIELDS, synonyms._SWITCHES, synonyms._ANSWERS)
WORDS = {word: target for target, words in synonyms._FIELDS.items() for word in words.split()}
SWITCHES = {word: target for (target, _), words in synonyms._SWITCHES.items() for word in words.split()}
ANSWERED = {word: answer for answer, words in synonyms._ANSWERS.items() for word in words.split()}
EXAMPLES = {
    "data.config_name": "plain",
    "model.init_from": "runs/a",
    "model.head.hidden_dims": "128,64",
    "model.name": "a",
}
EXAMPLES |= {f"data.{name}": "b" for name in ("splits.train", "splits.test", "columns.image", "columns.label")}
EXAMPLES |= {"phases.0.image_size": "32", "recipe": "debug", "max-minutes": "3", "extend-epochs": "2"}
EXAMPLES |= {"profile-steps": "3", "compile": "default", "out": "a", "run": "a", "data.source": "a b/c"}


def sentence(*words: str, parse_arguments: Any = train.parse_arguments) -> str:
    with pytest.raises(UserError) as caught:
        parse_arguments(list(words))
    return str(caught.value)


def yaml_sentence(text: str) -> str:
    with pytest.raises(UserError) as caught:
        parse(yaml.safe_load(text))
    return str(caught.value)


def example(target: str) -> str:
    return EXAMPLES.get(target) or str(flatten(Recipe())[target])


def test_every_name_is_in_one_table_and_means_something_that_exists() -> None:
    words = [synonyms._plain(word) for table in TABLES for words in table.values() for word in words.split()]
    assert sorted(words) == sorted(set(words))
    known = [*field_paths(), *synonyms.OPTIONS]
    assert {target for each in (*WORDS.values(), *SWITCHES.values()) for target in each.split("|")} <= set(known)
    assert set(synonyms._NOTED) | synonyms._CHANGED <= set(map(synonyms._plain, [*WORDS, *SWITCHES]))


@pytest.mark.parametrize("target", sorted({*WORDS.values(), *SWITCHES.values()}))
def test_the_advice_of_every_name_works_when_it_is_followed(target: str) -> None:
    """With the value of another tool; the answer is used as it stands, and must be taken by the same command."""
    first = target.split("|", maxsplit=1)[0]
    if first in ("images", "split", "tta", "verify-export"):  # of evaluate: below
        return
    for word in [word for word, meant in {**WORDS, **SWITCHES}.items() if meant == target]:
        given = [example(first)] if word in WORDS else []
        note = synonyms._NOTED.get(synonyms._plain(word), "")
        flag = advice(sentence(f"--{word}", *given), note)
        if given and synonyms._plain(word) not in synonyms._CHANGED:
            assert shlex.split(flag) == [f"--{first}", *given]
        follow(flag, train.parse_arguments, shlex.split(flag))
        if first not in synonyms.OPTIONS and word not in vars(Recipe()):  # `model: a` is a section's mistake
            lines = advice(yaml_sentence(yaml.safe_dump({word: given[0] if given else True})), note)
            follow(lines, parse, yaml.safe_load(lines))


def advice(said: str, note: str) -> str:
    """What is advised, without the note on it."""
    found = re.fullmatch(rf"unknown field \S+: use (.*){re.escape(note)}", said)
    assert found, said
    return found[1]


def follow(advised: str, take: Any, words: Any) -> None:
    """It is taken, or answered with something else: a value is missing or, in this recipe, impossible."""
    try:
        take(words)
    except UserError as error:
        assert not str(error).startswith("unknown"), advised


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("--learning_rate 0.1", "use --phases.0.lr 0.1"),
        ("--learning-rate=0.1", "use --phases.0.lr 0.1"),
        ("--learningRate 0.1", "use --phases.0.lr 0.1"),
        ("--optimizer.lr 0.1", "use --phases.0.lr 0.1"),
        ("--phases.1.learning_rate 0.1", "use --phases.1.lr 0.1"),
        ("--lr", "use --phases.0.lr"),
        ("-b 64", "use --batch_size 64"),
        ("--per_device_train_batch_size 32", "use --batch_size 32, the images of one step on all devices together"),
        ("--data_dir 'my photos'", "use --data.source 'my photos'"),
        ("--validation_split 0.1", "use --data.validation_fraction 0.1"),  # as in Keras
        ("--test_split held-out", "use --data.splits.test held-out"),
        ("--opt-betas 0.9 0.999", "use --optimizer.betas"),  # its own answer shows how two are written
        ("--sched cosine", "use --phases.0.schedule cosine"),
        ("--sched plateau", "use --phases.0.schedule"),  # its own answer names the choices
        ("--warmup_ratio 0.1", "use --phases.0.warmup_epochs, in epochs"),
        ("--amp", "use --precision bf16"),
        ("--fp16 False", "use --precision no"),
        ("--pretrained", "use --model.pretrained True"),
        ("--no-pretrained", "use --model.pretrained False"),
        ("--freeze 10", "use --phases.0.trainable head"),
        ("--freeze False", "remove it"),
        ("--wandb False", "use --track.trackers none"),
        ("--model-ema", "use --model.ema_decay 0.9998"),
        ("--ema 0.99", "use --model.ema_decay 0.99"),
        ("--config my.yaml", "use --recipe my.yaml"),
        ("--output_dir out", "use --run out"),
        ("--overwrite", "use --restart"),
        ("--weight-decay 0.1", "use --optimizer.weight_decay 0.1"),  # the last part of a field is enough
        ("--resume", "rerun the same command: it resumes from the latest checkpoint of its run directory (--run)"),
    ],
)
def test_a_flag_of_another_tool_is_answered_with_ours_and_its_value(words: str, advice: str) -> None:
    assert sentence(*shlex.split(words)).endswith(f": {advice}")


@pytest.mark.parametrize("word", sorted(ANSWERED))
def test_a_flag_without_a_counterpart_is_answered_with_what_to_do(word: str) -> None:
    assert sentence(f"--{word}", "1") == f"unknown field --{word}: {ANSWERED[word]}"
    if word not in vars(Recipe()):  # `loss: focal` is a section's mistake
        assert yaml_sentence(f"{word!r}: 1") == f"unknown field {word}: {ANSWERED[word]}"


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("learning_rate: 0.1", "unknown field learning_rate: use phases: [{epochs: 20, lr: 0.1}]"),
        ("{lr: 0.1, epochs: 5}", "unknown field lr: use phases: [{epochs: 5, lr: 0.1}]"),
        ("phases: [{epochs: 1, learning_rate: 0.1}]", "unknown field phases.0.learning_rate: use lr: 0.1"),
        ("{phases: [{epochs: 1, lr: 1}], warmup: 2}", "unknown field warmup: use warmup_epochs: 2 in phases.0"),
        ("training: {epochs: 5}", "unknown field training.epochs: use phases: [{epochs: 5, lr: 0.02}]"),
        ("optimizer: {wd: 0.1}", "unknown field optimizer.wd: use optimizer: {weight_decay: 0.1}"),
        ("sched: plateau", "unknown field sched: use phases: [{epochs: 20, lr: 0.02, schedule: ...}]"),
        (
            "model: resnet18",
            "model cannot be 'resnet18': it should have fields under it, such as `model: {name: resnet18}`",
        ),
        ("output_dir: x", "unknown field output_dir: it is no field of a recipe, but an option of train.py: --run x"),
    ],
)
def test_a_key_of_another_tool_is_answered_with_the_lines_of_a_recipe(text: str, advice: str) -> None:
    assert yaml_sentence(text) == advice


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        ({"learning_rate": 0.1}, {"phases.0.lr": 0.1}),
        ({"bs": 64}, {"batch_size": 64}),
        ({"optimizer": {"wd": 1e-4}}, {"optimizer.weight_decay": 1e-4}),
        ({"model": "resnet18"}, {"model.name": "resnet18"}),
        ({"output_dir": "x"}, {"run": "x"}),
        ({"overwrite": True}, {"restart": True}),
    ],
)
def test_a_python_argument_of_another_tool_is_answered_with_ours(given: dict[str, Any], advice: dict) -> None:
    with pytest.raises(UserError) as caught:
        notebook.train("debug", **given)
    found = re.fullmatch(r"unknown field \S+: use (.*)", str(caught.value))
    assert found and eval(f"dict({found[1]})") == advice


@pytest.mark.parametrize(
    ("main", "words", "said"),
    [
        (evaluate, "runs/a --bs 3", "batch_size cannot be changed here: only --data.* and --precision can"),
        (evaluate, "--model runs/a", "TARGET is given without a flag: resnet-cifar evaluate TARGET"),
        (evaluate, "runs/a --test_time_augmentation", "use --tta flip"),
        (evaluate, "runs/a --output x", "use --out x"),
        (evaluate, "runs/a --data x", "use --data.source x"),
        (evaluate, "runs/a --image x", "use --images x"),
        (predict, "runs/a --images a.jpg", "PATHS is given without a flag: resnet-cifar predict TARGET PATH"),
        (
            predict,
            "runs/a b.png --data.value_range 0,4095",
            "only --precision, --data.image_size, --data.interpolation and --data.normalize can",
        ),
        (explore, "--data x", "SOURCE is given without a flag: resnet-cifar explore SOURCE"),
        (report, "--run x", "RUN is given without a flag: resnet-cifar report RUN"),
        (report, "x --lr 3", "unknown option --lr; --help lists all"),
        (seeds, "--recipe debug", "RECIPE is given without a flag: resnet-cifar seeds RECIPE"),
        (tune, "debug --lr 1e-3..1e-1", "use --phases.0.lr 1e-3..1e-1"),
        (tune, "debug --opt sgd,adamw", "use --optimizer.name sgd,adamw"),
    ],
)
def test_other_commands_answer_with_what_they_take(main: Any, words: str, said: str) -> None:
    assert said in sentence(*words.split(), parse_arguments=main.parse_arguments)
