"""The list of mistakes: each is one sentence that names field, value and fix, in time, and leaves nothing behind."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import prepared
import pytest
import torch
from making import ROOT, Case, Outcome, check, make

# Images of the hub's, which must not be asked for; and the embedded ones, where images are needed.
HUB = "--recipe scratch --model.name test_resnet --model.stem imagenet --batch_size 192 --track.trackers none"
EMBEDDED = "--recipe debug --batch_size 48 --micro_batch 8 --model.name test_resnet --data.image_size 32"
EMBEDDED += " --data.limit 100 --track.trackers none"
FOLDER = f"{EMBEDDED} --data.limit 0 --data.validation_fraction 0.2"

CASES = [
    # What the words alone tell
    Case("recipe", "--recipe finetun", ("'finetun'", "did you mean finetune", "(shipped: debug"), "import"),
    Case("field", "--optimizer.nam sgd", ("--optimizer.nam", "did you mean optimizer.name"), "import"),
    Case("schedule", "--phases.0.schedule cosin", ("phases.0.schedule", "'cosin'", "'cosine', 'linear'"), "import"),
    Case("source", "--data.source cifar10", ("data.source 'cifar10'", "uoft-cs/cifar10", "synthetic"), "import"),
    Case(
        "archive that is not here",
        "--data.source cifar-10.zip",
        ("'cifar-10.zip' is not a file here", "path"),
        "import",
    ),
    Case("range", "--phases.0.lr -1", ("phases.0.lr", "'-1'", "greater than 0"), "import"),
    Case("type", "--batch_size many", ("batch_size", "'many'", "integer"), "import"),
    Case("batch", f"{HUB} --batch_size 33", ("batch_size 33", "model.ghost_batch_size 32", "use 32 or 64"), "import"),
    Case(
        "field given twice",
        "--recipe my.yaml",
        ("my.yaml, line 2", "seed is given twice", "keep one"),
        "import",
        prepared.file("my.yaml", "seed: 1\nseed: 2\n"),
    ),
    Case("no yaml", "--recipe my.yaml", ("my.yaml is not YAML",), "import", prepared.file("my.yaml", "data: [")),
    Case("no run to score", "nowhere", ("nowhere is not a run", "recipe.yaml"), "import", script="eval.py"),
    Case(
        "check of a model alone",
        "RUN/model --verify-export",
        ("--verify-export", "RUN/model is not a run directory"),
        "import",
        prepared.run(),
        script="eval.py",
    ),
    Case(
        "check of an unfinished run",
        "RUN --verify-export 16",
        ("--verify-export: RUN has no result.json", "let train.py finish"),
        "import",
        prepared.run(prepared.unfinished),
        script="eval.py",
    ),
    Case(
        "nothing to explore",
        "-m resnet_cifar explore",
        ("SOURCE is missing", "resnet-cifar explore SOURCE"),
        "import",
        script="",
    ),
    Case(
        "no source to explore",
        "-m resnet_cifar explore cifar",
        ("data.source 'cifar'", "hub id", "synthetic"),
        "import",
        script="",
    ),
    Case(
        "another page to explore into",
        "-m resnet_cifar explore synthetic --out notes.html",
        ("--out notes.html", "not a page of this command", "name another file"),
        "import",
        prepared.file("notes.html", "<p>my notes"),
        script="",
    ),
    # What timm, torch and the machine tell
    Case("model", f"{HUB} --model.name resnet5o", ("model.name 'resnet5o'", "did you mean resnet50"), "download"),
    Case("tag", "--model.name resnet50.a1_in2k", ("'resnet50.a1_in2k'", "did you mean resnet50.a1_"), "download"),
    Case("no weights", "--model.name seresnet18", ("'seresnet18'", "--model.pretrained False"), "download"),
    Case(
        "optimizer", f"{HUB} --optimizer.name sgdd", ("optimizer.name 'sgdd'", "timm", "did you mean sgd"), "download"
    ),
    Case("micro-batch", f"{HUB} --micro_batch 24", ("micro_batch 24", "in groups of 32", "use 32 or 64"), "download"),
    Case(
        "stem",
        f"{HUB} --model.name test_vit --model.stem cifar",
        ("model.stem cifar", "model.name 'test_vit'", "use imagenet"),
        "download",
    ),
    Case(
        "image size",
        f"{HUB} --model.name test_vit --data.image_size 200",
        ("data.image_size 200", "model.name 'test_vit'", "use another"),
        "download",
    ),
    Case("fp16 on a CPU", f"{HUB} --precision fp16", ("precision fp16", "needs a GPU", "use no or bf16"), "download"),
    Case(
        "no checkpoint",
        f"{HUB} --model.init_from notes",
        ("model.init_from 'notes'", "model/model.safetensors", "name a finished run"),
        "download",
        prepared.file("notes/model/README.md", "no model"),
    ),
    Case(
        "garbage for a checkpoint",
        f"{HUB} --model.init_from RUN",
        ("model.init_from 'RUN'", "cannot be read", "name a finished run"),
        "download",
        prepared.run(prepared.garbled("model/model.safetensors")),
    ),
    Case(
        "another model's checkpoint",
        f"{HUB} --model.name resnet18 --model.init_from RUN",
        ("model.init_from 'RUN'", "does not fit model.name", "here, and", "set model.name to test_resnet"),
        "download",
        prepared.run(),
    ),
    Case(
        "another recipe's run",
        f"{HUB} --run RUN --seed 3",
        ("--run RUN", "seed: 3, not 0", "name another folder", "--restart"),
        "download",
        prepared.started("scratch"),
    ),
    Case(
        "run in a file",
        f"{HUB} --run notes/run",
        ("--run notes/run", "notes is a file", "name a folder"),
        "download",
        prepared.file("notes", "a list"),
    ),
    Case(
        "run among other files",
        f"{HUB} --run notes",
        ("--run notes", "no run", "name a new or empty folder"),
        "download",
        prepared.file("notes/list.txt", "a list"),
    ),
    Case(
        "garbage for a result",
        f"{EMBEDDED} --run RUN",
        ("RUN/result.json is damaged", "remove it"),
        "download",
        prepared.run(prepared.garbled("result.json")),
    ),
    Case("cache in a file", HUB, ("cache", "File exists", "RESNET_CIFAR_CACHE"), "download", prepared.file("cache")),
    Case(
        "nothing to score",
        "RUN",
        ("RUN has no checkpoint",),
        "download",
        prepared.run(prepared.without_checkpoints),
        script="eval.py",
    ),
    Case(
        "garbage to score",
        "RUN",
        ("RUN/checkpoints/step-", "is damaged", "move it away"),
        "download",
        prepared.run(prepared.garbled("checkpoints/*/state.json")),
        script="eval.py",
    ),
    # What the images tell
    Case(
        "class not validated",
        f"{EMBEDDED} --data.limit 20",
        ("data.validation_fraction 0.1", "20 images", "8 of 10 classes", "raise it"),
        "training",
    ),
    Case(
        "crop",
        f"{EMBEDDED} --augment.crop_padding 32",
        ("augment.crop_padding 32", "images of 32 pixels", "lower it"),
        "training",
    ),
    Case("empty set", f"{FOLDER} --data.source none", ("data.source", "none'"), "training", prepared.images("none")),
    Case(
        "one class",
        f"{FOLDER} --data.source one",
        ("data.source", "one'", "one class"),
        "training",
        prepared.images("one", [0] * 40, classes=1),
    ),
    Case(
        "no label column",
        f"{FOLDER} --data.source bare",
        ("data.source", "bare'", "has the columns ['image', 'weight']", "label column"),
        "training",
        prepared.images("bare", [0, 1] * 20, labelled=False),
    ),
    Case(
        "broken images to explore",
        "-m resnet_cifar explore torn",
        ("torn", "train", "3, 7", "fix or remove them", "--data.skip_broken True"),
        "training",
        prepared.images("torn", [0, 1] * 20, broken=(3, 7)),
        script="",
    ),
    Case(
        "broken images",
        f"{FOLDER} --data.source torn",
        ("torn", "train", "3, 7", "fix or remove them"),
        "training",
        prepared.images("torn", [0, 1] * 20, broken=(3, 7)),
    ),
    Case(
        "archive that reaches out",
        f"{FOLDER} --data.source a.zip",
        ("data.source", "a.zip'", "'../train/1.png'", "do not trust it"),
        "training",
        prepared.archive("a.zip", {"trainLabels.csv": "id,label\n1,cat\n", "../train/1.png": b"x"}),
    ),
    Case(
        "labels without images",
        f"{FOLDER} --data.source a.zip",
        ("data.source", "a.zip'", "2 of the ids in trainLabels.csv", "(2-3)", "--data.skip_broken True"),
        "training",
        prepared.archive("a.zip", {"trainLabels.csv": "id,label\n1,cat\n2,dog\n3,cat\n", "train/1.png": b"x"}),
    ),
    Case(
        "pickle that calls",
        f"{FOLDER} --data.source batches",
        ("data.source", "batches'", "asks for os.mkdir", "download it again"),
        "training",
        prepared.hostile_batches("batches"),
    ),
    Case(
        "classes that the head lacks",
        "RUN --data.source pets --data.limit 0",
        ("data.source", "pets'", "class 0, class 1", "disc, ring"),
        "training",
        prepared.both(prepared.run(), prepared.images("pets", [0, 1] * 20)),
        script="eval.py",
    ),
    Case(
        "garbage for a model to check",
        "RUN --verify-export 16",
        ("timm cannot load RUN/model", "restore it"),
        "training",
        prepared.run(prepared.garbled("model/model.safetensors")),
        script="eval.py",
    ),
    Case(
        "every checkpoint is damaged",
        f"{EMBEDDED} --run RUN",
        ("every checkpoint in RUN/checkpoints is damaged", "restore one", "--restart"),
        "training",
        prepared.run(prepared.unfinished, prepared.garbled("checkpoints/*/state.json")),
        leaves="RUN(/checkpoints|/status.json|/lease.json|/recipe.yaml|/environment.json|/code.diff|/result-step.*)?"
        r"|RUN/attempts.json|RUN/checkpoints/step-\d+(\.damaged)?(/.*)?",
    ),
]
LAUNCHED = [
    Case("optimizer", f"{HUB} --optimizer.name sgdd", ("optimizer.name 'sgdd'", "did you mean sgd"), "download"),
    Case("share", f"{HUB} --batch_size 96", ("batch_size 96", "over 2 processes", "use 64 or 128"), "download"),
    Case(
        "ghost batch",
        f"{HUB} --batch_size 32",
        ("model.ghost_batch_size 32", "16 rows", "--model.ghost_batch_size 16"),
        "download",
    ),
    Case(
        "another recipe's run",
        f"{HUB} --run RUN --seed 3",
        ("--run RUN", "seed: 3, not 0", "name another folder"),
        "download",
        prepared.started("scratch"),
        processes=3,
    ),
    Case("empty set", f"{FOLDER} --data.source none", ("data.source", "none'"), "training", prepared.images("none")),
]
GPU = Case(
    "GPUs that are not there",
    HUB,
    ("configured for GPUs", "this machine has none", "cpu_ddp.yaml", "nvidia-smi"),
    "download",
    config="multi_gpu",
    processes=2,
)
# Left to `make proof`: what the same lines of code tell as in another case, or what tests/distributed has told already.
LONG = ("tag", "no weights", "micro-batch", "no checkpoint", "another model's checkpoint", "run in a file")
LONG += (
    "run among other files",
    "garbage for a result",
    "nothing to score",
    "every checkpoint is damaged",
    "empty set",
)
LONG += ("archive that reaches out", "labels without images")
LONG += ("garbage for a model to check",)
LONG += ("share", "ghost batch", "GPUs that are not there", "crop")
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
HEAVY = [case for case in CASES if case.before != "import" and case.script == "train.py"]


def parameter(case: Case, long: bool) -> Any:
    """The case, with what pytest should know of it."""
    name = f"{case.name}, {case.processes} processes" if case.config else case.name
    marks = [NO_GPU] if case is GPU else []
    return pytest.param(case, id=name, marks=[*marks, pytest.mark.proof_only] if long else marks)


def listed() -> list[Any]:
    """Every case, also behind the launcher."""
    launched = [replace(case, config="cpu_ddp", processes=max(2, case.processes)) for case in LAUNCHED] + [GPU]
    again = [replace(case, config="cpu_ddp", processes=2 + (n % 4 == 0)) for n, case in enumerate(HEAVY)]
    names = {case.name for case in launched}
    return [
        *(parameter(case, long=case.name in LONG) for case in CASES + launched),
        *(parameter(case, long=True) for case in again if case.name not in names),
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    cwd = tmp_path_factory.mktemp("trained")
    words = [*EMBEDDED.split(), "--run", "RUN"]
    subprocess.run([sys.executable, ROOT / "train.py", *words], cwd=cwd, check=True, capture_output=True, timeout=300)
    return cwd / "RUN"


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, hub_root: Path, trained: Path
) -> Iterator[dict[Case, Future[Outcome]]]:
    """What comes of every case that is collected, two at a time: most of a case's time is the import of torch."""
    ours = (getattr(item, "callspec", None) for item in request.session.items if item.module is request.module)
    cases = [call.params["case"] for call in ours if call and "case" in call.params]
    homes = {case: tmp_path_factory.mktemp("home") for case in cases}
    for case, home in homes.items():
        case.prepare(home, trained)
    pool = ThreadPoolExecutor(2)
    yield {case: pool.submit(make, case, home, hub_root) for case, home in homes.items()}
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("case", listed())
def test_a_mistake_is_one_sentence_and_leaves_nothing(case: Case, outcomes: dict[Case, Future[Outcome]]) -> None:
    check(case, outcomes[case].result())


# What lies in the machine, and not in words and files


def test_a_run_folder_on_a_disk_that_is_read_only(mounted: Callable[[str], Path], tmp_path: Path, hub_root: Path):
    disk = mounted("ro")
    case = Case(
        "read only", f"{HUB} --run {disk}/run", (f"--run {disk}/run", "read-only", "name another folder"), "download"
    )
    (tmp_path / "home").mkdir()
    check(case, make(case, tmp_path / "home", hub_root))


@pytest.mark.parametrize(
    ("options", "reason"),
    [pytest.param("ro", "Read-only", marks=pytest.mark.proof_only), pytest.param("size=64k", " space ")],
)
def test_a_cache_that_cannot_be_written(
    mounted: Callable[[str], Path], tmp_path: Path, hub_root: Path, options: str, reason: str
):
    disk = mounted(options)
    case = Case("cache", EMBEDDED, (f"the cache {disk}", reason, "RESNET_CIFAR_CACHE"), "training")
    (tmp_path / "home").mkdir()
    check(case, make(case, tmp_path / "home", hub_root, {"RESNET_CIFAR_CACHE": str(disk)}))
    assert list(disk.iterdir()) == []


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that another program listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_port_in_use_where_no_launcher_looks(tmp_path: Path, hub_root: Path, taken: int):
    case = Case("port", HUB, ("cannot connect at 127.0.0.1", str(taken), "in use", "set MASTER_PORT"), "download")
    place = {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2}
    env = {**{name: str(value) for name, value in place.items()}, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken)}
    (tmp_path / "home").mkdir()
    outcome = make(case, tmp_path / "home", hub_root, env)
    outcome.stderr = re.sub(r"^\[W.*$\n", "", outcome.stderr, flags=re.MULTILINE)  # torch's own warnings
    check(case, outcome)


def test_a_port_in_use_is_told_by_the_launcher_of_several_machines(tmp_path: Path, taken: int):
    """accelerate looks before it starts anything: its own sentence ends its own traceback."""
    config = ROOT / "accelerate_configs" / "multi_node.yaml"
    words = ["--config_file", config, "--main_process_ip", "127.0.0.1", "--main_process_port", taken, ROOT / "train.py"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *map(str, words)]
    done = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert f"ConnectionError: Tried to launch distributed communication on port `{taken}`" in done.stderr
    assert "resnet_cifar/" not in done.stderr
    assert list(tmp_path.iterdir()) == []
