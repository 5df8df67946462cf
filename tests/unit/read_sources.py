"""Images in memory, splits of `datasets`, and a source read to its arrays: what the tests of sources share."""

from __future__ import annotations

import io
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Features
from datasets import Image as ImageFeature
from PIL import Image

from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Data
from resnet_cifar.data.decoding import Decoded, decode
from resnet_cifar.data.sources import hf_columns
from resnet_cifar.data.sources.base import SourceData
from resnet_cifar.data.sources.registry import find_source


@dataclass(frozen=True)
class Arrays:
    """What a source became: arrays by split, class names, and what `decode` says of it."""

    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    classes: tuple[str, ...]
    decoded: Decoded


def arrays(n: int, height: int = 6, width: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def encoded(array: np.ndarray, kind: str = "PNG") -> dict[str, Any]:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind)
    return {"bytes": stream.getvalue(), "path": None}


def split_of(pictures: list[Any], image: str = "img", **labels: tuple[Any, list[Any]]) -> Dataset:
    """A split in memory; each label column is given as (feature, values)."""
    held = {image: pictures, **{name: values for name, (_, values) in labels.items()}}
    features = {image: ImageFeature(), **{name: feature for name, (feature, _) in labels.items()}}
    return Dataset.from_dict(held, features=Features(features))


def both(train: Dataset, test: Dataset | None = None) -> DatasetDict:
    return DatasetDict(train=train, test=train if test is None else test)


def decoded(contents: SourceData, data: Data) -> Arrays:
    with tempfile.TemporaryDirectory() as folder:
        facts = decode(contents, data, Path(folder))
        images, labels = (
            {role: np.load(f"{folder}/{role}-{kind}.npy") for role in facts.images} for kind in ("images", "labels")
        )
    return Arrays(images, labels, contents.classes, facts)


def in_memory(loaded: DatasetDict, **data: Any) -> Arrays:
    """A data set of `datasets`, as source x/y."""
    made = Data(source="x/y", **data)
    return decoded(hf_columns.source_data(loaded, made), made)


def read(source: str | Path, **data: Any) -> Arrays:
    """A source by its name."""
    made = Data(source=str(source), **data)
    return decoded(find_source(made.source).read(made), made)


def sentence(what: Any, **data: Any) -> str:
    """What is said of a source that cannot be used."""
    with pytest.raises(UserError) as caught:
        (in_memory if isinstance(what, DatasetDict) else read)(what, **data)
    assert "\n" not in str(caught.value)
    return str(caught.value)
