"""Crop, flip, resize and normalize: the resident pipeline against `datasets` + torchvision + DataLoader.

Both deliver (images, labels) on the device. At 224 pixels both resize bicubically from the stored size.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import datasets
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from resnet_cifar.config.loading import read_recipe
from resnet_cifar.data import prepared_data
from resnet_cifar.data.loader import Loader, Preprocess
from resnet_cifar.data.sources import synthetic

SIZES = {32: 256, 224: 64}  # pixels: images of a batch
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Batch = tuple[torch.Tensor, torch.Tensor]


def measure(
    source: str, sizes: dict[int, int] = SIZES, rounds: int = 5, batches: int = 12, workers: tuple[int, ...] = ()
) -> dict[str, Any]:
    """Images/s of both, the medians of interleaved rounds; of the DataLoader the best number of workers."""
    workers = workers or tuple(sorted({0, 1, 2, 4, os.cpu_count() or 1}))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dataset = encoded(source)
    return {
        f"{size} px": _compare(source, dataset, size, sizes[size], device, rounds, batches, workers) for size in sizes
    }


def _compare(
    source: str,
    dataset: datasets.Dataset,
    size: int,
    batch: int,
    device: torch.device,
    rounds: int,
    batches: int,
    workers: tuple[int, ...],
) -> dict[str, Any]:
    resident = _resident(source, size, batch, device)
    dataset = dataset.with_transform(_Apply(_transform(size)))
    speeds: dict[str, list[float]] = {"resident": [], **{f"dataloader, {number} workers": [] for number in workers}}
    for round_ in range(rounds + 1):
        measured = {"resident": _speed(resident, 8 * batches, batch, device)}
        for number in workers:
            with _loading(dataset, batch, number, device) as loader:
                for _ in range(2 * number):  # what the workers have fetched ahead
                    next(loader)
                measured[f"dataloader, {number} workers"] = _speed(loader, max(1, number // 2) * batches, batch, device)
        if round_:  # the first one warms up
            for name, speed in measured.items():
                speeds[name].append(speed)
    medians = {name: round(statistics.median(values)) for name, values in speeds.items()}
    best = max((name for name in medians if name != "resident"), key=medians.__getitem__)
    ratio = statistics.median(a / b for a, b in zip(speeds["resident"], speeds[best], strict=True))
    return {"batch": batch, "images_per_second": medians, "best": best, "resident_over_best": round(ratio, 2)}


def _speed(batches: Iterator[Batch], count: int, size: int, device: torch.device) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    next(batches)
    wait()
    began = time.perf_counter()
    for _ in range(count):
        next(batches)
    wait()
    return count * size / (time.perf_counter() - began)


def _resident(source: str, size: int, batch: int, device: torch.device) -> Iterator[Batch]:
    words = {
        "data.source": source,
        "batch_size": str(batch),
        "phases.0.epochs": "1000000",
        "data.validation_fraction": "0",
    }
    words |= {"data.image_size": str(size), "augment.crop_padding": "4", "augment.flip": "random"}
    recipe = read_recipe("finetune", words)
    data = prepared_data.load(prepared_data.prepare(recipe.data), recipe, device)
    constants = (torch.tensor(values, device=device) for values in (MEAN, STD))
    loader = Loader(recipe, data.train, len(data.classes), Preprocess(recipe.data, *constants), slice(0, batch))
    for step in itertools.count():
        yield from loader.batch(step)


def encoded(source: str) -> datasets.Dataset:
    """The training images as `datasets` holds them, encoded and decoded at each access: columns `image` and `label`."""
    train = encoded_synthetic("train") if source == "synthetic" else datasets.load_dataset(source)["train"]
    image = next(name for name, feature in train.features.items() if isinstance(feature, datasets.Image))
    label = next(name for name in ("label", "labels", "fine_label") if name in train.features)
    return train.select_columns([image, label]).rename_columns(
        {name: new for name, new in ((image, "image"), (label, "label")) if name != new}
    )


def encoded_synthetic(split: str, count: int | None = None) -> datasets.Dataset:
    """The first `count` synthetic images (by default all) of `train` or `test` as PNG: columns `image` and `label`."""
    images, labels = synthetic.draw(split, count)

    def png(pixels: Any) -> dict[str, Any]:
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        return {"bytes": stream.getvalue(), "path": None}

    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(synthetic.CLASS_NAMES))}
    columns = {"image": [png(pixels) for pixels in images], "label": labels.tolist()}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def _transform(size: int) -> v2.Compose:
    resize = [v2.Resize(size, InterpolationMode.BICUBIC)] if size != 32 else []
    return v2.Compose(
        [
            v2.RandomCrop(32, padding=4, padding_mode="reflect"),
            v2.RandomHorizontalFlip(),
            *resize,
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )


class _Apply:
    """Picklable, for workers."""

    def __init__(self, transform: Callable[[Any], torch.Tensor]) -> None:
        self.transform = transform

    def __call__(self, rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {**rows, "image": [self.transform(image.convert("RGB")) for image in rows["image"]]}


@contextlib.contextmanager
def _loading(dataset: datasets.Dataset, batch: int, workers: int, device: torch.device) -> Iterator[Iterator[Batch]]:
    """Batches without an end, from workers that end with the context: idle ones would slow others down."""
    loader = torch.utils.data.DataLoader(
        dataset,
        batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )

    def batches() -> Iterator[Batch]:
        while True:
            for rows in loader:
                yield tuple(rows[name].to(device, non_blocking=True) for name in ("image", "label"))

    stream = batches()
    try:
        yield stream
    finally:
        stream.close()
