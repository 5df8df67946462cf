"""Mistakes of evaluation, prediction and export whose sentences advise something, with the remedies."""

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
)
from making import Prepare, Remedy
from prepared import both

from resnet_cifar.checkpoints import checkpoint
from resnet_cifar.cli import verify_export
from resnet_cifar.data import prepared_data
from resnet_cifar.evaluation import model_location
from resnet_cifar.evaluation.classify_files import image_files


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
