"""Mistakes whose sentences advise something, with the remedies; test_advice follows them in one process."""

from __future__ import annotations

import dataclasses
import importlib
import io
import json
import os
import pickle
import shlex
import shutil
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import layouts
import numpy as np
import PIL.Image
import prepared
import py7zr
import pyarrow.parquet
import pytest
import torch
from making import Case, Prepare, Remedy
from safetensors.torch import load_file, save_file

from resnet_cifar import notebook
from resnet_cifar.checkpoints import checkpoint
from resnet_cifar.cli import explore, verify_export
from resnet_cifar.cli import train as cli_train
from resnet_cifar.config.loading import read_recipe, write_recipe
from resnet_cifar.config.train_options import extended
from resnet_cifar.data import prepared_data
from resnet_cifar.distributed.launcher_env import check_launcher
from resnet_cifar.evaluation import model_location
from resnet_cifar.evaluation.classify_files import image_files
from resnet_cifar.sweeps import search_space, tune
from resnet_cifar.tracking.multi import check_trackers
from resnet_cifar.tracking.wandb_env import check_variables as check_wandb
from resnet_cifar.training import preflight
from resnet_cifar.training.plan import Plan
from resnet_cifar.training.train_state import check_ghost_batch_size

# What no mistake of these can provoke, or what other tests follow: part of the place or of the sentence, and why.
ELSEWHERE = {
    "config/synonyms.py": "tests/unit/test_synonyms.py follows every name",
    "hub_access.py": "tests/hub serves and refuses it",
    "data/sources/hf_hub.py": "tests/hub serves and refuses it",
    "models/factory.py: the pretrained weights": "tests/hub serves and refuses them",
    "models/pretrained.py: model.init_from {} is no repository": "tests/hub refuses it",
    "models/pretrained.py: model.init_from {} cannot be loaded": "tests/hub refuses it",
    "plan_summary.py: training takes about": "tests/training/test_plan_summary.py follows it",
    "plan_summary.py: set batch_size to": "tests/unit/test_plan.py follows it",
    "plan_summary.py: raise phases.{}.epochs": "tests/unit/test_plan.py follows it",
    "cli/entry.py": "the list of commands, a signal, and packages that are missing",
    "cli/verify_export.py: \nimport json": "a script",
    "needs the package": "a package would have to be missing",
    ": interrupted: rerun": "tests/faults/test_ctrl_c.py and tests/endtoend/test_tune.py rerun them",
    "rerun the same command": "tests/faults kills and reruns them",
    "sweeps/run_monitor.py: start again": "tests/unit/test_notebook.py",
    "checkpoints/checkpoint.py: the checkpoint {} cannot be read": "a disk would have to fail once",
    "make room": "tests/faults/test_disk_full.py makes it",
    "free space, then rerun": "tests/faults/test_disk_full.py makes room",
    "is read-only": "test_one_sentence mounts a read-only disk",
    "run_dir.py: --run {} cannot be written ({}): name another folder": "a folder that changes after it was checked",
    "trainer.py: --run {} cannot be used": "a folder that changes after it was checked",
    "cannot be written ({}): name another file": "a folder that changes after it was checked",
    "cli/report.py: {} cannot be written": "a disk that becomes read-only",
    "verify_export.py: --verify-export starts a process of its own": "a launcher; tests/endtoend/test_model_card.py",
    "verify_export.py: timm cannot load": "a process that loads timm; tests/endtoend/test_model_card.py",
    "sweeps/launcher.py: --launch": "tests/endtoend/test_tune.py starts launchers",
    "walk.py": "root may read every folder",
    "too large for an image or table": "a file of 256 MiB",
    "holds {} twice: remove one": "torchvision's files in two folders of one archive",
    "download it again from": "the published archive of 170 MB",
    "set PYTHONUTF8=1": "a locale without UTF-8",
    "it has 16 bits per color": "part of a list of images that cannot be classified",
    "has images of 16 bits per color": "a file that Pillow does not write: tests/unit/test_image_io.py",
    "wandb_env.py: {} is invalid": "W&B's own check: tests/tracking",
    "has no preprocess": "a process that loads timm; tests/endtoend/test_model_card.py",
    "distributed/context.py": "GPUs and several processes: tests/distributed and tests/gpu",
    "distributed/rendezvous.py": "an hour of waiting",
    "LOCAL_RANK={} of {} processes on this machine": "GPUs",
    "was configured for GPUs": "the launcher: test_one_sentence starts it",
    "was asked for several processes": "the launcher: tests/unit/test_launcher_env.py",
    "and Accelerate has found": "the launcher: tests/unit/test_launcher_env.py",
    "launch_origin.py": "the launcher's own command line: tests/unit/test_launcher_env.py",
    "update timm": "a model of a later timm",
    "fp16 overflowed": "GPUs",
    "the loss of step": "training: tests/training/test_train_step.py",
    "set --micro_batch {} or auto": "memory that runs out: tests/distributed/test_memory.py",
    "lower model.ghost_batch_size": "memory that runs out: tests/distributed/test_memory.py",
    "trials in a row failed": "tests/endtoend/test_tune.py",
    "retry with: resnet-cifar report": "a report that cannot be drawn",
    "labels 0 to 9 are interpreted": "a remark of a run that works",
}
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


def numbered_load(pattern: str, field: str, **fields: str) -> Remedy:
    """The source with the number of the sentence for the field."""
    return Remedy(lambda home, number: load(**{**fields, field: number})(home), number=pattern)


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


def plan(processes: int, **fields: str) -> Callable[[Path], Plan]:
    """The plan of the debug recipe on several processes."""
    values = {"model.ghost_batch_size": "32", "micro_batch": "0", **fields}
    return lambda home: Plan(read_recipe("debug", values), 1000, processes)


def model(**fields: str) -> Callable[[Path], object]:
    """The names and the model of a recipe, without memory or computation."""
    values = {"model.pretrained": "False", "model.stem": "imagenet", "data.image_size": "224"}
    values |= {f"model.{name}": value for name, value in fields.items()}

    def build(home: Path) -> None:
        recipe = read_recipe("debug", values)
        preflight.check_names(recipe)
        preflight.meta_model(recipe)

    return build


def sweeps_tracker() -> None:
    """The check of the trackers in TRACKERS."""
    check_trackers(read_recipe("debug", {"track.trackers": os.environ["TRACKERS"]}))


def environment(check: Callable[[], object], words: str) -> Callable[[Path], object]:
    """Variables of the launcher or W&B (NAME=VALUE), checked."""

    def run(home: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            for word in words.split():
                patch.setenv(*word.split("=", 1))
            check()

    return run


MEETING = "RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=127.0.0.1 "
LONG = "x" * 200
VARIABLES = [
    advice(given.split("=")[0], environment(check, given), *(environment(check, remedy) for remedy in remedies))
    for check, given, *remedies in [
        (check_launcher, "ACCELERATE_USE_CPU=perhaps", "ACCELERATE_USE_CPU=true", ""),
        (check_launcher, "RANK=x", ""),
        (check_launcher, "ACCELERATE_TORCH_DEVICE=cpu", "", "ACCELERATE_USE_CPU=1", "CUDA_VISIBLE_DEVICES=1"),
        (check_launcher, "ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS=1", ""),
        (
            check_launcher,
            "ACCELERATE_MIXED_PRECISION=fp8",
            *(f"ACCELERATE_MIXED_PRECISION={precision}" for precision in ("no", "bf16", "fp16")),
        ),
        (check_launcher, "LOCAL_RANK=3", ""),
        (check_launcher, "PMI_SIZE=2", ""),
        (check_launcher, f"MASTER_PORT=0 {MEETING}", f"MASTER_PORT=29500 {MEETING}"),
        (check_wandb, "WANDB_MODE=garbage", *(f"WANDB_MODE={mode}" for mode in ("online", "offline", "disabled")), ""),
        (check_wandb, "WANDB_DISABLED=perhaps", "WANDB_DISABLED=true", ""),
        (check_wandb, "WANDB_BASE_URL=here", "WANDB_BASE_URL=https://HOST", ""),
        (check_wandb, "WANDB_API_KEY=short", f"WANDB_API_KEY={'0' * 40}", ""),
        (check_wandb, "WANDB_DIR=/dev/null/w", "WANDB_DIR=w", ""),
        (check_wandb, f"WANDB_NAME={LONG}", "WANDB_NAME=short", ""),
        (sweeps_tracker, "WANDB_SWEEP_ID=1 TRACKERS=none", "WANDB_SWEEP_ID=1 TRACKERS=wandb", "TRACKERS=none"),
    ]
]


FILE = "RUN/model/model.safetensors"


def pickled(home: Path, trained: Path) -> None:
    """The weights of a run as torch saves them."""
    torch.save(load_file(trained / "model" / "model.safetensors"), home / "a.pth")


def resaved(home: Path, trained: Path) -> None:
    """These weights in the form that the sentence advises."""
    save_file(torch.load(home / "a.pth", weights_only=True), home / "a.safetensors")


# fmt: off
RECIPE = [
    advice("recipe's folder", "--recipe RUN", "--recipe RUN/recipe.yaml --dry-run", prepare=prepared.run()),
    advice("recipe unknown", "--recipe nothing.yaml", f"--recipe debug {TRAIN[15:]} --dry-run"),
    advice("recipe unreadable", "--recipe a.yaml", f"{TRAIN} --dry-run",
        prepare=lambda home, trained: (home / "a.yaml").symlink_to("/proc/self/mem")),
    advice("key given twice", "--recipe a.yaml",
        (prepared.file("a.yaml", "seed: 2"), f"--recipe a.yaml {TRAIN[15:]} {SMALL} --dry-run"),
        prepare=prepared.file("a.yaml", "seed: 1\nseed: 2")),
    advice("trackers twice", f"{TRAIN} --track.trackers wandb,wandb", f"{TRAIN} --track.trackers wandb --dry-run"),
    advice("trackers and none", f"{TRAIN} --track.trackers wandb,none", f"{TRAIN} --track.trackers none --dry-run"),
    advice("flag with a value", f"{TRAIN} --dry-run=no", f"{TRAIN} --dry-run"),
    advice("phase without lr", f"{TRAIN} --phases.2.epochs 1",
        f"{TRAIN} --phases.2.epochs 1 --phases.2.lr 0.1 --dry-run"),
    advice("batch", f"{TRAIN} --batch_size 33",
        numbered("use (\\d+) or", TRAIN + " --micro_batch 0 --batch_size {0} --dry-run"),
        numbered("or (\\d+)$", TRAIN + " --micro_batch 0 --batch_size {0} --dry-run")),
    advice("micro_batch auto", f"{TRAIN} --micro_batch auto --model.ghost_batch_size null",
        f"{TRAIN} --batch_size 64 --micro_batch auto --model.ghost_batch_size 32 --dry-run"),
    advice("micro_batch too large", f"{TRAIN} --micro_batch 96", f"{TRAIN} --micro_batch 48 --dry-run",
        f"{TRAIN} --micro_batch 0 --dry-run"),
    advice("patience", f"{TRAIN} --early_stopping.patience 2 --data.validation_fraction 0",
        f"{TRAIN} --early_stopping.patience 2 --data.validation_fraction 0.2 --dry-run",
        f"{TRAIN} --early_stopping.patience 0 --data.validation_fraction 0 --dry-run"),
    advice("flatten", f"{TRAIN} --model.head.pool flatten --phases.0.image_size 48",
        f"{TRAIN} --model.head.pool flatten --phases.0.image_size null --dry-run",
        f"{TRAIN} --model.head.pool avg --phases.0.image_size 48 --dry-run"),
    advice("warm-up too long", f"{TRAIN} --phases.0.warmup_epochs 90",
        f"{TRAIN} --phases.0.warmup_epochs 0.5 --dry-run"),
    advice("warm-up of one-cycle", f"{TRAIN} --phases.0.schedule one-cycle --phases.0.warmup_epochs 0.1",
        f"{TRAIN} --phases.0.schedule one-cycle --phases.0.warmup_epochs 0 --dry-run"),
    advice("power without its schedule", f"{TRAIN} --phases.0.power 2 --phases.0.schedule cosine",
        f"{TRAIN} --phases.0.power 2 --phases.0.schedule polynomial --dry-run",
        f"{TRAIN} --phases.0.schedule cosine --dry-run"),
    advice("restart and extend", f"{TRAIN} --restart --extend-epochs 1", f"{TRAIN} --restart --run R",
        f"{TRAIN} --dry-run --extend-epochs 1"),
]
# fmt: on
# fmt: off
MODEL = [
    advice("two corrections", f"{TRAIN} --loss.class_weights balanced --data.sampling balanced",
        f"{TRAIN} --data.sampling balanced --dry-run", f"{TRAIN} --loss.class_weights balanced --dry-run"),
    advice("too few weights", f"{TRAIN} --loss.class_weights 1,2 --dry-run",
        f"{TRAIN} --loss.class_weights {','.join('1234512345')} --dry-run"),
    advice("pool of its own", model(name="deit_tiny_distilled_patch16_224", **{"head.pool": "max"}),
        model(name="deit_tiny_distilled_patch16_224", **{"head.pool": "model"})),
    advice("model of the stem", model(name="resnet18_cifar"), model(name="resnet18", stem="cifar")),
    advice("model of the head", model(name="mlp_head"), model(name="resnet18", **{"head.hidden_dims": "128,64"})),
    advice("weights' tag", model(name="resnet18.nowhere_at_all"), model(name="resnet18")),
    advice("no weights", model(name="seresnet18", pretrained="True"), model(name="seresnet18")),
    advice("drop path", model(name="vgg11", drop_path="0.1"), model(name="vgg11", drop_path="0")),
    advice("stem", model(name="test_vit", stem="cifar"), model(name="test_vit", stem="imagenet")),
    advice("size", f"{TRAIN} --model.name test_vit --data.image_size 200",
        f"{TRAIN} --model.name test_vit --model.stem imagenet --data.image_size 160 --dry-run"),
    advice("optimizer", f"{TRAIN} --optimizer.name adahessian",
        *(f"{TRAIN} --optimizer.name {name} --dry-run" for name in ("adamw", "lamb", "sgd"))),
    advice("momentum", f"{TRAIN} --optimizer.name adamw --optimizer.momentum 0.8",
        f"{TRAIN} --optimizer.name adamw --dry-run",
        f"{TRAIN} --optimizer.name adamw --optimizer.betas 0.8,0.9 --dry-run"),
    advice("betas of sgd", f"{TRAIN} --optimizer.name sgd --optimizer.betas 0.9,0.9",
        f"{TRAIN} --optimizer.name sgd --dry-run"),
    advice("one beta", f"{TRAIN} --optimizer.name adamw --optimizer.betas 0.9",
        f"{TRAIN} --optimizer.name adamw --optimizer.betas 0.9,0.9 --dry-run"),
    advice("fp16", f"{TRAIN} --precision fp16", f"{TRAIN} --precision no --dry-run",
        f"{TRAIN} --precision bf16 --dry-run"),
    advice("init_from another model", f"{TRAIN} --model.name resnet18 --model.init_from RUN",
        f"{TRAIN} --model.init_from RUN --dry-run", prepare=prepared.run()),
    advice("init_from pickle", f"{TRAIN} --model.init_from a.pth",
        (resaved, f"{TRAIN} --model.init_from a.safetensors --dry-run"), prepare=pickled),
    advice("init_from file of another model", f"{TRAIN} --model.name resnet18 --model.init_from {FILE}",
        f"{TRAIN} --model.name test_resnet --model.init_from {FILE} --dry-run", prepare=prepared.run()),
    advice("crop", f"{TRAIN} --augment.crop_padding 32", f"{TRAIN} --augment.crop_padding 31 --dry-run"),
    advice("batch over processes", plan(2, batch_size="96"), plan(2, batch_size="64"), plan(2, batch_size="128")),
    advice("ghost batch cut", plan(2, batch_size="32", micro_batch="8"), plan(2, batch_size="32", micro_batch="0"),
        plan(2, batch_size="32", micro_batch="16")),
    advice("micro-batch", plan(1, batch_size="192", micro_batch="24"), plan(1, batch_size="192", micro_batch="32")),
    *(
        advice(
            f"init_from {name}",
            f"{TRAIN} --model.init_from notes",
            f"{TRAIN} --model.init_from RUN --dry-run",
            prepare=prepared.both(prepared.run(), prepared.file(f"notes/model/{name}")),
        )
        for name in ("README.md", "model.safetensors")
    ),
]
# fmt: on


def load(source: str = "a", **fields: str) -> Callable[[Path], object]:
    """The images of a source, as a run reads them; underscores in names stand for dots."""
    values = {"data.source": source, "data.validation_fraction": "0.2", "data.test_fraction": "0.2"}
    values |= {"data.image_size": "16", "data.limit": "0"}
    values |= {f"data.{name.replace('__', '.')}": value for name, value in fields.items()}

    def run(home: Path) -> None:
        recipe = read_recipe("debug", values)
        prepared_data.load(prepared_data.prepare(recipe.data), recipe, torch.device("cpu"))

    return run


TABLE = "file,label\n" + "".join(f"{n}.png,{'cat' if n % 2 else 'dog'}\n" for n in range(20))
FLAT = pictures(*(f"a/{n}.png" for n in range(20)))
KAGGLE = "id,label\n" + "".join(f"{n},{'cat' if n % 2 else 'dog'}\n" for n in range(1, 21))
COMPETITION = prepared.both(
    pictures(*(f"a/train/{n}.png" for n in range(1, 21))), prepared.file("a/trainLabels.csv", KAGGLE)
)
both = prepared.both


def deep(values: Iterable[int]) -> np.ndarray:
    """Images with 16 bits, each of one value."""
    return np.stack([np.full((16, 16), value, np.uint16) for value in values])


def csv(content: str) -> Prepare:
    return prepared.file("a/labels.csv", content)


def column(name: str, values: list, split: str = "train", **columns: list) -> Prepare:
    """A parquet file of 20 images and columns."""

    def prepare(home: Path, trained: Path) -> None:
        from datasets import Dataset, Features, Image, Value

        images = [PIL.Image.new("RGB", (16, 16), (n, 0, 0)) for n in range(len(values))]
        (home / "a").mkdir(exist_ok=True)
        kinds = {
            each: Value("string")
            if isinstance(cells[0], str)
            else Value("float32" if isinstance(cells[0], float) else "int64")
            for each, cells in {name: values, **columns}.items()
        }
        features = Features({"image": Image(), **kinds})
        Dataset.from_dict({"image": images, name: values, **columns}, features=features).to_parquet(
            home / "a" / f"{split}.parquet"
        )

    return prepare


LABELS = [n % 2 for n in range(20)]


def saved(train: list, test: list) -> Prepare:
    """A folder written by save_to_disk."""

    def prepare(home: Path, trained: Path) -> None:
        from datasets import Dataset, DatasetDict, Features, Image, Value

        splits = {}
        for name, labels in {"train": train, "test": test}.items():
            kind = Value("string" if isinstance(labels[0], str) else "int64")
            images = [PIL.Image.new("RGB", (16, 16), (n, 0, 0)) for n in range(len(labels))]
            columns = {"image": images, "label": labels}
            splits[name] = Dataset.from_dict(columns, features=Features({"image": Image(), "label": kind}))
        DatasetDict(splits).save_to_disk(str(home / "a"))

    return prepare


def unusable(home: Path, trained: Path) -> None:
    """A test split of an image that does not decode and another without a label."""
    from datasets import Dataset, Features, Image, Value

    stream = io.BytesIO()
    PIL.Image.new("RGB", (16, 16)).save(stream, "png")
    images = [{"bytes": content, "path": None} for content in (b"garbage", stream.getvalue())]
    features = Features({"image": Image(), "label": Value("int64")})
    Dataset.from_dict({"image": images, "label": [0, -1]}, features=features).to_parquet(home / "a/test.parquet")


def renamed(old: str, new: str) -> Prepare:
    def change(home: Path, trained: Path) -> None:
        (home / old).rename(home / new)

    return change


def pairs(home: Path, trained: Path) -> None:
    """A parquet file with two columns of images."""
    from datasets import Dataset, Features, Image, Value

    images = [PIL.Image.new("RGB", (16, 16), (n, 0, 0)) for n in range(20)]
    features = Features({"image": Image(), "mask": Image(), "label": Value("int64")})
    (home / "a").mkdir()
    columns = {"image": images, "mask": images, "label": LABELS}
    Dataset.from_dict(columns, features=features).to_parquet(home / "a" / "train.parquet")


# fmt: off
SOURCES = [
    advice("file that is not read", load("a/labels.csv"), load("a"), prepare=both(FLAT, csv(TABLE))),
    advice("deep images of one value", load("a.npz"), Remedy(load("a.npz"), arrays(x_train=deep(range(20)))),
        prepare=arrays(x_train=deep([7] * 20))),
    advice("class that does not decode", load(skip_broken="True"),
        Remedy(load(skip_broken="True"), pictures("a/cow/1.png", "a/cow/2.png", "a/cow/3.png")),
        Remedy(load(skip_broken="True"), removed("a/cow")),
        prepare=both(classes("a"), *(prepared.file(f"a/cow/{n}.png", "x") for n in range(1, 4)))),
    advice("name of control characters", load(), Remedy(load(), renamed("a/do\ng", "a/dog")),
        prepare=classes("a", names=("cat", "do\ng"))),
    advice("name that is not UTF-8", load(), Remedy(load(), renamed("a/do\udcffg", "a/dog")),
        prepare=both(classes("a"), renamed("a/dog", "a/do\udcffg"))),
    advice("labels out of range", load("a.npz"), Remedy(load("a.npz"), arrays()),
        prepare=arrays(y_train=np.full(20, -1))),
    advice("labels of another column", load(columns__label="none"), load(columns__label="label"),
        Remedy(load(columns__label="none"), column("label", LABELS, none=LABELS)),
        prepare=column("label", LABELS, none=[-1] * 20)),
    advice("cache in a file", load("synthetic", limit="100"), load("synthetic", limit="100"),
        prepare=prepared.file("notes"), env=(("RESNET_CIFAR_CACHE", "notes/cache"),)),
    advice("empty split", load("a.npz"),
        Remedy(load("a.npz"), arrays(x_test=np.zeros((4, 16, 16, 3), np.uint8), y_test=np.arange(4) % 2)),
        load("synthetic", limit="100"),
        prepare=arrays(x_test=np.zeros((0, 16, 16, 3), np.uint8), y_test=np.zeros(0, np.int64))),
    advice("labels of two types", load(), Remedy(load(), both(removed("a"), saved(LABELS, LABELS))),
        prepare=saved(LABELS, ["x", "y"] * 10)),
    advice("saved folder damaged", load(), Remedy(load(), both(removed("a"), saved(LABELS, LABELS))),
        prepare=both(saved(LABELS, LABELS), prepared.file("a/dataset_dict.json", "garbage"))),
    advice("images that do not decode", load(), Remedy(load(), both(removed("a"), classes("a"))),
        prepare=both(*(prepared.file(f"a/{kind}/{n}.png", "x") for kind in ("cat", "dog") for n in range(4)))),
    advice("no usable image", load(skip_broken="True"),
        Remedy(load(), both(removed("a/test.parquet"), column("label", LABELS, "test"))),
        prepare=both(column("label", LABELS), unusable)),
    advice("no train", load(), load(splits__train="test", splits__test="validation"),
        prepare=both(column("label", LABELS, "test"), column("label", LABELS, "validation"))),
    advice("train twice", load(splits__train="train", splits__test="train"), load(splits__test="test"), load(),
        prepare=both(column("label", LABELS, "train"), column("label", LABELS, "test"))),
    advice("split without labels", load(splits__test="test"), load(splits__test="validation"), load(),
        prepare=both(
            column("label", LABELS), column("label", [-1] * 4, "test"), column("label", LABELS, "validation"))),
    advice("limit", load(limit="3"),
        Remedy(lambda home, number: load(limit=number)(home), number="raise it to (\\d+)",
            then="data.validation_fraction"), load(limit="12"), prepare=classes("a")),
    advice("test fraction too large", load(test_fraction="0.97"),
        Remedy(lambda home, number: load(test_fraction=number, validation_fraction="0.5")(home),
            number="lower it to ([\\d.]+)"), prepare=classes("a")),
    advice("ambiguous name", load(),
        Remedy(load(), csv(TABLE.replace("\n", "\nb/").removesuffix("b/")), then="has class folders and labels.csv"),
        prepare=both(pictures(*(f"a/{folder}/{n}.png" for folder in "bc" for n in range(20))), csv(TABLE))),
    advice("two image columns", load(), load(columns__image="image"), prepare=pairs),
    advice("no source", load("nowhere.zip"), Remedy(load("a.zip"), both(classes("b"), zipped("a.zip", "b")))),
    advice("no hub id", load("cifar"), Remedy(load(), classes("a")), load("synthetic", limit="100")),
    advice("fields of another kind", load("synthetic", columns__label="x"), load("synthetic", limit="100")),
    advice("empty folder", load(), Remedy(load(), classes("a")), Remedy(load(), both(FLAT, csv(TABLE))),
        prepare=prepared.file("a/notes.txt")),
    advice("images without a class", load(), Remedy(load(), both(removed("a"), classes("a"))),
        Remedy(load(), csv(TABLE)), prepare=FLAT),
    advice("unknown class", load(), Remedy(load(), classes("a/train", names=("cow",))),
        Remedy(load(), removed("a/test/cow")),
        prepare=both(classes("a/train"), classes("a/test", names=("cat", "cow")))),
    advice("empty class", load(), Remedy(load(), classes("a", names=("cow",))), Remedy(load(), removed("a/cow")),
        prepare=both(classes("a"), prepared.file("a/cow/notes.txt"))),
    advice("columns without a CSV", load(columns__label="x"), load(), prepare=classes("a")),
    advice("split without folders", load(splits__test="b"), load(splits__test="c"), load(),
        prepare=both(classes("a/train"), both(pictures("a/b/1.png"), classes("a/c")))),
    advice("small class", load(), Remedy(load(), pictures("a/cow/2.png", "a/cow/3.png", "a/cow/4.png")),
        Remedy(load(), removed("a/cow")), prepare=both(classes("a"), pictures("a/cow/1.png"))),
    advice("test fraction too small", load(test_fraction="0.01"),
        numbered_load("raise it to ([\\d.]+)", "test_fraction"), prepare=classes("a")),
    advice("validation fraction too small", load(validation_fraction="0.01"),
        numbered_load("raise it to ([\\d.]+)", "validation_fraction"), load(validation_fraction="0"),
        prepare=classes("a")),
    advice("validation fraction too large", load(validation_fraction="0.97"),
        numbered_load("lower it to ([\\d.]+)", "validation_fraction"), prepare=classes("a")),
    advice("one class", load(), Remedy(load(), classes("a", names=("dog",))), prepare=classes("a", names=("cat",))),
    advice("one class of a table", load(), load(columns__label="kind"),
        prepare=column("label", [0] * 20, kind=LABELS)),
    advice("torn images", load(), Remedy(load(), removed("a/cat/x.png")), load(skip_broken="True"),
        prepare=both(classes("a"), prepared.file("a/cat/x.png", "torn"))),
    advice("no label column", load(), load(columns__label="kind"), prepare=column("kind", LABELS)),
    advice("label of floats", load(columns__label="weight"), load(columns__label="kind"),
        prepare=column("kind", LABELS, weight=[0.5] * 20)),
    advice("image column of numbers", load(columns__image="label"), load(columns__image="image"),
        prepare=column("label", LABELS)),
    advice("rows without images", load(), Remedy(load(), pictures("a/99.png")), Remedy(load(), csv(TABLE)),
        load(skip_broken="True"), prepare=both(FLAT, csv(TABLE + "99.png,cat\n"))),
    advice("row without a file", load(), Remedy(load(), csv(TABLE)), prepare=both(FLAT, csv(TABLE + ",cat\n"))),
    advice("row twice", load(), Remedy(load(), csv(TABLE)), prepare=both(FLAT, csv(TABLE + "0.png,cat\n"))),
    advice("long row", load(), Remedy(load(), csv(TABLE)), prepare=both(FLAT, csv(TABLE + "1.png,cat,3\n"))),
    advice("no UTF-8", load(), Remedy(load(), csv(TABLE)),
        prepare=both(FLAT, lambda home, trained: (home / "a/labels.csv").write_bytes(b"file,label\n0.png,\xff\xfe\n"))),
    advice("no column of images", load(), load(columns__image="two"),
        prepare=both(FLAT, csv("one,two,label\n" + "".join(f"{n}.png,{n}.png,{n % 2}\n" for n in range(20))))),
    advice("no column of labels", load(), load(columns__label="two"),
        prepare=both(FLAT, csv("file,one,two\n" + "".join(f"{n}.png,{n % 3},{n % 2}\n" for n in range(20))))),
    advice("folders and a CSV", load(), load(columns__label="label"), Remedy(load(), removed("a/labels.csv")),
        prepare=both(classes("a"),
            csv(
                "file,label\n" + "".join(f"{kind}/{n}.png,{n % 2}\n" for kind in ("cat", "dog") for n in range(10))))),
    advice("competition without images", load(), Remedy(load(), COMPETITION),
        prepare=both(prepared.file("a/trainLabels.csv", KAGGLE), lambda home, trained: (home / "a/train").mkdir())),
    advice("competition's images twice", load(), Remedy(load(), removed("a/train/1.jpg")),
        prepare=both(COMPETITION, pictures("a/train/1.jpg"))),
    advice("competition's ids twice", load(), Remedy(load(), prepared.file("a/trainLabels.csv", KAGGLE)),
        prepare=both(COMPETITION, prepared.file("a/trainLabels.csv", KAGGLE + "1,cat\n"))),
    advice("competition's ids without images", load(), Remedy(load(), pictures("a/train/21.png")),
        Remedy(load(), prepared.file("a/trainLabels.csv", KAGGLE)), load(skip_broken="True"),
        prepare=both(COMPETITION, prepared.file("a/trainLabels.csv", KAGGLE + "21,cat\n"))),
    advice("competition's row without id", load(), Remedy(load(), prepared.file("a/trainLabels.csv", KAGGLE)),
        prepare=both(COMPETITION, prepared.file("a/trainLabels.csv", KAGGLE + ",cat\n"))),
    advice("competition's columns", load(), Remedy(load(), prepared.file("a/trainLabels.csv", KAGGLE)),
        load(columns__image="nr", columns__label="kind"),
        prepare=both(COMPETITION, prepared.file("a/trainLabels.csv", KAGGLE.replace("id,label", "nr,kind")))),
    advice("arrays with other names", load("a.npz"), Remedy(load("a.npz"), arrays()),
        load("a.npz", columns__image="p", columns__label="q"),
        prepare=arrays(x_train=None, y_train=None, p=np.zeros((20, 8, 8), np.uint8), q=np.arange(20) % 2)),
    advice("arrays of floats", load("a.npz"), Remedy(load("a.npz"), arrays()),
        prepare=arrays(x_train=np.zeros((20, 8, 8)))),
    advice("arrays of another shape", load("a.npz"), Remedy(load("a.npz"), arrays()),
        prepare=arrays(x_train=np.zeros((20, 64), np.uint8))),
    advice("labels of another shape", load("a.npz"), Remedy(load("a.npz"), arrays()),
        prepare=arrays(y_train=np.eye(20))),
    advice("labels of another number", load("a.npz"), Remedy(load("a.npz"), arrays()),
        prepare=arrays(y_train=np.arange(19) % 2)),
    advice("arrays of objects", load("a.npz"), Remedy(load("a.npz"), arrays()),
        prepare=arrays(x_train=np.array([{}] * 20, dtype=object))),
]
# fmt: on


def cifar(home: Path, trained: Path) -> None:
    """torchvision's folder, of 12 images a file."""
    images = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    layouts.pickles(home / "a", (images, np.arange(60) % 10), (images[:10], np.arange(10)), protocol=4)


def batch(name: str, **changed: Any) -> Prepare:
    """A file of torchvision's folder, with something changed or, for None, left out."""

    def change(home: Path, trained: Path) -> None:
        file = home / "a/cifar-10-batches-py" / name
        content = pickle.loads(file.read_bytes()) | changed
        file.write_bytes(pickle.dumps({key: value for key, value in content.items() if value is not None}))

    return change


def cifar_again(home: Path, trained: Path) -> None:
    shutil.rmtree(home / "a")
    cifar(home, trained)


# fmt: off
PICKLES = [
    advice("no pickles", load(), Remedy(load(), cifar_again),
        prepare=lambda home, trained: (home / "a/cifar-10-batches-py").mkdir(parents=True)),
    advice("pickles with an image column", load(columns__image="data"), load(), prepare=cifar),
    advice("both sets", load(), load("a/cifar-10-batches-py"),
        prepare=both(cifar, lambda home, trained: (home / "a/cifar-100-python").mkdir())),
    *(
        advice(f"pickles with {name}", load(), Remedy(load(), both(removed("a"), cifar)), prepare=both(cifar, change))
        for name, change in {
            "no names": batch("batches.meta", label_names=None),
            "a file missing": removed("a/cifar-10-batches-py/data_batch_3"),
            "no labels": both(batch("test_batch", labels=None), batch("data_batch_1", labels=None)),
            "other data": batch("data_batch_1", data=np.zeros((12, 3), np.uint8)),
            "other labels": batch("data_batch_1", labels=[1, 2]),
            "garbage": prepared.file("a/cifar-10-batches-py/data_batch_2", "garbage"),
        }.items()
    ),
]
# fmt: on


def doubled(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):
            archive.writestr("cat/1.png", b"x")


def tarred(home: Path, trained: Path) -> None:
    with tarfile.open(home / "a.tar", "w") as archive:
        archive.add(home / "b", "b")


def linked(home: Path, trained: Path) -> None:
    tarred(home, trained)
    with tarfile.open(home / "a.tar", "a") as archive:
        member = tarfile.TarInfo("b/cat/link.png")
        member.type, member.linkname = tarfile.SYMTYPE, "1.png"
        archive.addfile(member)


def seven(name: str, filters: list | None = None) -> Prepare:
    def change(home: Path, trained: Path) -> None:
        with py7zr.SevenZipFile(
            home / name, "w", filters=filters or [{"id": py7zr.FILTER_LZMA2, "preset": 1}]
        ) as archive:
            archive.writeall(home / "b", "b")

    return change


# fmt: off
ARCHIVES = [
    advice("archive without images", load("a.zip"),
        Remedy(load("a.zip"), both(classes("b"), zipped("a.zip", "b"))),
        Remedy(load("a.zip"), both(both(FLAT, csv(TABLE)), zipped("a.zip", "a"))),
        prepare=prepared.archive("a.zip", {"notes.txt": "x", "more/notes.txt": "x"})),
    advice("archive of bzip2", load("a.zip"), Remedy(load("a.zip"), zipped("a.zip", "b")),
        prepare=both(classes("b"), zipped("a.zip", "b", zipfile.ZIP_BZIP2))),
    advice("7z of PPMd", load("a.7z"), Remedy(load("a.7z"), seven("a.7z")),
        prepare=both(classes("b"), seven("a.7z", [{"id": py7zr.FILTER_PPMD, "order": 6, "mem": 24}]))),
    advice("two tables", load("a.zip"), Remedy(load("a.zip"), zipped("a.zip", "a")),
        prepare=both(
            COMPETITION, prepared.file("a/b/trainLabels.csv", KAGGLE), zipped("a.zip", "a"), removed("a/b"))),
    advice("archive twice", load("a.zip"), Remedy(load("a.zip"), zipped("a.zip", "b")),
        prepare=both(classes("b"), lambda home, trained: doubled(home / "a.zip"))),
    advice("archive cut", load("a.zip"), Remedy(load("a.zip"), zipped("a.zip", "b")),
        prepare=both(classes("b"), prepared.file("a.zip", "PK"))),
    advice("archive with links", load("a.tar"), Remedy(load("a.tar"), tarred), prepare=both(classes("b"), linked)),
    advice("archive encrypted", load("a.7z"), load("b"),
        prepare=both(classes("b"), lambda home, trained: layouts.seven_zipped(home / "a.7z", home / "b", "secret"))),
    advice("competition's table missing", load("train.zip"),
        Remedy(load("train.zip"), prepared.file("trainLabels.csv", KAGGLE)),
        Remedy(load("train.zip"), both(classes("b"), zipped("train.zip", "b"))),
        prepare=both(pictures(*(f"c/train/{n}.png" for n in range(1, 21))), zipped("train.zip", "c"))),
]
# fmt: on


def parsed(command: str, words: str) -> Callable[[Path], object]:
    """The words of a command, checked."""
    return lambda home: importlib.import_module(f"resnet_cifar.cli.{command}").parse_arguments(shlex.split(words))


def checkpoints(edit: Callable[[Path], object]) -> Prepare:
    """Something done to every checkpoint of RUN."""

    def change(home: Path, trained: Path) -> None:
        for folder in (home / "RUN/checkpoints").iterdir():
            edit(folder)

    return change


def other_format(folder: Path) -> None:
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "format": 0}))


def longer(home: Path, trained: Path) -> None:
    """RUN as --extend-epochs has left it."""
    prepared.run(prepared.unfinished)(home, trained)
    write_recipe(extended(read_recipe(str(home / "RUN/recipe.yaml")), 1), home / "RUN/recipe.yaml")


OLD_FILE = "starts" + ".json"  # of an earlier version
RUN = f"{TRAIN} --micro_batch 8 --run RUN"
OTHER, RESTART = f"{TRAIN} --micro_batch 8 --run other", f"{RUN} --restart"


def began(home: Path, trained: Path) -> None:
    """R, a run directory of these images, which change afterwards."""
    run = home / "R"
    _, recipe = cli_train.parse_arguments(shlex.split(f"{OWN} a --run R"))
    data = prepared_data.load(prepared_data.prepare(recipe.data), recipe, torch.device("cpu"))
    run.mkdir()
    write_recipe(dataclasses.replace(recipe, precision="no"), run / "recipe.yaml")
    (run / "environment.json").write_text(json.dumps({"data": data.fingerprint}))
    pictures("a/cat/11.png")(home, trained)


def ghost(rows: int) -> None:
    """The check of BatchNorm's groups on two processes of a CPU."""
    recipe = read_recipe("debug", {"batch_size": "32", "micro_batch": "0", "model.ghost_batch_size": str(rows)})
    check_ghost_batch_size(recipe, SimpleNamespace(size=2, device=torch.device("cpu")))


def garbled_search(home: Path, trained: Path) -> None:
    space("phases.0.lr", "1..2", "S")(home)
    with (home / "S/journal.log").open("a") as journal:
        journal.write("garbage\n")


def second_run(home: Path, trained: Path) -> None:
    shutil.copytree(trained, home / "B")


def checkpoints_restored(home: Path, trained: Path) -> None:
    shutil.copytree(trained / "checkpoints", home / "RUN/checkpoints", dirs_exist_ok=True)


def cut_line(home: Path) -> None:
    """The last line of the search's journal, removed."""
    journal = home / "S/journal.log"
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:-1]))


def page(name: str) -> Callable[[Path], object]:
    return lambda home: explore._output_file(name, "a")


def space(path: str, word: str, run: str = "S", **fields: str) -> Callable[[Path], object]:
    """A search of the debug recipe, opened."""
    return lambda home: tune.open_study(search_space.read("debug", {path: word, **fields}), "debug", run, 0, "python")


# fmt: off
RUNS = [
    advice("result damaged", RUN, (removed("RUN/result.json"), RUN), RESTART,
        prepare=prepared.run(prepared.garbled("result.json"))),
    advice("checkpoints damaged", RUN, (checkpoints_restored, RUN), RESTART,
        prepare=prepared.run(prepared.unfinished, prepared.garbled("checkpoints/*/state.json"))),
    advice("checkpoints of another format", RUN, RESTART,
        prepare=both(prepared.run(prepared.unfinished), checkpoints(other_format))),
    advice("a pickle in a checkpoint", RUN, (checkpoints(lambda folder: (folder / "a.pkl").unlink()), RUN),
        prepare=both(
            prepared.run(prepared.unfinished), checkpoints(lambda folder: (folder / "a.pkl").write_text("x")))),
    advice("run of an earlier version", RUN, OTHER, RESTART,
        prepare=both(prepared.run(), prepared.file(f"RUN/{OLD_FILE}"))),
    advice("run in a file", f"{TRAIN} --run notes/run", OTHER, prepare=prepared.file("notes")),
    advice("run among files", f"{TRAIN} --run notes", OTHER,
        (lambda home, trained: (home / "empty").mkdir(), f"{TRAIN} --run empty"),
        prepare=prepared.file("notes/a.txt")),
    advice("run of another recipe", f"{RUN} --seed 3", f"{OTHER} --seed 3", f"{RESTART} --seed 3",
        prepare=prepared.run()),
    advice("run that was extended", RUN, f"{RUN} --extend-epochs 1", prepare=longer),
    advice("run with a recipe of another version", RUN, OTHER, RESTART,
        prepare=both(prepared.run(), prepared.file("RUN/recipe.yaml", "seed: x"))),
    advice("run of other images", f"{OWN} a --run R", f"{OWN} a --run R --restart",
        (removed("a/cat/11.png"), f"{OWN} a --run R"), prepare=both(classes("a"), began)),
    advice("ghost batch on CPUs", lambda home: ghost(32), lambda home: ghost(16)),
    advice("all is test", f"{OWN} a --data.test_fraction 1 --dry-run",
        f"{OWN} a --data.test_fraction 0.2 --dry-run", prepare=classes("a")),
    advice("cache cleared twice over", parsed("cache", "--clear all --older-than 3"),
        parsed("cache", "--clear all"), parsed("cache", "--older-than 3")),
    advice("runs named twice", parsed("compare", "RUN RUN"), (second_run, parsed("compare", "RUN B")),
        prepare=prepared.run()),
    advice("compare into notes", parsed("compare", "RUN B --out notes"),
        parsed("compare", "RUN B --out other.html"),
        prepare=both(prepared.file("notes"), both(prepared.run(), second_run))),
    advice("report of no run", parsed("report", "notes"), parsed("report", "RUN"),
        prepare=both(prepared.file("notes/a"), prepared.run())),
    advice("two sources", parsed("explore", "a --data.source b"), parsed("explore", "a"), parsed("explore", "b")),
    advice("seed and seeds", parsed("seeds", "debug --seed 3 --seeds 0..4"), parsed("seeds", "debug --seeds 3")),
    advice("show of no run", notebook.show, Remedy(lambda home: notebook.check_version(home / "RUN")),
        prepare=prepared.run()),
    *(
        advice(
            f"page in {name}",
            page(name),
            page("page.html"),
            *more,
            prepare=both(prepared.file("notes"), lambda home, trained: (home / "folder").mkdir()),
        )
        for name, more in {
            "notes": [],
            "folder": [page("folder/explore.html")],
            "none/a.html": [(lambda home, trained: (home / "none").mkdir(), page("none/a.html"))],
        }.items()
    ),
]
# fmt: on
# fmt: off
RULES = [
    advice("searched seed", space("seed", "1..5"), Remedy(space("seed", "1"), then="tune needs a range")),
    advice("choice twice", space("optimizer.name", "sgd,sgd"), space("optimizer.name", "sgd,adamw")),
    advice("range with gaps", space("batch_size", "48..96"), space("batch_size", "48,96")),
    advice("search on overfitted images", space("phases.0.lr", "1..2", **{"data.overfit_images": "8"}),
        space("phases.0.lr", "1..2", **{"data.overfit_images": "0"})),
    advice("search without validation", space("phases.0.lr", "1..2", **{"data.validation_fraction": "0"}),
        space("phases.0.lr", "1..2", **{"data.validation_fraction": "0.1"})),
    advice("search among files", space("phases.0.lr", "1..2", "notes"), space("phases.0.lr", "1..2", "new"),
        prepare=prepared.file("notes/a")),
    advice("search in a file", space("phases.0.lr", "1..2", "notes/a"), space("phases.0.lr", "1..2", "new"),
        prepare=prepared.file("notes")),
    advice("search damaged", space("phases.0.lr", "1..2", "S"),
        (lambda home, trained: cut_line(home), space("phases.0.lr", "1..2", "S")),
        space("phases.0.lr", "1..2", "new"), prepare=garbled_search),
    advice("search of another", space("phases.0.lr", "1..3", "S"), space("phases.0.lr", "1..3", "new"),
        prepare=lambda home, trained: space("phases.0.lr", "1..2", "S")(home)),
]
# fmt: on


def exported(name: str = "M", **changed: Any) -> Prepare:
    """M, the exported model of the finished run away from it, with fields of config.json changed."""

    def prepare(home: Path, trained: Path) -> None:
        shutil.copytree(trained / "model", home / name, dirs_exist_ok=True)
        edited(f"{name}/config.json", lambda config: config.update(changed))(home, trained)

    return prepare


def copied(*names: str) -> Prepare:
    """Files of the finished run, restored in RUN."""

    def change(home: Path, trained: Path) -> None:
        for name in names:
            (home / "RUN" / name).parent.mkdir(exist_ok=True)
            shutil.copy(trained / name, home / "RUN" / name)

    return change


def renamed_model(home: Path, old: str, new: str) -> None:
    """RUN with the recipe of another model."""
    file = home / "RUN/recipe.yaml"
    file.write_text(file.read_text().replace(old, new).replace("image_size: 32", "image_size: 160"))


def newest_removed(home: Path, trained: Path) -> None:
    shutil.rmtree(max((home / "RUN/checkpoints").iterdir()))


def damaged_newest(home: Path, trained: Path) -> None:
    """RUN with a second checkpoint, that is damaged."""
    newest = max((home / "RUN/checkpoints").iterdir())
    shutil.copytree(newest, newest.with_name("step-00000099"))
    (newest.with_name("step-00000099") / "model.safetensors").write_text("garbage")


def between(home: Path, trained: Path) -> None:
    """C, a checkpoint whose BatchNorm statistics are of other weights."""
    shutil.copytree(max((home / "RUN/checkpoints").iterdir()), home / "C")
    state = json.loads((home / "C/state.json").read_text()) | {"bn_stats_current": False}
    del state["checksum"]
    (home / "C/state.json").write_text(json.dumps({**state, "checksum": checkpoint._state_checksum(state)}))


def stored(name: str, weights: str = "") -> Callable[[Path], object]:
    """The stored predictions as they are checked; those of `other.parquet` are in another order."""

    def check(home: Path) -> None:
        target = model_location.find_target(home / "RUN")
        file = home / "RUN/predictions-test.parquet"
        table = pyarrow.parquet.read_table(file)
        if name != file.name:
            pyarrow.parquet.write_table(table.take(list(range(len(table)))[::-1]), file)
        recipe = model_location.recipe(target)
        data = prepared_data.load(prepared_data.prepare(recipe.data), recipe, torch.device("cpu"))
        verify_export._stored_logits(
            target, weights or json.loads((home / "RUN/result.json").read_text())["checkpoint"], data
        )

    return check


# fmt: off
EVALUATIONS = [
    advice("evaluation of nothing", parsed("evaluate", "notes"),
        *(parsed("evaluate", name) for name in ("RUN", "RUN/model")),
        Remedy(lambda home: model_location.find_target(next((home / "RUN/checkpoints").iterdir()))),
        prepare=both(prepared.file("notes/a"), prepared.run())),
    advice("model without a recipe", parsed("evaluate", "M"), parsed("evaluate", "M --data.source synthetic"),
        prepare=exported()),
    advice("images and a split", parsed("evaluate", "RUN --images a --split test"),
        parsed("evaluate", "RUN --images a"), parsed("evaluate", "RUN --split test"),
        prepare=both(prepared.run(), prepared.file("a"))),
    advice("check with options", parsed("evaluate", "RUN --verify-export --tta flip"),
        parsed("evaluate", "RUN --verify-export"), prepare=prepared.run()),
    advice("check of a model", parsed("evaluate", "M --verify-export"), parsed("evaluate", "RUN --verify-export"),
        prepare=both(exported(), prepared.run())),
    advice("check without a file", parsed("evaluate", "RUN --verify-export"),
        (copied("predictions-test.parquet"), parsed("evaluate", "RUN --verify-export")),
        prepare=both(prepared.run(), removed("RUN/predictions-test.parquet"))),
    advice("check of another evaluation", stored("predictions-test.parquet", "x"),
        stored("predictions-test.parquet"), prepare=prepared.run()),
    advice("check of other predictions", stored("other.parquet"), stored("predictions-test.parquet"),
        prepare=prepared.run()),
    advice("nothing held out", "evaluate RUN --data.validation_fraction 0 --split validation",
        "evaluate RUN --split test", prepare=prepared.run()),
    advice("evaluation into a file", "evaluate RUN --out notes/a", "evaluate RUN --out other",
        prepare=both(prepared.file("notes"), prepared.run())),
    advice("other classes", "evaluate RUN --data.source a", "evaluate RUN --data.source synthetic",
        prepare=both(classes("a"), prepared.run())),
    advice("weights of another size", "evaluate RUN", (copied("recipe.yaml"), "evaluate RUN"),
        prepare=both(prepared.run(), lambda home, trained: renamed_model(home, "test_resnet", "test_vit"))),
    advice("no checkpoint", "evaluate RUN", (checkpoints_restored, "evaluate RUN"),
        prepare=both(prepared.run(), removed("RUN/checkpoints"))),
    advice("best checkpoint damaged", "evaluate RUN", (newest_removed, "evaluate RUN"),
        prepare=both(prepared.run(), damaged_newest)),
    advice("checkpoint between evaluations", "predict C a.png", "predict RUN a.png",
        prepare=both(pictures("a.png"), both(prepared.run(), between))),
    advice("no images to classify", lambda home: image_files(["notes"]), lambda home: image_files(["a"]),
        lambda home: image_files(["a/cat/0.png"]), prepare=both(prepared.file("notes/a.txt"), classes("a"))),
    advice("checkpoint without a recipe", parsed("evaluate", "C"),
        Remedy(lambda home: model_location.find_target(next((home / "RUN/checkpoints").iterdir()))),
        prepare=both(prepared.file("C/state.json", "{}"), prepared.run())),
    *(
        advice(
            f"model with {name}",
            parsed("evaluate", "M --data.source synthetic"),
            (exported(), parsed("evaluate", "M --data.source synthetic")),
            prepare=change,
        )
        for name, change in {
            "no weights": both(exported(), removed("M/model.safetensors")),
            "no size": exported(pretrained_cfg={}),
            "one output": exported(num_classes=1),
            "no names": exported(label_names=["a", "b"]),
            "garbage": both(exported(), prepared.file("M/config.json", "garbage")),
            "no object": both(exported(), prepared.file("M/config.json", "[]")),
        }.items()
    ),
]
# fmt: on

ADVISED = [*VARIABLES, *RECIPE, *MODEL, *SOURCES, *PICKLES, *ARCHIVES, *RUNS, *RULES, *EVALUATIONS]
