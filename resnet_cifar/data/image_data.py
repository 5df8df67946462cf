"""Decode once, keep as uint8, and put what a recipe uses where it will be used from."""

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
    """What a run works on. `fingerprint` is a digest of every decoded image and label of the source.

    `place` says where the images live and why; `remarks` are sentences on how they came to be what they are.
    """

    train: ImageDataset
    validation: ImageDataset
    test: ImageDataset
    classes: tuple[str, ...]
    fingerprint: str
    place: str = ""
    remarks: tuple[str, ...] = ()


def prepare(data: Data) -> Path:
    """The cache entry of `data`, decoded first if it is not there, and again if it is damaged. Raises UserError."""
    kind = find_source(data.source)
    check_source_fields(data, kind)
    described = f"{kind.identity(data)} {data.config_name} {data.splits} {data.columns} {data.decode_size}"
    # An entry's name says what was done to the images, which is known only afterwards; one of these is true.
    sides = (0,) if data.decode_size else (0, data.image_size)
    for side in sides:
        for is_whole in (True, False) if data.skip_broken else (True,):
            entry = cache.entry_path(f"{described} {side} {is_whole}")
            if entry.is_dir():
                damage = cache.find_damage(entry)
                if damage is None:
                    cache.mark_used(entry)
                    return entry
                print(f"the cache entry {entry} is damaged ({damage}): decoding again", file=sys.stderr, flush=True)
                cache.discard(entry)
    print(f"decoding {data.source} once, into {cache_root()}", flush=True)
    with cache.new_entry() as folder:  # a cache that cannot be written is told before anything is fetched
        contents = kind.read(data)
        decoded = decode(contents, data, folder)
        entry = cache.entry_path(f"{described} {decoded.side} {not decoded.left_out}")
        cache.publish(folder, entry, contents.classes, {"source": data.source, **asdict(decoded)})
    return entry


def load(entry: Path, recipe: Recipe, device: torch.device) -> ImageData:
    """Reads a cache entry, applies `data.limit` and the test and validation cuts, and puts the images in their place.

    Raises UserError where a cut leaves a class without images.
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
    place, where = choose_storage(recipe.data.storage, nbytes, device)

    def images(role: str, rows: np.ndarray) -> ImageDataset:
        file, everything = entry / f"{role}-images.npy", len(rows) == len(labels[role])
        if place == "host":
            held = MmapImages(file, rows, device)
        else:
            held = torch.from_numpy(np.load(file) if everything else np.load(file, mmap_mode="r")[rows]).to(device)
        left_out = meta["left_out"].get(role, [])
        indices = np.delete(np.arange(len(labels[role]) + len(left_out)), left_out)
        return ImageDataset(held, torch.from_numpy(labels[role][rows]).to(device), indices[rows])

    cut = f"no test split: {recipe.data.test_fraction:.0%} of the images are cut off as one (data.test_fraction)"
    return ImageData(
        **{name: images(*part) for name, part in parts.items()},
        classes=tuple(meta["classes"]),
        fingerprint=meta["fingerprint"],
        place=where,
        remarks=(*meta["remarks"], *([cut] if tested == "train" else [])),
    )
