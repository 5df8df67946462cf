"""run_folder.py: whose folder it is, what lies in it, and files that are whole or not there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from resnet_cifar import cli, run_folder
from resnet_cifar.recipe import Mistake, Recipe, fingerprint, parse
from resnet_cifar.run_folder import RunFolder


def recipe_of(**values: object) -> Recipe:
    return parse({"phases": [{"epochs": 1, "lr": 0.1}], **values})


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / "a")


def names(path: Path) -> set[str]:
    return {file.name for file in path.iterdir()}


def test_the_default_path_is_the_recipes_name_and_fingerprint() -> None:
    recipe = recipe_of(seed=5)
    assert run_folder.default_path("debug", recipe) == Path(f"runs/debug-{fingerprint(recipe)}")
    assert run_folder.default_path("some/where/mine.yaml", recipe) == Path(f"runs/mine-{fingerprint(recipe)}")


def test_a_claim_writes_recipe_environment_and_owner(folder: RunFolder) -> None:
    folder.claim(recipe_of(seed=5), {"python": "3"})
    assert cli.read_recipe(str(folder.path / "recipe.yaml")) == recipe_of(seed=5)
    assert json.loads((folder.path / "environment.json").read_text()) == {"python": "3"}
    owner = json.loads((folder.path / "owner.json").read_text())
    assert (owner["start"], owner["pid"]) == (1, os.getpid())
    assert names(folder.path) == {"recipe.yaml", "environment.json", "owner.json"}


def test_a_later_start_takes_over_and_the_earlier_one_stops(folder: RunFolder) -> None:
    folder.claim(recipe_of(), {})
    folder.keep_owning()
    later = RunFolder(folder.path)
    later.claim(recipe_of(), {})
    later.keep_owning()
    assert json.loads((folder.path / "owner.json").read_text())["start"] == 2
    with pytest.raises(Mistake, match=r"taken over by start 2 \(this is 1\)"):
        folder.keep_owning()
    with pytest.raises(Mistake):
        folder.status("failed")
    assert not (folder.path / "status.json").exists()


def test_a_folder_that_is_gone_is_not_owned(folder: RunFolder) -> None:
    folder.claim(recipe_of(), {})
    folder.move_aside()
    with pytest.raises(Mistake):
        folder.keep_owning()


def test_a_folder_that_cannot_be_written_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Mistake, match=r"--run .*file/run cannot be written"):
        RunFolder(tmp_path / "file" / "run").claim(recipe_of(), {})


def test_check_accepts_what_is_not_there_empty_or_the_same(folder: RunFolder) -> None:
    folder.check(recipe_of())
    folder.path.mkdir(parents=True)
    folder.check(recipe_of())
    folder.claim(recipe_of(), {})
    folder.check(recipe_of())
    folder.check(recipe_of(track={"to": "none"}, checkpoint={"keep": 4}))


def test_check_names_what_differs(folder: RunFolder) -> None:
    folder.claim(recipe_of(seed=5), {})
    with pytest.raises(Mistake) as caught:
        folder.check(recipe_of(seed=6, data={"limit": 50}))
    assert "belongs to another recipe" in str(caught.value)
    assert "seed: 6, not 5" in str(caught.value)
    assert "data.limit: 50, not 0" in str(caught.value)


def test_check_refuses_a_file_and_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("")
    with pytest.raises(Mistake, match="holds files that are no run"):
        RunFolder(tmp_path / "notes").check(recipe_of())
    with pytest.raises(Mistake, match="is a file"):
        RunFolder(tmp_path / "notes" / "a.txt").check(recipe_of())


def test_starting_over_loses_nothing(folder: RunFolder) -> None:
    assert folder.move_aside() is None
    for number in (1, 2):
        folder.claim(recipe_of(seed=number), {})
        aside = folder.move_aside()
        assert aside == folder.path.with_name(f"a.before-{number}")
        assert cli.read_recipe(str(aside / "recipe.yaml")).seed == number
        assert not folder.path.exists()


def test_the_status_says_what_and_when_and_leaves_no_half_file(folder: RunFolder) -> None:
    folder.claim(recipe_of(), {})
    folder.status("running", step=3)
    folder.status("finished", step=9)
    status = json.loads((folder.path / "status.json").read_text())
    assert (status["state"], status["step"]) == ("finished", 9)
    assert not [name for name in names(folder.path) if name.endswith(".writing")]


@pytest.mark.parametrize(
    "write",
    [
        lambda file: run_folder.write_text(file, "new"),
        lambda file: run_folder.write_json(file, {"new": 1}),
    ],
)
def test_a_write_that_is_cut_short_leaves_the_old_file(
    write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "status.json"
    file.write_text("old")

    def killed(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        write(file)
    assert file.read_text() == "old"
    monkeypatch.undo()
    write(file)  # what was left aside is in nobody's way
    assert "new" in file.read_text()
    assert names(tmp_path) == {"status.json"}


def test_a_value_that_is_no_json_leaves_the_old_file(tmp_path: Path) -> None:
    run_folder.write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        run_folder.write_json(tmp_path / "a.json", {"a": object()})
    assert run_folder.read_json(tmp_path / "a.json") == {"a": 1}


def test_a_result_is_there_or_not(folder: RunFolder) -> None:
    assert folder.result() is None
    folder.claim(recipe_of(), {})
    assert folder.result() is None
    run_folder.write_json(folder.path / "result.json", {"test/accuracy": 0.5})
    assert folder.result() == {"test/accuracy": 0.5}


@pytest.fixture
def rows(folder: RunFolder) -> RunFolder:
    """A folder with rows of steps 2, 4 and 6."""
    folder.claim(recipe_of(), {})
    for step in (2, 4, 6):
        folder.append_row({"step": step, "train/loss": step / 8})
    return folder


def steps(folder: RunFolder) -> list[int]:
    return [json.loads(line)["step"] for line in (folder.path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("step", "kept"), [(0, []), (3, [2]), (4, [2, 4]), (9, [2, 4, 6])])
def test_rows_after_the_checkpoint_are_cut_and_written_again(step: int, kept: list[int], rows: RunFolder) -> None:
    rows.cut_rows(step)
    assert steps(rows) == kept
    rows.append_row({"step": 10})
    assert steps(rows) == [*kept, 10]


def test_without_rows_there_is_nothing_to_cut(folder: RunFolder) -> None:
    folder.cut_rows(0)
    assert not folder.path.exists()


def test_a_row_that_a_killed_run_left_half_written_is_cut(rows: RunFolder) -> None:
    with (rows.path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 8, "train/lo')
    rows.cut_rows(6)
    assert steps(rows) == [2, 4, 6]
