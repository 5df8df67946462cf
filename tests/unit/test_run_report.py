"""A run directory's page: everything that is there is on it, and what is not is said."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from collections import Counter
from html import unescape
from pathlib import Path

import pytest
import reported

from resnet_cifar.atomic_io import read_json, write_json
from resnet_cifar.cli import compare
from resnet_cifar.cli import report as command
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.evaluation import metrics
from resnet_cifar.reporting import comparison_report, curves, reproducibility, run_report, style
from resnet_cifar.reporting.comparison_table import read_runs


def said(page: Path) -> str:
    """The page's text, without tags, script and style, in one line."""
    text = re.sub(r"<(script|style|svg).*?</\1>", " ", page.read_text(), flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", text)).replace("\u00a0", " ").split())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run and its page, which no test changes."""
    run = reported.finish(tmp_path_factory.mktemp("whole") / "run")
    run_report.write_run_report(run)
    return run


def test_the_page_says_what_the_run_reached_and_how(whole: Path) -> None:
    page = whole / "report" / "index.html"
    scores, text = read_json(whole / "eval-test.json"), said(page)
    right = round(scores["accuracy"] * 200)
    assert f"{right} of 200 images are classified correctly ({scores['accuracy']:.1%}".replace("%", " %") in text
    assert "best validation accuracy 60.00 % at epoch 3.00, step 30" in text
    assert "finished 40 steps of 40" in text and ", 3 attempts" in text
    assert "fitted on the validation split" in text and "1.2500" in text
    for name, values in scores["classes"].items():
        expected = [values["images"], f"{values['precision']:.3f}", f"{values['recall']:.3f}", f"{values['f1']:.3f}"]
        row = re.search(rf"{re.escape(name)} (\d+) \d+ ([\d.]+) ([\d.]+) ([\d.]+)", text)
        assert [int(row[1]), *row.groups()[1:]] == expected
    assert "No example images" not in text and "not finished" not in text
    assert "Images per class" not in text, "an earlier version did not count them"


def test_the_page_says_what_was_run_and_how_to_run_it_again(whole: Path) -> None:
    text = said(whole / "report" / "index.html")
    assert "phases.1.epochs 3.0 1.0 -" in text, "this run, debug, finetune"
    assert "Changes from the recipe debug in its command (bold) or from the default recipe, finetune." in text
    assert "fingerprint f00d" in text and "torch 2.15.0" in text and "train.py --recipe debug --seed 3" in text
    assert re.search(r"1 \S+ \S+ 0 to 14 <1 s interrupted \(SIGTERM\)", text)
    assert re.search(r"2 \S+ \S+ 14 to 20 <1 s killed", text)
    assert re.search(r"3 \S+ \S+ 20 to 40 (<1|\d+) s finished", text)
    assert f"resnet-cifar reproduce {whole}" in text


def test_the_figures_stand_beside_it_twice(whole: Path) -> None:
    names = {path.name for path in (whole / "report" / "figures").iterdir()}
    figures = ("curves", "confusion", "confusion-shares", "calibration", "mistakes")
    assert names == {f"{name}.{kind}" for name in figures for kind in ("png", "svg")}


def test_a_class_may_be_called_anything(whole: Path) -> None:
    text = (whole / "report" / "index.html").read_text()
    assert "<script>alert" not in text
    assert text.count("<script>") == text.count("</script>") == 2
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_curves_mark_phases_stops_and_the_best_score(whole: Path) -> None:
    recipe = read_recipe(str(whole / "recipe.yaml"))
    found = curves.read_curves(whole, recipe, reproducibility.read_attempts(whole))
    assert (found.phases, found.stops, found.best["step"]) == ([1.0], [1.4, 2.0], 30)
    assert [row["step"] for row in found.rows] == list(range(1, 41))
    extended = [{"from_step": 0, "state": "finished"}, {"from_step": 20, "state": "finished"}]
    assert "phases.1" in curves.panels(found)["loss"], "as the terminal and the fields call it"
    assert curves.read_curves(whole, recipe, extended).stops == [], "what is extended was not interrupted"


@pytest.mark.usefixtures("without_figures")
def test_equal_evaluations_are_said(tmp_path: Path) -> None:
    run = reported.start(tmp_path / "run")
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if "val/accuracy" in row:
            row["val/accuracy"] = 0.5
    (run.path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    evaluated = [row for row in rows if "val/accuracy" in row]
    best = min(evaluated, key=lambda row: row["val/loss"])["step"]
    text = said(run_report.write_run_report(run.path))
    assert f"step {best}; of {len(evaluated)} equal evaluations the one with the lowest loss" in text


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize(
    ("metric", "step", "tile"), [("macro_f1", 20, "macro F1 50.00 %"), ("loss", 40, "loss 0.0250")], ids=str
)
def test_the_best_is_that_of_the_metric_that_selects(metric: str, step: int, tile: str, tmp_path: Path) -> None:
    run = reported.start(tmp_path / "run", **{"evaluate.select_by": metric})
    found = curves.read_curves(run.path, read_recipe(str(run.path / "recipe.yaml")), [])
    assert found.best["step"] == step
    assert ("validation, macro F1" in curves.panels(found)["accuracy"]) == (metric == "macro_f1")
    text = said(run_report.write_run_report(run.path))
    assert f"best validation {tile} at epoch {step / 10:.2f}, step {step}" in text


def test_a_long_run_is_drawn_with_means_of_rows_and_a_half_written_row_is_left_out(tmp_path: Path) -> None:
    lines = [json.dumps(reported.row(step)) for step in range(1, 1001)]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 1001, "epo']))
    found = curves.Curves(curves.read_rows(tmp_path / "metrics.jsonl"))
    places, values = found.line("images_per_second")
    assert (len(found.rows), found.rows_per_point, len(places)) == (1000, 3, 334)
    assert places[0] == pytest.approx(0.3) and values[0] == 102.0


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those beside the page take most of the time."""
    monkeypatch.setattr(style, "save", lambda *_: None)


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize("state", ["running", "interrupted", "claimed", "failed"])
def test_a_run_that_is_not_finished_has_a_page_of_how_far_it_is(state: str, tmp_path: Path) -> None:
    run = reported.start(tmp_path / "run", steps=25)
    if state == "claimed":
        for name in ("status.json", "attempts.json", "metrics.jsonl", "environment.json"):
            (run.path / name).unlink()
    elif state != "running":
        run.status(state, step=25, steps=40, why="SIGTERM")
    text = said(run_report.write_run_report(run.path))
    assert f"This run is not finished ({state} at step" in text
    assert ("metrics.jsonl has no rows yet" in text) == (state == "claimed")
    assert ("running at the last update, or killed" in text) == (state == "running")
    assert "are classified correctly" not in text and "Confusion matrix" not in text
    assert ('aria-label="accuracy"' in (tmp_path / "run" / "report" / "index.html").read_text()) == (state != "claimed")


@pytest.mark.usefixtures("without_figures")
def test_a_run_of_before_there_were_reports_has_one_without_pictures_and_starts(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "old"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "report")
    (run / "attempts.json").unlink()
    text = said(run_report.write_run_report(run))
    assert f"No example images were stored with this evaluation: python eval.py {run} adds them." in text
    assert "attempts.json is missing" in text
    assert "are classified correctly" in text and "finished 40 steps of 40 in 12 s" in text
    (run / "predictions-test.parquet").unlink()
    assert "The predictions are missing" in said(run_report.write_run_report(run))


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize("count", [2, 1000])
def test_few_and_many_classes(count: int, tmp_path: Path) -> None:
    run = reported.finish(tmp_path / "run", count=1500, classes=[f"class {n}" for n in range(count)], temperature=None)
    page = run_report.write_run_report(run)
    text = said(page)
    assert ("1000 classes are too many for a table" in text) == (count == 1000)
    assert "No temperature was fitted" in text
    assert page.stat().st_size < 5_000_000
    assert "class 1 predicted as class 0" in text or count == 1000
    assert 'data-count="' in page.read_text()
    shutil.rmtree(run / "report")
    assert 'data-count="' not in run_report.write_run_report(run).read_text(), (
        "nothing to press where there are no pictures"
    )


@pytest.mark.usefixtures("without_figures")
def test_another_scoring_has_a_page_of_its_own_and_a_line_in_the_index(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    reported.score(run, "validation-flip", count=60, seed=1)
    page = run_report.write_evaluation_page(run, "validation-flip")
    assert page == run / "report" / "validation-flip.html"
    assert 'href="index.html"' in page.read_text() and "Configuration" not in said(page)
    assert 'href="figures/validation-flip-confusion.svg"' in page.read_text()
    index = (run / "report" / "index.html").read_text()
    assert '<a href="validation-flip.html">validation-flip</a>' in index
    assert "200 images are classified correctly" in said(run / "report" / "index.html")


@pytest.mark.usefixtures("without_figures")
def test_suspect_labels_with_their_files_and_class_counts_of_all_splits_are_on_the_page(tmp_path: Path) -> None:
    names = [f"{reported.CLASSES[n % 2]}/a<b>,{n}.png" for n in range(200)]
    run = reported.finish(tmp_path / "run", file_names=names)
    reported.score(run, "validation", count=80, seed=1, split="validation")
    reported.score(run, "train", count=60, seed=2, split="train", fingerprint="other")
    counts = {"train": {"cat": 60, "<dog>": 20}, "validation": {"cat": 6, "<dog>": 2}, "test": {"cat": 5, "<dog>": 5}}
    write_json(run / "environment.json", {**read_json(run / "environment.json"), "class_counts": counts})
    text = said(run_report.write_run_report(run))
    assert "Images per class train: cat has 60 images, 3.0 times as many as the smallest, <dog> (20)" in text
    assert "class train validation test cat 60 6 5 <dog> 20 2 5" in text
    listed = list(csv.DictReader((run / "report" / "suspect_labels.csv").open(newline="")))
    counts = Counter(row["split"] for row in listed)
    assert counts.keys() == {"test", "validation"}, "others were evaluated on other images"
    assert f"Test: {counts['test']} of 200 labels" in text and f"Validation: {counts['validation']} of 80" in text
    first = next(row for row in listed if row["split"] == "test")
    assert f"predicted {first['predicted']}" in text and first["file"] in text and first["file"] in names
    assert "validation " + next(row["index"] for row in listed if row["split"] == "validation") in text
    page = (run / "report" / "index.html").read_text()
    assert "a<b>" not in page and "a&lt;b&gt;,3.png" in page, "in the gallery too"
    assert f"after python eval.py {run} --split train" in text
    reported.score(run, "train", count=60, seed=2, split="train")
    run_report.write_evaluation_page(run, "train")
    assert (run / "report" / "train-suspect_labels.csv").is_file()
    text = said(run / "report" / "index.html")
    assert "Train: " in text and "after python eval.py" not in text


@pytest.mark.usefixtures("without_figures")
def test_what_is_scored_outside_of_a_run_has_its_page_beside_its_scores(tmp_path: Path) -> None:
    reported.score(tmp_path / "model-scores", "test")
    page = run_report.write_evaluation_page(tmp_path / "model-scores", "test")
    assert page == tmp_path / "model-scores" / "report" / "test.html"
    assert "index.html" not in page.read_text() and "are classified correctly" in said(page)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("train.py --recipe scratch --seed 1", "scratch"),
        ("train.py --recipe=debug", "debug"),
        ("train.py", "finetune"),
        ("train.py --recipe mine.yaml", None),
        ("", None),
    ],
)
def test_the_recipe_that_a_command_names(words: str, name: str | None) -> None:
    assert reproducibility.named_recipe({"command": words}) == name


@pytest.mark.usefixtures("without_figures")
def test_the_command_writes_the_page_and_says_where(whole: Path, tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "report" / "index.html").unlink()
    command.main([str(run)])
    assert capsys.readouterr().out.splitlines()[-1] == f"written: {run / 'report' / 'index.html'}"
    assert (run / "report" / "index.html").is_file()


@pytest.mark.usefixtures("without_figures")
def test_what_is_damaged_or_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    run = reported.start(tmp_path / "run", steps=22)
    (tmp_path / "run" / "report").write_text("a file")
    with pytest.raises(UserError, match=r"run cannot be written \(File exists\): make it writable"):
        command.main([str(run.path)])
    (tmp_path / "run" / "report").unlink()
    (tmp_path / "run" / "attempts.json").write_text("{")
    with pytest.raises(UserError, match=r"attempts\.json is damaged"):
        command.main([str(run.path)])


def test_one_page_compares_runs(whole: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    other, foreign, begun = (tmp_path / name for name in ("other", "foreign", "begun"))
    reported.finish(other, seed=7)
    reported.finish(foreign, fingerprint="beef")
    reported.start(begun, steps=20, seed="5")
    compare.main([str(path) for path in (whole, other, foreign, begun)])
    assert capsys.readouterr().out.splitlines()[-1] == "written: report-compare.html"
    text = said(tmp_path / "report-compare.html")
    first, second = (read_json(path / "eval-test.json")["accuracy"] for path in (whole, other))
    assert f"run other {100 * (first - second):+.2f}" in text
    assert "Tested on images of different sources: run and foreign, other and foreign." in text
    assert "No final test predictions: begun." in text
    assert "running 20" in text and "60.00 %" in text, "how far its curve has come"
    assert "seed 0 0 0 5" in text
    assert "The test compares these trained models on these images, not their recipes" in text
    write_json(other / "eval-test.json", {**read_json(other / "eval-test.json"), "fingerprint": "beef"})
    compare.main([str(whole), str(other), "--out", "two.html"])
    assert "Not comparable" in said(tmp_path / "two.html")
    (other / "result.json").unlink()  # as when it is extended
    compare.main([str(whole), str(other), "--out", "two.html"])
    assert "No final test predictions: other." in said(tmp_path / "two.html")
    with pytest.raises(UserError, match="is named twice"):
        compare.main([str(whole), f"{whole}/"])
    (tmp_path / "notes.html").write_text("mine")
    with pytest.raises(UserError, match="is not a page of this command"):
        compare.main([str(whole), str(other), "--out", "notes.html"])


@pytest.mark.usefixtures("without_figures")
def test_what_is_damaged_of_a_scoring_is_a_sentence_or_a_dash(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "a run"
    shutil.copytree(whole, run)
    (run / "predictions-test.parquet").write_bytes(b"PAR1, and then nothing")
    write_json(run / "eval-odd.json", {"accuracy": 0.5})
    text = said(run_report.write_run_report(run))
    assert (
        f"missing or damaged, so there are no example images or calibration: python eval.py '{run}' adds them." in text
    )
    assert "odd - - - -" in text
    write_json(run / "eval-test.json", {"accuracy": 0.5})
    assert "eval-test.json is missing or incomplete" in said(run_report.write_run_report(run))


def test_figures_that_are_new_enough_stay_when_another_scoring_adds_its_line(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shown = run / "report" / "figures"
    drawn = {file: file.stat().st_mtime_ns for file in shown.iterdir()}
    reported.score(run, "validation", count=60)
    os.utime(shown / "curves.png", (0, 0))
    run_report.write_evaluation_page(run, "validation")
    changed = {file.stem for file, when in drawn.items() if file.stat().st_mtime_ns != when}
    assert changed == {"curves"}


@pytest.mark.usefixtures("without_figures")
def test_an_older_evaluation_without_some_metrics_keeps_its_page(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    required = ("split", "source", "checkpoint", "images", "accuracy", "classes", "confusion")
    found = read_json(run / "eval-test.json")
    write_json(run / "eval-test.json", {name: found[name] for name in required})
    text = said(run_report.write_run_report(run))
    assert "200 images are classified correctly" in text and "Per-class metrics" in text
    assert "cross-entropy" not in text and "is missing or incomplete" not in text
    comparison_report.write_comparison(read_runs([run, whole]), tmp_path / "compare.html")
    assert "No final test predictions" not in said(tmp_path / "compare.html")


@pytest.mark.usefixtures("without_figures")
def test_a_registered_metric_is_evaluated_and_older_files_stay_valid(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(metrics.OVERALL, "mean_logit", lambda logits, labels: logits.mean().item())
    reported.score(tmp_path / "new", "test")
    assert "mean_logit" in read_json(tmp_path / "new" / "eval-test.json")
    assert "mean_logit" not in read_json(whole / "eval-test.json")
    for folder in (tmp_path / "new", shutil.copytree(whole, tmp_path / "old")):
        assert "images are classified correctly" in said(run_report.write_evaluation_page(folder, "test"))
