"""data/sources/archives: what an archive must not do to the one that reads it, and damage anywhere in it."""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import layouts
import numpy as np
import py7zr
import pytest
from read_sources import Arrays, read, sentence

from resnet_cifar.config.errors import UserError
from resnet_cifar.data.sources import archives
from resnet_cifar.data.sources.archives.spool import MemberSpool

NOISE = np.random.default_rng(0)
IMAGES, LABELS = NOISE.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8), np.arange(12) % 10
Member = tuple[str, bytes, int]  # name, content, Unix mode
BODY = b"id,label\n1,cat\n2,dog\n"
FILE = stat.S_IFREG | 0o644


def write(file: Path, members: list[Member]) -> Path:
    """An archive of any names and kinds, of the kind that its ending says."""
    if file.suffix == ".zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content, mode in members:
                info = zipfile.ZipInfo(name)
                info.external_attr, info.compress_type = mode << 16, zipfile.ZIP_DEFLATED
                archive.writestr(info, content)
    elif file.suffix == ".7z":
        with py7zr.SevenZipFile(file, "w") as archive:
            for name, content, mode in members:
                archive.writef(io.BytesIO(content), "x")
                archive.header.files_info.files[-1].update(filename=name, attributes=mode << 16 | 0x8000)
    else:
        kinds = {stat.S_IFREG: tarfile.REGTYPE, stat.S_IFLNK: tarfile.SYMTYPE, stat.S_IFBLK: tarfile.BLKTYPE}
        with tarfile.open(file, "w:gz") as archive:
            for name, content, mode in members:
                info = tarfile.TarInfo(name)
                info.type, info.size = kinds[stat.S_IFMT(mode)], len(content) if stat.S_ISREG(mode) else 0
                info.linkname = content.decode() if stat.S_ISLNK(mode) else ""
                archive.addfile(info, io.BytesIO(content))
    return file


@pytest.fixture(params=["a.zip", "a.7z", "a.tar.gz"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / request.param


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    return layouts.kaggle(tmp_path / "unpacked", IMAGES, LABELS)


@pytest.mark.parametrize("name", ["../x.png", "train/../../x.png", "/etc/x.png", "..\\x.png", "C:\\x.png", "c:x.png"])
def test_paths_outside_an_archive_are_refused(name: str, file: Path) -> None:
    write(file, [("trainLabels.csv", BODY, FILE), (name, b"x", FILE)])
    assert "a path outside the archive: do not trust it" in sentence(file)


@pytest.mark.parametrize(("mode", "said"), [(stat.S_IFLNK, "link"), (stat.S_IFBLK, "device")])
def test_links_and_devices_are_refused(mode: int, said: str, file: Path) -> None:
    write(file, [("trainLabels.csv", BODY, FILE), ("train/1.png", b"/etc/passwd", mode | 0o777)])
    assert "holds 'train/1.png', a " in sentence(file)
    assert said in sentence(file)


def test_a_hard_link_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("data_batch_1")
        info.type, info.linkname = tarfile.LNKTYPE, "/etc/passwd"
        archive.addfile(info)
    assert "holds 'data_batch_1', a link or device" in sentence(tmp_path / "a.tar.gz")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("again", ["train/1.png", "./train/1.png", "train//1.png"])
def test_duplicate_names_are_refused(again: str, file: Path) -> None:
    write(file, [("trainLabels.csv", BODY, FILE), ("train/1.png", b"x", FILE), (again, b"y", FILE)])
    assert "holds 'train/1.png' twice: pack it once" in sentence(file)


def test_files_that_are_not_archives_are_refused(file: Path) -> None:
    for content in (b"", b"PK\x03\x04", b"7z\xbc\xaf\x27\x1c", b"\x1f\x8b\x08", b"no archive" * 99):
        file.write_bytes(content)
        assert "cannot be read" in sentence(file)


def test_encrypted_archives_are_reported_as_encrypted(unpacked: Path, tmp_path: Path) -> None:
    """Its pictures, or its list of files too."""
    assert "is encrypted: unpack it" in sentence(layouts.seven_zipped(tmp_path / "a.7z", unpacked, "secret"))
    with py7zr.SevenZipFile(tmp_path / "b.7z", "w", password="secret", header_encryption=True) as archive:
        for path in sorted(unpacked.iterdir()):
            archive.writeall(path, path.name)
    assert "is encrypted: unpack it" in sentence(tmp_path / "b.7z")
    layouts.zipped(tmp_path / "a.zip", unpacked)
    content = bytearray((tmp_path / "a.zip").read_bytes())
    for header, place in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        content[content.index(header + b"") + place] |= 1  # Python cannot write encrypted ones
    (tmp_path / "a.zip").write_bytes(content)
    assert "is encrypted: unpack it" in sentence(tmp_path / "a.zip")


# Bombs


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousandth of what may be unpacked, so that real bombs are quickly made."""
    monkeypatch.setattr(archives, "_FREE", 2**20)


def bomb(file: Path, nbytes: int = 2**24) -> Path:
    return write(file, [("trainLabels.csv", BODY, FILE), ("train/1.png", bytes(nbytes), FILE)])


def test_a_bomb_is_refused_before_it_is_unpacked(file: Path, strict: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemberSpool, "write", None)
    assert "unpacks to more than" in sentence(bomb(file))
    assert "as zip bombs do: do not trust it" in sentence(file)


@pytest.mark.parametrize("inner", ["train.zip", "train.7z"])
def test_a_nested_bomb_is_refused_by_the_size_of_the_outer_archive(
    inner: str, strict: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice packed: each time within the ratio, or the inner one only."""
    bomb(tmp_path / inner)
    write(tmp_path / "a.zip", [("trainLabels.csv", BODY, FILE), (inner, (tmp_path / inner).read_bytes(), FILE)])
    assert f"{inner} unpacks to more than" in sentence(tmp_path / "a.zip")


def test_a_member_that_is_larger_than_it_says_is_refused(tmp_path: Path) -> None:
    """Nothing beyond the size that was allowed is written."""
    file = bomb(tmp_path / "a.zip", 2**20)
    content = bytearray(file.read_bytes())
    place = content.rindex(b"PK\x01\x02") + 24
    assert int.from_bytes(content[place : place + 4], "little") == 2**20
    content[place : place + 4] = (1000).to_bytes(4, "little")
    file.write_bytes(content)
    assert "cannot be read (BadZipFile: Bad CRC-32" in sentence(file)


def test_zip_methods_that_python_unpacks_at_once_are_refused(unpacked: Path, tmp_path: Path) -> None:
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        assert "is not compressed by deflate" in sentence(layouts.zipped(tmp_path / "a.zip", unpacked, method))


@pytest.mark.parametrize("method", [py7zr.FILTER_ZSTD, py7zr.FILTER_DEFLATE, py7zr.FILTER_PPMD, py7zr.FILTER_BROTLI])
def test_7z_methods_that_py7zr_unpacks_at_once_are_refused(method: int, unpacked: Path, tmp_path: Path) -> None:
    options = {py7zr.FILTER_PPMD: {"order": 6, "mem": 16}, py7zr.FILTER_ZSTD: {"level": 1}}.get(method, {"level": 1})
    file = tmp_path / "a.7z"
    with py7zr.SevenZipFile(file, "w", filters=[{"id": method, **options}]) as archive:
        for path in sorted(unpacked.iterdir()):
            archive.writeall(path, path.name)
    assert "pack it again with LZMA2" in sentence(file)


def test_one_image_of_a_quarter_gigabyte_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives.Archive.extract, "__defaults__", (1000,))
    if file.name == "a.tar.gz":
        layouts.tarball(file, layouts.pickles(file.parent / "p", (IMAGES, LABELS), (IMAGES, LABELS)))
    else:
        bomb(file, 1001)
    assert "GiB, too large for an image or table" in sentence(file)


def test_a_header_of_tar_does_not_fill_the_memory(tmp_path: Path) -> None:
    """A gigabyte of zeros for a name, which tarfile takes into memory."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**30
    with gzip.open(tmp_path / "a.tar.gz", "wb", compresslevel=1) as stream:
        stream.write(info.tobuf())
        stream.write(bytes(2**24))
    assert "a header is as long as a file" in sentence(tmp_path / "a.tar.gz")


# Damage

PACK: dict[str, Callable[[Path, Path], Path]] = {
    "a.zip": layouts.zipped,
    "a.7z": layouts.seven_zipped,
    "cifar-10.zip": lambda file, unpacked: layouts.download(file, unpacked, file.with_name("competition")),
    "a.tar.gz": lambda file, unpacked: layouts.tarball(
        file, layouts.pickles(file.parent / "p", (IMAGES, LABELS), (IMAGES, LABELS))
    ),
}


def places(size: int, count: int) -> Iterator[int]:
    """Seeded, and the first and last bytes, where headers are."""
    yield from range(0, 40, 3)
    yield from range(size - 40, size, 3)
    yield from np.random.default_rng(0).integers(0, size, count).tolist()


@pytest.mark.parametrize("name", PACK)
def test_damage_anywhere_is_reported_or_changes_no_image(
    name: str, unpacked: Path, tmp_path: Path, proof: bool
) -> None:
    """A byte changed, or the end missing: every format has checksums, which are looked at."""
    file = PACK[name](tmp_path / name, unpacked)
    whole, expected = file.read_bytes(), read(file)
    told = 0
    for place in places(len(whole), 500 if proof else 30):
        file.write_bytes(whole[:place])
        assert "cannot be read" in sentence(file)
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        try:
            found: Arrays | None = read(file)
        except UserError as mistake:
            assert "\n" not in str(mistake)
            found, told = None, told + 1
        assert found is None or np.array_equal(found.images["train"], expected.images["train"])
    assert told > 20


def test_a_full_disk_is_reported(
    unpacked: Path, tmp_path: Path, mounted: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESNET_CIFAR_CACHE", str(mounted("size=16k")))
    assert " kB are needed and 16 kB are free): make room" in sentence(
        layouts.seven_zipped(tmp_path / "a.7z", unpacked)
    )


def test_links_in_the_working_directory_do_not_affect_archives(
    unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """py7zr looks for links below the working folder, where nothing is written."""
    file = layouts.seven_zipped(tmp_path / "a.7z", unpacked)
    for name in ("here", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "here" / "train").symlink_to(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "here")
    np.testing.assert_array_equal(read(file).images["train"], IMAGES)
    with pytest.raises(py7zr.Bad7zFile), py7zr.SevenZipFile(file) as archive:
        archive.extractall(factory=py7zr.io.BytesIOFactory(2**20))
