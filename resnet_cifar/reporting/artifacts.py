"""What goes with a scoring on rank 0: the pictures that its page shows, the page, and the exported model's card.

Nothing of it can turn what is finished into something that failed: a warning says what was left out.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from resnet_cifar.data.image_dataset import ImageDataset
from resnet_cifar.evaluation.predict import Predictions
from resnet_cifar.reporting import gallery, prediction_table, run_report


def keep_pictures(
    folder: Path,
    name: str,
    predictions: Predictions,
    images: ImageDataset,
    temperature: float | None,
    warn: Callable[[str], None],
) -> None:
    """Keeps a few of the scored images beside eval-NAME.json in `folder`, in report/pictures-NAME.npz."""

    def read(rows: np.ndarray) -> np.ndarray:
        return images.gather(rows).cpu().numpy()

    file = folder / "report" / f"pictures-{name}.npz"
    try:
        found = prediction_table.of(predictions.logits.numpy(), predictions.labels.numpy(), images.indices, temperature)
        gallery.keep(file, found, images.size, read)
    except Exception as error:
        warn(f"{file} could not be written, so that the report has no pictures: {_why(error)}")


def write_page(folder: Path, name: str, warn: Callable[[str], None]) -> Path | None:
    """The page of the scoring eval-NAME.json, or None where it could not be written; a run's index follows."""
    try:
        return run_report.write_scoring(folder, name)
    except Exception as error:
        mend = f"; resnet-cifar report {folder} tries again" * (folder / "recipe.yaml").is_file()
        warn(f"{folder / 'report'} could not be written: {_why(error)}{mend}")
        return None


def card(make: Callable[[], str], warn: Callable[[str], None]) -> str:
    """The model's card, or none where it cannot be made."""
    try:
        return make()
    except Exception as error:
        warn(f"the model is exported without a card: {_why(error)}")
        return ""


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
