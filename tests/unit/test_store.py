"""data/store.py: decoded once, whole or not there, and the right image in the right place."""

from __future__ import annotations

import hashlib
import json
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from resnet_cifar.data import sources, split, store
from resnet_cifar.data.sources import Splits
from resnet_cifar.recipe import Mistake, parse

CPU = torch.device("cpu")


class FakeSource:
    """A source of 40 training and 20 test images whose first pixel is their index; counts how often it is read."""

    def __init__(self) -> None:
        self.name, self.reads = "first", 0

    def identity(self, source: str) -> str:
        return f"fake {source} {self.name}"

    def read(self, source: str) -> Splits:
        self.reads += 1
        return self.splits()

    @staticmethod
    def splits() -> Splits:
        draws = np.random.default_rng(0)
        images = {name: draws.integers(0, 256, (n, 6, 5, 3), np.uint8) for name, n in (("train", 40), ("test", 20))}
        for name, offset in (("train", 0), ("test", 100)):
            images[name][:, 0, 0, 0] = offset + np.arange(len(images[name]))
        labels = {name: np.arange(len(array), dtype=np.int64) % 4 for name, array in images.items()}
        return Splits(images, labels, ("a", "b", "c", "d"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RESNET_CIFAR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def source(cache: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSource:
    fake = FakeSource()
    monkeypatch.setattr(sources, "find", lambda name: fake)
    return fake


def contents(entry: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in entry.iterdir()}


def test_an_entry_is_decoded_once_and_used_again(source: FakeSource, cache: Path) -> None:
    entry = store.ensure("x/y")
    before = {file: file.stat().st_mtime_ns for file in entry.iterdir()}
    assert store.ensure("x/y") == entry
    assert source.reads == 1
    assert {file: file.stat().st_mtime_ns for file in entry.iterdir()} == before
    assert [path.name for path in cache.iterdir()] == [entry.name]  # nothing half-built is left


def test_other_contents_get_an_entry_of_their_own(source: FakeSource) -> None:
    first = store.ensure("x/y")
    source.name = "second"
    assert store.ensure("x/y") != first
    assert store.ensure("x/z") not in (first, store.ensure("x/y"))
    assert source.reads == 3


def test_the_arrays_are_plain_numpy_files_with_their_checksums(source: FakeSource) -> None:
    entry = store.ensure("x/y")
    for name, array in source.splits().images.items():
        np.testing.assert_array_equal(np.load(entry / f"{name}-images.npy", allow_pickle=False), array)
    checksums = json.loads((entry / "meta.json").read_text())["checksums"]
    arrays = sorted(path for path in entry.iterdir() if path.suffix == ".npy")
    assert checksums == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in arrays}
    assert len(arrays) == 4


FILES = ["train-images.npy", "train-labels.npy", "test-images.npy", "test-labels.npy", "meta.json"]


@pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "changed"])
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_entry_is_noticed_said_and_built_again(
    file: str, damage: str, source: FakeSource, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = store.ensure("x/y")
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
    assert store.ensure("x/y") == entry
    assert source.reads == 2
    assert "damaged" in capsys.readouterr().err
    assert contents(entry) == sound
    assert [path.name for path in cache.iterdir()] == [entry.name]


@pytest.mark.parametrize("text", ["[]", "{}", '{"checksums": []}', "null"])
def test_a_meta_file_of_another_shape_is_damage(text: str, source: FakeSource) -> None:
    entry = store.ensure("x/y")
    (entry / "meta.json").write_text(text)
    store.ensure("x/y")
    assert source.reads == 2


def test_who_comes_second_discards(source: FakeSource, cache: Path) -> None:
    entry = cache / "entry"
    cache.mkdir()
    store._write(source.splits(), entry)
    first = {file: file.stat().st_ino for file in entry.iterdir()}
    store._write(source.splits(), entry)
    assert {file: file.stat().st_ino for file in entry.iterdir()} == first
    assert [path.name for path in cache.iterdir()] == ["entry"]


def test_others_may_read_an_entry(source: FakeSource) -> None:
    assert store.ensure("x/y").stat().st_mode & 0o055 == 0o055


def test_a_source_that_fails_leaves_nothing_behind(source: FakeSource, cache: Path) -> None:
    source.read = lambda name: (_ for _ in ()).throw(Mistake("no such set"))
    with pytest.raises(Mistake, match="no such set"):
        store.ensure("x/y")
    assert list(cache.iterdir()) == []


def test_a_write_that_fails_leaves_nothing_behind(
    source: FakeSource, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: Path, array: np.ndarray) -> None:
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.np, "save", full)
    with pytest.raises(Mistake, match="RESNET_CIFAR_CACHE"):
        store.ensure("x/y")
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_cache_that_cannot_be_made_is_a_mistake(
    below: str, source: FakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RESNET_CIFAR_CACHE", str(tmp_path / "file" / below))
    with pytest.raises(Mistake, match=r"the cache folder .*file.* set RESNET_CIFAR_CACHE"):
        store.ensure("x/y")


def test_a_source_that_cannot_be_read_is_not_blamed_on_the_cache(source: FakeSource) -> None:
    def unreadable(name: str) -> Splits:
        raise OSError(5, "Input/output error", "pictures/train.parquet")

    source.read = unreadable
    with pytest.raises((OSError, Mistake)) as caught:
        store.ensure("x/y")
    assert "RESNET_CIFAR_CACHE" not in str(caught.value)


def test_the_cache_follows_its_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESNET_CIFAR_CACHE", str(tmp_path / "own"))
    assert store.cache_root() == tmp_path / "own"
    monkeypatch.delenv("RESNET_CIFAR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert store.cache_root() == tmp_path / "xdg" / "resnet_cifar"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert store.cache_root() == tmp_path / "home" / ".cache" / "resnet_cifar"


@pytest.mark.parametrize("data", [{}, {"limit": 16, "validation": 0.25}, {"validation": 0}, {"overfit": 8}])
def test_every_split_holds_its_own_images_labels_and_indices(source: FakeSource, data: dict[str, float]) -> None:
    recipe = parse({"data": {"source": "synthetic", "validation": 0.2, **data}})
    loaded = store.load(store.ensure("x/y"), recipe, CPU)
    original = source.splits()
    chosen = split.choose(original.labels["train"], original.labels["test"], 4, recipe)
    for name, whole in (("train", "train"), ("validation", "train"), ("test", "test")):
        part, rows = getattr(loaded, name), getattr(chosen, name)
        assert len(part) == len(rows)
        assert part.images.dtype == torch.uint8
        assert part.labels.dtype == torch.int64
        np.testing.assert_array_equal(part.indices, rows)
        np.testing.assert_array_equal(part.images.numpy(), original.images[whole][rows])
        np.testing.assert_array_equal(part.labels.numpy(), original.labels[whole][rows])
    assert loaded.classes == ("a", "b", "c", "d")


def test_the_fingerprint_is_of_the_images_and_not_of_where_they_came_from(source: FakeSource) -> None:
    recipe = parse({"data": {"source": "synthetic"}})
    first, second = (store.load(store.ensure(name), recipe, CPU).fingerprint for name in ("x/y", "elsewhere/y"))
    assert first == second
    changed = source.splits()
    changed.images["test"][3, 2, 1, 0] ^= 1
    source.read = lambda name: changed
    assert store.load(store.ensure("third/y"), recipe, CPU).fingerprint != first


def test_a_source_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "set").mkdir(parents=True)

    def kind(name: str) -> str:
        module = sources.find(name)
        assert isinstance(module, types.ModuleType)
        return module.__name__.rsplit(".", 1)[1]

    assert kind("owner/other") == "hub"
    assert kind("owner/set") == "folder"  # as `datasets` does
    assert kind(str(tmp_path)) == "folder"
    assert kind("synthetic") == "synthetic"
    for name in ("nothing", "a/b/c", "./a", "no/such/folder"):
        with pytest.raises(Mistake, match=r"data\.source"):
            sources.find(name)
