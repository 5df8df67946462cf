"""Mistakes whose sentences advise something, with the remedies; test_advice follows them in one process."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import prepared
import pytest
import torch
from advice import (
    OWN,
    SMALL,
    TRAIN,
    advice,
    checkpoints,
    checkpoints_restored,
    classes,
    edited,
    numbered,
    parsed,
    pictures,
    removed,
)
from advised_evaluations import EVALUATIONS
from advised_scaling import SCALING
from advised_sources import ARCHIVES, PICKLES, SOURCES
from making import Prepare, Remedy
from prepared import both
from safetensors.torch import load_file, save_file

from resnet_cifar import notebook
from resnet_cifar.cli import explore
from resnet_cifar.cli import train as cli_train
from resnet_cifar.config.loading import read_recipe, write_recipe
from resnet_cifar.config.train_options import extended
from resnet_cifar.data import prepared_data
from resnet_cifar.distributed.launcher_env import check_launcher
from resnet_cifar.models.export import export_model
from resnet_cifar.models.factory import create_model
from resnet_cifar.sweeps import search_space, tune
from resnet_cifar.tracking.multi import check_trackers
from resnet_cifar.training import preflight
from resnet_cifar.training.plan import Plan
from resnet_cifar.training.train_state import check_ghost_batch_size
from resnet_cifar.wandb_env import check_variables as check_wandb

# What no mistake of these can provoke, or what other tests follow: part of the place or of the sentence, and why.
ELSEWHERE = {
    "config/synonyms.py": "tests/unit/test_synonyms.py follows every name",
    "hub_access.py": "tests/hub serves and refuses it",
    "data/sources/hf_hub.py": "tests/hub serves and refuses it",
    "models/factory.py: the pretrained weights": "tests/hub serves and refuses them",
    "models/pretrained.py: {} {} is no repository": "tests/hub refuses it",
    "models/pretrained.py: {} {} cannot be loaded": "tests/hub refuses it",
    "plan_summary.py: training takes about": "tests/training/test_plan_summary.py follows it",
    "plan_summary.py: set batch_size to": "tests/unit/test_plan.py follows it",
    "plan_summary.py: raise phases.{}.epochs": "tests/unit/test_plan.py follows it",
    "cli/entry.py": "the list of commands, a signal, and packages that are missing",
    "cli/verify_export.py: \nimport importlib.util": "a script",
    "needs the package": "a package would have to be missing",
    "config/rerun.py": "tests/faults kills and reruns them, and tests/slurm submits the command of a job",
    "sweeps/run_monitor.py: start again": "tests/unit/test_notebook.py",
    "checkpoints/checkpoint.py: the checkpoint {} cannot be read": "a disk would have to fail once",
    "make room": "tests/faults/test_disk_full.py makes it",
    "free space, then": "tests/faults/test_disk_full.py makes room",
    "is read-only": "test_one_sentence mounts a read-only disk",
    "run_dir.py: --run {} cannot be written ({}): name another folder": "a folder that changes after it was checked",
    "trainer.py: --run {} cannot be used": "a folder that changes after it was checked",
    "cannot be written ({}): name another file": "a folder that changes after it was checked",
    "--files {} cannot be written ({})": "a folder that changes after it was checked",
    "cli/report.py: {} cannot be written": "a disk that becomes read-only",
    "verify_export.py: --verify-export starts a process of its own": "a launcher; tests/endtoend/test_model_card.py",
    "export_files.py: exports are verified on test images": "other weights; tests/endtoend/test_export.py",
    "export_files.py: torch cannot export": "a model of timm's; tests/endtoend/test_export.py",
    "cli/push.py: push runs in one process": "a launcher; tests/hub/test_push.py",
    "push_files.py": "tests/hub/test_push.py serves what they are about",
    "export_files.py: export starts processes of its own": "a launcher; tests/endtoend/test_export.py",
    "cli/request_images.py": "clients of the service: tests/endtoend/test_serve.py",
    "cli/serve_metrics.py": "clients of the service: tests/endtoend/test_serve.py",
    "cli/serve_app.py": "clients of the service: tests/endtoend/test_serve.py",
    "cli/reproduce.py": "a second training: tests/endtoend/test_reproduce.py",
    "dashboard.py: --port {} cannot be used": "another program: tests/unit/test_dashboard.py",
    "dashboard.py: --report {} was not tracked by W&B": "a W&B project: tests/tracking/test_workspace.py",
    "dashboard.py: {} refuses ({})": "a W&B server: tests/tracking/test_workspace.py",
    "wandb_workspace.py": "a W&B server: tests/tracking/test_workspace.py",
    "serve.py: --port {} cannot be used": "another program: tests/endtoend/test_serve.py",
    "serve.py: serve is one process": "a launcher; tests/endtoend/test_serve.py",
    "serve.py: {} has the weights of": "an export that is older than its run: tests/endtoend/test_serve.py",
    "onnx_model.py": "a file of another program: tests/endtoend/test_serve.py",
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
    "tracking/mlflow.py": "a store of MLflow: tests/tracking/test_breaking.py",
    "wandb_artifacts.py": "tests/tracking/test_wandb.py serves what they are about",
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
    "is more than the {} GPUs of this machine": "GPUs",
    "scaling_measurement.py: {}, in micro-batches of": "memory that runs out",
    "scaling_run.py: --out {} cannot be written": "a folder that changes after it was checked",
    "trials in a row failed": "tests/endtoend/test_tune.py",
    "not checked here: the images": "a remark of a check that passes",
    "retry with: resnet-cifar report": "a report that cannot be drawn",
    "labels 0 to 9 are interpreted": "a remark of a run that works",
}


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


def notified() -> None:
    """The checks of `track.notify`, as NOTIFY, TRACKERS and ACCURACY set it."""
    words = {"notify": "NOTIFY", "trackers": "TRACKERS", "notify_accuracy": "ACCURACY"}
    values = {f"track.{field}": os.environ[name] for field, name in words.items() if name in os.environ}
    check_trackers(read_recipe("debug", values))


def environment(check: Callable[[], object], words: str) -> Callable[[Path], object]:
    """Variables of the launcher or W&B (NAME=VALUE), checked."""

    def run(home: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            for word in words.split():
                patch.setenv(*word.split("=", 1))
            check()

    return run


def with_account(words: str) -> Callable[[Path], object]:
    """`resnet-cifar dashboard WORDS` of a user of W&B."""
    return environment(lambda: parsed("dashboard", words)(Path()), f"WANDB_API_KEY={'0' * 40}")


MEETING = "RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=127.0.0.1 "
LONG = "x" * 200
VARIABLES = [
    advice(given[:40], environment(check, given), *(environment(check, remedy) for remedy in remedies))
    for check, given, *remedies in [
        (check_launcher, "ACCELERATE_USE_CPU=perhaps", "ACCELERATE_USE_CPU=true", ""),
        (check_launcher, "RANK=x", ""),
        (check_launcher, "ACCELERATE_TORCH_DEVICE=cpu", "", "ACCELERATE_USE_CPU=True", "CUDA_VISIBLE_DEVICES=1"),
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
        (notified, "NOTIFY=env:HOOK HOOK=example", "NOTIFY=env:HOOK HOOK=https://HOST/PATH"),
        (
            notified,
            "NOTIFY=https://user:word@HOST",
            "NOTIFY=env:HOOK HOOK=https://user:word@HOST",
            "NOTIFY=slack:HOOK HOOK=https://user:word@HOST",
        ),
        (notified, "NOTIFY=wandb TRACKERS=none", "NOTIFY=wandb TRACKERS=wandb"),
        (notified, "ACCURACY=0.9", "ACCURACY=0.9 NOTIFY=wandb"),
        (sweeps_tracker, "TRACKERS=trackio TRACKIO_SPACE_ID=ada/photos", "TRACKERS=trackio"),
        (sweeps_tracker, "WANDB_SWEEP_ID=1 TRACKERS=none", "WANDB_SWEEP_ID=1 TRACKERS=wandb", "TRACKERS=none"),
    ]
]


FILE = "RUN/model/model.safetensors"
FEATURES = f"--recipe probe {SMALL} --model.name test_resnet --model.init_from RUN --data.image_size 32"


def pickled(home: Path, trained: Path) -> None:
    """The weights of a run as torch saves them."""
    torch.save(load_file(trained / "model" / "model.safetensors"), home / "a.pth")


def resaved(home: Path, trained: Path) -> None:
    """These weights in the form that the sentence advises."""
    save_file(torch.load(home / "a.pth", weights_only=True), home / "a.safetensors")


def export_at(size: int) -> Prepare:
    """The exported model of a transformer that takes images of this size only, in `place`."""

    def prepare(home: Path, trained: Path) -> None:
        recipe = read_recipe("debug", {"model.name": "test_vit", "data.image_size": str(size)})
        model = create_model(recipe, 10, pretrained=False)
        export_model(model, home / "place", recipe, tuple("abcdefghij"), model.state_dict(), {}, {})

    return prepare


def deep_export(home: Path, trained: Path) -> None:
    """An exported model with a dense layer before its classifier, in `place`."""
    recipe = read_recipe("debug", {"model.name": "test_resnet", "model.head.hidden_dims": "8"})
    model = create_model(recipe, 10, pretrained=False)
    export_model(model, home / "place", recipe, tuple("abcdefghij"), model.state_dict(), {}, {})


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
    advice("model without W&B", f"{TRAIN} --track.log_model True",
        f"{TRAIN} --track.log_model True --track.trackers wandb --dry-run",
        f"{TRAIN} --track.log_model False --dry-run"),
    advice("project", f"{TRAIN} --track.trackers wandb --track.project ada/photos",
        f"{TRAIN} --track.trackers wandb --track.project photos --dry-run"),
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
    advice("no phases", "--recipe a.yaml --model.name test_resnet",
        f"--recipe a.yaml --model.name test_resnet {SMALL} --phases.0.epochs 20 --phases.0.lr 0.001 --dry-run",
        f"{FEATURES.replace('probe', 'a.yaml')} --model.head.init probe --dry-run",
        prepare=both(prepared.run(), prepared.file("a.yaml", "phases: []"))),
    advice("probe of nothing", f"--recipe probe {SMALL}", f"{TRAIN} --dry-run"),
    advice("probe extended", f"{FEATURES} --extend-epochs 1", f"{TRAIN} --extend-epochs 1 --dry-run",
        prepare=prepared.run()),
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
    *(
        advice(f"model.name of {name}", f"{TRAIN} --model.name local-dir:place",
            f"{TRAIN} --model.name local-dir:RUN/model --dry-run", f"{TRAIN} --model.name test_resnet --dry-run",
            prepare=both(prepared.run(), prepared.file("place/config.json", config)))
        for name, config in {
            "nothing": "{}",
            "another timm": '{"architecture": "resnet51"}',
            "options": '{"architecture": "test_vit", "model_args": {"class_token": false, "num_classes": 3}}',
        }.items()
    ),
    advice("model.name of a deep head", f"{TRAIN} --model.name local-dir:place",
        f"{TRAIN} --model.name test_resnet --model.head.hidden_dims 8 --model.init_from place --dry-run",
        prepare=deep_export),
    advice("init_from another size", f"{TRAIN} --model.name local-dir:place --model.pretrained True",
        numbered(r"set data\.image_size to (\d+)$",
            f"{TRAIN} --model.name local-dir:place --model.pretrained True --data.image_size {{}} --dry-run"),
        prepare=export_at(64)),
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
            prepare=both(prepared.run(), prepared.file(f"notes/model/{name}")),
        )
        for name in ("README.md", "model.safetensors")
    ),
]
# fmt: on


def other_format(folder: Path) -> None:
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "format": 0}))


def longer(home: Path, trained: Path) -> None:
    """RUN as --extend-epochs has left it."""
    prepared.run(prepared.unfinished)(home, trained)
    write_recipe(extended(read_recipe(str(home / "RUN/recipe.yaml")), 1), home / "RUN/recipe.yaml")


OLD_FILE = "starts" + ".json"  # of an earlier version
RUN = f"{TRAIN} --micro_batch 8 --run RUN"
OWN_RECIPE = "--recipe RUN/recipe.yaml --run RUN"
REFIT, VAL = "--refit RUN --dry-run", "val/accuracy"
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


def result_restored(home: Path, trained: Path) -> None:
    shutil.copy(trained / "result.json", home / "RUN")


def recipe_changed(run: str, **fields: str) -> Prepare:
    def change(home: Path, trained: Path) -> None:
        write_recipe(read_recipe(str(home / run / "recipe.yaml"), fields), home / run / "recipe.yaml")

    return change


def out_of_patience(home: Path, trained: Path) -> None:
    """RUN as early stopping has ended it."""
    recipe_changed("RUN", **{"early_stopping.patience": "1"})(home, trained)
    state = f"{max((home / 'RUN/checkpoints').iterdir()).relative_to(home)}/state.json"
    edited(state, lambda values: values["stopping"].update(waited=1))(home, trained)


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
    advice("run out of patience", f"{RUN} --early_stopping.patience 1 --extend-epochs 1",
        f"{TRAIN} --model.init_from RUN --dry-run", prepare=both(prepared.run(), out_of_patience)),
    advice("own recipe of an unfinished run", f"{OWN_RECIPE} --extend-epochs 1", OWN_RECIPE,
        prepare=prepared.run(prepared.unfinished)),
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
    advice("compare what holds no run", parsed("compare", "RUN notes"), (second_run, parsed("compare", "RUN B")),
        prepare=both(prepared.file("notes/a"), prepared.run())),
    advice("tables among files", parsed("compare", "RUN B --files notes"),
        parsed("compare", "RUN B --files paper"), (removed("notes/a"), parsed("compare", "RUN B --files notes")),
        prepare=both(prepared.file("notes/a"), both(prepared.run(), second_run))),
    advice("compare into notes", parsed("compare", "RUN B --out notes"),
        parsed("compare", "RUN B --out other.html"),
        prepare=both(prepared.file("notes"), both(prepared.run(), second_run))),
    advice("dashboard of nothing", parsed("dashboard", ""), parsed("dashboard", "--local RUN"), prepare=prepared.run()),
    advice("dashboard of nowhere", parsed("dashboard", "--local nowhere"),
        parsed("dashboard", "--local RUN"), parsed("dashboard", "--local ."), prepare=prepared.run()),
    advice("dashboard without a run", "dashboard --local empty --out page.html",
        "dashboard --local RUN --out page.html", prepare=both(prepared.run(), prepared.file("empty/notes"))),
    advice("dashboard twice over", parsed("dashboard", "--local RUN --out page.html --port 8000"),
        parsed("dashboard", "--local RUN --out page.html"), parsed("dashboard", "--local RUN --port 8000"),
        prepare=prepared.run()),
    advice("dashboard into notes", parsed("dashboard", "--local RUN --out notes"),
        parsed("dashboard", "--local RUN --out other.html"), prepare=both(prepared.run(), prepared.file("notes"))),
    advice("dashboard of two kinds", parsed("dashboard", "e/p --out page.html"), with_account("e/p"),
        parsed("dashboard", "--local RUN --out page.html"), prepare=prepared.run()),
    advice("dashboard of a project without its entity", parsed("dashboard", "p"), with_account("e/p"),
        parsed("dashboard", "--local RUN"), prepare=prepared.run()),
    advice("dashboard without an account", environment(lambda: parsed("dashboard", "e/p")(Path()), "NETRC=none"),
        parsed("dashboard", "--local RUN"), with_account("e/p"), prepare=prepared.run()),
    advice("report without a project", parsed("dashboard", "--report RUN"), with_account("e/p --report RUN")),
    advice("runs of nowhere", parsed("runs", "nowhere"), parsed("runs", "RUN"), prepare=prepared.run()),
    advice("list in a pipe", parsed("runs", "--watch ."), parsed("runs", ".")),
    advice("two lists", parsed("runs", "--watch --json ."), parsed("runs", "--json ."),
        Remedy(parsed("runs", "--watch ."), then="--watch needs a terminal")),
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
REFITS = [
    advice("patience of a refit", f"{TRAIN} --refit_steps 4 --early_stopping.patience 2",
        f"{TRAIN} --refit_steps 4 --early_stopping.patience 0 --dry-run"),
    advice("selection in a refit", f"{TRAIN} --refit_steps 4 --evaluate.select_by loss",
        f"{TRAIN} --refit_steps 4 --evaluate.select_by accuracy --dry-run"),
    advice("refit of few images", f"{TRAIN} --refit_steps 4 --data.overfit_images 8",
        f"{TRAIN} --refit_steps 0 --data.overfit_images 8 --dry-run",
        f"{TRAIN} --refit_steps 4 --data.overfit_images 0 --dry-run"),
    advice("refit beyond the phases", f"{TRAIN} --refit_steps 900 --dry-run",
        numbered(r"lower it to (\d+)", f"{TRAIN} --refit_steps {{}} --dry-run")),
    advice("refit that goes on", f"{TRAIN} --refit_steps 4 --extend-epochs 1",
        f"{TRAIN} --refit_steps 4 --dry-run", f"{TRAIN} --extend-epochs 1 --dry-run"),
    advice("refit and a recipe", "--refit RUN --recipe debug", "--refit RUN --dry-run", prepare=prepared.run()),
    advice("refit and more epochs", "--refit RUN --extend-epochs 1", REFIT, prepare=prepared.run()),
    advice("refit and a rate", "--refit RUN --phases.0.lr 1", REFIT, prepare=prepared.run()),
    advice("refit in place", "--refit RUN --run RUN --restart", "--refit RUN --run R --dry-run",
        prepare=prepared.run()),
    advice("refit of no run", "--refit R", REFIT, prepare=prepared.run()),
    advice("refit of an unfinished run", REFIT, (result_restored, REFIT),
        prepare=both(prepared.run(), removed("RUN/result.json"))),
    advice("refit of a refit", "--refit B", REFIT,
        prepare=both(prepared.run(), both(second_run, recipe_changed("B", refit_steps="4")))),
    advice("refit of an overfitted run", "--refit B", REFIT,
        prepare=both(prepared.run(), both(second_run, recipe_changed("B", **{"data.overfit_images": "8"})))),
    advice("refit without validation", "--refit B", REFIT,
        prepare=both(prepared.run(), both(second_run, edited("B/result.json", lambda result: result.pop(VAL))))),
    advice("refit of a probe", "--refit B", REFIT,
        prepare=both(prepared.run(), both(second_run, edited("B/result.json", lambda result: result.update(step=0))))),
    advice("refit of other images", REFIT, (edited("RUN/environment.json", lambda facts: facts.pop("data")), REFIT),
        f"{RUN} --restart",
        prepare=both(prepared.run(), edited("RUN/environment.json", lambda facts: facts.update(data="0")))),
    advice("search of a refit", space("phases.0.lr", "1..2", refit_steps="4"),
        space("phases.0.lr", "1..2", refit_steps="0")),
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

ADVISED = [*VARIABLES, *RECIPE, *MODEL, *SOURCES, *PICKLES, *ARCHIVES, *RUNS, *REFITS, *RULES, *EVALUATIONS, *SCALING]
