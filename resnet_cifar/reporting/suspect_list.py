"""The suspect labels of evaluations: a section of their report, and a CSV file beside it to go through."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resnet_cifar.atomic_io import atomic_write
from resnet_cifar.reporting import gallery
from resnet_cifar.reporting.evaluation_summary import Evaluation
from resnet_cifar.reporting.per_class import probability_text

_COLUMNS = ("rank", "split", "index", "file", "label", "predicted", "label_probability", "predicted_probability")


def list_file(page: Path) -> Path:
    """The CSV file of a page: suspect_labels.csv of index.html, NAME-suspect_labels.csv of another one."""
    return page.with_name("suspect_labels.csv" if page.stem == "index" else f"{page.stem}-suspect_labels.csv")


def write_section(page: Path, evaluations: Sequence[Evaluation]) -> dict[str, Any] | None:
    """Writes the CSV file, and returns the values of the page's section: for each evaluation the number of suspect
    labels, and the most suspect ones with their images. None without predictions.
    """
    predicted = [each for each in evaluations if each.predictions is not None]
    if not predicted:
        return None
    _write_list(list_file(page), predicted)
    splits = [
        {
            "name": each.metrics["split"],
            "trained_on": each.metrics.get("trained_on", False),
            "count": len(each.predictions.suspects.rows),
            "images": len(each.predictions),
            "shown": most_suspect(each),
        }
        for each in predicted
    ]
    return {"file": list_file(page).name, "splits": splits}


def _write_list(file: Path, evaluations: Sequence[Evaluation]) -> None:
    """All suspect labels of the evaluations, the most suspect first."""
    rows = []
    for each in evaluations:
        found, classes = each.predictions, each.classes
        for row, label, predicted in zip(*(values.tolist() for values in found.suspects), strict=True):
            where = (each.metrics["split"], int(found.index[row]), found.file_name(row))
            what = (classes[found.labels[row]], classes[found.predicted[row]], round(label, 6), round(predicted, 6))
            rows.append((label - predicted, where, what))
    rows.sort(key=lambda row: row[0])
    with (
        atomic_write(file, flush=False) as aside,
        aside.open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream,
    ):
        writer = csv.writer(stream)
        writer.writerow(_COLUMNS)
        writer.writerows((rank, *where, *what) for rank, (_, where, what) in enumerate(rows, start=1))


def most_suspect(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The most suspect labels of an evaluation with predictions, for a page, with the images that are stored."""
    found, kept, classes = evaluation.predictions, evaluation.images, evaluation.classes
    places = kept.places(found) if kept else {}
    first = (np.asarray(values[: gallery.SUSPECTS]).tolist() for values in found.suspects)
    return [
        {
            "place": found.place(row, evaluation.metrics["split"]),
            "label": classes[found.labels[row]],
            "predicted": classes[found.predicted[row]],
            "label_probability": probability_text(label),
            "predicted_probability": probability_text(predicted),
            "url": gallery.data_url(kept.images[places[row]]) if row in places else None,
        }
        for row, label, predicted in zip(*first, strict=True)
    ]
