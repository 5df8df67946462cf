"""The files of an evaluation, eval-NAME.json and predictions-NAME.parquet, and their summary as text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from resnet_cifar.atomic_io import atomic_write, write_json
from resnet_cifar.config.schema import Recipe


def evaluation_facts(split: str, recipe: Recipe, fingerprint: str, checkpoint: str) -> dict[str, Any]:
    """What was evaluated: the first fields of eval-NAME.json. `fingerprint`: the one of the source's images."""
    return {
        "split": split,
        "source": recipe.data.source,
        "fingerprint": fingerprint,
        "checkpoint": checkpoint,
        "limit": recipe.data.limit,
        "precision": recipe.precision,
    }


def write_results(
    folder: Path,
    name: str,
    metrics: dict[str, Any],
    logits: Tensor,
    labels: Tensor,
    indices: np.ndarray,
    file_names: Sequence[str] = (),
    flipped: Tensor | None = None,
) -> tuple[Path, Path]:
    """Writes eval-NAME.json and predictions-NAME.parquet atomically into `folder`; returns their paths.

    `indices` and `file_names`: see `ImageDataset`. `flipped`: logits of the mirror images.
    """
    import pyarrow
    import pyarrow.parquet

    folder.mkdir(parents=True, exist_ok=True)
    summary, file = folder / f"eval-{name}.json", folder / f"predictions-{name}.parquet"
    write_json(summary, metrics)
    columns = {
        "split": [metrics["split"]] * len(labels),
        "index": indices,
        "file": list(file_names) or [""] * len(labels),
        "label": labels.numpy(),
        "predicted": logits.argmax(1).numpy(),
        "logits": list(logits.numpy()),
        **({} if flipped is None else {"logits_flip": list(flipped.numpy())}),
    }
    with atomic_write(file) as aside:
        pyarrow.parquet.write_table(pyarrow.table(columns), aside)
    return summary, file


def summary_line(overall: dict[str, Any]) -> str:
    """The overall metrics in one line."""
    low, high = overall["accuracy_interval"]
    return (
        f"accuracy {overall['accuracy']:.4f} (95 %: {low:.4f} to {high:.4f}), "
        + (f"top-5 {overall['top5']:.4f}, " if "top5" in overall else "")
        + f"balanced accuracy {overall['balanced_accuracy']:.4f}, macro F1 {overall['macro_f1']:.4f}, "
        f"loss {overall['loss']:.4f}, calibration error {overall['calibration_error']:.4f}"
    )


def class_lines(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """(class, its metrics in one line) for each class with images."""
    line = "recall {recall:.4f}, precision {precision:.4f}, F1 {f1:.4f}, {images} images"
    return [(name, line.format(**values)) for name, values in metrics["classes"].items() if values["images"]]
