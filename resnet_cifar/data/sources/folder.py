"""A local folder in the hub's layout: parquet files and, where it has one, the README.md that names its splits."""

from __future__ import annotations

from pathlib import Path

from resnet_cifar.data.sources import Splits
from resnet_cifar.data.sources.columns import decode
from resnet_cifar.recipe import Mistake


def identity(source: str) -> str:
    """Every file's path, size and time of change."""
    root = Path(source).expanduser().resolve()
    files = sorted(path for path in root.rglob("*") if path.is_file())
    stamps = [(str(path.relative_to(root)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return f"folder {root} {stamps}"


def read(source: str) -> Splits:
    """Every image of the folder's train and test splits. Raises Mistake."""
    import datasets

    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(str(Path(source).expanduser()))
    except (FileNotFoundError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Mistake(
            f"data.source {source!r} is not in the hub's layout ({reason}): it should hold parquet files such as "
            "train-00000.parquet and test-00000.parquet"
        ) from None
    return decode(loaded, source)
