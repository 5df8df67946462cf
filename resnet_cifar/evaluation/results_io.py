"""What a scoring leaves behind: eval-NAME.json, predictions-NAME.parquet, and what a person reads of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from resnet_cifar.atomic_io import atomic_write, write_json
from resnet_cifar.config.schema import Recipe


def facts(split: str, recipe: Recipe, fingerprint: str, checkpoint: str) -> dict[str, Any]:
    """What was scored, as eval-NAME.json begins; `fingerprint`: of the source's images."""
    return {
        "split": split,
        "source": recipe.data.source,
        "fingerprint": fingerprint,
        "checkpoint": checkpoint,
        "limit": recipe.data.limit,
        "precision": recipe.precision,
    }


def write(
    folder: Path,
    name: str,
    scores: dict[str, Any],
    logits: Tensor,
    labels: Tensor,
    indices: np.ndarray,
    flipped: Tensor | None = None,
) -> tuple[Path, Path]:
    """Writes eval-NAME.json and predictions-NAME.parquet into `folder`, whole or not at all; returns the two.

    `indices`: which images of the source's split these are; `flipped`: logits of their mirror images.
    """
    import pyarrow
    import pyarrow.parquet

    folder.mkdir(parents=True, exist_ok=True)
    summary, file = folder / f"eval-{name}.json", folder / f"predictions-{name}.parquet"
    write_json(summary, scores)
    columns = {
        "index": indices,
        "label": labels.numpy(),
        "predicted": logits.argmax(1).numpy(),
        "logits": list(logits.numpy()),
        **({} if flipped is None else {"logits_flip": list(flipped.numpy())}),
    }
    with atomic_write(file, flush=False) as temporary:
        pyarrow.parquet.write_table(pyarrow.table(columns), temporary)
    return summary, file


def sentence(overall: dict[str, Any]) -> str:
    """The scores over all images in one line."""
    low, high = overall["accuracy_interval"]
    return (
        f"accuracy {overall['accuracy']:.4f} (95 %: {low:.4f} to {high:.4f}), top-5 {overall['top5']:.4f}, "
        f"loss {overall['loss']:.4f}, calibration error {overall['calibration_error']:.4f}"
    )


def by_class(scores: dict[str, Any]) -> list[tuple[str, str]]:
    """A row for each class that has images."""
    line = "recall {recall:.4f}, precision {precision:.4f}, F1 {f1:.4f}, {images} images"
    return [(name, line.format(**values)) for name, values in scores["classes"].items() if values["images"]]
