"""gallery.py: which images are kept, and that they come back as they were."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from reported import pictures, prediction

from resnet_cifar.reporting import gallery, prediction_arrays
from resnet_cifar.reporting.prediction_arrays import PredictionTable

some = settings(deadline=None, derandomize=True, max_examples=20)


def guessed(count: int, classes: int, sharpness: float = 1.0) -> PredictionTable:
    logits, labels = prediction(count, classes, sharpness=sharpness)
    return prediction_arrays.from_logits(logits.numpy(), labels.numpy(), np.arange(count) * 2)


@some
@given(st.integers(1, 400), st.integers(2, 12), st.integers(8, 150))
def test_a_page_keeps_no_more_than_it_has_room_for_and_each_view_is_what_it_says(
    count: int, classes: int, limit: int
) -> None:
    found = guessed(count, classes)
    chosen = gallery.select(found, limit)
    assert len(chosen.rows) == min(limit, count)
    assert found.correct[chosen.right].all()
    assert not found.correct[chosen.wrong].any() and not found.correct[chosen.confident].any()
    assert (np.diff(found.confidence[chosen.confident]) <= 0).all()


@some
@given(st.integers(50, 800), st.integers(2, 9))
def test_whatever_cell_is_clicked_has_a_picture_where_there_is_room(count: int, classes: int) -> None:
    found = guessed(count, classes)
    cells = found.labels * classes + found.predicted
    chosen = gallery.select(found, 200)
    assert set(cells[chosen.rows]) == set(cells), "81 cells at most, and 200 - 50 - 2 * 24 pictures for them"


def test_without_room_for_all_mistakes_come_first_and_of_them_the_commonest() -> None:
    found = guessed(3000, 100)
    cells = found.labels * 100 + found.predicted
    chosen = gallery.select(found, 80)
    counts = np.bincount(cells, minlength=10_000)
    taken = chosen.cells[~np.isin(chosen.cells, np.concatenate(chosen[:3]))]
    assert len(taken) > 20 and not found.correct[taken].any()
    left_out = np.setdiff1d(cells[~found.correct], cells[chosen.rows])
    assert counts[cells[taken]].min() >= counts[left_out].max() > 0


def test_samples_are_the_same_every_time_and_not_the_surest() -> None:
    found = guessed(500, 5)
    first, again = gallery.select(found, 300), gallery.select(found, 300)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert set(first.wrong) != set(first.confident[: len(first.wrong)])


def test_pictures_come_back_to_the_pixel_with_their_numbers(tmp_path: Path) -> None:
    found = guessed(100, 4)
    file = tmp_path / "report" / "pictures-test.npz"
    gallery.save_images(file, found, (8, 8), pictures)
    kept = gallery.load_images(file)
    rows = gallery.select(found, gallery.capacity(8, 8)).rows
    assert kept.index.tolist() == (rows * 2).tolist()
    places = kept.places(found)
    assert all((kept.images[places[row]] == row % 251).all() for row in rows.tolist())
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_large_pictures_are_kept_small_and_fewer(tmp_path: Path) -> None:
    found = guessed(300, 4)
    gallery.save_images(
        tmp_path / "a.npz", found, (512, 256), lambda rows: np.zeros((len(rows), 512, 256, 3), np.uint8)
    )
    kept = gallery.load_images(tmp_path / "a.npz")
    assert kept.images.shape[1:] == (128, 64, 3)
    assert kept.images.nbytes <= 8 << 20
    assert gallery.capacity(512, 256) == gallery.capacity(128, 64) < gallery.capacity(32, 32) == gallery.MAX_IMAGES


def test_what_is_no_file_of_pictures_is_none(tmp_path: Path) -> None:
    assert gallery.load_images(tmp_path / "absent.npz") is None
    (tmp_path / "half.npz").write_bytes(b"PK\3\4half")
    (tmp_path / "empty.npz").write_bytes(b"")
    assert gallery.load_images(tmp_path / "half.npz") is None and gallery.load_images(tmp_path / "empty.npz") is None


def test_a_small_picture_is_shown_to_the_pixel_and_a_large_one_in_few_bytes() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    small = gallery.data_url(noise[:32, :32])
    assert small.startswith("data:image/png;base64,")
    assert np.array_equal(np.array(Image.open(io.BytesIO(base64.b64decode(small.partition(",")[2])))), noise[:32, :32])
    assert gallery.data_url(noise).startswith("data:image/jpeg;base64,")
    smooth = np.broadcast_to(np.linspace(0, 255, 128).astype(np.uint8)[:, None, None], (128, 128, 3))
    assert len(gallery.data_url(np.ascontiguousarray(smooth))) < 10_000
