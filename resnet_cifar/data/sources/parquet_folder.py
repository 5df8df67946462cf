"""A local folder in the hub's layout: parquet files and, optionally, a README.md that names the splits."""

from __future__ import annotations

from pathlib import Path

from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Data
from resnet_cifar.data.sources.base import SourceData
from resnet_cifar.data.sources.hf_columns import source_data
from resnet_cifar.data.sources.hf_hub import check_configuration, check_disk_space
from resnet_cifar.data.sources.walk import file_stamps

FIELDS = ("config_name", "splits", "columns")


def identity(data: Data) -> str:
    """Path, size and modification time of every file."""
    return f"folder {file_stamps(Path(data.source))}"


def read(data: Data) -> SourceData:
    """The folder's train and test splits. Raises UserError."""
    import datasets

    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(str(Path(data.source).expanduser()), data.config_name or None)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        check_disk_space(error)
        check_configuration(error, data)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"data.source {data.source!r} has an unknown layout ({reason}): use one folder of images per class, "
            "parquet files such as train-00000.parquet, or a folder written by save_to_disk"
        ) from None
    return source_data(loaded, data)
