"""data/preprocess.py: prediction, the model card's code and timm's transform give an image file the same input."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageOps

from resnet_cifar.config.validation import parse
from resnet_cifar.data.preprocess import Preprocess
from resnet_cifar.data.sources.image_io import Decoding, UndecodableImage, decode, to_rgb
from resnet_cifar.distributed.context import DistributedContext
from resnet_cifar.evaluation import model_location
from resnet_cifar.evaluation.loaded_model import load_model
from resnet_cifar.models.export import export_model
from resnet_cifar.models.factory import create_model, normalization
from resnet_cifar.reporting import model_card

SHAPES = {"landscape": (96, 48), "portrait": (40, 81), "panorama": (640, 33), "tiny": (3, 5), "huge": (1500, 1000)}
SHAPES |= {"odd": (33, 32), "stored": (32, 32), "network": (40, 40), "strip": (2, 900)}


def noise(width: int, height: int, channels: tuple[int, ...] = (3,), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, *channels), dtype=np.uint8)


def png_of_16_bits(values: np.ndarray) -> bytes:
    """uint16 [h, w, c] as a PNG file, which Pillow does not write for colors."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Photographs of every shape, and images of every kind that has to be decoded with care."""
    folder = tmp_path_factory.mktemp("files")

    def save(name: str, image: Image.Image, **options: Any) -> Path:
        image.save(folder / name, **options)
        return folder / name

    found = {name: save(f"{name}.png", Image.fromarray(noise(*size))) for name, size in SHAPES.items()}
    for orientation in range(2, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        image = Image.fromarray(noise(61, 40))
        found[f"exif {orientation}"] = save(f"{orientation}.jpg", image, exif=exif)
    image, deep = Image.fromarray(noise(50, 37)), noise(50, 37, ()).astype(np.uint16) * 16
    found["RGBA"] = save("rgba.png", Image.fromarray(noise(50, 37, (4,))))
    found["LA"] = save("la.png", Image.fromarray(noise(50, 37, (2,))))
    found["palette"] = save("p.png", image.convert("P"))
    found["clear palette"] = save("clear.png", image.convert("P"), transparency=3)
    found["clear RGB"] = save("rgb.png", image, transparency=image.getpixel((2, 2)))
    found["GIF"] = save("a.gif", image, save_all=True, append_images=[ImageOps.invert(image)])
    found["frames"] = save("frames.tif", image, save_all=True, append_images=[ImageOps.invert(image)])
    found["gray"], found["1 bit"] = save("l.png", image.convert("L")), save("one.png", image.convert("1"))
    found["CMYK"] = save("cmyk.jpg", image.convert("CMYK"))
    found["16 bits"] = save("deep.png", Image.fromarray(deep))
    found["big-endian"] = folder / "deep.tif"
    big = Image.frombytes("I;16B", (50, 37), deep.astype(">u2").tobytes())
    big.save(found["big-endian"])
    found["16-bit color"] = folder / "color.png"
    found["16-bit color"].write_bytes(png_of_16_bits(np.random.default_rng(0).integers(0, 2**16, (37, 50, 3))))
    return found


def exported(folder: Path, decoding: Decoding, data: dict[str, Any]) -> tuple[Preprocess, dict[str, Any]]:
    """The preprocessing of a model, and what the code of its card defines, executed."""
    model_fields = {"name": "test_efficientnet", "pretrained": False}  # has ImageNet's mean
    recipe = parse({"data": {"source": "synthetic", **data}, "model": model_fields})
    model = create_model(recipe, 3, pretrained=False)
    preprocess = Preprocess(recipe.data, *map(torch.tensor, normalization(model, recipe)), decoding)
    facts = {"preprocess": preprocess.facts}
    export_model(model, folder, recipe, tuple("abc"), model.state_dict(), preprocess.timm_config, facts)
    defined: dict[str, Any] = {}
    exec(model_card.loading_code(str(folder), preprocess.facts, needs_package=False), defined)
    return preprocess, defined


@pytest.mark.parametrize(
    ("size", "data", "exact"),
    [
        ((40, 40), {"interpolation": "nearest", "decode_mode": "pad"}, True),
        ((40, 40), {"decode_mode": "pad", "normalize": "none"}, False),  # timm's border would be black
        ((64, 64), {"interpolation": "bilinear", "decode_mode": "pad"}, False),
        ((30, 45), {"decode_mode": "pad"}, False),
        ((40, 40), {"interpolation": "nearest"}, True),  # images of several sizes, stored at the network's
        ((32, 32), {"interpolation": "bicubic"}, False),  # CIFAR
        ((64, 64), {"interpolation": "bilinear"}, False),  # data.decode_size
        ((30, 45), {"interpolation": "bicubic", "normalize": "none"}, False),  # photographs of one camera
        ((52, 44), {"interpolation": "nearest"}, False),
        (None, {"interpolation": "bilinear"}, False),
    ],
)
def test_the_card_and_timm_see_what_prediction_sees(
    size: tuple[int, int] | None, data: dict[str, Any], exact: bool, files: dict[str, Path], tmp_path: Path
) -> None:
    decoding = Decoding(size, mode=data.get("decode_mode", "crop"))
    preprocess, card = exported(tmp_path / "model", decoding, {"image_size": 40, **data})
    timm_transform = timm.data.create_transform(**timm.data.resolve_model_data_config(card["model"]))
    assert preprocess.is_exact_in_timm is exact
    assert preprocess.facts["exact_in_timm"] is exact
    lacks = " ".join(preprocess.facts["timm_transform_lacks"])
    assert ("center-cropped" in lacks or "padded with the color" in lacks) == bool(size and not exact)
    assert ("before the final resizing" in lacks) == (size not in (None, (40, 40)))
    for name, file in files.items():
        expected = preprocess(torch.from_numpy(preprocess.read(file))[None])[0]
        with Image.open(file) as image:
            torch.testing.assert_close(card["to_input"](image), expected, rtol=1e-4, atol=1e-4, msg=name)
            if exact and name != "strip":  # longer than 64:1
                rgb = image if name in SHAPES else decode(image)
                torch.testing.assert_close(timm_transform(rgb), expected, rtol=1e-5, atol=1e-5, msg=name)


def test_the_measured_range_is_in_the_card_and_in_prediction(files: dict[str, Path], tmp_path: Path) -> None:
    preprocess, card = exported(tmp_path / "model", Decoding((40, 40), (100, 3000)), {"image_size": 40})
    assert preprocess.facts["value_range"] == [100, 3000]
    assert "values of more than 8 bits scaled from 100..3000 to 0..255" in preprocess.facts["timm_transform_lacks"]
    for name in ("16 bits", "big-endian", "odd", "RGBA"):
        expected = preprocess(torch.from_numpy(preprocess.read(files[name]))[None])[0]
        with Image.open(files[name]) as image:
            torch.testing.assert_close(card["to_input"](image), expected, rtol=1e-5, atol=1e-5)
    values = np.asarray(Image.open(files["16 bits"])).astype(float)
    scaled = np.round((values - 100).clip(0, 2900) * 255 / 2900)
    np.testing.assert_array_equal(to_rgb(files["16 bits"], Decoding(None, (100, 3000)))[..., 0], scaled)
    with pytest.raises(UndecodableImage, match="16 bits per color, of which Pillow reads the upper 8"):
        preprocess.read(files["16-bit color"])


def test_an_export_does_not_keep_how_the_original_weights_were_tested(tmp_path: Path) -> None:
    """test_resnet's were at another size and crop, which `use_test_size` of timm would choose."""
    _, card = exported(tmp_path / "model", Decoding((40, 40)), {"image_size": 40})
    config = timm.data.resolve_model_data_config(card["model"], use_test_size=True)
    assert (tuple(config["input_size"]), config["crop_pct"], config["crop_mode"]) == ((3, 40, 40), 1.0, "center")


@pytest.mark.parametrize("fields", [{}, {"crop_pct": 1.0, "crop_mode": "squash"}, {"crop_mode": "border"}])
def test_a_model_that_timm_alone_has_saved_reads_files_as_timm_does(
    fields: dict[str, Any], files: dict[str, Path], tmp_path: Path, fresh_accelerator: None
) -> None:
    model = timm.create_model("test_resnet", num_classes=3)
    own = {"input_size": (3, 40, 40), "crop_pct": 0.9, "interpolation": "bilinear", **fields}
    model.pretrained_cfg = {**model.pretrained_cfg, **own}
    timm.models.save_for_hf(model, tmp_path, model_config={"label_names": list("abc")}, safe_serialization=True)
    target = model_location.find_target(tmp_path)
    loaded = load_model(target, model_location.recipe(target), DistributedContext("no"))
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(loaded.plain))
    for name in ("landscape", "odd", "tiny", "exif 6", "RGBA"):
        with Image.open(files[name]) as image:
            expected = transform(decode(image))
        torch.testing.assert_close(loaded.preprocess(loaded.read(str(files[name]))[None])[0], expected)


def test_arrays_of_16_bits_are_scaled_by_the_range_and_alpha_by_all_of_it() -> None:
    values = np.random.default_rng(0).integers(0, 4096, (6, 8, 3), dtype=np.uint16)
    scaled = np.round(values * (255 / 4095))
    np.testing.assert_array_equal(to_rgb(values, Decoding(None, (0, 4095))), scaled)
    opaque = np.dstack([values, np.full((6, 8), 65535, dtype=np.uint16)])
    np.testing.assert_array_equal(to_rgb(opaque, Decoding(None, (0, 4095))), scaled)


def test_floating_point_images_need_a_range() -> None:
    stream = io.BytesIO()
    Image.fromarray(np.linspace(-1, 1, 48, dtype=np.float32).reshape(6, 8)).save(stream, "TIFF")
    picture = {"bytes": stream.getvalue(), "path": None}
    assert (to_rgb(picture, Decoding(None, (-1, 1)))[..., 0].min(), to_rgb(picture, Decoding(None, (-1, 1))).max()) == (
        0,
        255,
    )
    with pytest.raises(UndecodableImage, match="whose range is unknown"):
        to_rgb(picture)
