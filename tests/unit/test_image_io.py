"""data/sources/image_io.py: a picture of any mode and size becomes RGB bytes."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from read_sources import arrays, encoded
from torchvision.transforms import v2

from resnet_cifar.data.sources import image_io
from resnet_cifar.data.sources.image_io import BORDER, Decoding, Limits, TooManyPixels, UndecodableImage, to_rgb

SQUARE = Decoding((32, 32))
SIZES = [(96, 64), (64, 96), (70, 70), (20, 31), (32, 32), (33, 32), (32, 33), (31, 32), (900, 40), (7, 90), (1, 1)]


def saved(image: Image.Image, kind: str, **options: Any) -> dict[str, Any]:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return {"bytes": stream.getvalue(), "path": None}


def gray(bits: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2**bits, (6, 8), dtype=np.uint16 if bits == 16 else np.uint8)


def test_gray_is_the_same_in_every_channel() -> None:
    for picture in (
        encoded(gray(8)),
        gray(8),
        gray(8)[..., None],
        saved(Image.fromarray(gray(8)), "WEBP", lossless=True),
    ):
        np.testing.assert_array_equal(to_rgb(picture), np.repeat(gray(8)[..., None], 3, axis=2))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PGM", "array"])
def test_sixteen_bits_are_scaled_by_their_range_and_not_clipped(kind: str) -> None:
    values = gray(16)
    values[0, :3] = 0, 65535, 32768
    if kind == "array":
        picture: Any = values
    elif kind == "PGM":
        picture = {"bytes": b"P5 8 6 65535\n" + values.astype(">u2").tobytes(), "path": None}
    else:
        picture = saved(Image.fromarray(values), kind)
    expected = np.round(values / 257)
    np.testing.assert_array_equal(to_rgb(picture), np.repeat(expected[..., None], 3, axis=2))


def test_sixteen_bit_color_arrays_are_scaled_too() -> None:
    values = np.random.default_rng(0).integers(0, 2**16, (6, 8, 3), dtype=np.uint16)
    np.testing.assert_array_equal(to_rgb(values), np.round(values / 257))


@pytest.mark.parametrize("mode", ["F", "I"])
def test_values_without_a_known_range_are_refused(mode: str) -> None:
    values = np.full((6, 8), 70_000, dtype=np.float32 if mode == "F" else np.int32)
    with pytest.raises(UndecodableImage):
        to_rgb(saved(Image.fromarray(values), "TIFF"))


def test_a_palette_gives_its_colors() -> None:
    array = np.full((6, 8, 3), (10, 200, 30), dtype=np.uint8)
    array[2:] = (250, 0, 90)
    picture = saved(Image.fromarray(array).convert("P", palette=Image.Palette.ADAPTIVE), "PNG")
    np.testing.assert_array_equal(to_rgb(picture), array)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "array"])
def test_transparency_is_placed_on_white(mode: str) -> None:
    """Left half opaque black, right half clear."""
    if mode in ("P", "RGB"):
        image = Image.new(mode, (8, 6), 0)
        if mode == "P":
            image.putpalette([0, 0, 0, 9, 9, 9])
            image.paste(1, (4, 0, 8, 6))
            picture: Any = saved(image, "PNG", transparency=1)
        else:
            image.paste((9, 9, 9), (4, 0, 8, 6))
            picture = saved(image, "PNG", transparency=(9, 9, 9))
    else:
        array = np.zeros((6, 8, 2 if mode == "LA" else 4), dtype=np.uint8)
        array[:, :4, -1] = 255
        picture = array if mode == "array" else encoded(array)
    found = to_rgb(picture)
    assert (found[:, :4] == 0).all()
    assert (found[:, 4:] == 255).all()
    assert found.shape == (6, 8, 3)


def test_half_transparency_is_half_of_white() -> None:
    array = np.zeros((2, 2, 4), dtype=np.uint8)
    array[..., 3] = 128
    assert abs(int(to_rgb(encoded(array))[0, 0, 0]) - 127) <= 1


def test_cmyk_is_converted_to_rgb() -> None:
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    found = to_rgb(saved(red, "JPEG", quality=100)).astype(int)
    assert np.abs(found - (255, 0, 0)).max() < 12


@pytest.mark.parametrize(("width", "height"), [(64, 64), (90, 40), (41, 97), (30, 20), (2, 9000), (33, 32)])
def test_padding_keeps_the_whole_image_at_its_center(width: int, height: int) -> None:
    """A gradient, so that a part that is missing would show at the edges."""
    down, across = np.mgrid[:height, :width]
    gradient = np.stack([down * 255 // (height - 1), across * 255 // (width - 1), down * 0], -1).astype(np.uint8)
    found = to_rgb(gradient, Decoding((32, 32), mode="pad"))
    wide, tall = (max(round(side * 32 / max(width, height)), 1) for side in (width, height))
    top, left = (32 - tall) // 2, (32 - wide) // 2
    inside = found[top : top + tall, left : left + wide]
    expected = Image.fromarray(gradient).resize((wide, tall), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(inside, np.asarray(expected))
    border = np.ones((32, 32), dtype=bool)
    border[top : top + tall, left : left + wide] = False
    assert (found[border] == BORDER).all()
    assert border.sum() == 32 * 32 - tall * wide


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(kind: str) -> None:
    image = Image.fromarray(np.repeat(np.linspace(0, 255, 64, dtype=np.uint8)[None, :, None], 32, 0).repeat(3, 2))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    found = to_rgb(saved(image, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {})))
    expected = np.asarray(image.transpose(Image.Transpose.ROTATE_270))
    assert found.shape == (64, 32, 3)
    assert np.abs(found.astype(int) - expected).max() < 8


@pytest.mark.parametrize("size", SIZES)
def test_to_a_square_as_torchvision_evaluates(size: tuple[int, int]) -> None:
    """The shortest side is resized, and the center cut out, of noise: every pixel is the same."""
    picture = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    found = to_rgb(picture, SQUARE)
    resized = v2.Compose([v2.Resize(32, v2.InterpolationMode.BICUBIC), v2.CenterCrop(32)])(Image.fromarray(picture))
    assert found.shape == (32, 32, 3)
    np.testing.assert_array_equal(found, np.asarray(resized))
    if size == (32, 32):
        np.testing.assert_array_equal(found, picture)


def test_an_extreme_strip_takes_no_extreme_memory() -> None:
    assert to_rgb(np.zeros((2, 20_000), dtype=np.uint8), Decoding((64, 64))).shape == (64, 64, 3)


@pytest.mark.filterwarnings("error")
def test_photographs_of_200_megapixels_are_no_bombs() -> None:
    """Pillow looks at the size in the header."""
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", 16_320, 12_240, 8, 2, 0, 0, 0), b"IDAT")
    parts = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    with pytest.raises(UndecodableImage) as caught:
        to_rgb({"bytes": b"\x89PNG\r\n\x1a\n" + b"".join(parts), "path": None})
    assert "Bomb" not in str(caught.value)


def test_the_first_frame_counts() -> None:
    frames = [Image.fromarray(array) for array in arrays(3)]
    stream = io.BytesIO()
    frames[0].save(stream, "PNG", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(to_rgb({"bytes": stream.getvalue(), "path": None}), arrays(3)[0])


def test_heic_is_read_with_pillow_heif_and_recognized_without() -> None:
    pytest.importorskip("pillow_heif")
    pixels = np.repeat(np.linspace(0, 255, 96, dtype=np.uint8)[None, :, None], 48, 0).repeat(3, 2)
    picture = saved(Image.fromarray(pixels), "HEIF", quality=95)
    assert np.abs(to_rgb(picture).astype(int) - pixels).max() < 16
    assert image_io.is_heic(picture) and not image_io.is_heic(saved(Image.fromarray(pixels), "AVIF"))
    assert not image_io.is_heic("missing.heic") and not image_io.is_heic(None) and not image_io.is_heic(pixels)


def test_what_it_returns_is_plain_bytes() -> None:
    found = to_rgb(encoded(arrays(1)[0]))
    assert (found.dtype, found.shape) == (np.uint8, (6, 8, 3))
    assert torch.equal(torch.from_numpy(found.copy()), torch.from_numpy(arrays(1)[0]))


def test_limits_are_checked_before_an_image_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = saved(Image.new("RGB", (40, 30)), "GIF")
    assert to_rgb(picture, limits=Limits(("GIF", "PNG"), 1200)).shape == (30, 40, 3)
    monkeypatch.setattr(image_io, "decode", lambda *arguments: pytest.fail("it is decoded"))
    with pytest.raises(TooManyPixels, match=r"^40 x 30 pixels$"):
        to_rgb(picture, limits=Limits(pixels=1199))
    with pytest.raises(UndecodableImage):
        to_rgb(picture, limits=Limits(("PNG",)))
    with pytest.raises(TooManyPixels, match=r"^over 536,870,912 pixels$"):
        to_rgb({"bytes": b"P5 99999 99999 255\n", "path": None})
