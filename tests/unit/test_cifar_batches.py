"""data/sources/pickles.py and unpickle.py: torchvision's files become what the hub's would, and no pickle is run."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import shutil
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import layouts
import numpy as np
import pytest
import torchvision
from read_sources import Arrays, read, sentence

from resnet_cifar.config.schema import Columns, Data
from resnet_cifar.data.sources import cifar_batches
from resnet_cifar.data.sources import unpickle as unpickling
from resnet_cifar.data.sources.unpickle import unpickle

NOISE = np.random.default_rng(0)
TRAIN = NOISE.integers(0, 256, (23, 32, 32, 3), dtype=np.uint8), NOISE.permutation(np.arange(23) % 10)
TEST = NOISE.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8), np.arange(12) % 10


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """cifar-10-batches-py, as Python 2 has written it."""
    return layouts.pickles(tmp_path / "data", TRAIN, TEST)


def rewrite(file: Path, **changed: Any) -> None:
    batch = {**unpickle(file.read_bytes()), **changed}
    file.write_bytes(pickle.dumps({key: value for key, value in batch.items() if value is not None}))


def same(found: Arrays) -> bool:
    return found.classes == layouts.CIFAR10 and all(
        np.array_equal(found.images[role], images) and found.labels[role].tolist() == labels.tolist()
        for role, (images, labels) in {"train": TRAIN, "test": TEST}.items()
    )


@pytest.mark.parametrize("protocol", [None, 2, 3, 4, 5])
def test_batches_of_any_python_are_read_in_their_order(protocol: int | None, tmp_path: Path) -> None:
    """None is Python 2's, as the published files are."""
    folder = layouts.pickles(tmp_path, TRAIN, TEST, protocol=protocol)
    assert same(read(folder))
    assert same(read(tmp_path))  # the folder that contains it


def test_archives_are_read_where_they_lie(folder: Path, tmp_path: Path) -> None:
    for name in ("cifar-10-python.tar.gz", "mine.TGZ"):
        assert same(read(layouts.tarball(tmp_path / name, folder)))
    shutil.rmtree(folder.parent)
    assert same(read(tmp_path))  # where torchvision leaves its download
    assert not list(tmp_path.rglob("data_batch_1"))


def test_torchvision_reads_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own class, which looks at nothing but checksums before."""
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    ours = read(folder)
    for role in ("train", "test"):
        theirs = torchvision.datasets.CIFAR10(folder.parent, train=role == "train")
        np.testing.assert_array_equal(ours.images[role], theirs.data)
        assert ours.labels[role].tolist() == theirs.targets
        assert ours.classes == tuple(theirs.classes)


def test_published_files_have_the_order_of_their_archive_and_damage_is_detected(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the hub's copy has them, which was read from that archive: batches 4, 3, 2, 5 and 1."""
    published = torchvision.datasets.CIFAR10
    for part in ("train_list", "test_list"):
        names = [name for name, _ in getattr(published, part)]
        md5s = [hashlib.md5((folder / name).read_bytes()).hexdigest() for name in names]
        monkeypatch.setattr(published, part, list(map(list, zip(names, md5s, strict=True))))
        for name in names:
            monkeypatch.setitem(cifar_batches._SETS[0].nbytes, name, (folder / name).stat().st_size)
    parts = [np.array_split(values, 5) for values in TRAIN]
    images, labels = (np.concatenate([values[batch - 1] for batch in (4, 3, 2, 5, 1)]) for values in parts)
    found = read(folder)
    np.testing.assert_array_equal(found.images["train"], images)
    assert found.labels["train"].tolist() == labels.tolist()
    content = bytearray((folder / "data_batch_2").read_bytes())
    content[4000] ^= 1  # a pixel
    (folder / "data_batch_2").write_bytes(content)
    assert "data_batch_2 is damaged" in sentence(folder)
    assert "download it again from https://" in sentence(folder)


def test_cifar_100_has_fine_labels_or_coarse_ones_on_request(tmp_path: Path) -> None:
    root = tmp_path / "cifar-100-python"
    root.mkdir()
    for name, (images, labels) in (("train", TRAIN), ("test", TEST)):
        rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        batch = {"data": rows, "fine_labels": labels.tolist(), "coarse_labels": (labels % 2).tolist()}
        (root / name).write_bytes(layouts.pickled(batch))
    names = {"fine_label_names": [f"fine {n}" for n in range(10)], "coarse_label_names": ["even", "odd"]}
    (root / "meta").write_bytes(layouts.pickled(names))
    for source in (root, layouts.tarball(tmp_path / "cifar-100-python.tar.gz", root)):
        found = read(source)
        np.testing.assert_array_equal(found.images["train"], TRAIN[0])
        assert (found.classes[1], found.labels["train"].tolist()) == ("fine 1", TRAIN[1].tolist())
        for label in ("coarse_labels", "coarse_label"):  # as in the files, and as on the hub
            coarse = read(source, columns=Columns(label=label))
            assert (coarse.classes, coarse.labels["test"].tolist()) == (("even", "odd"), (TEST[1] % 2).tolist())
    assert "data.columns.label 'kind' is not one of" in sentence(root, columns=Columns(label="kind"))
    assert "data.columns.image 'x' does not apply" in sentence(root, columns=Columns(image="x"))
    layouts.pickles(tmp_path, TRAIN, TEST)
    assert "contains cifar-10-batches-py and cifar-100-python: name one" in sentence(tmp_path)


def test_labels_may_be_numpys(folder: Path) -> None:
    rewrite(folder / "test_batch", labels=TEST[1])
    assert same(read(folder))
    rewrite(folder / "test_batch", labels=list(TEST[1]))
    assert same(read(folder))
    rewrite(folder / "data_batch_1", data=np.asfortranarray(unpickle((folder / "data_batch_1").read_bytes())["data"]))
    assert same(read(folder))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"labels": [0, 1]}, "test_batch has 12 images and 2 labels that are integers"),
        ({"labels": ["cat"] * 12}, "test_batch has 12 images and 0 labels"),
        ({"labels": None}, "has no labels, only ['batch_label', 'data', 'filenames']"),
        ({"labels": [10] * 12}, "no label of test is one of the 10 classes"),
        ({"labels": [*range(10), 10, -1]}, "2 labels are not among the 10 classes (test 10-11)"),
        ({"data": None}, "the data of test_batch is no array"),
        ({"data": np.zeros((12, 3071), np.uint8)}, "uint8 of the shape [12, 3071], not uint8 [n, 3072]"),
        ({"data": np.zeros((12, 3072), np.int64)}, "int64 of the shape"),
        ({"data": np.zeros((12, 3072), np.float32)}, "an array has the type <f4, not integers"),
        ({"data": np.array([None])}, "an array has the type |O8, not integers"),  # objects
    ],
)
def test_unusable_batches_are_refused(changed: dict[str, Any], said: str, folder: Path) -> None:
    batch = {**unpickle((folder / "test_batch").read_bytes()), **changed}
    content = {key: value for key, value in batch.items() if value is not None}
    (folder / "test_batch").write_bytes(pickle.dumps(content))
    assert said in sentence(folder)


def test_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    (folder / "data_batch_3").unlink()
    (folder / "test_batch").unlink()
    assert "lacks data_batch_3, test_batch of CIFAR10: download it again" in sentence(folder)
    assert "lacks data_batch_3" in sentence(layouts.tarball(tmp_path / "a.tar.gz", folder))
    assert "contains no images, 1 .gz ('a.tar.gz')" in sentence(
        layouts.tarball(tmp_path / "b.tar", tmp_path / "a.tar.gz")
    )
    rewrite(folder / "batches.meta", label_names=None)
    for name in ("data_batch_3", "test_batch"):
        shutil.copy(folder / "data_batch_1", folder / name)
    assert "batches.meta does not name the classes" in sentence(folder)
    assert "is not a file here" in sentence(tmp_path / "cifar-10-python.tar.gz")


class Runs:
    """What a hostile pickle holds."""

    def __init__(self, called: Any, *arguments: Any) -> None:
        self.called = called, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.called


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_calls_a_function_is_refused_and_nothing_is_called(
    protocol: int, folder: Path, tmp_path: Path
) -> None:
    prey = tmp_path / "called"
    for value in (
        Runs(os.mkdir, str(prey)),
        Runs(eval, f"__import__('os').mkdir({str(prey)!r})"),
        Runs(np.save, prey, 1),
    ):
        (folder / "data_batch_1").write_bytes(pickle.dumps({"data": value, "labels": []}, protocol))
        said = sentence(folder)
        assert "data_batch_1 cannot be read (UnpicklingError: it asks for" in said
        assert not prey.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02r\xf0\xff\xff\xffNa.",  # the C unpickler makes room for four billion objects
        b"\x80\x05\x96" + struct.pack("<Q", 2**28) + b"ab.",  # and for as many bytes as it says
        b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"ab.",
        b"\x80\x02cnumpy\ndtype\n}(U\x08__init__Nu\x86b.",  # changes what it may name
        b"\x80\x02cnumpy\ndtype\n(lb.",
        b"\x80\x02cnumpy\nndarray\n)R.",
        b"\x80\x02c_codecs\nencode\n(N}X\x07\x00\x00\x00changedK\x01stb.",
        b"\x80\x02U\x01aU\x01b\x86\x81.",  # makes an object of a class
        b"(cos\nsystem\no.",
        b"(ios\nsystem\n.",
        b"Pcat\n.",
        b"\x80\x02]q\x00h\x00a.",  # a list in itself
        b"\x80\x02}K\x01" + b"2\x86" * 60 + b"K\x01s.",  # a key of pairs of pairs, which takes days to be hashed
        b"\x80\x02}(K\x01" + b"2\x86" * 60 + b"K\x01u.",
        b"\x80\x02(K\x01" + b"2\x86" * 60 + b"K\x01d.",
        b"\x80\x04\x8f(K\x01" + b"2\x86" * 60 + b"\x90.",
        b"\x80\x02K\x01.",
        b"",
    ],
)
def test_hostile_and_broken_pickles_are_refused(content: bytes, folder: Path) -> None:
    """They change nothing, and take no more memory than their length."""
    (folder / "data_batch_1").write_bytes(content)
    tracemalloc.start()
    try:
        assert "data_batch_1 cannot be read" in sentence(folder)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
    unpickler = unpickling._Unpickler(io.BytesIO(b""))
    assert not hasattr(unpickler.find_class("_codecs", "encode"), "changed")


def test_damage_anywhere_is_reported_in_one_sentence(folder: Path) -> None:
    """A byte changed, or the end missing; a changed pixel cannot be told in files that nobody has published."""
    whole = (folder / "data_batch_1").read_bytes()
    for place in np.random.default_rng(1).integers(0, len(whole), 20).tolist() + list(range(0, 60, 3)):
        (folder / "data_batch_1").write_bytes(whole[:place])
        assert "cannot be read" in sentence(folder)
        (folder / "data_batch_1").write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            read(folder)
        except cifar_batches.UserError as mistake:
            assert "\n" not in str(mistake)


def test_the_identity_changes_with_the_files(folder: Path, tmp_path: Path) -> None:
    archive = layouts.tarball(tmp_path / "a.tar.gz", folder)
    sources = (folder, folder / "test_batch"), (folder.parent, folder / "test_batch"), (archive, archive)
    for time, (source, file) in enumerate(sources):
        data = Data(source=str(source))
        first = cifar_batches.identity(data)
        os.utime(file, ns=(time, time))
        assert cifar_batches.identity(data) != first
