"""Recipes compared over seeds: which runs make a recipe, its means, tests against the first, tables and figures."""

from __future__ import annotations

import csv
import html
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from test_run_report import said

from resnet_cifar.atomic_io import write_json
from resnet_cifar.cli import compare
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import read_recipe, write_recipe
from resnet_cifar.evaluation import results_io
from resnet_cifar.evaluation.significance import t_test
from resnet_cifar.reporting import comparison_curves, comparison_table, recipe_comparison
from resnet_cifar.reporting.comparison_table import read_runs
from resnet_cifar.reporting.curves import Curves
from resnet_cifar.reporting.recipe_comparison import Comparison, compare_recipes

BASE, BETTER = (0.80, 0.82, 0.81, 0.83), (0.85, 0.86, 0.87, 0.88)  # test accuracies of seeds 0, 1, 2, ...


def finished_run(folder: Path, seed: int, accuracy: float, first_image: int = 0, **fields: str) -> Path:
    """A run with what the comparison reads. Its test images begin at `first_image`, its validation images at `seed`."""
    folder.mkdir(parents=True)
    write_recipe(read_recipe("debug", {"seed": str(seed), **fields}), folder / "recipe.yaml")
    write_json(folder / "status.json", {"state": "finished", "step": 20, "steps": 20})
    result = {"val/accuracy": accuracy - 0.1, "test/accuracy": accuracy, "test/loss": 1 - accuracy}
    write_json(folder / "result.json", result)
    labels = torch.arange(6) % 2
    facts = {"source": "s", "checkpoint": "c", "images": 6, "accuracy": accuracy, "classes": {}, "confusion": []}
    facts |= {"fingerprint": "f00d", "accuracy_interval": [0.1, 0.9]}
    for split, start in (("test", first_image), ("validation", seed)):
        index = np.arange(start, start + 6)
        results_io.write_results(
            folder, split, {**facts, "split": split}, torch.nn.functional.one_hot(labels).float(), labels, index
        )
    rows = [
        {"step": step, "epoch": step / 10, "lr": 0.1, "train/loss": accuracy / step, "images_per_second": 1.0}
        | ({"val/loss": 1.0, "val/accuracy": accuracy * step / 20} if step % 10 == 0 else {})
        for step in range(1, 21)
    ]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


def study(home: Path, accuracies: Sequence[float], images: Sequence[int] = (0, 0, 0, 0), **fields: str) -> Path:
    """The directory of `resnet-cifar seeds`: seed-0 and so on."""
    for seed, accuracy in enumerate(accuracies):
        finished_run(home / f"seed-{seed}", seed, accuracy, images[seed], **fields)
    write_json(home / "seeds.json", {})
    return home


def compared(*folders: Path) -> Comparison:
    return compare_recipes(read_runs([run for folder in folders for run in sorted(folder.glob("*-*"))]))


@pytest.fixture
def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two recipes of four seeds, with the working directory beside them."""
    monkeypatch.chdir(tmp_path)
    return study(Path("base"), BASE), study(Path("better"), BETTER, batch_size="64")


def test_paired_test_is_that_of_the_mean_of_differences() -> None:
    """Differences 5, 4, 6, 5 points: t = 5 / (sqrt(2/3) / 2); for 3 degrees of freedom the 95 % point is 3.1824."""
    first, second = dict(enumerate(BETTER)), dict(enumerate(BASE))
    found = t_test(first, second, same_images=True)
    error = math.sqrt(2 / 3) / 2 / 100
    assert (found.paired, found.seeds) == (True, (4, 4))
    assert found.difference == pytest.approx(0.05)
    assert found.interval == pytest.approx((0.05 - 3.182446 * error, 0.05 + 3.182446 * error), abs=1e-8)
    t = 0.05 / error  # for 3 degrees of freedom the distribution has a closed form
    x = t / math.sqrt(3)
    assert found.p == pytest.approx(1 - 2 / math.pi * (x / (1 + x**2) + math.atan(x)))


def test_welchs_test_has_the_degrees_of_freedom_of_both_spreads() -> None:
    """Variances (5/3, 0.5) e-4 of 4 and 2 values: Welch and Satterthwaite's formula, and the t of that many degrees."""
    from scipy.stats import t as student

    first, second = {0: 0.85, 1: 0.86, 2: 0.87, 3: 0.88}, {0: 0.82, 7: 0.83}
    found = t_test(first, second, same_images=True)
    a, b = 5 / 3 * 1e-4 / 4, 0.5e-4 / 2
    freedom = (a + b) ** 2 / (a**2 / 3 + b**2 / 1)
    half = student.ppf(0.975, freedom) * math.sqrt(a + b)
    assert (found.paired, found.seeds) == (False, (4, 2))
    assert found.difference == pytest.approx(0.04)
    assert found.interval == pytest.approx((0.04 - half, 0.04 + half))
    assert found.p == pytest.approx(2 * student.sf(0.04 / math.sqrt(a + b), freedom))


@pytest.mark.parametrize(
    ("first", "second", "same", "paired"),
    [
        ((1.0, 2.0, 4.0), (1.0, 3.0, 9.0), True, True),
        ((1.0, 2.0, 4.0), (1.0, 3.0, 9.0), False, False),
        ((1.0, 2.0), (1.0, 3.0), True, False),
        ((1.0, 2.0), (1.0,), True, None),
    ],
    ids=["three-shared", "other-images", "two-shared", "one-seed"],
)
def test_which_test_it_is(first: tuple, second: tuple, same: bool, paired: bool | None) -> None:
    found = t_test(dict(enumerate(first)), dict(enumerate(second)), same)
    assert (found and found.paired) == paired


@pytest.mark.parametrize("same", [True, False])
def test_results_that_do_not_vary_have_no_p(same: bool) -> None:
    found = t_test({0: 0.3, 1: 0.3, 2: 0.3}, {0: 0.1, 1: 0.1, 2: 0.1}, same)
    assert (found.interval, found.p) == (None, None)
    assert found.difference == pytest.approx(0.2)


def test_recipes_are_rows_and_later_ones_are_tested_against_the_first(both: tuple[Path, Path]) -> None:
    found = compared(*both)
    assert found.has_seeds
    sheet = found.recipe_sheet()
    assert sheet.header == ["recipe", "batch_size", "seeds", "val/accuracy", "test/accuracy"]
    assert sheet.rows == [
        ["base", "32", "4", "0.7150 ± 0.0129", "0.8150 ± 0.0129"],
        ["better", "64", "4", "0.7650 ± 0.0129", "0.8650 ± 0.0129"],
    ]
    header, rows = found.test_sheet()
    assert header[3] == "difference" and header[5] == "p"
    assert [row[:2] for row in rows] == [
        [metric, recipe] for metric in ("val/accuracy", "test/accuracy") for recipe in ("base", "better")
    ]
    assert rows[2][2:] == ["0.7945 to 0.8355", *"----"]
    assert rows[3][2:] == ["0.8445 to 0.8855", "+0.0500", "+0.0370 to +0.0630", "0.0012", "paired t, 4 seeds"]


def test_a_recipe_of_few_seeds_has_no_interval_and_a_second_run_of_a_seed_does_not_count(tmp_path: Path) -> None:
    base = study(tmp_path / "base", BASE)
    other = finished_run(tmp_path / "more" / "run-5", 5, 0.9, **{"loss.label_smoothing": "0.2"})
    finished_run(tmp_path / "more" / "run-6", 5, 0.1, **{"loss.label_smoothing": "0.2"})
    (base / "seed-3" / "result.json").unlink()
    write_json(base / "seed-3" / "status.json", {"state": "interrupted"})
    found = compared(base, other.parent)
    assert [row[2:] for row in found.recipe_sheet().rows] == [
        ["3", "0.7100 ± 0.0100", "0.8100 ± 0.0100"],
        ["1", "0.8000", "0.9000"],
    ]
    assert {row[1] for row in found.test_sheet().rows} == {"base"}
    assert found.notes()[-1] == (
        f"Not counted: {base}/seed-3 (interrupted), {other.parent}/run-6 (seed 5 again, as in {other})."
    )
    backwards = compared(other.parent, base)
    assert "Nothing is tested against run, which has only one finished run." in backwards.notes()
    for run in ("run-5", "run-6"):
        (other.parent / run / "result.json").unlink()
    backwards = compared(other.parent, base)
    assert "Nothing is tested against run, which has no finished run." in backwards.notes()


def test_runs_of_one_recipe_have_the_spread_of_their_seeds(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for job in (12, 13):  # one array, submitted twice: six runs of three seeds
        for seed in range(3):
            finished_run(Path(f"job-{job}_{seed}"), seed, BASE[seed])
    compare.main([*sorted(map(str, Path().glob("job-*"))), "--out", "page.html"])
    t, deviation, mean = 4.302653, np.std(BASE[:3], ddof=1), np.mean(BASE[:3])
    low, high = mean - t * deviation / math.sqrt(3), mean + t * deviation / math.sqrt(3)
    said = f"95 % interval of the mean {low:.4f} to {high:.4f} (3 seeds)"
    for text in (capsys.readouterr().out, html.unescape(Path("page.html").read_text())):
        assert said in text
        assert "Not counted: job-13_0 (seed 0 again, as in job-12_0), job-13_1 (" in text


def test_runs_of_a_search_and_of_its_best_recipe_have_no_mean(tmp_path: Path) -> None:
    finished_run(tmp_path / "search" / "trial-007", 0, 0.9)
    finished_run(tmp_path / "again" / "seed-1", 1, 0.8)
    assert compared(tmp_path / "search", tmp_path / "again").seed_lines() == []


def test_trials_of_a_search_are_not_averaged_with_seeds_of_the_same_recipe(tmp_path: Path) -> None:
    for number, batch in enumerate((48, 64)):
        finished_run(tmp_path / "search" / f"trial-{number:03d}", 0, 0.9, batch_size=str(batch))
    study(tmp_path / "repeated", BASE, batch_size="64")
    for number in (1, 2):
        finished_run(tmp_path / "loose" / f"job-7_{number}", number, 0.5)
    found = compared(tmp_path / "search", tmp_path / "repeated", tmp_path / "loose")
    assert [(each.name, len(each.runs)) for each in found.recipes] == [
        ("trial-000", 1),
        ("trial-001", 1),
        ("repeated", 4),
        ("job-7", 2),
    ]
    assert list(found.fields) == ["batch_size"]
    assert not compared(tmp_path / "search").has_seeds


def test_seeds_with_different_test_images_are_said_and_paired_all_the_same(tmp_path: Path, capsys) -> None:
    """data.limit draws the images from the seed: the same ones in both recipes."""
    few = {"data.limit": "1000"}
    base = study(tmp_path / "base", BASE, (0, 1, 2, 3), **few)
    better = study(tmp_path / "better", BETTER, (0, 1, 2, 3), batch_size="64", **few)
    found = compared(base, better)
    assert found.test_sheet().rows[3][-1] == "paired t, 4 seeds"
    sentence = (
        "the seeds differ in their test images (data.limit 1,000 draws them from the seed), so the spread of test "
        "results includes that of the images."
    )
    assert f"base: {sentence}" in found.notes() and f"better: {sentence}" in found.notes()
    page = tmp_path / "one.html"
    compare.main([str(base), "--out", str(page)])
    shown = capsys.readouterr().out
    assert f"T{sentence[1:]}" in shown and f"T{sentence[1:]}" in said(page)
    assert "All runs are of one recipe." in shown


def test_recipes_with_different_test_images_are_not_paired(tmp_path: Path) -> None:
    found = compared(study(tmp_path / "base", BASE), study(tmp_path / "b", BETTER, (9, 9, 9, 9), batch_size="64"))
    assert found.test_sheet().rows[3][-1] == "Welch's t, 4 and 4 seeds"
    assert found.test_sheet().rows[1][-1] == "paired t, 4 seeds", "validation images are the same"
    assert any(
        line.startswith("base and b are tested on different images under the same seed") for line in found.notes()
    )
    assert not any("the seeds differ" in line for line in found.notes())


def test_p_is_adjusted_for_the_number_of_recipes(tmp_path: Path) -> None:
    folders = [study(tmp_path / "base", BASE), study(tmp_path / "a", BETTER, batch_size="64")]
    folders.append(study(tmp_path / "b", (0.81, 0.82, 0.83, 0.80), batch_size="96"))
    found = compared(*folders)
    assert found.test_sheet().header[5] == "p, adjusted"
    rows = [row for row in found.rows if row.metric == "test/accuracy"]
    assert rows[0].p is None
    assert rows[1].p == pytest.approx(2 * rows[1].test.p)
    assert rows[2].p == pytest.approx(rows[2].test.p)


def test_a_terminal_shows_eight_columns_and_the_names_of_other_fields(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    varied = {"batch_size": "64", "loss.label_smoothing": "0.2", "augment.flip": "none", "optimizer.momentum": "0.8"}
    varied |= {"optimizer.weight_decay": "0.3", "phases.0.lr": "0.01"}
    folders = study(Path("base"), BASE[:2]), study(Path("other"), BETTER[:2], **varied)
    terminal = Console(force_terminal=True, width=200, highlight=False, markup=False, record=True)
    for module in (recipe_comparison, comparison_table):
        monkeypatch.setattr(module, "listing", lambda: terminal)
    for show in (
        lambda: recipe_comparison.print_recipes(compared(*folders)),
        lambda: comparison_table.compare(read_runs([folder / "seed-0" for folder in folders])),
    ):
        show()
        head, *lines = terminal.export_text().splitlines()
        columns = re.split(r"\s{2,}", head.strip())
        assert len(columns) == 8
        [hidden] = [re.fullmatch(r"Also differing, see the page: (.*)\.", line) for line in lines if "Also" in line]
        names = hidden[1].split(", ")
        assert set(columns) & set(varied) and set(columns) | set(names) >= set(varied)
        assert not set(columns) & set(names)


def test_the_page_has_a_row_per_recipe_and_the_mean_curves(both: tuple[Path, Path], capsys) -> None:
    compare.main([str(path) for folder in both for path in folder.iterdir()])  # as the shell's base/* better/*
    shown = capsys.readouterr().out
    assert shown.splitlines()[0].split() == ["recipe", "batch_size", "seeds", "val/accuracy", "test/accuracy"]
    assert shown.splitlines()[-1] == "written: report-compare.html"
    page = Path("report-compare.html")
    text = said(page)
    assert text.startswith("2 recipes compared")
    assert "base 32 4 0.7150 ± 0.0129 0.8150 ± 0.0129" in text
    assert "+0.0500 +0.0370 to +0.0630 0.0012 paired t, 4 seeds" in text
    assert "the band is one standard deviation on either side" in text
    assert "seed-3" in text and "McNemar" not in text
    assert page.read_text().count('fill-opacity="0.18"') + page.read_text().count("fill-opacity: 0.18") >= 6


def test_directories_count_for_their_finished_runs(both: tuple[Path, Path], capsys) -> None:
    (both[0] / "seed-3" / "result.json").unlink()
    (both[0] / "seed-3").rename(both[0] / "seed-10")
    finished_run(both[0] / "seed-9", 9, 0.5)
    _, runs = compare.parse_arguments(["base", "better/seed-2"])
    assert [str(run) for run in runs] == ["base/seed-0", "base/seed-1", "base/seed-2", "base/seed-9", "better/seed-2"]
    assert capsys.readouterr().out == "base: 1 of 5 runs have not finished and do not count\n"


def test_tables_and_figures_for_a_paper(both: tuple[Path, Path], tmp_path: Path) -> None:
    study(Path("50% & a_b"), (0.7, 0.6, 0.75), batch_size="96")
    found = compared(*both, Path("50% & a_b"))
    compare.main([*map(str, both), "50% & a_b", "--files", "paper"])
    names = sorted(str(file.relative_to("paper")) for file in Path("paper").rglob("*.*"))
    panels = ("learning-rate", "training-loss", "validation-accuracy", "validation-loss")
    figures = [f"figures/{panel}.{kind}" for panel in panels for kind in ("pdf", "png", "svg")]
    assert names == [*figures, "table.csv", "table.md", "table.tex"]
    assert Path("paper/figures/validation-accuracy.pdf").read_bytes().startswith(b"%PDF")

    with Path("paper/table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 and rows[0]["difference"] == "" and rows[0]["batch_size"] == "32"
    for row, expected in zip(rows, found.rows, strict=True):
        assert (row["recipe"], row["metric"]) == (expected.recipe.name, expected.metric)
        assert float(row["mean"]) == expected.spread["mean"]
        assert [float(row["low"]), float(row["high"])] == expected.spread["interval"]
        if expected.test:
            assert float(row["difference"]) == expected.test.difference
            assert (float(row["p"]), float(row["p_adjusted"])) == (expected.test.p, expected.p)
            assert row["test"] == "paired"

    markdown, latex = Path("paper/table.md").read_text(), Path("paper/table.tex").read_text()
    assert "| base | 32 | 4 | 0.7150 ± 0.0129 | 0.8150 ± 0.0129 |" in markdown
    assert r"base & 32 & 4 & 0.7150 $\pm$ 0.0129 & 0.8150 $\pm$ 0.0129 \\" in latex
    assert r"50\% \& a\_b & 96 & 3 & " in latex and r"95 \% interval" in latex
    assert latex.count(r"\toprule") == latex.count(r"\midrule") == latex.count(r"\bottomrule") == 2
    for begin in re.finditer(r"\\begin\{tabular\}\{(l+)\}\n(.*?)\\end", latex, re.DOTALL):
        for line in begin[2].splitlines():
            assert line.startswith("\\") or len(re.findall(r"(?<!\\)&", line)) == len(begin[1]) - 1
    [tested] = [line for line in latex.splitlines() if "a\\_b" in line and "test/accuracy" in line]
    assert "& $-$0.1" in tested, "a minus sign, not a hyphen"
    compare.parse_arguments([*map(str, both), "--files", "paper"])  # replaces its own files
    with pytest.raises(UserError, match="is not a directory of tables of this command"):
        compare.main([*map(str, both), "--files", "base"])


def test_mean_curve_over_the_steps_that_all_runs_have() -> None:
    rows = [[{"step": s, "epoch": s / 10, "lr": float(s * k)} for s in range(1, last)] for k, last in ((1, 5), (3, 4))]
    epochs, mean, deviation = comparison_curves.mean_line([Curves(each) for each in rows], "lr")
    assert epochs == [0.1, 0.2, 0.3]
    assert mean.tolist() == [2.0, 4.0, 6.0]
    assert deviation == pytest.approx(np.array([1, 2, 3]) * math.sqrt(2))
    single = Curves([{"step": s, "epoch": s, "lr": s % 7} for s in range(1, 1001)])
    epochs, mean, deviation = comparison_curves.mean_line([single], "lr")
    assert (epochs, mean.tolist(), deviation) == (*single.line("lr"), None)
    scores = {step: step % 40 / 100 for step in range(20, 2001, 20)}  # each evaluation is a point, however many rows
    rows = [{"step": s, "epoch": s, "lr": 0.1, **({"val/loss": scores[s]} if s in scores else {})} for s in range(2001)]
    epochs, mean, _ = comparison_curves.mean_line([Curves(rows)], "val/loss")
    assert (epochs, mean.tolist()) == ([*scores], [*scores.values()])


def test_a_folder_without_finished_runs_is_a_sentence(both: tuple[Path, Path]) -> None:
    Path("empty").mkdir()
    for name in ("empty", "nowhere"):
        with pytest.raises(UserError, match=f"{name} is not a run directory .* and holds no finished run"):
            compare.main(["base", name])
    with pytest.raises(UserError, match="compare takes two runs or more, not base/seed-0 alone"):
        compare.main(["base/seed-0", "base/seeds.json"])
