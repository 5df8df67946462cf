"""A local folder in the hub's layout: parquet files and, optionally, a README.md that names the splits."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Data
from resnet_cifar.data.sources import image_folder
from resnet_cifar.data.sources.base import SourceData, shorten
from resnet_cifar.data.sources.hf_columns import source_data
from resnet_cifar.data.sources.hf_hub import check_configuration, check_disk_space
from resnet_cifar.data.sources.walk import file_stamps, walk

FIELDS = ("config_name", "splits", "columns")
_DESCRIPTIONS = ("README.md", ".gitattributes", "LICENSE")


def identity(data: Data) -> str:
    """Path, size and modification time of every file."""
    return f"folder 2 {file_stamps(Path(data.source))}"


def read(data: Data) -> SourceData:
    """The folder's splits. Raises UserError."""
    import datasets

    datasets.disable_progress_bars()
    root = Path(data.source).expanduser()
    files = walk(root).files
    # The cache of `datasets` looks at the times of change only, and a file may have that of the one that it replaces.
    version = hashlib.sha256(identity(data).encode()).hexdigest()[:16]
    cache_dir = Path(datasets.config.HF_DATASETS_CACHE) / "resnet_cifar" / version
    try:
        builder = datasets.load_dataset_builder(str(root), data.config_name or None, cache_dir=str(cache_dir))
        if builder.name == "imagefolder" and not any(image_folder.is_metadata(root / file) for file in files):
            return image_folder.read(data)  # where the outermost folder is the class
        builder.download_and_prepare()
        loaded = builder.as_dataset()
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        check_disk_space(error)
        check_configuration(error, data)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"data.source {data.source!r} has an unknown layout ({reason}): use one folder of images per class, "
            "parquet files such as train-00000.parquet, or a folder written by save_to_disk"
        ) from None
    read = {os.path.realpath(file) for files in builder.config.data_files.values() for file in files}
    others = [file for file in files if os.path.realpath(root / file) not in read]
    unused = [repr(file) for file in others if Path(file).name not in _DESCRIPTIONS]
    contents = source_data(loaded, data)
    remarks = (f"not used: the files {shorten(unused)}",) if unused else ()
    return replace(contents, remarks=(*contents.remarks, *remarks))
