"""Mistakes of data sources whose sentences advise something, with the remedies."""

from __future__ import annotations

import io
import pickle
import shutil
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import layouts
import numpy as np
import PIL.Image
import prepared
import py7zr
import torch
from advice import advice, arrays, classes, pictures, removed, zipped
from making import Prepare, Remedy
from prepared import both

from resnet_cifar.config.loading import read_recipe
from resnet_cifar.data import prepared_data


def load(source: str = "a", **fields: str) -> Callable[[Path], object]:
    """The images of a source, as a run reads them; underscores in names stand for dots."""
    values = {"data.source": source, "data.validation_fraction": "0.2", "data.test_fraction": "0.2"}
    values |= {"data.image_size": "16", "data.limit": "0"}
    values |= {f"data.{name.replace('__', '.')}": value for name, value in fields.items()}

    def run(home: Path) -> None:
        recipe = read_recipe("debug", values)
        prepared_data.load(prepared_data.prepare(recipe.data), recipe, torch.device("cpu"))

    return run


def numbered_load(pattern: str, field: str, **fields: str) -> Remedy:
    """The source with the number of the sentence for the field."""
    return Remedy(lambda home, number: load(**{**fields, field: number})(home), number=pattern)


TABLE = "file,label\n" + "".join(f"{n}.png,{'cat' if n % 2 else 'dog'}\n" for n in range(20))
SPLIT = "file,label,split\n" + "".join(
    f"{n}.png,{'cat' if n % 2 else 'dog'},{'test' if n > 15 else 'train'}\n" for n in range(20)
)
FLAT = pictures(*(f"a/{n}.png" for n in range(20)))
KAGGLE = "id,label\n" + "".join(f"{n},{'cat' if n % 2 else 'dog'}\n" for n in range(1, 21))
COMPETITION = both(pictures(*(f"a/train/{n}.png" for n in range(1, 21))), prepared.file("a/trainLabels.csv", KAGGLE))


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
    advice("home of nobody", load("~no-such-user/a"), Remedy(lambda home: load(str(home / "a"))(home), classes("a"))),
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
    advice("split that is not one", load(), Remedy(load(), csv(SPLIT)),
        Remedy(load(), csv(SPLIT.replace("0.png,dog,train\n", "", 1))),
        Remedy(load(), csv(SPLIT.replace(",split", ",part", 1).replace("0.png,dog,train", "0.png,dog,tarin"))),
        prepare=both(FLAT, csv(SPLIT.replace("0.png,dog,train", "0.png,dog,tarin", 1)))),
    advice("image in two splits", load(), Remedy(load(), csv(SPLIT)),
        prepare=both(FLAT, csv(SPLIT + "0.png,dog,test\n"))),
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
