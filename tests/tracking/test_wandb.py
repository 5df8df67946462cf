"""W&B gets every row of a run, with an account or without, and never keeps a run from training."""

from __future__ import annotations

import copy
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from wandb_server import StoredRun, WandbServer

from resnet_cifar import wandb_artifacts
from resnet_cifar.cli import evaluate, reproduce
from resnet_cifar.config.errors import UserError
from resnet_cifar.evaluation import model_location
from resnet_cifar.models.pretrained import find_init_weights
from resnet_cifar.reporting import optional_outputs

TRAIN = Path(__file__).parents[2] / "train.py"
NOBODY = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}  # the discard port
MODEL = ("--track.log_model", "True")
ALERTS = ("--track.notify", "wandb", "--track.notify_accuracy", "0.000001")
# Nine steps: checkpoints after 4, 8 and 9, scores after 4 and 9, a row after each.
RECIPE = """
batch_size: 32
data: {image_size: 32}
model: {name: test_resnet, pretrained: false}
phases: [{epochs: 2, lr: 0.01}]
checkpoint: {every_steps: 4, keep_last: 2}
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 + 40 noise images of ten classes, in the hub's layout."""
    from datasets import ClassLabel, Dataset, Features, Image

    folder = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0)
    features = Features({"img": Image(), "label": ClassLabel(num_classes=10)})
    for split, size in (("train", 160), ("test", 40)):
        pixels = list(noise.integers(0, 256, (size, 32, 32, 3), dtype=np.uint8))
        rows = {"img": pixels, "label": [row % 10 for row in range(size)]}
        Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}-00000.parquet")
    return folder


def python(home: Path, *arguments: object, env: dict[str, str]) -> subprocess.CompletedProcess:
    """Runs `python ARGUMENTS` in `home`, without a terminal or any other input."""
    command = [sys.executable, *map(str, arguments)]
    pipes = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    return subprocess.run(command, cwd=home, env={**os.environ, **env}, check=False, timeout=300, **pipes)


def train(
    home: Path, images: Path, *arguments: str, env: dict[str, str] | None = None, code: int = 0
) -> subprocess.CompletedProcess:
    """Runs train.py in `home`, as the run RUN."""
    (home / "small.yaml").write_text(RECIPE)
    command = [TRAIN, "--recipe", "small.yaml", "--data.source", images, "--run", "RUN", *arguments]
    finished = python(home, *command, env=env or {})
    assert finished.returncode == code, finished.stdout + finished.stderr
    assert "Traceback" not in finished.stderr
    return finished


def written(home: Path) -> list[dict[str, Any]]:
    """The rows of RUN/metrics.jsonl."""
    return [json.loads(line) for line in (home / "RUN" / "metrics.jsonl").read_text().splitlines()]


def own(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """History rows without W&B's own entries, and without the row that holds the figures."""
    plain = [{key: value for key, value in row.items() if not key.startswith("_")} for row in rows]
    return [row for row in plain if not any(key.startswith("figures/") for key in row)]


def kept(home: Path) -> Path:
    """The one W&B run in RUN/wandb that can be uploaded."""
    (folder,) = (home / "RUN" / "wandb").glob("offline-run-*")
    return folder


def inspect(home: Path, *options: str) -> str:
    """What W&B's own reader makes of the offline run."""
    (file,) = kept(home).glob("run-*.wandb")
    finished = python(home, "-m", "wandb", "leet", "inspect", *options, "--json", file, env={})
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def history(home: Path) -> list[dict[str, Any]]:
    """The offline run's rows."""
    records = [json.loads(line) for line in inspect(home).splitlines()]
    return own([record["history"]["item"] for record in records if record["type"] == "history"])


def uploaded(home: Path, command: str) -> WandbServer:
    """The service after a command that was printed to upload the run: `cd RUN && wandb sync PATTERN`."""
    cd, folder, then, *sync, pattern = shlex.split(command)
    assert (cd, then, sync) == ("cd", "&&", ["wandb", "sync"])
    pieces = sorted((home / folder).glob(pattern))  # as a shell would
    with WandbServer() as server:
        words = [str(path.relative_to(home / folder)) for path in pieces]
        finished = python(home / folder, "-m", *sync, *words, env=server.account())
        assert finished.returncode == 0, finished.stderr
        return server


def upload_command(printed: str) -> str:
    """The line `upload` of the closing table."""
    (command,) = (line.split(maxsplit=1)[1] for line in printed.splitlines() if line.startswith("upload "))
    return command


def only_run(server: WandbServer) -> StoredRun:
    (run,) = server.runs.values()
    return run


def check_settings(home: Path, settings: dict[str, Any]) -> None:
    """W&B's config is the resolved recipe, with phases by number, and the environment without the class counts."""
    recipe = yaml.safe_load((home / "RUN" / "recipe.yaml").read_text())
    recipe["phases"] = {str(number): phase for number, phase in enumerate(recipe["phases"])}
    environment = json.loads((home / "RUN" / "environment.json").read_text())
    assert environment.pop("class_counts")
    assert settings == {**recipe, "environment": environment}


def check_summary(home: Path, summary: dict[str, Any]) -> None:
    """W&B's summary holds the final scores."""
    result = json.loads((home / "RUN" / "result.json").read_text())
    for name in ("test/accuracy", "test/loss", "val/accuracy"):
        assert summary[name] == result[name]


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory, images: Path) -> tuple[Path, str]:
    """Where a user without an account has trained, and what was printed."""
    home = tmp_path_factory.mktemp("offline")
    return home, train(home, images, *MODEL).stdout


def test_offline_run_holds_every_row(offline: tuple[Path, str]):
    home, _ = offline
    rows = written(home)
    names = {"step", "epoch", "images", "lr", "train/loss", "train/accuracy", "images_per_second"}
    assert all(names <= row.keys() for row in rows)
    assert sum("val/accuracy" in row for row in rows) == 2
    assert history(home) == rows


def test_offline_run_holds_recipe_and_scores(offline: tuple[Path, str]):
    home, _ = offline
    seen = json.loads(inspect(home, "--summary"))
    assert (seen["state"], seen["exit_code"]) == ("finished", 0)
    check_settings(home, seen["config"])
    check_summary(home, seen["summary"])


def check_media(home: Path, server: WandbServer) -> None:
    """The service has the bytes of the figures, and the files of the result in an artifact that is whole."""
    run, folder = only_run(server), home / "RUN"
    (row,) = (row for row in run.history if "figures/confusion" in row)
    for name in ("confusion", "mistakes"):
        assert run.files[row[f"figures/{name}"]["path"]] == (folder / "report" / "figures" / f"{name}.png").read_bytes()
    assert run.files[row["report"]["path"]] == (folder / "report" / "index.html").read_bytes()
    artifact = server.latest("result")
    recorded = ("recipe.yaml", "environment.json", "metrics.jsonl", "result.json")
    for name in ("eval-test.json", "predictions-test.parquet", "config.json", *recorded):
        (file,) = (folder / "model" / name, folder / name)[name != "config.json" :][:1]
        assert artifact.files[name] == file.read_bytes()


def check_model(home: Path, server: WandbServer) -> None:
    """The service has the exported model, its recipe and what it was trained on."""
    model, folder = server.latest("model"), home / "RUN"
    result = json.loads((folder / "result.json").read_text())
    assert set(model.files) == {"config.json", "model.safetensors", "README.md", "recipe.yaml"}
    assert all(model.files[file.name] == file.read_bytes() for file in (folder / "model").iterdir())
    assert model.files["recipe.yaml"] == (folder / "recipe.yaml").read_bytes()
    assert model.aliases == {"latest", "best", f"step-{result['step']}"}
    for name in ("test/accuracy", "val/accuracy", "step"):
        assert model.metadata[name] == result[name]
    assert model.metadata["data_fingerprint"] == json.loads(model.files["config.json"])["fingerprint"]


def test_moved_run_uploads_whole(offline: tuple[Path, str], tmp_path: Path):
    """The folder alone, somewhere else, and nothing of the home that it was trained in."""
    home, printed = offline
    elsewhere = tmp_path / "moved" / "RUN"
    shutil.copytree(home / "RUN", elsewhere, symlinks=True)
    hidden = (home / "RUN").rename(home / "not there")
    try:
        server = uploaded(elsewhere.parent, upload_command(printed))
    finally:
        hidden.rename(home / "RUN")
    run = only_run(server)
    assert own(run.history) == written(elsewhere.parent)
    assert run.state == "finished"
    check_settings(elsewhere.parent, run.settings())
    check_summary(elsewhere.parent, run.summary)
    check_media(elsewhere.parent, server)
    check_model(elsewhere.parent, server)


def test_printed_command_shows_the_curves(offline: tuple[Path, str]):
    home, printed = offline
    (curves,) = (line.split()[1:] for line in printed.splitlines() if line.startswith("curves "))
    assert curves[:3] == ["wandb", "leet", "run"]
    assert home / curves[3] == kept(home).parent
    assert python(home, "-m", *curves[:3], "--help", env={}).returncode == 0


@pytest.fixture(scope="module")
def online(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Iterator[tuple[Path, WandbServer]]:
    """Where a user with an account has trained, and the service."""
    home = tmp_path_factory.mktemp("online")
    with WandbServer() as server:
        train(home, images, *ALERTS, *MODEL, env=server.account())
        yield home, server


def test_online_run_is_whole(online: tuple[Path, WandbServer]):
    home, server = online
    run = only_run(server)
    assert own(run.history) == written(home)
    assert run.state == "finished"
    check_settings(home, run.settings())
    check_summary(home, run.summary)
    check_media(home, server)
    check_model(home, server)


def located(server: WandbServer, version: str = "best", kind: str = "model") -> str:
    """The address of the run's model."""
    return f"wandb:local/resnet-cifar/{server.latest(kind).name}:{version}"


def downloads(server: WandbServer) -> list[str]:
    return [request for request in server.requests if request.startswith("GET /artifact/")]


@pytest.fixture
def account(online: tuple[Path, WandbServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """The service, the account of its user and an empty cache."""
    server = online[1]
    for name, value in {**server.account(), "RESNET_CIFAR_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    wandb_artifacts.fetch_model.cache_clear()
    yield server
    server.status = None
    wandb_artifacts.fetch_model.cache_clear()


def test_an_uploaded_model_is_evaluated_elsewhere(
    online: tuple[Path, WandbServer],
    account: WandbServer,
    fresh_accelerator: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """With the recipe of its run; a second use downloads nothing, unless the copy was damaged."""
    result = json.loads((online[0] / "RUN" / "result.json").read_text())
    earlier = downloads(account)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(optional_outputs, "write_report", lambda folder, name, warn: None)
    evaluate.main([located(account)])
    (file,) = tmp_path.glob("model-*-v0-*-scores/eval-test.json")
    found = json.loads(file.read_text())
    assert {f"test/{name}": found[name] for name in ("accuracy", "loss")} == {
        name: result[name] for name in ("test/accuracy", "test/loss")
    }
    before = downloads(account)
    assert len(before) == len(earlier) + len(account.latest("model").files)

    target = model_location.find_target(Path(located(account, f"step-{result['step']}")))
    assert (target.kind, target.results) == ("model", file.parent.relative_to(tmp_path))
    assert target.exports == Path(f"{target.artifact}-export")
    assert find_init_weights(located(account)).file == target.path / "model.safetensors"
    assert downloads(account) == before
    weights = (target.path / "model.safetensors").read_bytes()
    (target.path / "model.safetensors").write_bytes(weights[:-1])
    wandb_artifacts.fetch_model.cache_clear()
    assert model_location.find_target(Path(located(account))).path == target.path
    assert (target.path / "model.safetensors").read_bytes() == weights

    wandb_artifacts.fetch_model.cache_clear()
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert model_location.find_target(Path(located(account))).path == target.path  # what the alias named last
    with pytest.raises(UserError, match="cannot be loaded, because there is no key"):
        model_location.find_target(Path(located(account, "v0")))


@pytest.mark.parametrize(
    ("location", "status", "env", "sentence"),
    [
        (
            "wandb:local/resnet-cifar/model",
            None,
            {},
            "does not name an artifact: write wandb:ENTITY/PROJECT/NAME:ALIAS",
        ),
        ("wandb:resnet-cifar/model:best", None, {}, "does not name an artifact: write wandb:ENTITY/PROJECT/NAME:ALIAS"),
        (
            "wandb:local/other/model:best",
            None,
            {},
            "says: project 'other' not found under entity 'local'; check the name",
        ),
        ("{model}:worst", None, {}, "says: artifact membership '.*:worst' not found in 'local/resnet-cifar'; check"),
        ("{result}:latest", None, {}, r"is not one that train.py uploaded \(a result without model.safetensors\)"),
        ("{model}:best", 401, {}, "says: .*; check the key of WANDB_API_KEY or `wandb login`, or try again later"),
        ("{model}:best", None, NOBODY, r"does not answer: check WANDB_BASE_URL and the network"),
        (
            "{model}:best",
            None,
            {"WANDB_API_KEY": ""},
            "there is no key for W&B .*: run `wandb login`, or set WANDB_API",
        ),
    ],
)
def test_a_model_that_cannot_be_downloaded_is_a_sentence(
    location: str,
    status: int | None,
    env: dict[str, str],
    sentence: str,
    account: WandbServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    names = {kind: located(account, "", kind)[:-1] for kind in ("model", "result")}
    account.status = status
    for name, value in {"HOME": str(tmp_path), **env}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=sentence) as caught:
        model_location.find_target(Path(location.format(**names)))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_model_that_arrives_damaged_is_refused(account: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(account.latest("model").files, "model.safetensors", b"damaged")
    with pytest.raises(UserError, match=r"says: Digest mismatch for file: model\.safetensors"):
        model_location.find_target(Path(located(account)))
    assert list((tmp_path / "cache" / "wandb").iterdir()) == []


def test_a_model_needs_the_package(account: WandbServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"because the package wandb is not installed: pip install wandb$"):
        model_location.find_target(Path(located(account)))


@pytest.fixture
def remote(
    online: tuple[Path, WandbServer], account: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """The address of the run; the working directory is empty."""
    monkeypatch.chdir(tmp_path)
    wandb_artifacts.fetch_run.cache_clear()
    return f"wandb:local/resnet-cifar/{account.latest('result').run}"


def test_a_run_is_reproduced_from_what_was_uploaded(
    remote: str, online: tuple[Path, WandbServer], capsys: pytest.CaptureFixture[str]
):
    """The second training is a copy of the first; then something is changed in it."""
    again = Path(f"{remote.rpartition('/')[2]}-again")
    shutil.copytree(online[0] / "RUN", again)
    reproduce.main([remote])
    said = capsys.readouterr().out
    assert f"{again} is equal to {remote}, bit for bit: 9 rows of metrics, the SHA-256 of the weights and " in said
    result = json.loads((again / "result.json").read_text())
    (again / "result.json").write_text(json.dumps(result | {"weights_sha256": "0" * 64, "val/accuracy": -1.0}))
    with pytest.raises(SystemExit) as ended:
        reproduce.main([remote])
    assert ended.value.code == 5
    said = capsys.readouterr().out
    assert f"{again} differs from {remote}\n  weights: another SHA-256\n  scores: val/accuracy -1.0, not " in said
    with pytest.raises(UserError, match="does not name a run: write wandb:ENTITY/PROJECT/RUN_ID"):
        reproduce.main([f"{remote}:latest"])
    with pytest.raises(UserError, match="says: artifact membership 'result-other:latest' not found"):
        reproduce.main(["wandb:local/resnet-cifar/other"])


@pytest.mark.proof_only
def test_a_run_is_trained_again_from_what_was_uploaded(remote: str, tmp_path: Path):
    finished = python(tmp_path, "-m", "resnet_cifar", "reproduce", remote, "--out", "again", env={})
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert f"again is equal to {remote}, bit for bit: 9 rows of metrics, the SHA-256 of the weights" in finished.stdout


def test_alerts_tell_the_target_and_the_end(online: tuple[Path, WandbServer]):
    home, server = online
    result = json.loads((home / "RUN" / "result.json").read_text())
    reached, ended = server.alerts
    assert reached[0] == "RUN: accuracy" and reached[1].startswith("RUN has reached its target at step 4: validation ")
    assert ended[0] == "RUN: finished" and f"test accuracy {result['test/accuracy']:.4f}" in ended[1]


def test_finished_run_is_not_tracked_again(online: tuple[Path, WandbServer], images: Path):
    home, server = online
    before = len(server.requests)
    train(home, images, env=server.account())
    assert server.requests[before:] == []


def test_a_trial_of_a_sweep_with_values_tried_before_sends_its_metric(
    online: tuple[Path, WandbServer], images: Path, tmp_path: Path
):
    """The variables of `wandb agent`, which sets WANDB_DIR to where it runs, in a directory with a finished run."""
    home, _ = online
    shutil.copytree(home / "RUN", tmp_path / "RUN")
    trial = {"SWEEP_ID": "sweep0", "RUN_ID": "trial2", "PROJECT": "searched", "ENTITY": "local", "DIR": str(tmp_path)}
    with WandbServer() as server:
        env = server.account() | {f"WANDB_{name}": value for name, value in trial.items()}
        printed = train(tmp_path, images, "--track.report=False", env=env).stdout
    assert "this run is finished" not in printed
    assert list(server.runs) == ["searched/trial2"]
    assert only_run(server).asked["sweep"] == "sweep0"
    result = json.loads((tmp_path / "RUN-trial2" / "result.json").read_text())
    assert only_run(server).summary["val/accuracy"] == result["val/accuracy"]
    assert [row["step"] for row in own(only_run(server).history)] == [1, 2, 3, 4, 5, 6, 7, 8, 9]


LONG = ("--phases.0.epochs", "400", "--track.report=False")  # longer than any of these tests


def wait_until(happened: Callable[[], object], process: subprocess.Popen) -> None:
    """Returns when it has happened, and fails when the process has ended before."""
    while not happened():
        assert process.poll() is None
        time.sleep(0.05)


def rows_of(run: Path) -> int:
    file = run / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def test_a_trial_that_its_sweep_stops_is_kept_and_counts_as_finished(images: Path, tmp_path: Path):
    """The SIGTERM of an agent after its command `stop`; otherwise the sweep would resume it as preempted."""
    (tmp_path / "small.yaml").write_text(RECIPE)
    trial = {"SWEEP_ID": "sweep0", "RUN_ID": "bad", "PROJECT": "searched", "ENTITY": "local"}
    with WandbServer() as server:
        env = os.environ | server.account() | {f"WANDB_{name}": value for name, value in trial.items()}
        command = [sys.executable, TRAIN, "--recipe", "small.yaml", "--data.source", images, "--run", "RUN", *LONG]
        with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True) as process:
            wait_until(lambda: rows_of(tmp_path / "RUN-bad") > 4, process)
            only_run(server).is_stopped = True
            process.terminate()
            printed, _ = process.communicate(timeout=120)
    assert (process.returncode, only_run(server).exits, only_run(server).state) == (0, [0], "finished")
    status = json.loads((tmp_path / "RUN-bad" / "status.json").read_text())
    assert (status["state"], status["why"]) == ("stopped", "SIGTERM")
    assert f"stopped by the W&B sweep at step {status['step']}, and saved" in printed
    assert only_run(server).summary["val/accuracy"] >= 0 and list((tmp_path / "RUN-bad" / "checkpoints").iterdir())


def agent_of(home: Path, server: WandbServer) -> subprocess.Popen:
    """`wandb agent` of sweep0; its output is in agent.log."""
    command = [sys.executable, "-m", "wandb", "agent", "--forward-signals", "local/searched/sweep0"]
    env = os.environ | server.account() | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with (home / "agent.log").open("ab") as log:
        return subprocess.Popen(command, cwd=home, env=env, stdout=log, stderr=log)


@pytest.mark.proof_only  # an agent looks every five seconds
def test_agents_train_stop_and_resume_trials(images: Path, tmp_path: Path):
    """`wandb sweep` and `wandb agent` themselves, with the sweep of this repository on a small recipe.

    Two trials have the same values, the third is stopped by early_terminate, and the machine of the fourth, with its
    agent, is preempted; another agent resumes that one.
    """
    (tmp_path / "small.yaml").write_text(RECIPE)
    shutil.copy(TRAIN, tmp_path)
    small = f"--recipe=small.yaml\n  - --data.source={images}\n  - --track.report=False"
    sweep = (TRAIN.parent / "sweeps" / "wandb.yaml").read_text().replace("--recipe=finetune", small)
    (tmp_path / "sweep.yaml").write_text(sweep)
    values = {"phases.0.lr": 0.01, "optimizer.weight_decay": 1e-05, "augment.trivial_augment": True}

    def folder(name: str) -> Path:
        return next((tmp_path / "runs").glob(f"*-{name}"), tmp_path / "none")

    def state(name: str) -> dict[str, Any]:
        return json.loads((folder(name) / "status.json").read_text())

    with WandbServer() as server:
        created = python(tmp_path, "-m", "wandb", "sweep", "--project", "searched", "sweep.yaml", env=server.account())
        assert "wandb agent local/searched/sweep0" in created.stderr
        assert yaml.safe_load(server.sweep)["early_terminate"]["type"] == "hyperband"
        long = {"phases.0.epochs": 400}
        server.trials = [("first", values), ("again", dict(values)), ("behind", values | long)]
        server.trials += [("moved", values | {"phases.0.epochs": 60})]
        server.is_behind = lambda name: name == "behind" and rows_of(folder(name)) > 4
        agent = agent_of(tmp_path, server)
        wait_until(lambda: rows_of(folder("moved")) > 4, agent)
        agent.terminate()  # forwarded to the trial
        agent.wait(60)
        runs = server.runs
        assert runs["searched/moved"].state == "preempted" and state("moved")["state"] == "interrupted"
        stopped_at = state("moved")["step"]
        server.trials = [("other", values | {"phases.0.lr": 0.02})]
        assert agent_of(tmp_path, server).wait(300) == 0
    said = (tmp_path / "agent.log").read_text()
    assert "train.py --recipe=small.yaml" in said and "--phases.0.lr=0.01" in said
    assert [run.exits for run in runs.values()] == [[0], [0], [0], [1, 0], [0]]
    assert {name: run.state for name, run in runs.items()} == {
        f"searched/{name}": "finished" for name in ("first", "again", "behind", "moved", "other")
    }
    assert (state("behind")["state"], state("moved")["state"]) == ("stopped", "finished")
    assert f"resuming at step {stopped_at}" in said
    assert [row["step"] for row in own(runs["searched/moved"].history)] == [*range(1, 271)]
    assert runs["searched/first"].summary["val/accuracy"] == runs["searched/again"].summary["val/accuracy"]
    assert {run.asked["sweep"] for run in runs.values()} == {"sweep0"}
    assert len(list((tmp_path / "runs").iterdir())) == 5


def test_resumed_run_goes_on_in_the_same_place(online: tuple[Path, WandbServer], images: Path, tmp_path: Path):
    home, before = online
    run = shutil.copytree(home / "RUN", tmp_path / "RUN")
    (run / "result.json").unlink()
    for newest in sorted((run / "checkpoints").iterdir())[-2:]:
        shutil.rmtree(newest)
    with WandbServer() as server:
        server.runs = copy.deepcopy(before.runs)
        only_run(server).history = only_run(before).history[:6]
        only_run(server).summary["step"] = 6
        printed = train(tmp_path, images, env=server.account()).stdout
    stored = only_run(server)
    assert "resuming at step 4" in printed
    assert [row["step"] for row in own(stored.history)] == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert own(stored.history)[-1] == written(tmp_path)[-1]
    assert stored.state == "finished"


def test_key_without_server_falls_back_to_offline(images: Path, tmp_path: Path):
    printed = train(tmp_path, images, "--track.report", "False", env=NOBODY).stdout
    assert printed.count("W&B is offline") == 1
    assert len(written(tmp_path)) == 9
    assert own(only_run(uploaded(tmp_path, upload_command(printed))).history) == written(tmp_path)


@pytest.mark.proof_only
def test_server_that_is_gone_in_mid_run_leaves_a_finished_run_that_uploads_whole(images: Path, tmp_path: Path):
    with WandbServer() as server:
        server.after(0, server.vanish)
        finished = train(tmp_path, images, env=server.account())
    (said,) = (line for line in finished.stdout.splitlines() if line.startswith("warning: ") and "updates" not in line)
    assert said.startswith("warning: W&B: continuing offline (")
    assert finished.stderr == ""
    assert len(written(tmp_path)) == 9
    assert json.loads((tmp_path / "RUN" / "status.json").read_text())["state"] == "finished"
    server = uploaded(tmp_path, said.split("`")[1])
    assert own(only_run(server).history) == written(tmp_path)
    check_summary(tmp_path, only_run(server).summary)
    check_media(tmp_path, server)
    assert {artifact.kind for artifact in server.artifacts.values()} == {"result"}


def test_none_writes_nothing_and_needs_no_wandb(images: Path, tmp_path: Path):
    (tmp_path / "wandb.py").write_text("raise ImportError")  # timm imports wandb too, where it can
    words = ("--track.trackers", "none", "--track.report", "False")
    train(tmp_path, images, *words, env={"PYTHONPATH": f"{tmp_path}:{os.environ['PYTHONPATH']}"})
    assert not (tmp_path / "RUN" / "wandb").exists()


@pytest.mark.proof_only
def test_failed_run_is_recorded_as_failed(images: Path, tmp_path: Path):
    said = train(tmp_path, images, "--phases.0.lr", "1e30", code=2).stderr
    assert said.startswith("error: the loss of step 1 is not finite")
    assert said.count("\n") == 1
    assert json.loads((tmp_path / "RUN" / "status.json").read_text())["state"] == "failed"
    seen = json.loads(inspect(tmp_path, "--summary"))
    assert (seen["state"], seen["exit_code"]) == ("failed", 1)
