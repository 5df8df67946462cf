"""data/image_data.py: decoded once, whole or not there, and the right image in the right place."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from resnet_cifar import cache_folder
from resnet_cifar.cache_folder import cache_root
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Data
from resnet_cifar.config.validation import parse
from resnet_cifar.data import decoding, prepared_data, splits
from resnet_cifar.data.sources import image_io
from resnet_cifar.data.sources.base import SourceData, Split
from resnet_cifar.data.sources.image_io import Decoding
from resnet_cifar.data.sources.registry import find_source

CPU = torch.device("cpu")
XY = Data(source="x/y")


class FakeSource:
    """A source of 40 training and 20 test images whose first pixel is their index; counts how often it is read."""

    FIELDS = ()

    def __init__(self) -> None:
        self.name, self.reads = "first", 0
        draws = np.random.default_rng(0)
        sizes = (("train", 40, 0), ("test", 20, 100))
        self.images = {name: draws.integers(0, 256, (n, 6, 5, 3), np.uint8) for name, n, _ in sizes}
        for name, n, offset in sizes:
            self.images[name][:, 0, 0, 0] = offset + np.arange(n)
        self.labels = {name: np.arange(n, dtype=np.int64) % 4 for name, n, _ in sizes}
        self.has_test = True

    def identity(self, data: Data) -> str:
        return f"fake {data.source} {self.name}"

    def read(self, data: Data) -> SourceData:
        self.reads += 1
        train, test = (Split(name, self.images[name], self.labels[name]) for name in ("train", "test"))
        return SourceData(train, test if self.has_test else None, ("a", "b", "c", "d"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RESNET_CIFAR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def source(cache: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSource:
    fake = FakeSource()
    monkeypatch.setattr(prepared_data, "find_source", lambda name: fake)
    return fake


def contents(entry: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in entry.iterdir()}


def test_an_entry_is_decoded_once_and_used_again(source: FakeSource, cache: Path) -> None:
    entry = prepared_data.prepare(XY)
    before = {file: file.stat().st_mtime_ns for file in entry.iterdir()}
    assert prepared_data.prepare(XY) == entry
    assert source.reads == 1
    assert {file: file.stat().st_mtime_ns for file in entry.iterdir()} == before
    assert [path.name for path in cache.iterdir()] == [entry.name]  # nothing half-built is left


def test_other_contents_get_an_entry_of_their_own(source: FakeSource) -> None:
    first = prepared_data.prepare(XY)
    source.name = "second"
    assert prepared_data.prepare(XY) != first
    assert prepared_data.prepare(Data(source="x/z")) not in (first, prepared_data.prepare(XY))
    assert source.reads == 3


def test_the_arrays_are_plain_numpy_files_with_their_checksums(source: FakeSource) -> None:
    entry = prepared_data.prepare(XY)
    for name, array in source.images.items():
        np.testing.assert_array_equal(np.load(entry / f"{name}-images.npy", allow_pickle=False), array)
    checksums = json.loads((entry / "meta.json").read_text())["checksums"]
    arrays = sorted(path for path in entry.iterdir() if path.suffix == ".npy")
    assert checksums == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in arrays}
    assert len(arrays) == 4


@pytest.mark.parametrize("table", ["labels.csv", "trainLabels.csv"])
def test_an_entry_without_the_missing_images_is_used_only_where_they_may_be_skipped(
    table: str, tmp_path: Path, cache: Path
) -> None:
    (tmp_path / "a" / "train").mkdir(parents=True)
    for number in range(4):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "a" / "train" / f"{number}.png")
    (tmp_path / "a" / table).write_text("id,label\n" + "".join(f"{number},{number % 2}\n" for number in range(5)))
    skipping = Data(source=str(tmp_path / "a"), skip_broken=True)
    for _ in range(2):
        with pytest.raises(UserError, match="skip them with"):
            prepared_data.prepare(replace(skipping, skip_broken=False))
        assert prepared_data.prepare(skipping) == prepared_data.prepare(skipping)


FILES = ["train-images.npy", "train-labels.npy", "test-images.npy", "test-labels.npy", "meta.json"]


@pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "changed"])
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_entry_is_detected_reported_and_rebuilt(
    file: str, damage: str, source: FakeSource, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = prepared_data.prepare(XY)
    sound = contents(entry)
    whole = sound[file]
    changed = bytearray(whole)
    # In meta.json: another name for the first class. It has no checksum of its own, but the fingerprint covers it.
    place = whole.index(b'"a"') + 1 if file == "meta.json" else len(whole) - 1
    changed[place] ^= 0x10
    if damage == "missing":
        (entry / file).unlink()
    else:
        (entry / file).write_bytes({"truncated": whole[:-20], "empty": b"", "changed": bytes(changed)}[damage])
    assert prepared_data.prepare(XY) == entry
    assert source.reads == 2
    assert "damaged" in capsys.readouterr().err
    assert contents(entry) == sound
    assert [path.name for path in cache.iterdir()] == [entry.name]


@pytest.mark.parametrize("text", ["[]", "{}", '{"checksums": []}', "null"])
def test_a_meta_file_of_another_shape_is_damage(text: str, source: FakeSource) -> None:
    entry = prepared_data.prepare(XY)
    (entry / "meta.json").write_text(text)
    prepared_data.prepare(XY)
    assert source.reads == 2


def test_the_loser_of_a_race_deletes_its_copy(source: FakeSource, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process has built the entry while this one decoded, on a file system that has no locks."""

    def no_locks(*given: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(cache_folder.fcntl, "flock", no_locks)
    entries: list[Path] = []

    def slowly(data: Data) -> SourceData:
        source.read = FakeSource.read.__get__(source)
        entries.append(prepared_data.prepare(data))
        return source.read(data)

    source.read = slowly
    entry = prepared_data.prepare(XY)
    assert entries == [entry]
    assert source.reads == 2
    assert [path.name for path in cache.iterdir()] == [entry.name]


def test_others_may_read_an_entry(source: FakeSource) -> None:
    assert prepared_data.prepare(XY).stat().st_mode & 0o055 == 0o055


def test_a_source_that_fails_leaves_nothing_behind(source: FakeSource, cache: Path) -> None:
    source.read = lambda data: (_ for _ in ()).throw(UserError("no such set"))
    with pytest.raises(UserError, match="no such set"):
        prepared_data.prepare(XY)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("size", ["24k", "60k"])  # neither the images nor the rest fits, or the images do
def test_a_full_disk_is_one_sentence_and_leaves_nothing_behind(
    size: str, source: FakeSource, mounted: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = mounted(f"size={size}")
    source.images = {name: array.repeat(6, 1).repeat(2, 2) for name, array in source.images.items()}
    monkeypatch.setenv("RESNET_CIFAR_CACHE", str(disk))
    with pytest.raises(UserError, match=r"No space left.*resnet-cifar cache.*RESNET_CIFAR_CACHE"):
        prepared_data.prepare(XY)
    assert list(disk.iterdir()) == []


def test_a_write_that_fails_leaves_nothing_behind(
    source: FakeSource, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: Path, array: np.ndarray) -> None:
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(decoding.np, "save", full)
    with pytest.raises(UserError, match="RESNET_CIFAR_CACHE"):
        prepared_data.prepare(XY)
    assert list(cache.iterdir()) == []


def test_a_read_only_cache_is_an_error_only_when_it_must_be_written(
    source: FakeSource, mounted: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = mounted("size=1m")
    monkeypatch.setenv("RESNET_CIFAR_CACHE", str(disk))
    entry = prepared_data.prepare(XY)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert prepared_data.prepare(XY) == entry
    with pytest.raises(UserError, match="Read-only file system"):
        prepared_data.prepare(Data(source="x/z"))


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_cache_that_cannot_be_created_is_an_error(
    below: str, source: FakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RESNET_CIFAR_CACHE", str(tmp_path / "file" / below))
    with pytest.raises(UserError, match=r"the cache folder .*file.* set RESNET_CIFAR_CACHE"):
        prepared_data.prepare(XY)


def test_an_unreadable_source_is_not_reported_as_a_cache_error(source: FakeSource) -> None:
    def unreadable(data: Data) -> SourceData:
        raise OSError(5, "Input/output error", "pictures/train.parquet")

    source.read = unreadable
    with pytest.raises((OSError, UserError)) as caught:
        prepared_data.prepare(XY)
    assert "RESNET_CIFAR_CACHE" not in str(caught.value)


def test_the_cache_follows_its_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESNET_CIFAR_CACHE", str(tmp_path / "own"))
    assert cache_root() == tmp_path / "own"
    monkeypatch.delenv("RESNET_CIFAR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "resnet_cifar"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_root() == tmp_path / "home" / ".cache" / "resnet_cifar"


@pytest.mark.parametrize(
    "data", [{}, {"limit": 16, "validation_fraction": 0.25}, {"validation_fraction": 0}, {"overfit_images": 8}]
)
def test_every_split_has_its_own_images_labels_and_indices(source: FakeSource, data: dict[str, float]) -> None:
    recipe = parse({"data": {"source": "synthetic", "validation_fraction": 0.2, **data}})
    loaded = prepared_data.load(prepared_data.prepare(XY), recipe, CPU)
    chosen = splits.split_indices(source.labels, "abcd", recipe)
    for name, whole in (("train", "train"), ("validation", "train"), ("test", "test")):
        part, rows = getattr(loaded, name), getattr(chosen, name)
        assert len(part) == len(rows)
        assert part.images.dtype == torch.uint8
        assert part.labels.dtype == torch.int64
        np.testing.assert_array_equal(part.indices, rows)
        np.testing.assert_array_equal(part.images.numpy(), source.images[whole][rows])
        np.testing.assert_array_equal(part.labels.numpy(), source.labels[whole][rows])
    assert loaded.classes == ("a", "b", "c", "d")


def test_a_test_split_is_held_out_of_a_source_without_one_and_reported(source: FakeSource) -> None:
    source.has_test = False
    recipe = parse({"data": {"source": "synthetic", "validation_fraction": 0.25, "test_fraction": 0.2}})
    loaded = prepared_data.load(prepared_data.prepare(XY), recipe, CPU)
    parts = (loaded.train, loaded.validation, loaded.test)
    assert [len(part) for part in parts] == [24, 8, 8]
    assert sorted(np.concatenate([part.indices for part in parts])) == list(range(40))
    for part in parts:
        np.testing.assert_array_equal(part.images[:, 0, 0, 0], part.indices)
        assert np.bincount(part.labels).tolist() == [len(part) // 4] * 4
    assert loaded.origins == (
        "train: 24 of 40 images of 'train'; validation: 8 of 40 images of 'train' (data.validation_fraction 0.25); "
        "test: 8 of 40 images of 'train' (data.test_fraction 0.2)"
    )


def test_a_validation_split_is_kept_apart_and_reported(source: FakeSource) -> None:
    held_out = Split("val", source.images["test"][:12], source.labels["test"][:12] % 3)
    read = source.read
    source.read = lambda data: replace(read(data), validation=held_out)
    entry = prepared_data.prepare(XY)
    loaded = prepared_data.load(entry, parse({"data": {"source": "synthetic"}}), CPU)
    np.testing.assert_array_equal(loaded.validation.images, held_out.images)
    np.testing.assert_array_equal(loaded.validation.indices, np.arange(12))
    assert [len(part) for part in (loaded.train, loaded.validation, loaded.test)] == [40, 12, 20]
    assert loaded.origins == (
        "train: 40 of 40 images of 'train'; validation: 12 of 12 images of 'val'; test: 20 of 20 images of 'test'"
    )
    assert loaded.remarks == ("the validation split has no images of 'd'",)
    overfit = prepared_data.load(entry, parse({"data": {"source": "synthetic", "overfit_images": 8}}), CPU)
    np.testing.assert_array_equal(overfit.train.images, overfit.validation.images)
    assert "validation: 8 of 40 images of 'train' (data.overfit_images 8)" in overfit.origins
    assert "not used: 'val'" in overfit.origins


def test_images_that_another_division_has_trained_on_are_counted(source: FakeSource) -> None:
    entry, trained = prepared_data.prepare(XY), parse({"data": {"source": "synthetic", "validation_fraction": 0.25}})

    def count(split: str, **data: Any) -> int:
        recipe = replace(trained, data=replace(trained.data, **data))
        return prepared_data.trained_images(entry, recipe, trained, split)

    assert (count("train"), count("validation"), count("test")) == (30, 0, 0)
    assert count("train", validation_fraction=0.0) == 30, "of 40"
    assert count("validation", validation_fraction=0.5) >= 10, "of 20, of which 10 at most were held out"


@pytest.mark.parametrize("storage", ["device", "host"])
def test_a_refit_trains_on_the_validation_split_too(source: FakeSource, storage: str) -> None:
    recipe = parse({"data": {"source": "synthetic", "validation_fraction": 0.25, "storage": storage}, "refit_steps": 3})
    loaded = prepared_data.load(prepared_data.prepare(XY), recipe, CPU)
    assert [len(part) for part in (loaded.train, loaded.validation, loaded.test)] == [40, 0, 20]
    assert loaded.epoch_images == 30
    np.testing.assert_array_equal(loaded.train.indices, np.arange(40))
    np.testing.assert_array_equal(loaded.train.gather(np.arange(40)), source.images["train"])
    np.testing.assert_array_equal(loaded.train.labels, source.labels["train"])
    assert loaded.origins == (
        "train: 40 of 40 images of 'train'; no validation (refit_steps 3); test: 20 of 20 images of 'test'"
    )


def test_large_images_are_stored_at_the_size_that_the_network_sees(
    source: FakeSource, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twelve photographs of 3000x2000 would take 216 MB; which entry is used does not depend on earlier runs."""
    source.images = {name: array.repeat(8, 1).repeat(8, 2) for name, array in source.images.items()}  # 40x48
    own, small = (prepared_data.prepare(replace(XY, image_size=size)) for size in (22, 21))
    assert own != small
    assert [prepared_data.prepare(replace(XY, image_size=size)) for size in (22, 21, 224)] == [own, small, own]
    assert source.reads == 2
    said = capsys.readouterr().out
    assert "decoding 60 images to 40x48 pixels, 346 kB" in said
    assert "decoding 60 images to 21x21 pixels, 79 kB" in said
    loaded = prepared_data.load(small, parse({"data": {"source": "synthetic"}}), CPU)
    assert loaded.train.size == (21, 21)
    assert loaded.remarks == (
        "images of 40x48 pixels, more than 4 times those of data.image_size 21: the shortest side is resized to 21 and "
        "the center cropped (data.decode_size)",
    )


def test_padding_has_an_entry_of_its_own_and_keeps_square_images_as_they_are(source: FakeSource) -> None:
    """Images of one size that are not square are padded too: resizing them later would squash them."""
    recipe = parse({"data": {"source": "synthetic"}})
    crop, pad = (prepared_data.prepare(replace(XY, decode_mode=mode, image_size=24)) for mode in ("crop", "pad"))
    assert pad != crop
    assert prepared_data.prepare(replace(XY, decode_mode="pad", image_size=24)) == pad
    loaded = prepared_data.load(pad, recipe, CPU)
    assert loaded.decoding == Decoding((24, 24), mode="pad")
    assert loaded.remarks == (
        "images of 5x6 pixels: the longest side is resized to 24 and the rest padded (data.decode_mode)",
    )
    assert prepared_data.load(crop, recipe, CPU).decoding == Decoding((6, 5))
    # An evaluation that names how the images are decoded finds, or makes, just those.
    assert prepared_data.prepare(replace(XY, decode_mode="pad"), loaded.decoding) == pad
    made = prepared_data.prepare(XY, loaded.decoding)
    assert prepared_data.fingerprint(made) == prepared_data.fingerprint(pad) != prepared_data.fingerprint(crop)

    source.name, source.images = "square", {name: array[:, :5] for name, array in source.images.items()}
    square = prepared_data.load(prepared_data.prepare(replace(XY, decode_mode="pad")), recipe, CPU)
    assert (square.train.size, square.decoding) == ((5, 5), Decoding((5, 5), mode="pad"))


def test_indices_refer_to_the_source_if_images_were_skipped(source: FakeSource) -> None:
    """The first pixel of an image is its index."""
    for role in ("train", "test"):
        source.labels[role] = source.labels[role].copy()
        source.labels[role][[3, 4, 17]] = -1
    data = replace(XY, skip_broken=True)
    loaded = prepared_data.load(
        prepared_data.prepare(data), parse({"data": {"source": "synthetic", "validation_fraction": 0.25}}), CPU
    )
    for part, offset in ((loaded.train, 0), (loaded.validation, 0), (loaded.test, 100)):
        np.testing.assert_array_equal(part.images[:, 0, 0, 0], part.indices + offset)
        assert np.array_equal(part.indices % 4, part.labels)
    assert (len(loaded.train) + len(loaded.validation), len(loaded.test)) == (37, 17)
    assert "train 3-4, 17; test 3-4, 17" in loaded.remarks[0]


def test_the_key_depends_on_what_was_done_and_not_on_what_was_allowed(
    source: FakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sets of small images of one size do not depend on image_size, nor whole ones on skip_broken."""
    entry = prepared_data.prepare(XY)
    assert {prepared_data.prepare(replace(XY, **more)) for more in ({"image_size": 32}, {"skip_broken": True})} == {
        entry
    }
    square = prepared_data.prepare(replace(XY, decode_size=XY.image_size))
    assert square != entry
    assert prepared_data.prepare(XY) == entry
    assert source.reads == 2

    source.name = "broken"
    source.labels["train"] = np.where(np.arange(40) == 7, -1, source.labels["train"])
    skipping = prepared_data.prepare(replace(XY, skip_broken=True))
    assert prepared_data.prepare(replace(XY, skip_broken=True)) == skipping
    assert source.reads == 3
    monkeypatch.setattr(image_io, "READS_HEIC", not image_io.READS_HEIC)
    assert prepared_data.prepare(replace(XY, skip_broken=True)) != skipping, "it may read now what it has left out"
    with pytest.raises(UserError, match="train 7"):
        prepared_data.prepare(XY)


def test_images_of_several_sizes_are_decoded_again_for_another_image_size(source: FakeSource) -> None:
    source.images["test"] = source.images["test"][:, :5]
    sizes = {}
    for size in (8, 12, 8):
        entry = prepared_data.prepare(replace(XY, image_size=size))
        loaded = prepared_data.load(entry, parse({"data": {"source": "synthetic"}}), CPU)
        sizes[entry] = (loaded.train.size, loaded.test.size)
    assert list(sizes.values()) == [((8, 8), (8, 8)), ((12, 12), (12, 12))]
    assert source.reads == 2


def test_the_fingerprint_is_of_the_images_and_not_of_where_they_came_from(source: FakeSource) -> None:
    recipe = parse({"data": {"source": "synthetic"}})

    def fingerprint(name: str) -> str:
        return prepared_data.load(prepared_data.prepare(Data(source=name)), recipe, CPU).fingerprint

    first = fingerprint("x/y")
    assert fingerprint("elsewhere/y") == first
    source.images["test"][3, 2, 1, 0] ^= 1
    assert fingerprint("third/y") != first


def write_folder(folder: Path, names: dict[str, list[bytes]]) -> Path:
    """Class folders; the first pixel of the n-th image is n."""
    for number, (word, files) in enumerate(names.items()):
        (folder / word).mkdir(parents=True)
        for n, file in enumerate(files):
            pixels = np.full((6, 6, 3), 50 * number + n, np.uint8)
            with open(os.fsencode(folder / word) + b"/" + file, "wb") as stream:  # noqa: PTH123 (bytes)
                Image.fromarray(pixels).save(stream, "png")
    return folder


def test_every_image_keeps_the_name_of_its_file(cache: Path, tmp_path: Path) -> None:
    """Through skipped images, both splits that are cut off, and data.limit; whatever bytes it has."""
    odd = [b'a "b", <c>.png', b"two\nlines.png", "\u00fcn\u00ef.png".encode(), b"caf\xe9.png"]
    files = [*odd, *(b"%d.png" % n for n in range(4, 30))]
    escaped = ['a "b", <c>.png', r"two\nlines.png", "\u00fcn\u00ef.png", r"caf\udce9.png"]
    names = [*escaped, *(f"{n}.png" for n in range(4, 30))]
    folder = write_folder(tmp_path / "mine", {"cat": files, "dog": files})
    (folder / "cat" / "5.png").write_bytes(b"broken")
    data = {"source": str(folder), "skip_broken": True, "limit": 30, "validation_fraction": 0.3}
    recipe = parse({"data": data})
    loaded = prepared_data.load(prepared_data.prepare(recipe.data), recipe, CPU)
    seen = set()
    for part in (loaded.train, loaded.validation, loaded.test):
        assert len(part.file_names) == len(part) > 0
        for row, pixel in enumerate(part.images[:, 0, 0, 0].tolist()):
            word, n = ("cat", "dog")[pixel // 50], pixel % 50
            assert part.file_name(row) == f"{word}/{names[n]}"
            seen.add(part.file_name(row))
    assert len(seen) == len(loaded.train) + len(loaded.validation) + len(loaded.test)


@pytest.mark.parametrize("storage", ["device", "host"])
def test_a_refit_trains_on_the_sources_own_validation_split_too(cache: Path, tmp_path: Path, storage: str) -> None:
    words = [f"{split}/{name}" for split in ("train", "val", "test") for name in ("cat", "dog")]
    folder = write_folder(tmp_path / "mine", {word: [b"%d.png" % n for n in range(6)] for word in words})
    (folder / "train" / "cat" / "5.png").write_bytes(b"broken")
    data = {"source": str(folder), "limit": 6, "storage": storage, "skip_broken": True}
    recipe = parse({"data": data, "refit_steps": 3})
    entry = prepared_data.prepare(recipe.data)
    loaded, first = (prepared_data.load(entry, each, CPU) for each in (recipe, replace(recipe, refit_steps=0)))
    both, every = (first.train, first.validation), np.arange(12)
    assert [len(part) for part in both] == [loaded.epoch_images, 6] == [6, 6]
    assert len(loaded.validation) == 0
    pixels = torch.cat([part.gather(np.arange(6)) for part in both])
    for rows in (every, np.array([9, 2, 11, 2, 0])):
        assert torch.equal(loaded.train.gather(rows), pixels[rows])
        for row, pixel in zip(rows.tolist(), pixels[rows, 0, 0, 0].tolist(), strict=True):
            assert loaded.train.file_name(row) == f"{words[pixel // 50]}/{pixel % 50}.png"
    assert torch.equal(loaded.train.labels, torch.cat([part.labels for part in both]))
    np.testing.assert_array_equal(loaded.train.indices, [*first.train.indices, *(12 + first.validation.indices)])
    assert loaded.origins == (
        "train: 6 of 11 images of 'train' and 6 of 12 images of 'val'; no validation (refit_steps 3); "
        "test: 6 of 12 images of 'test'"
    )


def test_renamed_files_are_the_same_images_under_their_new_names(cache: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "mine", {"cat": [b"%d.png" % n for n in range(10, 20)], "dog": [b"1.png"] * 1})
    recipe = parse({"data": {"source": str(folder)}})
    first = prepared_data.prepare(recipe.data)
    (folder / "cat" / "10.png").rename(folder / "cat" / "00.png")
    second = prepared_data.prepare(recipe.data)
    assert prepared_data.fingerprint(first) == prepared_data.fingerprint(second) and first != second
    names = [json.loads((entry / "file_names.json").read_text())["train"][0] for entry in (first, second)]
    assert names == ["cat/10.png", "cat/00.png"]
    (second / "file_names.json").write_text("{}")
    assert prepared_data.prepare(recipe.data) == second
    assert json.loads((second / "file_names.json").read_text())["train"][0] == "cat/00.png", "damage is found"


def test_images_that_come_from_no_file_have_no_names(source: FakeSource) -> None:
    entry = prepared_data.prepare(XY)
    assert not (entry / "file_names.json").exists()
    loaded = prepared_data.load(entry, parse({"data": {"source": "synthetic"}}), CPU)
    assert loaded.train.file_names == [] and loaded.train.file_name(3) == ""


def test_one_class_suffices_for_an_evaluation_only(source: FakeSource) -> None:
    source.labels = {name: np.ones(len(labels), np.int64) for name, labels in source.labels.items()}
    entry = prepared_data.prepare(XY, one_class=True)
    with pytest.raises(UserError, match=r"one class only, 'b': use one with two classes or more"):
        prepared_data.prepare(XY)
    assert prepared_data.prepare(XY, one_class=True) == entry and source.reads == 1


def test_images_are_counted_per_class_and_split(source: FakeSource) -> None:
    recipe = parse({"data": {"source": "synthetic", "validation_fraction": 0.2}})
    counts = prepared_data.load(prepared_data.prepare(XY), recipe, CPU).class_counts()
    assert counts == {name: dict.fromkeys("abcd", n) for name, n in (("train", 8), ("validation", 2), ("test", 5))}


def test_a_source_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "set").mkdir(parents=True)

    def kind(name: str) -> str:
        module = find_source(name)
        assert isinstance(module, types.ModuleType)
        return module.__name__.rsplit(".", 1)[1]

    assert kind("owner/other") == "hf_hub"
    assert kind("owner/set") == "parquet_folder"  # as `datasets` does
    assert kind(str(tmp_path)) == "parquet_folder"
    assert kind("synthetic") == "synthetic"
    np.savez(tmp_path / "a.npz", images=[0])
    assert kind("a.npz") == "npz"
    (tmp_path / "plain.txt").write_text("")
    for name in ("nothing", "a/b/c", "./a", "no/such/folder", "plain.txt", "gone.npz"):
        with pytest.raises(UserError, match=r"data\.source"):
            find_source(name)
