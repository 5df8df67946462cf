"""evaluation/classify_files.py: which images a word of the command line names, and that an archive gives its bytes."""

from __future__ import annotations

import shutil
import stat
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import py7zr
import pytest
from PIL import Image
from test_archives import FILE, write

from resnet_cifar.cli import predict
from resnet_cifar.config.errors import UserError
from resnet_cifar.data.sources import image_io
from resnet_cifar.evaluation.classify_files import ImageFile, ImageFiles, find_images

TREE = ("b.png", "a.JPG", "sub/c.webp", "sub/deep/d.png", "sub/e[1].png", "notes.txt", ".hidden.png", ".git/f.png")
FOUND = ["a.JPG", "b.png", "sub/c.webp", "sub/deep/d.png", "sub/e[1].png"]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`photos` in the working directory, each image with pixels of its own, and the same in archives."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(TREE):
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (6, 5, 3), dtype=np.uint8)
        if file.suffix == ".txt":
            file.write_text("no image")
        else:
            Image.fromarray(pixels).save(file)
    shutil.make_archive("photos", "zip", "photos")
    shutil.make_archive("photos", "tar", "photos")
    shutil.make_archive("photos", "gztar", "photos")
    with py7zr.SevenZipFile("photos.7z", "w") as archive:
        archive.writeall("photos", "")
    return tmp_path / "photos"


def names(*words: str) -> list[str]:
    return ImageFiles(find_images(words)).names


def test_a_folder_is_searched_in_order_without_hidden_files(photos: Path) -> None:
    assert names("photos") == [f"photos/{name}" for name in FOUND]


@pytest.mark.parametrize("archive", ["photos.zip", "photos.tar", "photos.tar.gz", "photos.7z"])
def test_an_archive_is_a_folder_of_the_same_images(photos: Path, archive: str) -> None:
    images = ImageFiles(find_images([archive, "photos/b.png"]))
    assert images.names == [*(f"{archive}/{name}" for name in FOUND), "photos/b.png"]
    images.extract(range(1, 3))
    for row in (1, 2, 5):
        expected = image_io.to_rgb(str(photos / (*FOUND, "b.png")[row]))
        assert np.array_equal(image_io.to_rgb(images[row]), expected)
    with pytest.raises(KeyError):  # nothing else was extracted: other processes classify it
        images[0]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("photos/*.png", ["photos/b.png"]),
        ("photos/**/*.png", ["photos/b.png", "photos/sub/deep/d.png", "photos/sub/e[1].png"]),
        ("photos/sub/e[1].png", ["photos/sub/e[1].png"]),  # a file of that name; as a pattern it is e1.png
        ("photos/sub/[cd]*", ["photos/sub/c.webp", "photos/sub/deep/d.png"]),  # a file and a folder
        ("photos/**", [f"photos/{name}" for name in FOUND]),  # each once, though its folder matches as well
        ("./photos/*", [f"photos/{name}" for name in FOUND]),
        ("photos.z*", [f"photos.zip/{name}" for name in FOUND]),
    ],
)
def test_a_pattern_finds_what_a_shell_would(photos: Path, pattern: str, found: list[str]) -> None:
    assert names(pattern) == found
    predict.check_paths([pattern])


def test_a_file_that_is_named_counts_whatever_its_extension(photos: Path) -> None:
    assert find_images(["photos/notes.txt", "photos/.hidden.png"]) == [
        ImageFile("photos/notes.txt"),
        ImageFile("photos/.hidden.png"),
    ]
    with pytest.raises(UserError, match=r"photos/\*\.txt contains no images: name another"):
        find_images(["photos/*.txt"])


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("nowhere", "nowhere: there is no such file or directory"),
        ("photos/*.gif", "photos/*.gif: there is no such file or directory, and it matches none"),
    ],
)
def test_what_does_not_exist_is_a_sentence_before_anything_is_loaded(photos: Path, word: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        predict.parse_arguments(["runs/none", word])
    assert str(caught.value) == said


def test_an_archive_that_is_not_safe_or_not_readable_is_a_sentence(photos: Path) -> None:
    outside = write(Path("outside.zip"), [("../x.png", b"x", FILE)])
    link = write(Path("link.tar.gz"), [("x.png", b"/etc/passwd", stat.S_IFLNK | 0o777)])
    Path("cut.zip").write_bytes(Path("photos.zip").read_bytes()[:300])
    empty = write(Path("empty.zip"), [("notes.txt", b"x", FILE), ("__MACOSX/._a.png", b"x", FILE)])
    with py7zr.SevenZipFile("locked.7z", "w", password="secret") as archive:
        archive.write("photos/b.png", "b.png")
    for file, said in (
        (outside, "outside.zip holds '../x.png', a path outside the archive: do not trust it"),
        (link, "link.tar.gz holds 'x.png', a link or device: pack files and folders only"),
        ("cut.zip", "cut.zip cannot be read (BadZipFile: File is not a zip file): download it again"),
        (empty, "empty.zip contains no images: name another directory, archive or pattern, or files"),
        ("locked.7z", "locked.7z is encrypted: unpack it"),
    ):
        with pytest.raises(UserError) as caught:
            find_images([str(file)])
        assert str(caught.value) == said


def test_damage_inside_an_archive_is_found_when_it_is_extracted(photos: Path) -> None:
    with zipfile.ZipFile("stored.zip", "w", zipfile.ZIP_STORED) as archive:
        archive.write("photos/b.png", "b.png")
    content = bytearray(Path("stored.zip").read_bytes())
    content[60] ^= 255
    Path("stored.zip").write_bytes(content)
    images = ImageFiles(find_images(["stored.zip"]))
    with pytest.raises(UserError, match=r"^stored\.zip cannot be read \(BadZipFile: Bad CRC-32.*download it again$"):
        images.extract(range(1))


def test_names_that_are_not_utf8_in_an_archive_survive(photos: Path) -> None:
    with tarfile.open("odd.tar", "w") as archive:
        archive.add("photos/b.png", "\udcff\n.png")
    images = ImageFiles(find_images(["odd.tar"]))
    images.extract(range(1))
    assert images.names == ["odd.tar/\udcff\n.png"]
    assert np.array_equal(image_io.to_rgb(images[0]), image_io.to_rgb("photos/b.png"))
