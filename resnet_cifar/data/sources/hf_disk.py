"""A folder written by `save_to_disk` of `datasets`: a DatasetDict or a single Dataset."""

from __future__ import annotations

from pathlib import Path

from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Data
from resnet_cifar.data.sources.base import SourceData
from resnet_cifar.data.sources.hf_columns import source_data
from resnet_cifar.data.sources.walk import file_stamps

FIELDS = ("splits", "columns")


def recognizes(folder: Path) -> bool:
    """Whether the folder was written by save_to_disk."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def identity(data: Data) -> str:
    """Path, size and modification time of every file."""
    return f"saved {file_stamps(Path(data.source))}"


def read(data: Data) -> SourceData:
    """The splits; a single Dataset is the train split. Raises UserError."""
    import datasets

    try:
        loaded = datasets.load_from_disk(str(Path(data.source).expanduser()))
    # A damaged folder raises errors of JSON, Arrow, keys or types.
    except (OSError, ValueError, KeyError, TypeError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"data.source {data.source!r} cannot be loaded ({reason}): write it again with save_to_disk"
        ) from None
    return source_data(loaded if isinstance(loaded, datasets.DatasetDict) else datasets.DatasetDict(train=loaded), data)
