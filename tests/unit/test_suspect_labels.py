"""Confident learning: the definition of the paper, planted wrong labels, and the list that a person goes through."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import reported

from resnet_cifar.evaluation import suspect_labels
from resnet_cifar.evaluation.suspect_labels import find_suspect_labels
from resnet_cifar.reporting import prediction_arrays, suspect_list
from resnet_cifar.reporting.evaluation_summary import Evaluation

NAMES = ('a "b", c.png', "two\nlines.png", "<b>.png", "plain.png")


def planted(count: int, classes: int, share: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(logits, labels, rows whose label is wrong) of a model that is often right about the true class."""
    logits, true = (values.numpy() for values in reported.prediction(count, classes, seed, sharpness=5.0))
    rows = np.sort(np.random.default_rng(seed).permutation(count)[: int(share * count)])
    labels = true.copy()
    labels[rows] = (true[rows] + 1) % classes
    return logits, labels, rows


def by_definition(logits: np.ndarray, labels: np.ndarray, temperature: float) -> list[int]:
    """The off-diagonal images of the confident joint (equations 1 and 2 of the paper), image by image, and as cleanlab
    ranks them: by normalized margin, without those whose label is predicted.
    """
    scaled = np.exp(logits.astype(np.float64) / temperature)
    p = scaled / scaled.sum(1, keepdims=True)
    thresholds = {j: p[labels == j, j].mean() for j in set(labels.tolist())}
    found = []
    for n, label in enumerate(labels.tolist()):
        confident = [j for j, threshold in thresholds.items() if p[n, j] >= threshold]
        if confident and max(confident, key=lambda j: p[n, j]) != label and p[n].argmax() != label:
            found.append((p[n, label] - np.delete(p[n], label).max(), n))
    return [n for _, n in sorted(found)]


@pytest.mark.parametrize(("sharpness", "temperature"), [(0.5, None), (2.0, 0.7), (1.0, 2.0)])
def test_suspect_labels_are_those_of_the_definition(
    sharpness: float, temperature: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suspect_labels, "_ROWS", 64)  # several chunks
    logits, labels = (values.numpy() for values in reported.prediction(500, 6, sharpness=sharpness))
    labels = np.where(labels == 4, 3, labels)  # class 4 has no images
    found = find_suspect_labels(logits, labels, temperature)
    assert found.rows.tolist() == by_definition(logits, labels, temperature or 1.0)
    assert len(found.rows) > 10
    margin = found.label_probability - found.predicted_probability
    assert (np.diff(margin) >= 0).all() and (margin < 0).all()


def test_planted_wrong_labels_come_first() -> None:
    logits, labels, wrong = planted(1000, 10, 0.1)
    found = find_suspect_labels(logits, labels).rows
    first = np.isin(found[: len(wrong)], wrong)
    assert first.mean() > 0.9
    assert np.isin(wrong, found).mean() > 0.8


def test_a_model_that_is_always_right_finds_none() -> None:
    labels = np.arange(30) % 3
    found = find_suspect_labels(10 * np.eye(3)[labels], labels)
    assert [len(values) for values in found] == [0, 0, 0]


def evaluation(split: str, seed: int, names: tuple[str, ...], folder: Path) -> tuple[Evaluation, np.ndarray]:
    """Predictions of 40 images as they are stored and read again."""
    logits, labels, wrong = planted(40, len(reported.CLASSES), 0.1, seed)
    logits[wrong] *= 2
    file = folder / f"predictions-{split}.parquet"
    reported.write_predictions(folder, split, logits, labels, np.arange(40) * 3, names)
    stored = prediction_arrays.read_predictions(file)
    found = prediction_arrays.from_logits(stored.logits, stored.labels, stored.index, None, stored.file_names)
    metrics = {"split": split, "classes": dict.fromkeys(reported.CLASSES)}
    return Evaluation(metrics, found, None, None, None), wrong


def test_the_list_names_files_or_split_and_index(tmp_path: Path) -> None:
    named, wrong = evaluation("test", 0, tuple(f"{n % 7}/{NAMES[n % 4]}" for n in range(40)), tmp_path)
    unnamed, wrong_too = evaluation("validation", 1, (), tmp_path)
    section = suspect_list.write_section(tmp_path / "index.html", [named, unnamed])
    assert section["file"] == "suspect_labels.csv"
    with (tmp_path / "suspect_labels.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["rank"] for row in rows] == [str(rank) for rank in range(1, len(rows) + 1)]
    margins = [float(row["label_probability"]) - float(row["predicted_probability"]) for row in rows]
    assert margins == sorted(margins)
    listed = {(row["split"], int(row["index"]), row["file"]) for row in rows}
    assert listed >= {("test", 3 * row, f"{row % 7}/{NAMES[row % 4]}") for row in wrong.tolist()}
    assert listed >= {("validation", 3 * row, "") for row in wrong_too.tolist()}
    assert {row["label"] for row in rows} <= set(reported.CLASSES)
    shown = {split["name"]: [each["place"] for each in split["shown"]] for split in section["splits"]}
    assert shown["validation"] == [f"validation {row['index']}" for row in rows if row["split"] == "validation"]
    assert shown["test"] == [row["file"] for row in rows if row["split"] == "test"]


def test_predictions_of_an_earlier_version_have_no_file_names(tmp_path: Path) -> None:
    import pyarrow.parquet

    logits, labels, _ = planted(40, 4, 0.1)
    reported.write_predictions(tmp_path, "test", logits, labels, np.arange(40), NAMES * 10)
    file = tmp_path / "predictions-test.parquet"
    assert prediction_arrays.read_predictions(file).file_names == list(NAMES * 10)
    older = pyarrow.parquet.read_table(file).drop_columns(["file", "split"])
    pyarrow.parquet.write_table(older, file)
    stored = prediction_arrays.read_predictions(file)
    assert stored.file_names == []
    found = prediction_arrays.from_logits(stored.logits, stored.labels, stored.index, None, stored.file_names)
    assert found.place(7, "test") == "test 7"
