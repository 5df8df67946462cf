"""What a run fetches from the hub, what it keeps, and what it says when the hub does not answer."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import HubServer
from safetensors.torch import load_file

from resnet_cifar.config.loading import read_recipe

TRAIN = Path(__file__).parents[2] / "train.py"
PROOF = pytest.mark.proof_only  # of mistakes that other cases show, too
# A run of four steps whose rate is so small that the weights stay what they were.
SMALL = shlex.split(
    "--model.name test_resnet.r160_in1k --data.image_size 32 --batch_size 32 --track.trackers none --track.report "
    "False --phases.0.epochs 1 --phases.0.warmup_epochs 0 --phases.0.lr 1e-9"
)
CLOSED = "http://127.0.0.1:9"  # the discard port: nobody listens


def train(home: Path, endpoint: str, *arguments: str) -> subprocess.CompletedProcess:
    """Runs train.py in `home`, which also holds its caches."""
    home.mkdir(exist_ok=True)
    env = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home / "hf"), "RESNET_CIFAR_CACHE": str(home / "cache")}
    command = [sys.executable, TRAIN, *SMALL, *arguments]
    output = {"capture_output": True, "text": True}
    return subprocess.run(command, cwd=home, env={**os.environ, **env}, check=False, timeout=300, **output)


def sentence(finished: subprocess.CompletedProcess) -> str:
    """The one line that a run which could not start wrote."""
    assert finished.returncode == 2, finished.stdout + finished.stderr
    assert finished.stderr.startswith("error: ")
    assert finished.stderr.count("\n") == 1
    return finished.stderr


def succeeded(finished: subprocess.CompletedProcess) -> None:
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, hub_root: Path) -> Path:
    """A home whose caches a first run has filled; runs of other tests work in copies of it."""
    home = tmp_path_factory.mktemp("filled") / "home"
    with HubServer(hub_root) as hub:
        succeeded(train(home, hub.url, "--run", "first"))
        assert len(hub.requests_for("GET .*parquet")) == 2
    return home


@pytest.fixture
def copied(filled: Path, tmp_path: Path) -> Path:
    return shutil.copytree(filled, tmp_path / "home", symlinks=True)


def test_default_source_and_weights_come_from_the_hub(filled: Path, hub_root: Path):
    run = filled / "first"
    assert 0 <= json.loads((run / "result.json").read_text())["test/accuracy"] <= 1
    assert json.loads((run / "environment.json").read_text())["data_commit"] == "1" * 40
    classes = list(json.loads((run / "eval-test.json").read_text())["class_accuracy"])
    assert (len(classes), classes[0], classes[-1]) == (10, "airplane", "truck")
    ours = load_file(run / "model" / "model.safetensors")
    theirs = load_file(hub_root / "models/timm/test_resnet.r160_in1k/model.safetensors")
    for name in ("conv1.0.weight", "layer4.0.conv2.weight"):
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-6)


def test_a_run_starts_from_a_model_of_the_hub(hub: HubServer, hub_root: Path, copied: Path):
    """Not timm's name of it, and with another head than ten classes need."""
    start = "hf-hub:timm/test_resnet.r160_in1k"
    done = train(copied, hub.url, "--model.init_from", start, "--run", "own")
    succeeded(done)
    assert f"model.init_from {start}: its head has another shape and is reinitialized" in " ".join(done.stdout.split())
    ours = load_file(copied / "own" / "model" / "model.safetensors")
    theirs = load_file(hub_root / "models/timm/test_resnet.r160_in1k/model.safetensors")
    torch.testing.assert_close(ours["conv1.0.weight"], theirs["conv1.0.weight"], rtol=0, atol=1e-6)


def test_a_model_of_the_hub_is_named_as_in_timm(hub: HubServer, hub_root: Path, copied: Path):
    """And again without the hub, from the cache: the same command finds its run."""
    place = "hf-hub:owner/own"
    words = ("--model.name", place, "--run", "own")
    succeeded(train(copied, hub.url, *words))
    assert len(hub.requests_for("GET .*owner/own.*config.json")) == 1
    recipe = read_recipe(str(copied / "own" / "recipe.yaml"))
    assert (recipe.model.name, recipe.model.init_from) == ("test_resnet", place)
    assert recipe.data.normalize == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    ours = load_file(copied / "own" / "model" / "model.safetensors")
    theirs = load_file(hub_root / "models/owner/own/model.safetensors")
    torch.testing.assert_close(ours["conv1.0.weight"], theirs["conv1.0.weight"], rtol=0, atol=1e-6)
    config = json.loads((copied / "own" / "model" / "config.json").read_text())["pretrained_cfg"]
    assert (*config["mean"], *config["std"]) == recipe.data.normalize
    again = train(copied, CLOSED, *words)
    succeeded(again)
    assert "finished" in again.stdout


@pytest.mark.parametrize(
    ("field", "start", "reason"),
    [
        ("model.init_from", "hf-hub:nobody/nothing", "has nothing of that name that you can read: check the name"),
        pytest.param("model.init_from", "hf-hub:a b", "is no repository of the Hub: name hf-hub:OWNER", marks=PROOF),
        pytest.param("model.name", "hf-hub:nobody/nothing", "has nothing of that name that you can read", marks=PROOF),
    ],
)
def test_a_start_that_the_hub_does_not_have_is_one_sentence(
    hub: HubServer, copied: Path, field: str, start: str, reason: str
):
    said = sentence(train(copied, hub.url, f"--{field}", start, "--run", "never"))
    assert said.startswith(f"error: {field} {start!r}")
    assert reason in said
    assert not (copied / "never").exists()


def test_runs_from_the_caches_when_the_hub_is_gone(copied: Path):
    succeeded(train(copied, CLOSED, "--run", "again", "--seed", "1"))
    assert (copied / "again" / "result.json").is_file()


@pytest.mark.parametrize("revision", ["2" * 40, pytest.param("v9", marks=PROOF)])
def test_another_commit_than_the_pinned_one_is_never_taken_from_the_cache(copied: Path, revision: str):
    """`datasets` itself falls back on whatever it has."""
    said = sentence(train(copied, CLOSED, "--dry-run", "--data.revision", revision))
    assert "is not on this machine yet and cannot be downloaded" in said
    assert len(list(copied.glob("cache/*/test-labels.npy"))) == 1


def test_fetch_brings_images_and_weights_and_trains_nothing(hub: HubServer, tmp_path: Path):
    fetched = train(tmp_path, hub.url, "--download-only", "--run", "never")
    succeeded(fetched)
    assert len(hub.requests_for("GET .*parquet")) == 2
    assert len(hub.requests_for("GET .*/model.safetensors")) == 1
    assert len(list(tmp_path.glob("cache/*/train-images.npy"))) == 1
    assert f"images are in {tmp_path}/cache/" in fetched.stdout
    assert not (tmp_path / "never").exists()


def test_without_hub_and_caches_the_error_suggests_other_sources(hub: HubServer, tmp_path: Path):
    hub.gone = True
    said = sentence(train(tmp_path / "home", hub.url, "--run", "never"))
    assert "--data.source FOLDER" in said
    assert "--data.source synthetic" in said
    assert hub.connections <= 3
    assert not (tmp_path / "home" / "never").exists()


def test_a_variable_that_forbids_downloads_is_named(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "yes")
    said = sentence(train(tmp_path, hub.url, "--dry-run"))
    assert "because HF_DATASETS_OFFLINE=yes forbids downloads: unset HF_DATASETS_OFFLINE" in said


def test_without_weights_the_error_suggests_random_ones(copied: Path):
    shutil.rmtree(copied / "hf")
    assert "--model.pretrained False" in sentence(train(copied, CLOSED, "--run", "again", "--seed", "1"))


def test_fine_labels_of_cifar100(hub: HubServer, tmp_path: Path):
    fine = ("--data.source", "uoft-cs/cifar100", "--data.validation_fraction", "0")
    succeeded(train(tmp_path, hub.url, "--run", "fine", *fine))
    assert len(json.loads((tmp_path / "fine" / "eval-test.json").read_text())["class_accuracy"]) == 100
    assert json.loads((tmp_path / "fine" / "model" / "config.json").read_text())["num_classes"] == 100


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        pytest.param("/uoft-cs/cifar10", 404, "RepoNotFound", id="unknown", marks=PROOF),
        pytest.param("/uoft-cs/cifar10", 401, "RepoNotFound", id="unknown-or-private-to-a-stranger", marks=PROOF),
        pytest.param("/resolve/", 403, "GatedRepo", id="gated"),  # such a set's facts are open, its files are not
    ],
)
def test_an_inaccessible_data_set_is_one_sentence(hub: HubServer, tmp_path: Path, path: str, status: int, code: str):
    hub.refuse(path, status, code)
    said = sentence(train(tmp_path, hub.url, "--dry-run"))
    assert "uoft-cs/cifar10" in said
    assert "hf auth login" in said


def test_a_commit_is_decoded_once(hub: HubServer, copied: Path):
    succeeded(train(copied, hub.url, "--dry-run"))
    assert hub.requests_for("GET /api/datasets/uoft-cs/cifar10")
    assert not hub.requests_for("parquet")


def test_a_new_commit_is_decoded_again(hub: HubServer, copied: Path, tmp_path: Path):
    hub.commit, hub.root = "2" * 40, shutil.copytree(hub.root, tmp_path / "hub")
    files = hub.root / "datasets/uoft-cs/cifar10/plain_text"
    shutil.copy(files / "train-00000-of-00001.parquet", files / "test-00000-of-00001.parquet")
    succeeded(train(copied, hub.url, "--dry-run"))
    assert sorted(len(np.load(labels)) for labels in copied.glob("cache/*/test-labels.npy")) == [40, 160]


@pytest.mark.proof_only
def test_a_pinned_commit_is_neither_asked_for_nor_replaced(hub: HubServer, copied: Path, tmp_path: Path):
    hub.commit, hub.root = "2" * 40, shutil.copytree(hub.root, tmp_path / "hub")
    succeeded(train(copied, hub.url, "--dry-run", "--data.revision", "1" * 40))
    assert not hub.requests_for("datasets/uoft-cs/cifar10")
    assert len(list(copied.glob("cache/*/test-labels.npy"))) == 1  # the entry of the run that had asked for the newest
    hub.refuse("/api/datasets/.*/revision/v9", 404, "RevisionNotFound")
    said = sentence(train(copied, hub.url, "--dry-run", "--data.revision", "v9"))
    assert said.startswith("error: data.revision 'v9' is no commit, tag or branch of 'uoft-cs/cifar10': correct it")


@pytest.mark.proof_only
def test_a_push_in_between_does_not_change_what_a_commit_holds(hub: HubServer, tmp_path: Path):
    pushed = shutil.copytree(hub.root, tmp_path / "hub")
    files = pushed / "datasets/uoft-cs/cifar10/plain_text"
    shutil.copy(files / "train-00000-of-00001.parquet", files / "test-00000-of-00001.parquet")
    hub.pushes.append(("2" * 40, pushed))
    home = tmp_path / "home"
    succeeded(train(home, hub.url, "--dry-run"))
    assert (hub.commit, hub.pushes) == ("2" * 40, [])
    assert [file.read_text() for file in home.glob("cache/*.commit")] == ["1" * 40]
    assert [len(np.load(labels)) for labels in home.glob("cache/*/test-labels.npy")] == [40]
    succeeded(train(home, hub.url, "--dry-run"))
    assert sorted(len(np.load(labels)) for labels in home.glob("cache/*/test-labels.npy")) == [40, 160]


@pytest.mark.proof_only
def test_a_temporary_error_of_the_hub_is_survived(hub: HubServer, tmp_path: Path):
    hub.refuse("", 503, times=1)
    succeeded(train(tmp_path, hub.url, "--dry-run"))


@pytest.mark.parametrize(
    ("path", "status"),
    [
        pytest.param("/api/datasets/", 503, id="facts"),
        pytest.param("/api/", 0, id="facts-and-hangs-up", marks=PROOF),
        pytest.param("GET .*parquet", 503, id="files", marks=PROOF),
        pytest.param("HEAD .*parquet", 520, id="facts-of-files", marks=PROOF),  # unlike 503, not tried again for 24 s
    ],
)
def test_a_busy_hub_is_one_sentence(hub: HubServer, tmp_path: Path, path: str, status: int):
    hub.refuse(path, status)
    said = sentence(train(tmp_path, hub.url, "--dry-run"))
    assert "cannot be reached" in said
    assert "--data.source" in said


@pytest.mark.proof_only
def test_weights_of_a_hub_that_hangs_up_are_one_sentence(hub: HubServer, tmp_path: Path):
    hub.refuse("/timm/", 0)
    said = sentence(train(tmp_path, hub.url, "--data.source", "synthetic", "--data.limit", "200", "--run", "never"))
    assert "--model.pretrained False" in said


@pytest.mark.proof_only
def test_a_busy_hub_is_not_needed_for_cached_data(hub: HubServer, copied: Path):
    hub.refuse("/api/datasets/", 503)
    succeeded(train(copied, hub.url, "--dry-run"))


PREPARE = """
import json, sys
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.data.prepared_data import prepare
for words in json.loads(sys.argv[1]):
    try:
        recipe = read_recipe("debug", {"data.source": "owner/birds", **words})
        print((prepare(recipe.data) / "meta.json").read_text().replace(chr(10), " "))
    except UserError as mistake:
        print(json.dumps(str(mistake)))
"""


def test_configurations_splits_and_columns_of_other_names(hub: HubServer, tmp_path: Path):
    """One process for all of them: each sentence names the field that is missing next."""
    named: dict[str, str] = {}
    steps = [{"data.config_name": "coarse"}, {"data.splits.train": "summer"}, {"data.columns.image": "photo"}]
    steps += [{"data.columns.label": "species"}, {"data.splits.test": "winter"}, {"data.config_name": "fine"}]
    asked = [{}, {"data.config_name": "medium"}] + [dict(named := {**named, **step}) for step in steps]
    env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "RESNET_CIFAR_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", PREPARE, json.dumps(asked)]
    ran = subprocess.run(command, env={**os.environ, **env}, check=False, timeout=300, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    said = [json.loads(line) for line in ran.stdout.splitlines() if not line.startswith("decoding ")]
    configurations = "['coarse', 'fine']"
    assert (
        said[0]
        == f"data.source 'owner/birds' has the configurations {configurations}: choose one with --data.config_name"
    )
    assert said[1] == f"data.config_name 'medium' is no configuration of 'owner/birds': use one of {configurations}"
    assert "has the splits ['summer', 'winter']" in said[2]
    assert "2 image columns" in said[3]
    assert "--data.columns.label" in said[4]
    assert (said[5]["classes"], said[5]["images"]) == (["duck", "owl"], {"train": 12})
    assert (said[6]["classes"], said[6]["images"]) == (["duck", "owl"], {"train": 12, "test": 6})
    assert (said[7]["classes"], said[7]["images"]) == (["eider", "mallard", "tawny owl"], {"train": 12, "test": 6})
    assert len({facts["fingerprint"] for facts in said[5:]}) == 3
    assert {facts["source"] for facts in said[5:]} == {"owner/birds"}


def asked_for(hub: HubServer) -> Counter[str]:
    """How often each request came, without one of huggingface_hub's own, whose answer it would keep for a day."""
    return Counter(hub.requests_for("^(?!GET /api/agent-harnesses)"))


@pytest.mark.proof_only
def test_processes_that_start_at_one_moment_ask_the_hub_as_one_does(hub_root: Path, tmp_path: Path):
    """64 of them on one empty cache: they have the same images, and the hub the requests of one, HEAD included."""
    script, asked, found = Path(__file__).with_name("starting_at_once.py"), {}, {}
    for count in (1, 64):
        home = tmp_path / str(count)
        home.mkdir()
        with HubServer(hub_root) as hub:
            env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home / "hf"), "RESNET_CIFAR_CACHE": str(home / "cache")}
            command = [sys.executable, script, str(count), *SMALL, "--download-only"]
            output = {"capture_output": True, "text": True}
            done = subprocess.run(command, cwd=home, env={**os.environ, **env}, check=False, timeout=600, **output)
            said = [(home / f"{number}.out").read_text() for number in range(count)]
            assert done.returncode == 0, done.stderr + "".join(file.read_text() for file in home.glob("*.err"))
            asked[count] = asked_for(hub)
        (entry,) = home.glob("cache/*/meta.json")
        assert sum(f"images are in {entry.parent}\n" in text for text in said) == count
        assert sum("decoding" in text and "another process" not in text for text in said) == 1
        found[count] = json.loads(entry.read_text())["fingerprint"]
    assert asked[64] == asked[1] and len(asked[1]) > 5
    assert found[64] == found[1]


@pytest.mark.proof_only
def test_runs_that_start_at_one_moment_ask_the_hub_as_one_does(hub_root: Path, tmp_path: Path):
    """Eight trainings, each with a run directory of its own, on one empty cache."""
    asked = {}
    for count in (1, 8):
        home = tmp_path / str(count)
        with HubServer(hub_root) as hub, ThreadPoolExecutor(count) as pool:
            started = [pool.submit(train, home, hub.url, "--run", f"run{number}") for number in range(count)]
            for each in started:
                succeeded(each.result())
            asked[count] = asked_for(hub)
    assert asked[8] == asked[1]
    results = [json.loads((tmp_path / "8" / f"run{number}" / "result.json").read_text()) for number in range(8)]
    assert len({result["test/loss"] for result in results}) == 1
