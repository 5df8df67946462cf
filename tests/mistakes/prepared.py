"""What the words of a mistaken command name: recipes, folders of images, runs and models with something wrong."""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import PIL.Image

from resnet_cifar.config.loading import read_recipe, write_recipe

Prepare = Callable[[Path, Path], None]


def file(name: str, content: str = "") -> Prepare:
    """A file of the given name."""

    def prepare(home: Path, trained: Path) -> None:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(content)

    return prepare


def images(
    name: str, labels: Sequence[int] = (), classes: int = 2, broken: Sequence[int] = (), labelled: bool = True
) -> Prepare:
    """A folder of parquet files whose two splits have these labels; `broken`: training images that do not decode."""

    def prepare(home: Path, trained: Path) -> None:
        from datasets import ClassLabel, Dataset, Features, Image, Value

        noise = np.random.default_rng(0)
        names = ClassLabel(names=[f"class {number}" for number in range(classes)])
        features = Features({"image": Image(), **({"label": names} if labelled else {"weight": Value("float32")})})
        (home / name).mkdir()
        for split in ("train", "test"):
            pictures = [_png(noise) for _ in labels]
            for row in broken if split == "train" else ():
                pictures[row] = b"no picture"
            encoded = [{"bytes": picture, "path": None} for picture in pictures]
            values = {"image": encoded, "label" if labelled else "weight": list(labels)}
            Dataset.from_dict(values, features=features).to_parquet(home / name / f"{split}-00000.parquet")

    return prepare


def archive(name: str, members: dict[str, str | bytes]) -> Prepare:
    """A .zip file of such content."""

    def prepare(home: Path, trained: Path) -> None:
        with zipfile.ZipFile(home / name, "w", zipfile.ZIP_DEFLATED) as opened:
            for member, content in members.items():
                opened.writestr(member, content)

    return prepare


def hostile_batches(name: str) -> Prepare:
    """torchvision's folder, its first batch a pickle that makes a folder `called` where it is run."""

    def prepare(home: Path, trained: Path) -> None:
        (home / name).mkdir()
        for file in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"):
            (home / name / file).write_bytes(b"cos\nmkdir\n(Vcalled\ntR.")

    return prepare


def run(*change: Callable[[Path], None]) -> Prepare:
    """RUN, a copy of the finished run, changed."""

    def prepare(home: Path, trained: Path) -> None:
        shutil.copytree(trained, home / "RUN")
        for each in change:
            each(home / "RUN")

    return prepare


def unfinished(folder: Path) -> None:
    """As if it had been stopped."""
    (folder / "result.json").unlink()


def without_checkpoints(folder: Path) -> None:
    shutil.rmtree(folder / "checkpoints")


def garbled(pattern: str) -> Callable[[Path], None]:
    """Every file of the pattern holds no JSON and no tensors any more."""

    def change(folder: Path) -> None:
        for found in folder.glob(pattern):
            found.write_text("garbage")

    return change


def started(recipe: str, **fields: str) -> Prepare:
    """RUN, a run directory that another recipe has begun."""

    def prepare(home: Path, trained: Path) -> None:
        (home / "RUN").mkdir()
        write_recipe(read_recipe(recipe, fields), home / "RUN" / "recipe.yaml")

    return prepare


def both(*parts: Prepare) -> Prepare:
    """One after the other."""

    def prepare(home: Path, trained: Path) -> None:
        for part in parts:
            part(home, trained)

    return prepare


def _png(noise: np.random.Generator) -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(noise.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(stream, "png")
    return stream.getvalue()
