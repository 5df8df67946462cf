"""Run folder -> one self-contained HTML page, and its figures beside it for a paper. Reads what lies there, no loop.

RUN/report/index.html is the run and its own result; RUN/report/NAME.html another scoring, of eval-NAME.json.
"""

from __future__ import annotations

import math
import shlex
import time
from pathlib import Path
from typing import Any

from resnet_cifar.atomic_io import read_json
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.reporting import curves, evaluation_summary, html_page, reproducibility, style
from resnet_cifar.reporting.console import duration
from resnet_cifar.reporting.curves import Curves
from resnet_cifar.reporting.evaluation_summary import Scoring
from resnet_cifar.reporting.per_class import accuracy

_OWN = "test"  # the scoring that ends a run


def write(run: Path) -> Path:
    """Writes RUN/report/index.html and the figures beside it, of a run that is as far as it is; returns the page.

    Raises UserError where the folder's files are damaged, OSError where it cannot be written.
    """
    return _write(run, math.inf)


def _write(run: Path, than: float) -> Path:
    """`write`; figures that are there and not older `than` a time stay as they are."""
    folder = run / "report"
    folder.mkdir(exist_ok=True)
    recipe, environment = read_recipe(str(run / "recipe.yaml")), read_json(run / "environment.json") or {}
    status, result = read_json(run / "status.json") or {}, read_json(run / "result.json")
    kept = reproducibility.starts(run)
    drawn = curves.read(run, recipe, kept)
    own = evaluation_summary.read(run, _OWN) if result else None
    if drawn and style.is_older(folder / "figures", "curves", than):
        style.save(curves.figure(drawn), folder / "figures", "curves")
    named = reproducibility.named_recipe(environment)
    about = {
        "named": named,
        "differences": reproducibility.differences(recipe, named),
        "facts": reproducibility.facts(environment),
        "attempts": reproducibility.starts_in_words(kept, status),
        "commands": reproducibility.commands(run, environment),
    }
    text = html_page.render(
        "report.html",
        title=run.resolve().name,
        back=None,
        what=_what_was_run(recipe.model.name, recipe.data.source, status, result),
        missing=_missing(run, status, result, drawn, own),
        tiles=[*(evaluation_summary.tiles(own.scores) if own else ()), *_run_tiles(result, status, kept, drawn)],
        curves=_curves(drawn) if drawn else None,
        about=about,
        scorings=_scorings(run),
        made=time.strftime("%Y-%m-%d %H:%M"),
        **evaluation_summary.shown(own, folder, than=than),
    )
    html_page.write(folder / "index.html", text)
    return folder / "index.html"


def write_scoring(folder: Path, name: str) -> Path:
    """Writes the page of `folder`'s eval-NAME.json, and the index of the run where the folder is one; returns it."""
    is_run = (folder / "recipe.yaml").is_file()
    if is_run and name == _OWN and (folder / "result.json").is_file():
        return write(folder)
    pages, found = folder / "report", evaluation_summary.read(folder, name)
    pages.mkdir(exist_ok=True)
    scores = found.scores
    text = html_page.render(
        "report.html",
        title=f"{folder.resolve().name}: {name}",
        back="index.html" if is_run else None,
        what=f"{scores['checkpoint']}, scored on the {scores['split']} split of {scores['source']}",
        missing=_without_pictures(found, "eval.py, asked for this scoring again,"),
        tiles=evaluation_summary.tiles(scores),
        curves=None,
        about=None,
        scorings=[],
        made=time.strftime("%Y-%m-%d %H:%M"),
        **evaluation_summary.shown(found, pages, f"{name}-"),
    )
    file = pages / f"{name}.html"
    html_page.write(file, text)
    if is_run:
        _write(folder, _changed(folder))
    return file


def _changed(run: Path) -> float:
    """When what the run's own figures show was last written."""
    names = ("metrics.jsonl", "attempts.json", "result.json", f"eval-{_OWN}.json", f"predictions-{_OWN}.parquet")
    files = [*(run / name for name in names), run / "report" / f"pictures-{_OWN}.npz"]
    return max((file.stat().st_mtime for file in files if file.is_file()), default=math.inf)


def _curves(found: Curves) -> dict[str, Any]:
    return {
        "panels": curves.panels(found),
        "phases": len(found.phases) + 1,
        "stops": len(found.stops),
        "best": found.best,
        "steps_per_epoch": f"{found.steps_per_epoch:,.1f}",
        "together": found.together,
    }


def _run_tiles(
    result: dict[str, Any] | None, status: dict[str, Any], kept: list[dict[str, Any]], drawn: Curves | None
) -> list[tuple[str, str, str]]:
    tiles = []
    if drawn and drawn.best:
        best = drawn.best
        where = f"at epoch {best['epoch']:.2f}, step {best['step']:,}"
        tiles.append(("best validation accuracy", accuracy(best["val/accuracy"]), where))
    if status:
        ended = [start.get("ended", status.get("time", start["began"])) - start["began"] for start in kept]
        seconds = sum(ended) if ended else (result or {}).get("seconds")
        took = f"in {duration(seconds)}" if seconds is not None else ""
        several = f", {len(kept)} starts" if len(kept) > 1 else ""
        state, steps = "finished" if result else status["state"], f"{status.get('step', 0):,}"
        tiles.append((state, f"{steps} steps", f"of {status.get('steps', 0):,} {took}{several}"))
    return tiles


def _what_was_run(model: str, source: str, status: dict[str, Any], result: dict[str, Any] | None) -> str:
    checkpoint = f", {result['checkpoint']}" if result else ""
    return f"{model} on {source}{checkpoint}" + ("" if result else f", {status.get('state', 'claimed')}")


def _missing(
    run: Path, status: dict[str, Any], result: dict[str, Any] | None, drawn: Curves | None, own: Scoring | None
) -> list[str]:
    """Sentences on what this page cannot show, and what would mend it."""
    said, again = [], f"python eval.py {shlex.quote(str(run))}"
    if result is None:
        where = f"{status.get('state', 'claimed')} at step {status.get('step', 0):,} of {status.get('steps', 0):,}"
        why = f" ({status['why']})" if status.get("why") else ""
        said.append(
            f"This run is not finished ({where}{why}): the curves go as far as it has come, and it has no result."
        )
        if (run / "checkpoints").is_dir():
            said.append(f"{again} scores its best checkpoint so far, on a page of its own.")
    if drawn is None:
        said.append("There is no row in metrics.jsonl yet, so there are no curves.")
    if result is not None and own is None:
        said.append(f"There is no whole eval-{_OWN}.json any more: {again} scores the run again.")
    if not reproducibility.starts(run):
        said.append("When this run was started and interrupted was not kept by the version that made it.")
    return said + (_without_pictures(own, again) if own else [])


def _scorings(run: Path) -> list[dict[str, Any]]:
    """Every other scoring of the run, newest first, and its page where there is one."""
    files = sorted(run.glob("eval-*.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    found = []
    for file in files:
        name = file.stem.removeprefix("eval-")
        if name != _OWN or not (run / "result.json").is_file():
            scores = evaluation_summary.read_scores(run, name)
            found.append(
                {
                    "name": name,
                    "page": f"{name}.html" if (run / "report" / f"{name}.html").is_file() else None,
                    "images": f"{scores['images']:,}" if scores else "-",
                    "of": f"{scores['split']} split of {scores['source']}" if scores else "-",
                    "checkpoint": scores["checkpoint"] if scores else "-",
                    "accuracy": evaluation_summary.accuracy_in_words(scores) if scores else "-",
                }
            )
    return found


def _without_pictures(found: Scoring, mend: str) -> list[str]:
    if found.predictions is None:
        return [f"The predictions are gone or damaged: {mend} makes them, and with them a gallery and a diagram."]
    if found.pictures is None:
        return [f"No pictures were kept of this scoring, so there is no gallery: {mend} makes it."]
    return []
