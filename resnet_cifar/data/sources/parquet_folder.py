"""A local folder in the hub's layout: parquet files and, where it has one, the README.md that names its splits."""

from __future__ import annotations

from pathlib import Path

from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Data
from resnet_cifar.data.sources.base import SourceData, file_stamps
from resnet_cifar.data.sources.hf_columns import contents
from resnet_cifar.data.sources.hf_hub import check_room, configuration

FIELDS = ("config_name", "splits", "columns")


def identity(data: Data) -> str:
    """Every file's path, size and time of change."""
    return f"folder {file_stamps(Path(data.source))}"


def read(data: Data) -> SourceData:
    """The folder's train and test splits. Raises UserError."""
    import datasets

    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(str(Path(data.source).expanduser()), data.config_name or None)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        check_room(error)
        configuration(error, data)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"data.source {data.source!r} is not in a layout that is known ({reason}): it should hold a folder of "
            "pictures for each class, parquet files such as train-00000.parquet, or what save_to_disk wrote"
        ) from None
    return contents(loaded, data)
