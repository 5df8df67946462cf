"""Run directories side by side."""

from __future__ import annotations

from pathlib import Path

import pytest

from resnet_cifar.atomic_io import write_json
from resnet_cifar.config.loading import read_recipe, write_recipe
from resnet_cifar.reporting.comparison_table import compare, read_runs
from resnet_cifar.reporting.recipe_comparison import compare_recipes


def folder_of(path: Path, status: dict, result: dict | None = None, **overrides: str) -> Path:
    path.mkdir()
    write_recipe(read_recipe("debug", overrides), path / "recipe.yaml")
    write_json(path / "status.json", status)
    if result is not None:
        write_json(path / "result.json", result)
    return path


def test_a_row_for_each_run_with_what_differs(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    scores = {"val/accuracy": 0.5, "test/accuracy": 0.25, "test/loss": 1.5, "seconds": 3.0}
    done = folder_of(Path("a"), {"state": "finished", "step": 9, "steps": 9}, scores, seed="1")
    more = {"phases.2.epochs": "3", "phases.2.lr": "0.1"}
    broken = folder_of(
        Path("b"), {"state": "failed", "step": 2, "steps": 12, "why": "it [bold]broke"}, seed="2", **more
    )
    compare(read_runs([done, broken]))
    heads, first, second, why = capsys.readouterr().out.splitlines()
    changes = [
        "seed",
        "phases.2.epochs",
        "phases.2.lr",
        "phases.2.min_steps",
        "phases.2.warmup_epochs",
        "phases.2.schedule",
        "phases.2.power",
        "phases.2.trainable",
    ]
    assert heads.split() == ["run", *changes, "state", "step", "val/accuracy", "test/accuracy", "test/loss"]
    assert first.split() == ["a", "1", *"-------", "finished", "9/9", "0.5000", "0.2500", "1.5000"]
    assert second.split() == [
        "b",
        "2",
        "3.0",
        "0.1",
        "0",
        "0.0",
        "cosine",
        "1.0",
        "all",
        "failed",
        "2/12",
        "-",
        "-",
        "-",
    ]
    assert why == "b failed: it [bold]broke"


@pytest.mark.parametrize(
    ("changes", "said"), [({}, True), ({"batch_size": "64"}, False)], ids=["seeds-alone", "more-than-seeds"]
)
def test_runs_that_differ_in_their_seed_alone_have_a_mean(
    tmp_path: Path, capsys: pytest.CaptureFixture, changes: dict[str, str], said: bool
) -> None:
    by_f1 = {"evaluate.select_by": "macro_f1"}
    runs = [
        folder_of(
            tmp_path / str(seed),
            {"state": "finished"},
            {"test/accuracy": score, "val/macro_f1": 1 - score},
            seed=str(seed),
            **by_f1,
            **more,
        )
        for seed, score, more in ((1, 0.25, {}), (2, 0.75, changes))
    ]
    runs.append(folder_of(tmp_path / "3", {"state": "running"}, seed="3", **by_f1))
    read = read_runs(runs)
    compare(read, compare_recipes(read).seed_lines())
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith("val/accuracy  test/accuracy  test/loss  val/macro_f1  test/macro_f1")
    lines = [line for line in printed if "mean" in line]
    assert len(lines) == 2 * said
    assert all(line.startswith("val/macro_f1: mean 0.5000, ") for line in lines[1:])
    if said:
        assert lines[0].startswith("test/accuracy: mean 0.5000, standard deviation 0.3536, 95 % interval of the mean")
        assert lines[0].endswith("(2 seeds)")


def test_a_run_that_has_only_been_claimed(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    folder = folder_of(Path("a"), {})
    (folder / "status.json").unlink()
    compare(read_runs([folder]))
    assert capsys.readouterr().out.splitlines()[1].split() == ["a", "claimed", "0/?", "-", "-", "-"]
