"""A folder that `save_to_disk` of `datasets` wrote: a DatasetDict, or a single Dataset."""

from __future__ import annotations

from pathlib import Path

from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Data
from resnet_cifar.data.sources.base import SourceData, file_stamps
from resnet_cifar.data.sources.hf_columns import contents

FIELDS = ("splits", "columns")


def recognizes(folder: Path) -> bool:
    """Whether the folder is such a one."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def identity(data: Data) -> str:
    """Every file's path, size and time of change."""
    return f"saved {file_stamps(Path(data.source))}"


def read(data: Data) -> SourceData:
    """The splits; a single Dataset is the train split. Raises UserError."""
    import datasets

    try:
        loaded = datasets.load_from_disk(str(Path(data.source).expanduser()))
    # A damaged folder shows itself as almost anything: JSON, Arrow, keys, types.
    except (OSError, ValueError, KeyError, TypeError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"data.source {data.source!r} cannot be loaded ({reason}): write it anew with save_to_disk"
        ) from None
    return contents(loaded if isinstance(loaded, datasets.DatasetDict) else datasets.DatasetDict(train=loaded), data)
