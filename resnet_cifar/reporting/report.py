"""Run folder -> one self-contained HTML page, and its figures beside it for a paper. Reads what lies there, no loop.

RUN/report/index.html is the run and its own result; RUN/report/NAME.html another scoring, of eval-NAME.json.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resnet_cifar import cli
from resnet_cifar.reporting import breakdown, curves, figures, gallery, guesses, ink, page, provenance
from resnet_cifar.reporting.breakdown import percent
from resnet_cifar.reporting.calibration import Reliability, reliability
from resnet_cifar.reporting.console import duration
from resnet_cifar.reporting.curves import Curves
from resnet_cifar.reporting.gallery import Kept
from resnet_cifar.reporting.guesses import Guesses
from resnet_cifar.run_folder import read_json

_OWN = "test"  # the scoring that ends a run


@dataclass(frozen=True)
class Scoring:
    """What eval-NAME.json and the files beside it hold; `guesses` and `pictures` are None where those are missing."""

    scores: dict[str, Any]
    guesses: Guesses | None
    pictures: Kept | None
    plain: Reliability | None
    scaled: Reliability | None

    @property
    def classes(self) -> list[str]:
        """What the model tells apart."""
        return list(self.scores["classes"])

    @property
    def counts(self) -> np.ndarray:
        """The confusion matrix."""
        return np.array(self.scores["confusion"], dtype=np.int64)


def write(run: Path) -> Path:
    """Writes RUN/report/index.html and the figures beside it, of a run that is as far as it is; returns the page.

    Raises Mistake where the folder's files are damaged, OSError where it cannot be written.
    """
    folder = run / "report"
    folder.mkdir(exist_ok=True)
    recipe, environment = cli.read_recipe(str(run / "recipe.yaml")), read_json(run / "environment.json") or {}
    status, result = read_json(run / "status.json") or {}, read_json(run / "result.json")
    kept = provenance.starts(run)
    drawn = curves.read(run, recipe, kept)
    scoring = read_scoring(run, _OWN) if result else None
    if drawn:
        ink.save(curves.figure(drawn), folder / "figures", "curves")
    named = provenance.named_recipe(environment)
    about = {
        "named": named,
        "differences": provenance.differences(recipe, named),
        "facts": provenance.facts(environment),
        "starts": provenance.starts_in_words(kept, status),
        "commands": provenance.commands(run, environment),
    }
    text = page.render(
        "report.html",
        title=run.resolve().name,
        back=None,
        what=_what_was_run(recipe.model.name, recipe.data.source, status, result),
        missing=_missing(run, status, result, drawn, scoring),
        tiles=[*(_tiles(scoring.scores) if scoring else ()), *_run_tiles(result, status, kept, drawn)],
        curves=_curves(drawn) if drawn else None,
        about=about,
        scorings=_scorings(run),
        made=time.strftime("%Y-%m-%d %H:%M"),
        **_scored(scoring, folder),
    )
    page.write(folder / "index.html", text)
    return folder / "index.html"


def write_scoring(folder: Path, name: str) -> Path:
    """Writes the page of `folder`'s eval-NAME.json, and the index of the run where the folder is one; returns it."""
    is_run = (folder / "recipe.yaml").is_file()
    if is_run and name == _OWN and (folder / "result.json").is_file():
        return write(folder)
    pages, scoring = folder / "report", read_scoring(folder, name)
    pages.mkdir(exist_ok=True)
    scores = scoring.scores
    text = page.render(
        "report.html",
        title=f"{folder.resolve().name}: {name}",
        back="index.html" if is_run else None,
        what=f"{scores['checkpoint']}, scored on the {scores['split']} split of {scores['source']}",
        missing=_without_pictures(folder, scoring),
        tiles=_tiles(scores),
        curves=None,
        about=None,
        scorings=[],
        made=time.strftime("%Y-%m-%d %H:%M"),
        **_scored(scoring, pages, f"{name}-"),
    )
    file = pages / f"{name}.html"
    page.write(file, text)
    if is_run:
        write(folder)
    return file


def read_scoring(folder: Path, name: str) -> Scoring | None:
    """What was scored as NAME, or None where nothing was."""
    scores = read_json(folder / f"eval-{name}.json")
    if scores is None:
        return None
    predictions = folder / f"predictions-{name}.parquet"
    if not predictions.is_file():
        return Scoring(scores, None, None, None, None)
    logits, labels, index = guesses.read(predictions)
    plain, temperature = guesses.of(logits, labels, index), scores.get("temperature")
    found = guesses.of(logits, labels, index, temperature) if temperature else plain
    bins = reliability(plain.sure, plain.right), reliability(found.sure, found.right) if temperature else None
    return Scoring(scores, found, gallery.read(folder / "report" / f"pictures-{name}.npz"), *bins)


def _scored(scoring: Scoring | None, folder: Path, prefix: str = "") -> dict[str, Any]:
    """What the page says of a scoring; its figures go to figures/."""
    nothing = dict.fromkeys(("verdict", "confusion", "by_class", "calibration", "gallery"))
    if scoring is None:
        return nothing
    counts, classes = scoring.counts, scoring.classes
    fits = len(classes) <= figures.READABLE
    confused = {
        "classes": classes,
        "rows": breakdown.cells(counts) if fits else None,
        "pairs": breakdown.pairs(counts),
    }
    told = breakdown.by_class(scoring.scores)
    return {
        **nothing,
        "verdict": breakdown.verdict(scoring.scores),
        "confusion": {**confused, "figures": _confusion_figures(scoring, folder / "figures", prefix)},
        "by_class": {"all": told, "worst": None if fits else breakdown.worst(told)},
        "calibration": _calibration(scoring, folder / "figures", prefix) if scoring.plain else None,
        "gallery": _gallery(scoring, folder / "figures", prefix) if scoring.pictures else None,
    }


def _confusion_figures(scoring: Scoring, folder: Path, prefix: str) -> list[str]:
    """Draws them, and gives their files' names."""
    for name, cells in (("confusion", "counts"), ("confusion-shares", "shares")):
        ink.save(figures.confusion(scoring.counts, scoring.classes, cells), folder, prefix + name)
    return [f"{prefix}confusion", f"{prefix}confusion-shares"]


def _calibration(scoring: Scoring, folder: Path, prefix: str) -> dict[str, Any]:
    drawn = figures.calibration(scoring.plain, scoring.scaled)
    ink.save(drawn, folder, f"{prefix}calibration")
    plain, scaled = scoring.plain, scoring.scaled
    sure = float((plain.confidence * plain.images).sum() / plain.images.sum())
    lean = sure - scoring.scores["accuracy"]
    return {
        "svg": ink.inline(drawn, "reliability diagram"),
        "before": percent(plain.error),
        "after": percent(scaled.error) if scaled else None,
        "temperature": scoring.scores.get("temperature"),
        "lean": f"{abs(100 * lean):.1f} points too {'sure' if lean > 0 else 'unsure'} of itself",
    }


def _gallery(scoring: Scoring, folder: Path, prefix: str) -> dict[str, Any]:
    found, kept = scoring.guesses, scoring.pictures
    places = kept.places(found)
    shown = {row: kept.images[places[row]] for row in figures.surest_mistakes(found).tolist() if row in places}
    ink.save(figures.mistakes(found, shown, scoring.classes), folder, f"{prefix}mistakes")
    chosen = gallery.choose(found, gallery.room(*kept.images.shape[1:3]))
    views = {name: set(getattr(chosen, name).tolist()) for name in ("surest", "wrong", "right")}
    order = np.argsort(-found.sure, kind="stable")
    pictures = [
        {
            "index": int(found.index[row]),
            "actual": int(found.labels[row]),
            "predicted": int(found.predicted[row]),
            "sure": f"{found.sure[row]:.0%}" if found.sure[row] < 0.995 else "> 99%",
            "views": [name for name, rows in views.items() if row in rows],
            "address": gallery.address(kept.images[places[row]]),
        }
        for row in order.tolist()
        if row in places
    ]
    counts = {name: sum(name in each["views"] for each in pictures) for name in views}
    return {"pictures": pictures, "views": counts, "temperature": scoring.scores.get("temperature")}


def _curves(found: Curves) -> dict[str, Any]:
    return {
        "panels": curves.panels(found),
        "phases": len(found.phases) + 1,
        "stops": len(found.stops),
        "best": found.best,
        "steps_an_epoch": f"{found.steps_an_epoch:,.1f}",
        "together": found.together,
    }


def _tiles(scores: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(name, value, what it is) of the figures that a person looks for first."""
    low, high = scores["accuracy_interval"]
    scaled, temperature = scores.get("calibration_error_scaled"), scores.get("temperature")
    after = f"{percent(scaled)} at temperature {temperature:.3g}" if temperature else "no temperature was fitted"
    tiles = [
        (
            f"{scores['split']} accuracy",
            percent(scores["accuracy"]),
            f"of {scores['images']:,} images; 95 %: {percent(low)} to {percent(high)}",
        ),
        ("top-5", percent(scores["top5"]), "the right class is among the five likeliest"),
        ("loss", f"{scores['loss']:.4f}", "cross-entropy"),
        ("calibration error", percent(scores["calibration_error"]), after),
    ]
    if flipped := scores.get("flip"):
        tiles.append(("with flips", percent(flipped["accuracy"]), "mean over each image and its mirror image"))
    return tiles


def _run_tiles(
    result: dict[str, Any] | None, status: dict[str, Any], kept: list[dict[str, Any]], drawn: Curves | None
) -> list[tuple[str, str, str]]:
    tiles = []
    if drawn and drawn.best:
        best = drawn.best
        where = f"at epoch {best['epoch']:.2f}, step {best['step']:,}"
        tiles.append(("best validation accuracy", percent(best["val/accuracy"]), where))
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
    run: Path, status: dict[str, Any], result: dict[str, Any] | None, drawn: Curves | None, scoring: Scoring | None
) -> list[str]:
    """Sentences on what this page cannot show, and what would mend it."""
    said = []
    if result is None:
        where = f"{status.get('state', 'claimed')} at step {status.get('step', 0):,} of {status.get('steps', 0):,}"
        why = f" ({status['why']})" if status.get("why") else ""
        said.append(f"This run is not finished ({where}{why}): the curves go as far as it has come, and it has no result.")
        if (run / "checkpoints").is_dir():
            said.append(f"python eval.py {run} scores its best checkpoint so far, on a page of its own.")
    if drawn is None:
        said.append("There is no row in metrics.jsonl yet, so there are no curves.")
    if result is not None and scoring is None:
        said.append(f"There is no eval-test.json any more: python eval.py {run} scores the run again.")
    if not provenance.starts(run):
        said.append("When this run was started and interrupted was not kept by the version that made it.")
    return said + (_without_pictures(run, scoring) if scoring else [])


def _without_pictures(folder: Path, scoring: Scoring) -> list[str]:
    if scoring.guesses is None:
        return [f"The predictions are no longer there: python eval.py {folder} makes them, a gallery and a diagram."]
    if scoring.pictures is None:
        return [f"No pictures were kept of this scoring, so there is no gallery: python eval.py {folder} makes it."]
    return []


def _scorings(run: Path) -> list[dict[str, Any]]:
    """Every other scoring of the run, newest first, and its page where there is one."""
    files = sorted(run.glob("eval-*.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    found = []
    for file in files:
        name, scores = file.stem.removeprefix("eval-"), read_json(file)
        if name != _OWN or not (run / "result.json").is_file():
            there = (run / "report" / f"{name}.html").is_file()
            low, high = scores["accuracy_interval"]
            found.append(
                {
                    "name": name,
                    "page": f"{name}.html" if there else None,
                    "images": f"{scores['images']:,}",
                    "of": f"{scores['split']} split of {scores['source']}",
                    "checkpoint": scores["checkpoint"],
                    "accuracy": f"{percent(scores['accuracy'])} ({percent(low)} to {percent(high)})",
                }
            )
    return found
