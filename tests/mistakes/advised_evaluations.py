"""Mistakes of evaluation, prediction, export and serving whose sentences advise something, with the remedies."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import prepared
import pyarrow.parquet
import torch
from advice import (
    advice,
    checkpoints_restored,
    classes,
    exported,
    parsed,
    pictures,
    removed,
    zipped,
)
from making import Prepare, Remedy
from prepared import both

from resnet_cifar.checkpoints import checkpoint
from resnet_cifar.cli import serve, verify_export
from resnet_cifar.cli.serve import ServeOptions
from resnet_cifar.data import prepared_data
from resnet_cifar.evaluation import model_location
from resnet_cifar.evaluation.classify_files import ImageFile, find_images
from resnet_cifar.reporting.review_page import read_pool


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


def bound(host: str) -> Callable[[Path], object]:
    """An address to serve at, and any free port."""
    return lambda home: serve._bound(ServeOptions("RUN", host=host, port="0")).close()


def review_of_one(home: Path) -> None:
    read_pool(["a"], [ImageFile("a/0.png")])


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
    advice("export in no format", parsed("export", "RUN --to onxx"), parsed("export", "RUN --to onnx,pt2"),
        prepare=prepared.run()),
    advice("int8 without ONNX", parsed("export", "RUN --to pt2 --quantize int8"),
        parsed("export", "RUN --to onnx,pt2 --quantize int8"), prepare=prepared.run()),
    advice("export of a checkpoint", parsed("export", "C"), parsed("export", "RUN"),
        prepare=both(prepared.run(), between)),
    advice("export of an unfinished run", parsed("export", "RUN"),
        (copied("model/config.json"), parsed("export", "RUN")),
        prepare=both(prepared.run(), removed("RUN/model"))),
    advice("export into a file", "export RUN --out notes/a", parsed("export", "RUN --out other"),
        prepare=both(prepared.file("notes"), prepared.run())),
    advice("ONNX with a precision", parsed("serve", "RUN/export --precision bf16"),
        parsed("serve", "RUN/export"), parsed("serve", "RUN --precision bf16"),
        prepare=both(prepared.run(), prepared.file("RUN/export/model.onnx"))),
    advice("ONNX by torch", parsed("serve", "RUN/export/model.onnx --backend torch"),
        parsed("serve", "RUN --backend torch"), parsed("serve", "RUN/export/model.onnx"),
        prepare=both(prepared.run(), prepared.file("RUN/export/model.onnx"))),
    advice("a run without ONNX", parsed("serve", "RUN --backend onnx"),
        (prepared.file("RUN/export/model.onnx"), parsed("serve", "RUN --backend onnx")), prepare=prepared.run()),
    *(
        advice(f"{name} to serve at", bound(host), bound("127.0.0.1"), bound("0.0.0.0"))
        for name, host in {"another machine's address": "192.0.2.1", "no address": "127.0.0..1"}.items()
    ),
    advice("push to no repository", parsed("push", "RUN mine"), parsed("push", "RUN alice/mine"),
        prepare=prepared.run()),
    advice("push of a model without a run", parsed("push", "M alice/mine"), parsed("push", "RUN alice/mine"),
        prepare=both(prepared.run(), exported())),
    advice("push of an unfinished run", parsed("push", "RUN alice/mine"),
        (copied("result.json"), parsed("push", "RUN alice/mine")),
        prepare=both(prepared.run(), removed("RUN/result.json"))),
    advice("push without the Hub", parsed("push", "RUN alice/mine"), parsed("push", "RUN alice/mine"),
        prepare=prepared.run(), env=(("HF_HUB_OFFLINE", "1"),)),
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
    advice("no images to classify", lambda home: find_images(["notes"]),
        *(lambda home, word=word: find_images([word]) for word in ("a", "a.zip", "a/*/0.png", "a/cat/0.png")),
        prepare=both(prepared.file("notes/a.txt"), both(classes("a"), zipped("a.zip", "a")))),
    advice("two formats of predictions", parsed("predict", "RUN a.png --json --csv"),
        *(parsed("predict", f"RUN a.png {format}") for format in ("--json", "--csv")),
        prepare=both(pictures("a.png"), prepared.run())),
    advice("review in no directory", parsed("predict", "RUN a.png --review b/p.html"),
        (pictures("b/a.png"), parsed("predict", "RUN a.png --review b/p.html")),
        parsed("predict", "RUN a.png --review p.html"), prepare=both(pictures("a.png"), prepared.run())),
    advice("review over corrections", parsed("predict", "RUN a.png --review p.html"),
        parsed("predict", "RUN a.png --review q.html"),
        (removed("p-labels.csv"), parsed("predict", "RUN a.png --review p.html")),
        prepare=both(both(pictures("a.png"), prepared.file("p-labels.csv")), prepared.run())),
    advice("review of an archive and more", lambda home: read_pool(["a", "a.zip"], find_images(["a", "a.zip"])),
        lambda home: read_pool(["a.zip"], find_images(["a.zip"])), lambda home: read_pool(["a"], find_images(["a"])),
        prepare=both(classes("a"), zipped("a.zip", "a"))),
    advice("review of labeled images", review_of_one,
        lambda home: read_pool(["a"], [ImageFile("a/0.png"), ImageFile("a/1.png")]),
        prepare=prepared.file("a/labels.csv", "file,label\n0.png,cat\n")),
    advice("review beside other labels", review_of_one,
        (prepared.file("a/labels.csv", "file,label\n1.png,cat\n"), review_of_one),
        (removed("a/labels.csv"), review_of_one),
        prepare=prepared.file("a/labels.csv", "image,class\n1.png,cat\n")),
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
