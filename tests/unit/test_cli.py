"""cli.py: words of the command line become a recipe; mistakes become one sentence from one process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from resnet_cifar.cli.entry import run as entry_run
from resnet_cifar.cli.train import parse_arguments
from resnet_cifar.config.diff import flatten
from resnet_cifar.config.errors import NodeError, UserError
from resnet_cifar.config.loading import read_recipe, recipe_names, write_recipe
from resnet_cifar.config.schema import Recipe
from resnet_cifar.config.train_options import TrainOptions, extended
from resnet_cifar.config.validation import parse

ROOT = Path(__file__).parents[2]
Run = Callable[..., subprocess.CompletedProcess]
HEAVY = ("torch", "timm", "numpy", "datasets", "torchvision", "accelerate", "scipy", "wandb", "rich.progress")


def recipe_of(*arguments: str) -> Recipe:
    return parse_arguments(list(arguments))[1]


def sentence(*arguments: str) -> str:
    with pytest.raises(UserError) as caught:
        parse_arguments(list(arguments))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_arguments_it_is_the_default_recipe() -> None:
    command, recipe = parse_arguments([])
    assert command == TrainOptions(
        recipe="finetune", run="", dry_run=False, restart=False, extend_epochs=0.0, max_minutes=0.0
    )
    assert recipe == read_recipe("finetune")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--run", "caf\udce9"), r"--run 'caf\udce9' is not UTF-8: rename it"),
        (("--run", "a\nb"), r"--run 'a\nb' contains a line break or control character: rename it"),
        (("--data.source", "caf\udce9"), r"data.source 'caf\udce9' is not UTF-8: rename it"),
        (
            ("--track.project", "a\x1b[31m"),
            r"track.project 'a\x1b[31m' contains a line break or control character: rename it",
        ),
        (
            ("--run", f"a/{'b' * 300}"),
            f"--run 'a/{'b' * 38}'... is longer than the 255 bytes of a file name: shorten it",
        ),
        (
            ("--data.source", "é" * 200),
            f"data.source '{'é' * 40}'... is longer than the 255 bytes of a file name: shorten it",
        ),
        (("--recipe", "caf\udce9.yaml"), r"--recipe 'caf\udce9.yaml' is not UTF-8: rename it"),
    ],
)
def test_names_that_cannot_be_shown_are_refused_before_anything_starts(arguments: tuple[str, ...], said: str) -> None:
    assert sentence(*arguments) == said


def test_an_argument_that_no_file_can_have_is_one_sentence(run: Run) -> None:
    done = run("-m", "resnet_cifar", "predict", "model", "a" * 300)
    assert (done.returncode, done.stderr) == (
        2,
        f"error: {'a' * 80} cannot be used (File name too long): name another\n",
    )


def test_a_sentence_stays_one_line_whatever_names_are_in_it() -> None:
    assert str(UserError("a\nb\x1b[31m\udce9\u2028: \u00e9 \U0001f431")) == (
        r"a\nb\x1b[31m\udce9\u2028: " + "\u00e9 \U0001f431"
    )


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_console_prints_what_it_lacks_as_escapes(encoding: str, run: Run) -> None:
    code = (
        "import sys; from resnet_cifar.cli.entry import run\n"
        "def say(words):\n"
        "    print('\\u00fc \\U0001f431 \\udce9')\n"
        "    print('\\u00fc \\U0001f431 \\udce9', file=sys.stderr)\n"
        "sys.exit(run(say))"
    )
    done = run("-c", code, env={"PYTHONIOENCODING": encoding})
    assert (done.returncode, done.stdout) == (0, done.stderr), done.stderr
    if encoding == "ascii":
        assert done.stdout == "\\xfc \\U0001f431 \\udce9\n"


def test_own_options_are_read_and_are_not_part_of_the_recipe() -> None:
    command, recipe = parse_arguments(
        ["--recipe", "debug", "--run", "runs/x", "--dry_run", "--restart", "--max_minutes", "1.5"]
    )
    assert command == TrainOptions(recipe="debug", run="runs/x", dry_run=True, restart=True, max_minutes=1.5)
    assert recipe == read_recipe("debug")


@pytest.mark.parametrize("name", ["extend-epochs", "max-minutes"])
@pytest.mark.parametrize(("word", "value"), [("10", 10.0), ("0.5", 0.5), ("1e2", 100.0)])
def test_a_number_of_epochs_or_minutes_is_read(name: str, word: str, value: float) -> None:
    for arguments in ([f"--{name}", word], [f"--{name}={word}"], [f"--{name.replace('-', '_')}", word]):
        command, recipe = parse_arguments(arguments)
        assert command == TrainOptions(**{name.replace("-", "_"): value})
        assert recipe == read_recipe("finetune"), "the recipe itself stays, so that its folder is found"


@pytest.mark.parametrize("name", ["extend-epochs", "max-minutes"])
@pytest.mark.parametrize("word", ["0", "-1", "nan", "inf", "soon", "", "1h"])
def test_a_number_that_is_none_or_not_above_0_is_refused(name: str, word: str) -> None:
    assert sentence(f"--{name}", word) == f"--{name} cannot be {word!r}: it should be a number above 0"


@pytest.mark.parametrize("word", ["0", "-1", "1.5", "all", "", "²"])
def test_a_number_of_steps_is_whole(word: str) -> None:
    assert parse_arguments(["--profile-steps", "12"])[0] == TrainOptions(profile_steps=12)
    assert (
        sentence("--profile-steps", word) == f"--profile-steps cannot be {word!r}: it should be a whole number above 0"
    )


@pytest.mark.parametrize("name", ["extend-epochs", "max-minutes", "profile-steps"])
def test_a_number_that_is_missing_is_shown_by_an_example(name: str) -> None:
    assert sentence(f"--{name}") == f"--{name} needs a value, for example --{name} 10"


def test_going_on_and_starting_over_are_not_both_done() -> None:
    assert sentence("--extend-epochs", "3", "--restart").startswith(
        "--extend-epochs continues a run and --restart starts over"
    )


def test_an_extended_recipe_has_one_more_phase_like_its_last_without_a_warm_up() -> None:
    phases = [{"epochs": 1, "lr": 0.3}, {"epochs": 5, "lr": 0.1, "warmup_epochs": 2, "schedule": "linear"}]
    phases[1]["min_steps"] = 100
    recipe = parse({"seed": 3, "phases": phases})
    longer = extended(recipe, 2.5)
    assert longer == parse({"seed": 3, "phases": [*phases, {"epochs": 2.5, "lr": 0.1, "schedule": "linear"}]})
    assert extended(recipe, 0.0) == recipe


def test_overrides_reach_every_depth_and_leave_the_rest() -> None:
    arguments = ["--seed", "3", "--data.limit", "100", "--phases.0.lr", "2e-5", "--track.trackers", "none"]
    ours, shipped = flatten(recipe_of("--recipe", "debug", *arguments)), flatten(read_recipe("debug"))
    changed = {path: value for path, value in ours.items() if value != shipped[path]}
    assert changed == {"seed": 3, "data.limit": 100, "phases.0.lr": 2e-5, "track.trackers": "none"}


def test_a_phase_is_appended() -> None:
    recipe = recipe_of("--recipe", "demo", "--phases.1.epochs", "2", "--phases.1.lr", "0.5")
    assert len(recipe.phases) == 2
    assert recipe.phases[0] == read_recipe("demo").phases[0]
    assert (recipe.phases[1].epochs, recipe.phases[1].lr, recipe.phases[1].schedule) == (2.0, 0.5, "cosine")


def test_a_skipped_phase_is_refused() -> None:
    assert sentence("--recipe", "demo", "--phases.2.lr", "1").startswith("--phases.2.lr skips a phase")


def test_an_appended_phase_needs_its_rate() -> None:
    assert sentence("--recipe", "demo", "--phases.1.epochs", "2") == "phases.1.lr is missing: give it a value"


def test_a_value_may_follow_an_equals_sign_or_be_empty_or_negative() -> None:
    recipe = recipe_of("--seed=4", "--data.source=a/b", "--model.init_from=")
    assert (recipe.seed, recipe.data.source, recipe.model.init_from) == (4, "a/b", "")
    assert sentence("--seed", "-1").startswith("seed cannot be '-1'")


def test_dashes_and_underscores_are_the_same() -> None:
    assert recipe_of("--batch-size", "64") == recipe_of("--batch_size", "64")


@pytest.mark.parametrize(("word", "value"), [("False", False), ("false", False), ("True", True), ("no", False)])
def test_booleans_are_written_out(word: str, value: bool) -> None:
    assert recipe_of("--model.pretrained", word).model.pretrained is value


def test_a_boolean_without_its_word_is_refused() -> None:
    assert sentence("--model.pretrained", "--seed", "1").startswith("--model.pretrained needs a value")


@pytest.mark.parametrize("flag", ["--restart=False", "--dry_run=no", "--restart=0"])
def test_a_flag_that_is_told_no_is_not_on(flag: str) -> None:
    """Either it is off, or the word after the equals sign is refused: never the opposite of what was asked."""
    try:
        command, _ = parse_arguments([flag])
    except UserError:
        return
    assert not command.restart
    assert not command.dry_run


@pytest.mark.parametrize("word", ["null", "None", "none"])
def test_norm_batch_null_on_the_command_line(word: str) -> None:
    assert recipe_of("--model.ghost_batch_size", word).model.ghost_batch_size is None


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("--batch_sise", "batch_size"),
        ("--data.sorce", "data.source"),
        ("--phases.0.epocs", "phases.0.epochs"),
        ("--recipee", "recipe"),
        ("--dry_rum", "dry-run"),
        ("--ghost_batch_sise", "model.ghost_batch_size"),
    ],
)
def test_an_unknown_field_suggests_the_right_one(written: str, meant: str) -> None:
    assert sentence(written, "1") == f"unknown field {written}; did you mean {meant}?"


def test_a_suggestion_stays_in_the_phase_that_was_written() -> None:
    assert "phases.0" not in sentence("--phases.1.lrr", "1")


@pytest.mark.parametrize("arguments", [("--seed",), ("--seed", "--restart"), ("--phases.0.lr",), ("--run",)])
def test_a_missing_value_is_named(arguments: tuple[str, ...]) -> None:
    assert sentence(*arguments).startswith(f"{arguments[0]} needs a value")


def test_a_word_that_belongs_to_no_option_is_refused() -> None:
    assert sentence("finetune").startswith("'finetune' belongs to no option: resnet-cifar train [--recipe")


def test_command_line_and_yaml_give_one_sentence_for_one_mistake(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("data: {limit: '-3'}")
    assert sentence("--recipe", str(tmp_path / "r.yaml")) == sentence("--data.limit", "-3")


@pytest.mark.parametrize("text", ["data:\nseed: 1", "data: 5", "phases:", "phases: [null]", "phases: {lr: 1}"])
def test_an_override_below_something_that_holds_no_fields_is_a_mistake_or_works(text: str, tmp_path: Path) -> None:
    """`data:` with its lines commented out is null in YAML."""
    (tmp_path / "r.yaml").write_text(text)
    try:
        recipe = recipe_of("--recipe", str(tmp_path / "r.yaml"), "--data.limit", "50", "--phases.0.lr", "0.5")
    except UserError:
        return
    assert (recipe.data.limit, recipe.phases[0].lr) == (50, 0.5)


@pytest.mark.parametrize("text", ["", "- 1", "just words", "a: [1", "a: b: c", "\x00"])
def test_a_file_that_is_no_recipe_is_a_mistake_that_names_it(text: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(text)
    assert str(tmp_path / "r.yaml") in sentence("--recipe", str(tmp_path / "r.yaml"))


def test_a_file_of_bytes_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\xfa")
    assert "is not YAML" in sentence("--recipe", str(tmp_path / "r.yaml"))


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("seed: 1\nbatch_size: 64\nseed: 2\n", 3, "seed"),
        ("data:\n  limit: 1\n  limit: 1\n", 3, "limit"),
        ("phases:\n  - {epochs: 1, lr: 1, epochs: 2}\n", 2, "epochs"),
    ],
)
def test_a_key_that_is_given_twice_is_refused(text: str, line: int, key: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(text)
    said = sentence("--recipe", str(tmp_path / "r.yaml"))
    assert said == f"{tmp_path / 'r.yaml'}, line {line}: {key} is given twice: keep one of them"


def test_a_key_that_replaces_one_of_an_anchor_is_given_once(tmp_path: Path) -> None:
    anchors = "phases:\n- &a {epochs: 1, lr: 1}\n- &b {<<: *a, epochs: 2}\n- {<<: *b, epochs: 3}\n"
    (tmp_path / "r.yaml").write_text(anchors)
    assert [phase.epochs for phase in recipe_of("--recipe", str(tmp_path / "r.yaml")).phases] == [1, 2, 3]


def test_a_recipe_that_cannot_be_read_is_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "r.yaml").write_text("seed: 1")
    monkeypatch.setattr(Path, "open", refuse)
    assert "r.yaml cannot be read (Permission denied)" in sentence("--recipe", str(tmp_path / "r.yaml"))


def test_recipe_list_shows_every_recipe_with_its_first_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_arguments(["--recipe", "list"])
    assert not ended.value.code
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(
        path.stem for path in (ROOT / "resnet_cifar" / "config" / "recipes").glob("*.yaml")
    )
    assert any(line.startswith("demo ") and "ResNet-50" in line for line in lines)


def test_recipe_list_is_silent_on_other_ranks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # the launcher has started the others too
    with pytest.raises(SystemExit):
        parse_arguments(["--recipe", "list"])
    assert capsys.readouterr().out == ""


def test_an_unknown_recipe_suggests_one() -> None:
    assert sentence("--recipe", "finetun") == (
        f"there is no recipe 'finetun'; did you mean finetune? (shipped: {', '.join(recipe_names())})"
    )


def test_a_recipe_file_that_is_not_there_is_a_mistake(tmp_path: Path) -> None:
    assert "there is no recipe" in sentence("--recipe", str(tmp_path / "none.yaml"))


def test_a_resolved_recipe_file_runs_again_to_the_same_recipe(tmp_path: Path) -> None:
    arguments = ["--recipe", "debug", "--precision", "no", "--model.ghost_batch_size", "null", "--phases.0.lr", "3e-7"]
    recipe = recipe_of(*arguments)
    write_recipe(recipe, tmp_path / "recipe.yaml")
    assert recipe_of("--recipe", str(tmp_path / "recipe.yaml")) == recipe


def test_a_relative_folder_means_the_same_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pictures").mkdir()
    monkeypatch.chdir(tmp_path)
    assert recipe_of("--data.source", "pictures").data.source == str(tmp_path / "pictures")


def test_a_relative_file_means_the_same_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.npz").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert recipe_of("--data.source", "a.npz").data.source == str(tmp_path / "a.npz")


def test_what_a_file_says_about_its_source_is_not_said_about_another(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("data: {source: a/b, config_name: fine, columns: {label: kind}, limit: 50}")
    own = recipe_of("--recipe", str(tmp_path / "r.yaml"), "--data.config_name", "coarse").data
    assert (own.config_name, own.columns.label, own.limit) == ("coarse", "kind", 50)
    other = recipe_of("--recipe", str(tmp_path / "r.yaml"), "--data.source", "c/d", "--data.columns.image", "x").data
    assert (other.config_name, other.columns.label, other.columns.image, other.limit) == ("", "", "x", 50)


def test_synthetic_is_the_embedded_set_even_beside_a_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`sources.find` says so; the command line must not have turned it into the folder before."""
    (tmp_path / "synthetic").mkdir()
    monkeypatch.chdir(tmp_path)
    assert recipe_of("--recipe", "demo").data.source == "synthetic"


# Who says what


def said_by(rank: int, local_rank: int, error: Exception, monkeypatch, capsys) -> str:
    """What one of six processes on three nodes prints when `error` ends it."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    for name, value in {"RANK": rank, "LOCAL_RANK": local_rank, "WORLD_SIZE": 6, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr("socket.gethostname", lambda: "node2")

    def main(arguments: list[str]) -> None:
        raise error

    if isinstance(error, UserError):
        assert entry_run(main) == 2
    else:
        with pytest.raises(type(error)):
            entry_run(main)
    return capsys.readouterr().err


def test_a_mistake_of_all_is_said_by_rank_0(monkeypatch, capsys) -> None:
    said = [said_by(rank, rank % 2, UserError("no"), monkeypatch, capsys) for rank in range(4)]
    assert said == ["error: no\n", "", "", ""]


def test_a_mistake_of_a_machine_is_said_by_its_first_process(monkeypatch, capsys) -> None:
    said = [said_by(rank, rank % 2, NodeError("no"), monkeypatch, capsys) for rank in (2, 3)]
    assert said == ["error: rank 2 on node2: no\n", ""]


def test_an_error_says_whose_it_is(monkeypatch, capsys) -> None:
    assert said_by(3, 1, RuntimeError("bad"), monkeypatch, capsys) == "rank 3 on node2 failed:\n"


# The two programs, as they are started


def plain(page: str) -> str:
    """A page of `--help` without its boxes and line breaks."""
    return " ".join(re.sub(r"[─-╿]", " ", page).split())


@pytest.mark.parametrize("name", ["debug", "scratch"])
def test_help_shows_every_field_with_the_recipes_value(name: str, run: Run) -> None:
    done = run("train.py", "--recipe", name, "--help", env={"COLUMNS": "100"})
    assert done.returncode == 0
    assert done.stderr == ""
    page = plain(done.stdout)
    for path, value in flatten(read_recipe(name)).items():
        shown = re.search(rf" --{re.escape(path)} .*?\(default: (.*?)\)", page)
        assert shown is not None, path
        assert shown[1].strip("'") == str(value), path
    for option in (
        "--recipe",
        "--run",
        "--dry-run",
        "--download-only",
        "--restart",
        "--extend-epochs",
        "--max-minutes",
        "--profile-steps",
        "--compile",
    ):
        assert option in done.stdout


def test_help_offers_nothing_that_is_refused(run: Run) -> None:
    page = plain(run("train.py", "--help", env={"COLUMNS": "100"}).stdout)
    mentioned = {"help"}
    for option in sorted(set(re.findall(r" --(\w[\w.-]*)", page)) - mentioned):
        try:
            parse_arguments([f"--{option}", "1"])
        except UserError as mistake:
            assert "unknown field" not in str(mistake)


def test_help_of_eval_offers_what_is_taken_and_nothing_else(run: Run) -> None:
    done = run("eval.py", "--help")
    assert done.returncode == 0
    options = set(re.findall(r" --(\w[\w.-]*)", done.stdout)) - {"help"}
    own = {"split", "tta", "out", "images", "json", "verify-export", "precision"}
    assert {option for option in options if not option.startswith("data.")} == own
    assert {f"data.{name}" for name in ("source", "limit", "image_size")} < options
    assert "RUN/checkpoints/step-..." in done.stdout


def test_help_imports_nothing_heavy(run: Run) -> None:
    done = run("-X", "importtime", ROOT / "train.py", "--help")
    imported = {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "resnet_cifar.config.loading" in imported
    assert imported.isdisjoint(HEAVY)


def test_a_command_is_checked_before_anything_heavy_is_imported(run: Run) -> None:
    script = (
        "import sys; from resnet_cifar.cli import train; "
        "train.parse_arguments(['--recipe', 'debug', '--seed', '3', '--data.source', 'a/b']); print(*sys.modules)"
    )
    imported = run("-c", script).stdout.split()
    assert "resnet_cifar.config.loading" in imported
    assert set(imported).isdisjoint(HEAVY)


def test_a_mistake_is_one_line_from_rank_0(run: Run) -> None:
    done = run("train.py", "--lr", "1", env={"RANK": "0"})
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "error: unknown field --lr: use --phases.0.lr 1\n"


def test_a_mistake_of_a_value_is_one_line_without_a_traceback(run: Run, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("seed: [1\ndata: {")
    done = run("train.py", "--recipe", "r.yaml")
    assert done.returncode == 2
    assert done.stderr.startswith("error: r.yaml is not YAML")
    assert done.stderr.count("\n") == 1


def test_other_ranks_say_nothing_and_end_alike(run: Run) -> None:
    done = run("train.py", "--lr", "1", env={"RANK": "1", "TORCHELASTIC_RUN_ID": "none"})
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["--help"], ["--recipe", "list"]])
def test_a_reader_that_leaves_early_sees_no_traceback(arguments: list[str], unbuffered: str) -> None:
    """`train.py --help | head -1`: the pipe's reader is gone before the first word is written."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, str(ROOT / "train.py"), *arguments],
            stdout=writer,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            text=True,
            check=False,
            timeout=60,
        )
    finally:
        os.close(writer)
    assert done.stderr == ""


def test_main_is_given_the_arguments_and_its_success_is_0(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(sys, "argv", ["train.py", "--seed", "1"])
    assert entry_run(seen.append) == 0
    assert seen == [["--seed", "1"]]


def test_a_written_recipe_is_plain_yaml_in_the_order_of_the_fields(tmp_path: Path) -> None:
    write_recipe(read_recipe("debug"), tmp_path / "r.yaml")
    assert list(yaml.safe_load((tmp_path / "r.yaml").read_text())) == list(Recipe.__dataclass_fields__)


def test_digits_of_other_scripts_are_no_numbers() -> None:
    with pytest.raises(UserError, match="unknown field --phases"):
        parse_arguments(["--phases.\u00b2.lr", "1"])
