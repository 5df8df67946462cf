"""The images of a run: decoded once into the cache, divided into splits, on the device or memory-mapped."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from resnet_cifar.cache_folder import ask_once, cache_root, mark_used
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Data, Recipe
from resnet_cifar.data import cache, splits
from resnet_cifar.data.decoding import decode, is_large
from resnet_cifar.data.image_dataset import ImageDataset, MmapImages, choose_storage
from resnet_cifar.data.sources import image_io
from resnet_cifar.data.sources.base import check_fields, shorten
from resnet_cifar.data.sources.image_io import AS_IS, Decoding
from resnet_cifar.data.sources.registry import find_source

_Part = dict[str, np.ndarray]  # the source's split of this name -> the images of it, sorted


@dataclass(frozen=True)
class ImageData:
    """The data of a run. `fingerprint` is a digest of every decoded image and label of the source.

    `place` describes where the images are stored and why, `origins` the splits of the source that they come from;
    `remarks` are sentences on how they were decoded and on what is not used; `decoding` gives other images their form.
    `joined`: how many of the training images a refit has taken from the validation split.
    """

    train: ImageDataset
    validation: ImageDataset
    test: ImageDataset
    classes: tuple[str, ...]
    fingerprint: str
    place: str = ""
    origins: str = ""
    remarks: tuple[str, ...] = ()
    decoding: Decoding = AS_IS
    joined: int = 0

    @property
    def epoch_images(self) -> int:
        """The number of images in an epoch of the schedule: a refit keeps that of the run before it."""
        return len(self.train) - self.joined

    def class_counts(self) -> dict[str, dict[str, int]]:
        """Split -> class -> number of images, without empty splits."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        counts = {name: each.labels.bincount(minlength=len(self.classes)).tolist() for name, each in splits.items()}
        return {name: dict(zip(self.classes, each, strict=True)) for name, each in counts.items() if any(each)}


def prepare(data: Data, how: Decoding | None = None, one_class: bool = False) -> Path:
    """The cache entry of `data`, decoded if it is missing or damaged. Raises UserError.

    `how`: that of the training images of a model, for others that it is to classify. `one_class`: whether images of one
    class suffice, as they do for an evaluation.
    """
    entry = _find_or_decode(data, how)
    present = np.unique(np.load(entry / "train-labels.npy"))
    if len(present) == 1 and not one_class:
        meta = _meta(entry)
        remarks = f" ({'; '.join(meta['remarks'])})" if meta["remarks"] else ""
        raise UserError(
            f"data.source {data.source!r} has images of one class only, {meta['classes'][present[0]]!r}{remarks}: use "
            "one with two classes or more"
        )
    return entry


def _find_or_decode(data: Data, how: Decoding | None) -> Path:
    kind = find_source(data.source)
    check_fields(data, kind.FIELDS)
    described = f"{kind.identity(data)} {data.config_name} {data.splits} {data.columns}"
    described += f" {data.decode_size} {data.value_range}" + (" pad" if data.decode_mode == "pad" else "")
    # The key depends on how the images were decoded, which is known only afterwards: one of these.
    sides: list[Any] = [0] if data.decode_size else [0, data.image_size]
    if how:  # what training has decoded by itself may be just that
        sides += [how.size and how.size[0], how]
    # What had to be left out may be readable with another package.
    whole, incomplete = "True", "False" + " without HEIC" * (not image_io.READS_HEIC)
    for side in dict.fromkeys(sides):
        for complete in (whole, incomplete) if data.skip_broken else (whole,):
            entry = cache.entry_path(f"{described} {side} {complete}")
            if entry.is_dir():
                damage = cache.find_damage(entry)
                if damage is None and _fits(_meta(entry), side, data, how):
                    mark_used(entry)
                    return entry
                if damage is None:
                    continue
                print(f"the cache entry {entry} is damaged ({damage}): decoding again", file=sys.stderr, flush=True)
                cache.discard(entry)

    def decode_it() -> str:
        print(f"decoding {data.source} once, into {cache_root()}", flush=True)
        with cache.new_entry() as folder:  # fails before any download if the cache is not writable
            contents = kind.read(data)
            decoded = decode(contents, data, folder, how)
            complete = incomplete if decoded.left_out or contents.incomplete else whole
            entry = cache.entry_path(f"{described} {how or decoded.side} {complete}")
            cache.publish(folder, entry, contents.classes, {"source": data.source, **asdict(decoded)})
        return str(entry)

    question = f"decode {described} {sides} {how} {data.skip_broken}"
    waiting = f"waiting for another process, which decodes {data.source} into {cache_root()}"
    while not (entry := Path(ask_once(question, decode_it, waiting))).is_dir():
        pass  # that of another process, deleted since; the next time this one decodes
    return entry


def _fits(meta: dict[str, Any], side: Any, data: Data, how: Decoding | None) -> bool:
    """Whether an entry holds the images like `how`, or without it as `data` has them decoded."""
    if how:
        return how == _decoding(meta)
    # Those at their own size may be from a run with a larger image_size.
    return bool(side or data.decode_size) or not is_large(*meta["size"], data)


def fingerprint(entry: Path) -> str:
    """The fingerprint of the images in a cache entry."""
    return _meta(entry)["fingerprint"]


def load(entry: Path, recipe: Recipe, device: torch.device) -> ImageData:
    """Loads a cache entry: applies `data.limit`, splits the images, and moves them to the device if they fit.

    Raises UserError if a split lacks a class.
    """
    meta = _meta(entry)
    names = json.loads((entry / cache.FILE_NAMES).read_text()) if (entry / cache.FILE_NAMES).is_file() else {}
    labels = {role: np.load(entry / f"{role}-labels.npy") for role in meta["images"]}
    parts, joined = _divide(labels, meta["classes"], recipe)
    nbytes = sum(len(rows) for part in parts.values() for rows in part.values()) * int(np.prod(meta["size"])) * 3
    place, description = choose_storage(recipe.data.storage, nbytes, device)

    def images(part: _Part) -> ImageDataset:
        files = [(entry / f"{role}-images.npy", rows) for role, rows in part.items()]
        if place == "host":
            stored = MmapImages(files, device)
        else:
            arrays = [_read(file, rows) for file, rows in files]
            stored = torch.from_numpy(arrays[0] if len(arrays) == 1 else np.concatenate(arrays)).to(device)
        indices, before = [], 0
        for role, rows in part.items():
            left_out = meta["left_out"].get(role, [])
            count = len(labels[role]) + len(left_out)
            indices.append(before + np.delete(np.arange(count), left_out)[rows])
            before += count
        named = [names[role][row] for role, rows in part.items() if role in names for row in rows]
        return ImageDataset(stored, torch.from_numpy(_labels(part, labels)).to(device), np.concatenate(indices), named)

    return ImageData(
        **{name: images(part) for name, part in parts.items()},
        classes=tuple(meta["classes"]),
        fingerprint=meta["fingerprint"],
        place=description,
        origins=_describe_origins(parts, meta["names"], labels, recipe),
        remarks=(*meta["remarks"], *_lacking_classes(parts, labels, meta["classes"])),
        decoding=_decoding(meta),
        joined=joined,
    )


def trained_images(entry: Path, recipe: Recipe, trained: Recipe | None, split: str) -> int | None:
    """How many images of `split`, as `recipe` divides those of a cache entry, a run of `trained` has trained on.

    None if that is unknown, as it is without `trained`, unless they are a test split of the source's own.
    """
    meta = _meta(entry)
    if trained is None:
        return 0 if split == "test" and "test" in meta["images"] else None
    labels = {role: np.load(entry / f"{role}-labels.npy") for role in meta["images"]}
    asked = _divide(labels, meta["classes"], recipe)[0][split]
    used = _divide(labels, meta["classes"], trained)[0]["train"]
    return sum(len(np.intersect1d(rows, used[role])) for role, rows in asked.items() if role in used)


def _divide(labels: dict[str, np.ndarray], classes: list[str], recipe: Recipe) -> tuple[dict[str, _Part], int]:
    """(the images of the splits `train`, `validation` and `test`, how many of a refit were held out before)."""
    chosen = splits.split_indices(labels, classes, recipe)
    own = {"validation"} if recipe.data.overfit_images else set()  # what is cut off the training split regardless
    parts: dict[str, _Part] = {
        name: {name if name in labels.keys() - own else "train": getattr(chosen, name)}
        for name in ("train", "validation", "test")
    }
    if not recipe.refit_steps:
        return parts, 0
    joined = {"train": _union(parts["train"], parts["validation"]), "validation": {"train": chosen.train[:0]}}
    return parts | joined, len(chosen.validation)


def _union(train: _Part, held_out: _Part) -> _Part:
    """The images of both, in the order of the source's split, or of its two splits."""
    both = {**train, **held_out}
    return both if len(both) == 2 else {role: np.union1d(train[role], held_out[role]) for role in both}


def _read(file: Path, rows: np.ndarray) -> np.ndarray:
    whole = np.load(file, mmap_mode="r")
    return np.load(file) if len(rows) == len(whole) else whole[rows]


def _labels(part: _Part, labels: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([labels[role][rows] for role, rows in part.items()])


def _meta(entry: Path) -> dict[str, Any]:
    return json.loads((entry / "meta.json").read_text())


def _decoding(meta: dict[str, Any]) -> Decoding:
    value_range = meta["value_range"] and tuple(meta["value_range"])
    return Decoding(tuple(meta["size"]), value_range, meta.get("mode", "crop"))  # older entries have no mode


def _describe_origins(
    parts: dict[str, _Part], names: dict[str, str], labels: dict[str, np.ndarray], recipe: Recipe
) -> str:
    """The split of the source behind each part of the data, and how much of it: `train: 36 of 40 images of 'train'`."""
    data = recipe.data
    why = {"validation": f"data.validation_fraction {data.validation_fraction:g}"}
    why["validation"] = f"data.overfit_images {data.overfit_images}" if data.overfit_images else why["validation"]
    why["validation"] = f"refit_steps {recipe.refit_steps}" if recipe.refit_steps else why["validation"]
    why["test"] = f"data.test_fraction {data.test_fraction:g}"
    said = []
    for name, part in parts.items():
        counts = [
            f"{len(rows):,} of {len(labels[role]):,} images of {names[role]!r}"
            for role, rows in part.items()
            if len(rows)
        ]
        text = f"{name}: {' and '.join(counts)}" if counts else f"no {name}"
        said.append(text if name in part else f"{text} ({why[name]})")
    unused = [repr(names[role]) for role in names if not any(role in part for part in parts.values())]
    return "; ".join([*said, *(f"not used: {name}" for name in unused)])


def _lacking_classes(parts: dict[str, _Part], labels: dict[str, np.ndarray], classes: list[str]) -> list[str]:
    """Remarks on splits without images of some of the classes that are trained."""
    said, trained = [], _labels(parts["train"], labels)
    for name, part in parts.items():
        present = _labels(part, labels)
        lost = np.setdiff1d(trained, present)
        if len(present) and len(lost):
            said.append(f"the {name} split has no images of {shorten(repr(classes[label]) for label in lost)}")
    return said
