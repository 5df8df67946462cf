"""The dataset report: statistics and duplicates against brute force, source headers, and augmentation previews."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnet_cifar.cli import explore
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.data import prepared_data
from resnet_cifar.data.image_dataset import ImageDataset
from resnet_cifar.data.loader import Loader
from resnet_cifar.data.preprocess import Preprocess
from resnet_cifar.data.sampling import balanced_order, sample_indices
from resnet_cifar.data.sources import synthetic
from resnet_cifar.data.sources.base import Split
from resnet_cifar.reporting.dataset_report import (
    augmentation_preview,
    charts,
    image_headers,
    near_duplicates,
    page_context,
    pixel_stats,
    samples,
)
from resnet_cifar.training.plan import Plan


def image_set(images: np.ndarray, labels: list[int] | np.ndarray) -> ImageDataset:
    return ImageDataset(torch.from_numpy(images), torch.as_tensor(labels), np.arange(len(images)))


def scenes(count: int, seed: int = 0, side: int = 32) -> np.ndarray:
    """Pictures whose amplitudes fall like one over the frequency, as photographs' do: uint8 [count, side, side, 3]."""
    noise = np.random.default_rng(seed).normal(size=(count, 3, side, side))
    radius = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side))
    radius[0, 0] = 1
    gray = np.fft.ifft2(np.fft.fft2(noise[:, :1] + 0.3 * noise) / radius).real
    gray = 128 + 45 * gray / gray.std(axis=(1, 2, 3), keepdims=True)
    return gray.clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


# Statistics


@pytest.mark.parametrize("size", [(5, 7), (90, 70)])
def test_statistics_are_those_of_all_pixels(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_stats, "_CHUNK_BYTES", 4 * size[0] * size[1] * 3)  # several chunks, the last one short
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (11, *size, 3), dtype=np.uint8), np.arange(11) % 3
    found = pixel_stats.measure([image_set(images[:6], labels[:6]), image_set(images[6:], labels[6:])], [0, 2, 7])
    assert found.images == 11
    assert np.allclose(found.mean, images.mean((0, 1, 2)) / 255, rtol=1e-12)
    assert np.allclose(found.std, images.astype(np.float64).std((0, 1, 2)) / 255, rtol=1e-12)
    assert all(
        np.array_equal(found.histograms[c], np.bincount(images[..., c].ravel(), minlength=256)) for c in range(3)
    )
    if size == (5, 7):
        for place, label in enumerate([0, 2]):
            assert np.abs(found.class_means[place] - images[labels == label].mean(0)).max() <= 0.5
        assert (found.class_means[2] == 0).all()
    assert max(found.class_means.shape[1:3]) <= 64


def test_a_deviation_of_nearly_nothing_keeps_its_digits() -> None:
    images = np.full((2000, 32, 32, 3), 200, np.uint8)
    images[0, 0, 0] = 201
    found = pixel_stats.measure([image_set(images, np.zeros(2000, np.int64))], [0])
    assert np.allclose(found.std, (1 / images[..., 0].size) ** 0.5 / 255, rtol=1e-6)


@pytest.mark.proof_only
@pytest.mark.real_data
def test_the_known_statistics_of_the_real_images(real_data: Path) -> None:
    """The figures that everybody normalizes CIFAR-10 with; copies as JPEG lose a little contrast."""
    recipe = read_recipe("scratch", {"data.source": str(real_data)})
    data = prepared_data.load(prepared_data.prepare(recipe.data), recipe, torch.device("cpu"))
    found = pixel_stats.measure([data.train, data.validation], range(10))
    assert found.images == 50_000
    assert np.allclose(found.mean, (0.4914, 0.4822, 0.4465), atol=3e-4)
    assert np.allclose(found.std, (0.2470, 0.2435, 0.2616), atol=2e-3)


# Copies


def jpeg(image: np.ndarray) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=60)
    return np.array(Image.open(stream))


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "darker": lambda image: (0.7 * image).astype(np.uint8),
    "tinted": lambda image: (image * np.array([1, 0.8, 0.6])).astype(np.uint8),
    "compressed": jpeg,
    "moved": lambda image: np.roll(image, (1, -1), axis=(0, 1)),
    "mirrored": lambda image: image[:, ::-1],
}


def gray(images: np.ndarray) -> np.ndarray:
    return near_duplicates._thumbnails(torch.from_numpy(np.ascontiguousarray(images)))


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found_and_nothing_else(change: str) -> None:
    images = scenes(300)
    images[207] = CHANGES[change](images[11])
    found = near_duplicates.find_near_duplicates(gray(images))
    assert list(zip(found.first, found.second, strict=True)) == [(11, 207)]
    assert found.mirrored.tolist() == [change == "mirrored"]
    assert near_duplicates.THRESHOLD <= found.agreement[0] <= 1 + 1e-5
    assert found.complete and not found.flat.any()


def test_tiles_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    images = scenes(60)
    images[50:55], images[58] = images[3:8], images[20, :, ::-1]
    whole = near_duplicates.find_near_duplicates(gray(images))
    monkeypatch.setattr(near_duplicates, "_TILE", 7)
    tiled = near_duplicates.find_near_duplicates(gray(images))
    assert set(zip(whole.first, whole.second, strict=True)) == {(3 + n, 50 + n) for n in range(5)} | {(20, 58)}
    assert set(zip(whole.first, whole.second, strict=True)) == set(zip(tiled.first, tiled.second, strict=True))


def test_what_is_in_a_frame_decides() -> None:
    images = scenes(40)
    images[5, :5], images[5, -5:], images[5, :, :5], images[5, :, -5:] = 255, 255, 255, 255
    images[5, 5:-5, 5:-5] //= 4
    framed, other = images[5].copy(), images[5].copy()
    other[5:-5, 5:-5] = images[6, 5:-5, 5:-5] // 4
    agreement = near_duplicates.similarity(gray(np.stack([framed, framed])), gray(np.stack([other, framed])))
    assert agreement[0] < 0.6
    assert agreement[1] > 0.99


def test_uniform_pictures_are_compared_to_the_pixel_only() -> None:
    images = np.full((6, 32, 32, 3), 90, np.uint8)
    images[3:] += np.random.default_rng(0).integers(0, 3, (3, 32, 32, 3), dtype=np.uint8)
    found = near_duplicates.find_duplicates({"train": image_set(images, [0] * 6)})
    assert (found.exact["train", "train"], found.near["train", "train"], found.flat) == (3, 3, 6)


def test_so_many_pairs_that_the_search_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "MAX_CANDIDATES", 20)
    found = near_duplicates.find_near_duplicates(gray(np.repeat(scenes(1), 30, axis=0)))
    assert not found.complete and len(found.first) == 20


def test_copies_are_counted_by_image_and_split() -> None:
    """Three train images are one picture; a test image is a fourth of it, darker, and another its mirror image."""
    train, test = scenes(12), scenes(8, seed=1)
    train[[4, 9]] = train[2]
    test[1], test[6] = CHANGES["darker"](train[2]), train[2][:, ::-1]
    labels = np.arange(12) % 2
    found = near_duplicates.find_duplicates(
        {"train": image_set(train, labels), "test": image_set(test, np.zeros(8, np.int64))}
    )
    assert found.exact == {("train", "train"): 3, ("train", "test"): 0, ("test", "train"): 0, ("test", "test"): 0}
    assert found.near == {("train", "train"): 3, ("train", "test"): 3, ("test", "train"): 2, ("test", "test"): 2}
    assert found.elsewhere == {"train": 3, "test": 2}
    exact = [(pair.one, pair.other, pair.kind) for pair in found.pairs if pair.exact]
    assert exact == [(("train", 2), ("train", 4), "within"), (("train", 2), ("train", 9), "labels")]
    near = {(pair.one, pair.other): (pair.mirrored, pair.kind) for pair in found.pairs if not pair.exact}
    assert near[("train", 2), ("test", 1)] == (False, "test")
    assert near[("train", 2), ("test", 6)] == (True, "test")
    assert len(found.pairs) == 5


def test_the_table_of_agreements_has_every_pair() -> None:
    """Those at the steps' very edges, and those that rounding lifts over 1, too."""
    edges = [0.85, 0.88, 0.91, 0.94, 0.97, 1.0, 1.0 + 1e-6]
    pairs = [near_duplicates.Pair(("train", 0), ("train", 1), (0, 0), edge, False, False) for edge in edges]
    pairs += [near_duplicates.Pair(("train", 0), ("train", 2), (0, 0), 1.0, True, False)]
    found = page_context._agreements(pairs)
    assert [count for _, count in found] == [1, 3, 1, 1, 1, 1]
    assert found[1][0] == "0.97 to 1.00" and found[-1][0] == "0.85 to 0.88"
    assert [count for _, count in page_context._agreements([])] == [0] * 6


def test_a_set_that_is_too_large_is_thinned_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "MAX_IMAGES", 10)
    parts = {
        "train": image_set(scenes(30), np.zeros(30, np.int64)),
        "test": image_set(scenes(10), np.zeros(10, np.int64)),
    }
    found = near_duplicates.find_duplicates(parts)
    assert (found.images, found.compared) == ({"train": 30, "test": 10}, {"train": 7, "test": 2})


def test_pictures_of_one_kind_make_the_counts_doubtful() -> None:
    stripes, labels = synthetic.draw("train", 600)
    only = labels == 5
    assert near_duplicates.find_duplicates({"train": image_set(stripes[only], labels[only])}).unreliable
    assert not near_duplicates.find_duplicates({"train": image_set(scenes(60), np.zeros(60, np.int64))}).unreliable


@pytest.mark.proof_only
@pytest.mark.real_data
def test_near_copies_in_the_real_images(real_data: Path) -> None:
    """ciFAIR (Barz & Denzler 2020) counted by eye 286 test images with a near copy in training, 39 pairs in test."""
    recipe = read_recipe("scratch", {"data.source": str(real_data), "data.validation_fraction": "0"})
    data = prepared_data.load(prepared_data.prepare(recipe.data), recipe, torch.device("cpu"))
    found = near_duplicates.find_duplicates(page_context.parts(data, recipe))
    assert 286 <= found.near["test", "train"] <= 380
    assert 39 <= found.near["test", "test"] <= 110
    assert sum(pair.kind == "labels" for pair in found.pairs) < 5


# The images in their source


def test_headers_tell_sizes_modes_and_ends(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg", exif=exif)
    Image.new("L", (40, 30)).save(tmp_path / "b.png")
    Image.new("RGBA", (8, 9)).save(tmp_path / "c.png")
    Image.new("P", (8, 9)).save(tmp_path / "d.gif", transparency=0)
    (tmp_path / "e.jpg").write_bytes(b"no picture")
    files = sorted(map(str, tmp_path.iterdir()))
    found = image_headers.survey(Split("train", files, np.zeros(5, np.int64)))
    assert found.sizes == {(40, 30): 2, (8, 9): 2}
    assert found.formats == {
        ("JPEG", "RGB"): 1,
        ("PNG", "L"): 1,
        ("PNG", "RGBA"): 1,
        ("GIF", "P, transparent"): 1,
        ("unreadable", "-"): 1,
    }
    assert (found.turned, found.read, found.pictures) == (1, 5, 5)
    assert found.largest[0] == image_headers.header(0, files[0])
    nbytes = [Path(file).stat().st_size for file in files[:4]]
    assert [one.nbytes for one in found.smallest] == sorted(nbytes)


@pytest.mark.parametrize(("shape", "dtype", "mode"), [((6, 8), "u1", "L"), ((6, 8, 4), "u2", "RGBA, 16 bits")])
def test_elements_of_arrays_have_a_mode_too(shape: tuple[int, ...], dtype: str, mode: str) -> None:
    found = image_headers.survey(Split("train", np.zeros((3, *shape), dtype), np.zeros(3, np.int64)))
    assert found.formats == {("array", mode): 3}
    assert found.sizes == {(8, 6): 3}
    assert not found.largest


def test_of_many_headers_evenly_spaced_ones_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_headers, "MOST", 10)
    monkeypatch.setattr(image_headers, "_CHUNK", 4)
    encoded = []
    for size in range(1, 36):
        stream = io.BytesIO()
        Image.new("L", (size, 1)).save(stream, "PNG")
        encoded.append({"bytes": stream.getvalue(), "path": None})
    found = image_headers.survey(Split("train", encoded, np.zeros(35, np.int64)))
    assert sorted(width for width, _ in found.sizes) == list(range(1, 36, 4))
    assert {one.index for one in (*found.largest, *found.smallest)} <= set(range(0, 35, 4))


# What is shown


def test_samples_are_evenly_spaced_and_bounded() -> None:
    labels = np.arange(1000) % 10
    assert samples.rows(labels, 3, shown=10).tolist() == [3 + 10 * (n * 100 // 30) for n in range(30)]
    assert len(samples.rows(labels, 3, shown=20)) == 15
    assert len(samples.rows(np.zeros(2, np.int64), 0, shown=2)) == 2
    many = np.repeat(np.arange(1000), 9)
    shown = samples.shown_classes(many, 1000)
    assert len(shown) == samples.MOST_CLASSES
    assert sum(len(samples.rows(many, label, len(shown))) for label in shown) <= 320
    assert samples.shown_classes(np.array([2, 2, 5]), 9) == [2, 5]


def test_thumbnails_are_bounded_and_small_pictures_whole() -> None:
    def size(address: str) -> tuple[int, int]:
        return Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).size

    assert samples.thumbnail(scenes(1)[0]).startswith("data:image/png")
    assert size(samples.thumbnail(np.zeros((300, 150, 3), np.uint8))) == (32, 64)


SHORT = {"phases.0.epochs": "1", "phases.0.warmup_epochs": "0"}


@pytest.mark.parametrize(
    ("recipe_name", "sampling", "more", "sides"),
    [
        ("debug", "uniform", {}, [48, 48, 48]),
        ("scratch", "balanced", {}, [32, 32, 32]),
        ("speedrun", "uniform", {**SHORT, "model.ghost_batch_size": "32"}, [24, 32, 32]),
    ],
)
def test_views_are_the_images_of_training(recipe_name: str, sampling: str, more: dict, sides: list[int]) -> None:
    fields = {"data.source": "synthetic", "data.limit": "100", "batch_size": "32", "data.validation_fraction": "0.2"}
    recipe = read_recipe(recipe_name, {**fields, "data.sampling": sampling, **more})
    data = prepared_data.load(prepared_data.prepare(recipe.data), recipe, torch.device("cpu"))
    plan = Plan(recipe, len(data.train), 1)
    training = augmentation_preview.Training(data, recipe, plan.image_size)
    preprocess = Preprocess(recipe.data, torch.tensor(training.mean), torch.tensor(training.std))
    loader = Loader(recipe, data.train, 10, preprocess, slice(0, recipe.batch_size))
    balanced = balanced_order(recipe, data.train.labels.numpy())
    views = training.views(17, uses=3)
    assert [len(view.image) for view in views] == sides
    for use, view in enumerate(views):
        assert sampling == "balanced" or view.epoch == use
        indices, uses = sample_indices(recipe.seed, len(data.train), 32, view.step, slice(0, 32), balanced)
        [row] = np.flatnonzero((indices == 17) & (uses == use))
        inputs, targets = (
            torch.cat(part) for part in zip(*loader.batch(view.step, plan.image_size(view.step)), strict=True)
        )
        seen = 255 * (inputs[row].permute(1, 2, 0) * preprocess.std + preprocess.mean)
        assert np.abs(seen.numpy() - view.image).max() <= 0.51
        assert dict(view.shares) == {n: share for n, share in enumerate(targets[row].tolist()) if share >= 0.005}


def test_a_source_whose_images_are_all_tested_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=scenes(20), labels=np.arange(20) % 2)
    recipe = read_recipe("debug", {"data.source": str(tmp_path / "a.npz"), "data.test_fraction": "1"})
    with pytest.raises(UserError, match=r"data\.test_fraction 1 leaves no training images: lower it"):
        explore._analyze(recipe)


def test_every_class_is_shown_augmented_or_named(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"data.source": "synthetic", "data.limit": "100", "batch_size": "32"}
    recipe = read_recipe("debug", fields)
    data = prepared_data.load(prepared_data.prepare(recipe.data), recipe, torch.device("cpu"))
    training, shown = augmentation_preview.Training(data, recipe, lambda step: (24, 32)[step > 2]), list(range(10))
    assert page_context.augmented(training, data, shown)["sides"] == [24, 32]
    monkeypatch.setattr(page_context, "_EPOCHS", 1)
    found = page_context.augmented(training, data, shown)
    assert [row["name"] for row in found["rows"]] == list(data.classes)
    assert (found["left_out"], found["more"]) == ([], 0)
    monkeypatch.setattr(page_context, "_AUGMENTED", 5)
    monkeypatch.setattr(page_context, "_MOST_NAMES", 3)
    found = page_context.augmented(training, data, shown)
    assert [row["name"] for row in found["rows"]] == list(data.classes[::2])
    assert (found["left_out"], found["more"]) == (list(data.classes[1:7:2]), 2)


def test_values_that_leave_the_histogram_are_named() -> None:
    histograms = np.full((3, 256), 10)
    assert charts.clipped_values(histograms) == []
    histograms[0, 255] = histograms[2, 0] = 450
    assert charts.clipped_values(histograms) == ["red 255 (15.0%)", "blue 0 (15.0%)"]


def test_charts_take_the_pages_colors_and_ask_nobody() -> None:
    drawn = [
        charts.channel_histograms(np.random.default_rng(0).integers(1, 9, (3, 256))),
        charts.class_sizes({"train": np.arange(50), "test": np.arange(50)}),
        charts.image_sizes(image_headers.Counter({(30, 40): 3, (300, 500): 1})),
    ]
    for svg in drawn:
        assert svg.startswith("<svg") and "http" not in svg
        assert "var(--" in svg and "#0" not in svg.replace("#0000", "")
    again = charts.channel_histograms(np.random.default_rng(0).integers(1, 9, (3, 256)))
    assert again == drawn[0]


def test_balance_is_told_in_words_and_bars() -> None:
    parts = {"train": image_set(scenes(7), [0, 0, 0, 0, 1, 1, 2]), "test": image_set(scenes(2), [0, 2])}
    found = page_context.balance(parts, ["ant", "bee", "cow", "dog"])
    assert [row["cells"] for row in found["rows"]] == [
        [(4, 100.0), (1, 100.0)],
        [(2, 50.0), (0, 0.0)],
        [(1, 25.0), (1, 100.0)],
        [(0, 0.0), (0, 0.0)],
    ]
    assert found["sentences"][0] == (
        "train: ant has 4 images, the most; always predicting it is right for 57.1%. Without images are 1 of 4 classes."
    )
    even = {name: image_set(scenes(4), [0, 1, 1, 0]) for name in ("train", "test")}
    assert page_context.balance(even, ["ant", "bee"])["sentences"] == [
        "Balanced: 2 train and 2 test images of every class."
    ]
