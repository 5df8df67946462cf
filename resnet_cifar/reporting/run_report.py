"""Writes the report of a run: a self-contained HTML page, and its figures as files. Reads the run directory only.

RUN/report/index.html shows the run and its final result, RUN/report/NAME.html another evaluation, eval-NAME.json.
"""

from __future__ import annotations

import math
import shlex
import time
from pathlib import Path
from typing import Any

import numpy as np

from resnet_cifar.atomic_io import read_json
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.config.schema import METRIC_NAMES, Recipe
from resnet_cifar.reporting import (
    class_balance,
    curves,
    evaluation_summary,
    html_page,
    reproducibility,
    style,
    suspect_list,
)
from resnet_cifar.reporting.console import duration
from resnet_cifar.reporting.curves import Curves
from resnet_cifar.reporting.evaluation_summary import Evaluation
from resnet_cifar.reporting.per_class import accuracy

_FINAL = "test"  # the evaluation at the end of a run


def write_run_report(run: Path) -> Path:
    """Writes RUN/report/index.html and its figures, also for an unfinished run; returns the page.

    Raises UserError if files of the run are damaged, OSError if the report cannot be written.
    """
    return _write(run, math.inf)


def _write(run: Path, older_than: float) -> Path:
    """Like `write_run_report`, but keeps existing figures that are not `older_than` that time."""
    folder, page = run / "report", run / "report" / "index.html"
    folder.mkdir(exist_ok=True)
    recipe, environment = read_recipe(str(run / "recipe.yaml")), read_json(run / "environment.json") or {}
    status, result = read_json(run / "status.json") or {}, read_json(run / "result.json")
    attempts = reproducibility.read_attempts(run)
    drawn = curves.read_curves(run, recipe, attempts)
    has_updates = drawn is not None and drawn.rows[-1]["step"] > 0
    own = evaluation_summary.read_evaluation(run, _FINAL) if result else None
    if has_updates and style.is_outdated(folder / "figures", "curves", older_than):
        style.save(curves.figure(drawn), folder / "figures", "curves")
    named = reproducibility.named_recipe(environment)
    about = {
        "named": named,
        "differences": reproducibility.differences(recipe, named),
        "environment": reproducibility.environment_rows(environment),
        "attempts": reproducibility.attempt_rows(attempts, status),
        "commands": reproducibility.commands(run),
    }
    text = html_page.render(
        "report.html",
        title=run.resolve().name,
        back=None,
        what=_what_was_run(recipe, status, result),
        missing=_missing(run, status, result, drawn, own),
        tiles=[*(evaluation_summary.tiles(own.metrics) if own else ()), *_run_tiles(result, status, attempts, drawn)],
        curves=_curves(drawn) if has_updates else None,
        about=about,
        balance=_class_balance(environment),
        train_command=f"python eval.py {shlex.quote(str(run))} --split train",
        other_evaluations=_other_evaluations(run),
        made=time.strftime("%Y-%m-%d %H:%M"),
        suspects=suspect_list.write_section(page, [own, *_same_model(run, own)] if own else []),
        **evaluation_summary.page_values(own, folder, older_than=older_than),
    )
    html_page.write_page(page, text)
    return page


def write_evaluation_page(folder: Path, name: str) -> Path:
    """Writes the page of `folder`'s eval-NAME.json, and the report of the run if `folder` is one; returns the page."""
    is_run = (folder / "recipe.yaml").is_file()
    if is_run and name == _FINAL and (folder / "result.json").is_file():
        return write_run_report(folder)
    file, found = folder / "report" / f"{name}.html", evaluation_summary.read_evaluation(folder, name)
    file.parent.mkdir(exist_ok=True)
    scores = found.metrics
    text = html_page.render(
        "report.html",
        title=f"{folder.resolve().name}: {name}",
        back="index.html" if is_run else None,
        what=f"{scores['checkpoint']}, evaluated on the {scores['split']} split of {scores['source']}",
        missing=_missing_images(found, "running this evaluation again"),
        tiles=evaluation_summary.tiles(scores),
        curves=None,
        about=None,
        balance=None,
        train_command=None,
        other_evaluations=[],
        made=time.strftime("%Y-%m-%d %H:%M"),
        suspects=suspect_list.write_section(file, [found]),
        **evaluation_summary.page_values(found, file.parent, f"{name}-"),
    )
    html_page.write_page(file, text)
    if is_run:
        _write(folder, _last_change(folder))
    return file


def _same_model(run: Path, own: Evaluation) -> list[Evaluation]:
    """The evaluations of the final model on the run's own validation and training images."""
    found = [evaluation_summary.read_evaluation(run, name) for name in ("validation", "train")]
    same = ("checkpoint", "fingerprint")
    return [each for each in found if each and all(each.metrics.get(key) == own.metrics.get(key) for key in same)]


def _class_balance(environment: dict[str, Any]) -> dict[str, Any] | None:
    """Images per class of each split; None for a run of a version that did not record them."""
    counts = environment.get("class_counts")
    if not counts:
        return None
    arrays = {split: np.array(list(classes.values())) for split, classes in counts.items()}
    return class_balance.table(arrays, list(counts["train"]))


def _last_change(run: Path) -> float:
    """When the data of the run's own figures was last written."""
    names = ("metrics.jsonl", "attempts.json", "result.json", f"eval-{_FINAL}.json", f"predictions-{_FINAL}.parquet")
    files = [*(run / name for name in names), run / "report" / f"pictures-{_FINAL}.npz"]
    return max((file.stat().st_mtime for file in files if file.is_file()), default=math.inf)


def _curves(found: Curves) -> dict[str, Any]:
    return {
        "panels": curves.panels(found),
        "phases": len(found.phases) + 1,
        "stops": len(found.stops),
        "best": found.best,
        "mixed": found.mixed,
        "steps_per_epoch": f"{found.steps_per_epoch:,.1f}",
        "rows_per_point": found.rows_per_point,
    }


def _run_tiles(
    result: dict[str, Any] | None, status: dict[str, Any], attempts: list[dict[str, Any]], drawn: Curves | None
) -> list[tuple[str, str, str]]:
    tiles = []
    if drawn and drawn.best:
        best = drawn.best
        where = f"at epoch {best['epoch']:.2f}, step {best['step']:,}"
        value, name = best[f"val/{drawn.select_by}"], METRIC_NAMES[drawn.select_by]
        equal = sum(row[f"val/{drawn.select_by}"] == value for row in drawn.evaluations)
        where += f"; of {equal} equal evaluations the one with the lowest loss" if equal > 1 else ""
        shown = f"{value:.4f}" if drawn.select_by == "loss" else accuracy(value)
        tiles.append((f"best validation {name}", shown, where))
        first = drawn.evaluations[0]
        if first["step"] == 0 and best["step"] > 0:
            tiles.append(("linear probe", accuracy(first["val/accuracy"]), "validation, before the first update"))
    if status:
        ended = [each.get("ended", status.get("time", each["began"])) - each["began"] for each in attempts]
        seconds = sum(ended) if ended else (result or {}).get("seconds")
        took = f"in {duration(seconds)}" if seconds is not None else ""
        count = f", {len(attempts)} attempts" if len(attempts) > 1 else ""
        state, steps = "finished" if result else status["state"], f"{status.get('step', 0):,}"
        tiles.append((state, f"{steps} steps", f"of {status.get('steps', 0):,} {took}{count}"))
    return tiles


def _what_was_run(recipe: Recipe, status: dict[str, Any], result: dict[str, Any] | None) -> str:
    state = result["checkpoint"] if result else status.get("state", "claimed")
    refit = f"; trained {recipe.refit_remark}" if recipe.refit_steps else ""
    return f"{recipe.model.name} on {recipe.data.source}, {state}{refit}"


def _missing(
    run: Path, status: dict[str, Any], result: dict[str, Any] | None, drawn: Curves | None, own: Evaluation | None
) -> list[str]:
    """Sentences that say what the page lacks, and how to add it."""
    sentences, again = [], f"python eval.py {shlex.quote(str(run))}"
    if result is None:
        where = f"{status.get('state', 'claimed')} at step {status.get('step', 0):,} of {status.get('steps', 0):,}"
        why = f" ({status['why']})" if status.get("why") else ""
        sentences.append(f"This run is not finished ({where}{why}): the curves end there and there is no final result.")
        if any((run / "checkpoints").glob("step-*[0-9]")):
            sentences.append(f"{again} evaluates its best checkpoint so far, on a separate page.")
    if drawn is None:
        sentences.append("metrics.jsonl has no rows yet, so there are no curves.")
    if result is not None and own is None:
        sentences.append(f"eval-{_FINAL}.json is missing or incomplete: {again} evaluates the run again.")
    if not reproducibility.read_attempts(run):
        sentences.append("attempts.json is missing, so the attempts of this run are unknown.")
    return sentences + (_missing_images(own, again) if own else [])


def _other_evaluations(run: Path) -> list[dict[str, Any]]:
    """All other evaluations of the run, latest first, with their pages if written."""
    files = sorted(run.glob("eval-*.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    found = []
    for file in files:
        name = file.stem.removeprefix("eval-")
        if name != _FINAL or not (run / "result.json").is_file():
            scores = evaluation_summary.read_metrics(run, name)
            found.append(
                {
                    "name": name,
                    "page": f"{name}.html" if (run / "report" / f"{name}.html").is_file() else None,
                    "images": f"{scores['images']:,}" if scores else "-",
                    "of": f"{scores['split']} split of {scores['source']}" if scores else "-",
                    "checkpoint": scores["checkpoint"] if scores else "-",
                    "accuracy": evaluation_summary.accuracy_text(scores) if scores else "-",
                }
            )
    return found


def _missing_images(found: Evaluation, fix: str) -> list[str]:
    if found.predictions is None:
        return [
            f"The predictions are missing or damaged, so there are no example images or calibration: {fix} adds them."
        ]
    if found.images is None:
        return [f"No example images were stored with this evaluation: {fix} adds them."]
    return []
