"""data/image_dataset.py: images on the device and images on disk are the same, to the bit, wherever they are used."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from resnet_cifar.config.schema import Recipe
from resnet_cifar.config.validation import parse
from resnet_cifar.data import image_dataset, prepared_data
from resnet_cifar.data.image_dataset import ImageDataset, MmapImages, choose_storage
from resnet_cifar.data.loader import Loader
from resnet_cifar.data.prepared_data import ImageData
from resnet_cifar.data.preprocess import Preprocess
from resnet_cifar.training.plan import Plan

CPU = torch.device("cpu")
AUGMENT = {
    "crop_padding": 2,
    "flip": "alternating",
    "cutout": 3,
    "random_erasing": 0.5,
    "mixup_alpha": 0.3,
    "cutmix_alpha": 1.0,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An .npz file of 90 training and 30 test images of three classes."""
    folder = tmp_path_factory.mktemp("resident")
    noise = np.random.default_rng(0)
    arrays = {f"x_{name}": noise.integers(0, 256, (n, 9, 9, 3), np.uint8) for name, n in (("train", 90), ("test", 30))}
    arrays |= {"y_train": np.arange(90) % 3, "y_test": np.arange(30) % 3}
    np.savez(folder / "a.npz", **arrays)
    held_out = {"x_val": noise.integers(0, 256, (20, 9, 9, 3), np.uint8), "y_val": np.arange(20) % 3}
    np.savez(folder / "with_validation.npz", **arrays, **held_out)
    return folder


def load(folder: Path, storage: str, **values: Any) -> tuple[Recipe, ImageData]:
    data = {"source": "a.npz", "image_size": 12, "storage": storage, **values.pop("data", {})}
    data["source"] = str(folder / data["source"])
    recipe = parse(
        {
            "batch_size": 16,
            "model": {"ghost_batch_size": None},
            "augment": AUGMENT,
            "phases": [{"epochs": 3, "lr": 0.1}],
            "data": data,
            **values,
        }
    )
    return recipe, prepared_data.load(prepared_data.prepare(recipe.data), recipe, CPU)


def loader_of(folder: Path, storage: str, world_size: int = 1, rank: int = 0, **values: Any) -> Loader:
    recipe, data = load(folder, storage, **values)
    preprocess = Preprocess(recipe.data, torch.tensor((0.5,) * 3), torch.tensor((0.25,) * 3))
    return Loader(recipe, data.train, 3, preprocess, Plan(recipe, len(data.train), world_size).rows(rank))


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"data": {"limit": 60, "validation_fraction": 0.2}},
        {"data": {"overfit_images": 12}},
        {"data": {"validation_fraction": 0}},
        {"refit_steps": 9},
        {"data": {"source": "with_validation.npz"}, "refit_steps": 9},
    ],
    ids=["cut", "limit", "overfit", "all", "refit", "refit with its own validation split"],
)
@pytest.mark.parametrize(("world_size", "micro_batch"), [(1, 0), (1, 4), (2, 4), (4, 0)])
def test_batches_are_the_same_bit_for_bit(
    folder: Path, world_size: int, micro_batch: int, values: dict[str, Any]
) -> None:
    for rank in range(world_size):
        ours, theirs = (loader_of(folder, storage, world_size, rank, **values) for storage in ("host", "device"))
        assert isinstance(ours.images.images, MmapImages)
        assert isinstance(theirs.images.images, torch.Tensor)
        steps = Plan(ours.recipe, len(ours.images), world_size).steps
        for start in (0, 1):
            count = 0
            for step in range(start, steps):
                loaded = (loader.batch(step, micro_batch=micro_batch) for loader in (ours, theirs))
                for batch, expected in zip(*loaded, strict=True):
                    torch.testing.assert_close(batch, expected, rtol=0, atol=0)
                    count += 1
            assert count == (steps - start) * (16 // world_size // micro_batch if micro_batch else 1)


@pytest.mark.parametrize("data", [{}, {"limit": 60, "validation_fraction": 0.2}, {"overfit_images": 12}])
def test_every_split_holds_the_same_images_and_labels(folder: Path, data: dict[str, Any]) -> None:
    (_, ours), (_, theirs) = (load(folder, storage, data=data) for storage in ("host", "device"))
    for name in ("train", "validation", "test"):
        a, b = getattr(ours, name), getattr(theirs, name)
        assert (len(a), a.size, a.device) == (len(b), (9, 9), CPU)
        rows = np.arange(len(a))[::-1].copy()
        assert torch.equal(a.gather(rows), b.gather(rows))
        assert torch.equal(a.labels, b.labels)
        np.testing.assert_array_equal(a.indices, b.indices)
        assert a.resident_bytes == 0
        assert b.resident_bytes == len(b) * 9 * 9 * 3


@pytest.mark.parametrize("storage", ["host", "device"])
@pytest.mark.parametrize("sizes", [[], [5], [1, 2], [7, 7, 7, 2], [30, 1] * 4])
def test_prefetched_batches_arrive_complete_and_in_order(sizes: list[int], storage: str, folder: Path) -> None:
    images = load(folder, storage)[1].train
    batches = [np.random.default_rng(size).integers(0, len(images), size) for size in sizes]
    found = list(images.read(iter(batches)))
    assert len(found) == len(batches)
    for rows, pixels in zip(batches, found, strict=True):
        assert torch.equal(pixels, images.gather(rows))


def test_batches_are_prefetched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    ask = ImageDataset.prefetch
    monkeypatch.setattr(ImageDataset, "prefetch", lambda self, rows: asked.append(len(rows)) or ask(self, rows))
    images = load(folder, "host")[1].train
    reading = images.read(np.arange(size) for size in range(1, 7))
    next(reading)
    assert asked == [1, 2, 3]
    assert len(list(reading)) == 5
    assert asked == [1, 2, 3, 4, 5, 6]
    asked.clear()
    loader_of(folder, "host").batch(0)
    assert asked == [16, 16]


def test_read_errors_are_raised_by_the_consumer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = load(folder, "host")[1].train
    assert len(images.gather(np.arange(3))) == 3
    monkeypatch.setattr(
        image_dataset.np, "take", lambda *arguments, **options: (_ for _ in ()).throw(OSError(5, "gone"))
    )
    later = images.prefetch(np.arange(3))
    with pytest.raises(OSError, match="gone"):
        later.images(image_dataset.ALL)


FREE = 8 * 2**30


@pytest.mark.parametrize(
    ("storage", "nbytes", "processes", "place", "why"),
    [
        ("auto", FREE // 2, 1, "device", "at most half of the 8.0 GiB free in memory"),
        ("auto", FREE // 2 + 1, 1, "host", "more than half of the 8.0 GiB"),
        ("auto", FREE // 2, 2, "host", "more than half of the 4.0 GiB"),  # each process holds the images
        ("device", 10 * FREE, 1, "device", "data.storage"),
        ("host", 1, 1, "host", "data.storage"),
    ],
)
def test_the_place_follows_from_free_memory_and_says_why(
    storage: str, nbytes: int, processes: int, place: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=FREE))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    found, said = choose_storage(storage, nbytes, CPU)
    assert found == place
    assert why in said
    assert ("on local disk" in said) == (place == "host")


@pytest.mark.parametrize(("nbytes", "place"), [(FREE // 2, "device"), (FREE // 2 + 1, "host")])
def test_on_a_gpu_its_own_free_memory_counts(nbytes: int, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (FREE, 10 * FREE))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1))
    assert choose_storage("auto", nbytes, torch.device("cuda", 0))[0] == place


def test_a_set_that_does_not_fit_is_mapped_by_itself(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    data = load(folder, "auto")[1]
    assert isinstance(data.train.images, MmapImages)
    assert "prefetched" in data.place
