"""The images of a run: decoded once into the cache, divided into splits, on the device or memory-mapped."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from resnet_cifar.config.schema import Data, Recipe
from resnet_cifar.data import cache, splits
from resnet_cifar.data.decoding import decode
from resnet_cifar.data.image_dataset import ImageDataset, MmapImages, choose_storage
from resnet_cifar.data.paths import cache_root
from resnet_cifar.data.sources.registry import check_source_fields, find_source


@dataclass(frozen=True)
class ImageData:
    """The data of a run. `fingerprint` is a digest of every decoded image and label of the source.

    `place` describes where the images are stored and why; `remarks` are sentences on how they were decoded and split.
    """

    train: ImageDataset
    validation: ImageDataset
    test: ImageDataset
    classes: tuple[str, ...]
    fingerprint: str
    place: str = ""
    remarks: tuple[str, ...] = ()


def prepare(data: Data) -> Path:
    """The cache entry of `data`, decoded if it is missing or damaged. Raises UserError."""
    kind = find_source(data.source)
    check_source_fields(data, kind)
    described = f"{kind.identity(data)} {data.config_name} {data.splits} {data.columns} {data.decode_size}"
    # The key depends on how the images were decoded, which is known only afterwards: one of these.
    sides = (0,) if data.decode_size else (0, data.image_size)
    for side in sides:
        for complete in (True, False) if data.skip_broken else (True,):
            entry = cache.entry_path(f"{described} {side} {complete}")
            if entry.is_dir():
                damage = cache.find_damage(entry)
                if damage is None:
                    cache.mark_used(entry)
                    return entry
                print(f"the cache entry {entry} is damaged ({damage}): decoding again", file=sys.stderr, flush=True)
                cache.discard(entry)
    print(f"decoding {data.source} once, into {cache_root()}", flush=True)
    with cache.new_entry() as folder:  # fails before any download if the cache is not writable
        contents = kind.read(data)
        decoded = decode(contents, data, folder)
        entry = cache.entry_path(f"{described} {decoded.side} {not decoded.left_out}")
        cache.publish(folder, entry, contents.classes, {"source": data.source, **asdict(decoded)})
    return entry


def load(entry: Path, recipe: Recipe, device: torch.device) -> ImageData:
    """Loads a cache entry: applies `data.limit`, splits the images, and moves them to the device if they fit.

    Raises UserError if a split lacks a class.
    """
    meta = json.loads((entry / "meta.json").read_text())
    labels = {role: np.load(entry / f"{role}-labels.npy") for role in meta["images"]}
    chosen = splits.split_indices(labels["train"], labels.get("test"), len(meta["classes"]), recipe)
    tested = "test" if "test" in labels else "train"
    parts = {
        "train": ("train", chosen.train),
        "validation": ("train", chosen.validation),
        "test": (tested, chosen.test),
    }
    nbytes = sum(len(rows) for _, rows in parts.values()) * int(np.prod(meta["size"])) * 3
    place, description = choose_storage(recipe.data.storage, nbytes, device)

    def images(role: str, rows: np.ndarray) -> ImageDataset:
        file, everything = entry / f"{role}-images.npy", len(rows) == len(labels[role])
        if place == "host":
            stored = MmapImages(file, rows, device)
        else:
            stored = torch.from_numpy(np.load(file) if everything else np.load(file, mmap_mode="r")[rows]).to(device)
        left_out = meta["left_out"].get(role, [])
        indices = np.delete(np.arange(len(labels[role]) + len(left_out)), left_out)
        return ImageDataset(stored, torch.from_numpy(labels[role][rows]).to(device), indices[rows])

    cut = f"no test split: {recipe.data.test_fraction:.0%} of the images are held out as one (data.test_fraction)"
    return ImageData(
        **{name: images(*part) for name, part in parts.items()},
        classes=tuple(meta["classes"]),
        fingerprint=meta["fingerprint"],
        place=description,
        remarks=(*meta["remarks"], *([cut] if tested == "train" else [])),
    )
