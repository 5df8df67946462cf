"""Optional outputs of an evaluation on rank 0: example images, the report and the model card.

A failure here is a warning that says what is missing: it never fails a finished run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from resnet_cifar.data.image_dataset import ImageDataset
from resnet_cifar.evaluation.predict import Predictions
from resnet_cifar.reporting import gallery, prediction_arrays, run_report


def save_example_images(
    folder: Path,
    name: str,
    predictions: Predictions,
    images: ImageDataset,
    temperature: float | None,
    warn: Callable[[str], None],
    suspects_only: bool = False,
) -> None:
    """Stores some of the evaluated images, or those with suspect labels, in `folder`/report/pictures-NAME.npz."""

    def read(rows: np.ndarray) -> np.ndarray:
        return images.gather(rows).cpu().numpy()

    file = folder / "report" / f"pictures-{name}.npz"
    try:
        found = prediction_arrays.from_logits(
            predictions.logits.numpy(), predictions.labels.numpy(), images.indices, temperature
        )
        gallery.save_images(file, found, images.size, read, suspects_only)
    except Exception as error:
        warn(f"{file} could not be written, so the report has no example images: {_reason(error)}")


def write_report(folder: Path, name: str, warn: Callable[[str], None]) -> Path | None:
    """Writes the page of eval-NAME.json, and the report of its run; returns its path, or None if that failed."""
    try:
        return run_report.write_evaluation_page(folder, name)
    except Exception as error:
        retry = f"; retry with: resnet-cifar report {folder}" * (folder / "recipe.yaml").is_file()
        warn(f"{folder / 'report'} could not be written: {_reason(error)}{retry}")
        return None


def make_card(make: Callable[[], str], warn: Callable[[str], None]) -> str:
    """The model card, or an empty text if it cannot be made."""
    try:
        return make()
    except Exception as error:
        warn(f"the model is exported without a card: {_reason(error)}")
        return ""


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
