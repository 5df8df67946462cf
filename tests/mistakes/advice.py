"""What the tables of advised mistakes are made of: cases with remedies, and files for them."""

from __future__ import annotations

import importlib
import json
import shlex
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from making import Case, Prepare, Remedy

TRAIN = "--recipe debug --batch_size 48 --model.name test_resnet --data.image_size 32 --data.limit 100 "
TRAIN += "--track.trackers none "
SMALL = "--batch_size 64 --model.pretrained False --model.stem imagenet --data.source synthetic"  # of another recipe
OWN = f"{TRAIN}--data.limit 0 --data.validation_fraction 0.2 --data.test_fraction 0.2 --data.source "


def advice(name: str, words: Any, *remedies: Any, prepare: Prepare = lambda home, trained: None, **more: Any) -> Case:
    """A mistake with its remedies: words, (change, words), or a Remedy; words that do not begin with a flag name a
    command.
    """
    made = [Remedy(each[1], each[0]) if isinstance(each, tuple) else each for each in remedies]
    made = [each if isinstance(each, Remedy) else Remedy(each) for each in made]
    script = "train.py" if isinstance(words, str) and words.startswith("--") else ""
    return Case(name, words, (), "", prepare, script, remedies=tuple(made), **more)


def numbered(pattern: str, words: str) -> Remedy:
    return Remedy(words, number=pattern)


def pictures(*files: str, size: tuple[int, int] = (16, 16)) -> Prepare:
    """PNG images, each of a color of its own."""

    def prepare(home: Path, trained: Path) -> None:
        for number, name in enumerate(files):
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.new("RGB", size, (40 * number % 256, 90, 7 * number % 256)).save(home / name)

    return prepare


def classes(folder: str, count: int = 10, names: tuple[str, ...] = ("cat", "dog")) -> Prepare:
    return pictures(*(f"{folder}/{name}/{number}.png" for name in names for number in range(count)))


def arrays(name: str = "a.npz", **changed: Any) -> Prepare:
    """An .npz file of 20 images of two classes; None leaves an array out."""

    def prepare(home: Path, trained: Path) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
        values = {"x_train": noise, "y_train": np.arange(20) % 2, **changed}
        np.savez(home / name, **{key: value for key, value in values.items() if value is not None})

    return prepare


def removed(*names: str) -> Prepare:
    def change(home: Path, trained: Path) -> None:
        for name in names:
            path = home / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def edited(name: str, edit: Callable[[dict], object]) -> Prepare:
    """A JSON file, with its content changed."""

    def change(home: Path, trained: Path) -> None:
        content = json.loads((home / name).read_text())
        edit(content)
        (home / name).write_text(json.dumps(content))

    return change


def zipped(name: str, folder: str, method: int = zipfile.ZIP_STORED) -> Prepare:
    def change(home: Path, trained: Path) -> None:
        with zipfile.ZipFile(home / name, "w", method) as archive:
            for file in sorted((home / folder).rglob("*")):
                archive.write(file, file.relative_to(home / folder))

    return change


def parsed(command: str, words: str) -> Callable[[Path], object]:
    """The words of a command, checked."""
    return lambda home: importlib.import_module(f"resnet_cifar.cli.{command}").parse_arguments(shlex.split(words))


def checkpoints(edit: Callable[[Path], object]) -> Prepare:
    """Something done to every checkpoint of RUN."""

    def change(home: Path, trained: Path) -> None:
        for folder in (home / "RUN/checkpoints").iterdir():
            edit(folder)

    return change


def checkpoints_restored(home: Path, trained: Path) -> None:
    shutil.copytree(trained / "checkpoints", home / "RUN/checkpoints", dirs_exist_ok=True)


def exported(name: str = "M", **changed: Any) -> Prepare:
    """M, the exported model of the finished run away from it, with fields of config.json changed."""

    def prepare(home: Path, trained: Path) -> None:
        shutil.copytree(trained / "model", home / name, dirs_exist_ok=True)
        edited(f"{name}/config.json", lambda config: config.update(changed))(home, trained)

    return prepare
