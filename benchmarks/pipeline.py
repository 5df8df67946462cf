"""Crop, flip and normalise at 32x32: the resident pipeline against `datasets` + torchvision + DataLoader."""

from __future__ import annotations

import io
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import datasets
import torch
from PIL import Image
from torchvision.transforms import v2

from resnet_cifar.cli import read_recipe
from resnet_cifar.data import store
from resnet_cifar.data.batches import Batches, InputFormat
from resnet_cifar.data.plan import Plan
from resnet_cifar.data.sources import synthetic

BATCH, ROUNDS, BATCHES = 256, 7, 12
SETTLE = 3  # seconds in which workers fill their queues again, so that they do not slow the next one down
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def measure(source: str) -> dict[str, Any]:
    """Images/s of both, the medians of interleaved rounds; of the DataLoader the best number of workers."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ours = _resident(source, device)
    dataset = _encoded(source)
    workers = sorted({0, 1, 2, 4, os.cpu_count() or 1})
    loaders = {number: _loader(dataset, number) for number in workers}
    speeds: dict[str, list[float]] = {"resident": [], **{f"dataloader, {number} workers": [] for number in workers}}
    for _ in range(ROUNDS):
        speeds["resident"].append(_speed(ours, BATCHES * 8, device))
        for number, loader in loaders.items():
            for _ in range(2 * number + 1):  # what was fetched ahead while others were measured
                next(loader)
            speeds[f"dataloader, {number} workers"].append(_speed(loader, BATCHES, device))
            time.sleep(SETTLE)
    medians = {name: round(statistics.median(values)) for name, values in speeds.items()}
    best = max(value for name, value in medians.items() if name != "resident")
    return {"images_per_second": medians, "resident_over_best_dataloader": round(medians["resident"] / best, 2)}


def _speed(batches: Iterator[Any], count: int, device: torch.device) -> float:
    next(batches)
    began = time.perf_counter()
    for _ in range(count):
        next(batches)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return count * BATCH / (time.perf_counter() - began)


def _resident(source: str, device: torch.device) -> Iterator[Any]:
    words = {"data.source": source, "batch_size": str(BATCH), "phases.0.epochs": "1000000"}
    plain = {"augment.mixup": "0", "augment.cutmix": "0", "augment.flip": "random", "data.validation": "0"}
    recipe = read_recipe("scratch", {**words, **plain})
    data = store.load(store.ensure(recipe.data), recipe, device)
    constants = (torch.tensor(values, device=device) for values in (MEAN, STD))
    plan = Plan(recipe, len(data.train), world=1)
    for micro_batches in Batches(plan, data.train, len(data.classes), InputFormat(recipe.data, *constants), 0).steps():
        yield from micro_batches


def _encoded(source: str) -> datasets.Dataset:
    """The training images as `datasets` holds them: encoded, decoded at each access."""
    if source != "synthetic":
        train = datasets.load_dataset(source)["train"]
    else:
        images, labels = synthetic.draw("train")

        def png(pixels: Any) -> dict[str, Any]:
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, "PNG")
            return {"bytes": stream.getvalue(), "path": None}

        columns = {"img": [png(p) for p in images], "label": labels.tolist()}
        train = datasets.Dataset.from_dict(columns).cast_column("img", datasets.Image())
    column = next(name for name, feature in train.features.items() if isinstance(feature, datasets.Image))
    transform = v2.Compose(
        [
            v2.RandomCrop(32, padding=4, padding_mode="reflect"),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    return train.select_columns([column]).with_transform(_Apply(transform, column))


class _Apply:
    """Picklable, for workers."""

    def __init__(self, transform: Callable[[Any], torch.Tensor], column: str) -> None:
        self.transform, self.column = transform, column

    def __call__(self, rows: dict[str, list[Any]]) -> dict[str, list[torch.Tensor]]:
        return {"img": [self.transform(image) for image in rows[self.column]]}


def _loader(dataset: datasets.Dataset, workers: int) -> Iterator[Any]:
    loader = torch.utils.data.DataLoader(
        dataset, BATCH, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
    )
    while True:
        yield from loader
