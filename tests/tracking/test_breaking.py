"""Trackers that break, hang or are killed: training continues, the user is warned once, and no row is lost.

`tracked.py` is a run without a model, so that each costs a second or two.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import requests
from wandb_server import WandbServer

from resnet_cifar.config import schema
from resnet_cifar.config.diff import fingerprint, flatten, recipe_key
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.config.schema import Recipe
from resnet_cifar.config.validation import parse
from resnet_cifar.tracking import mlflow as mlflow_tracker
from resnet_cifar.tracking import multi
from resnet_cifar.tracking.base import TrackedRun, Tracker, keep_identity, kept_identity, kept_rows
from resnet_cifar.tracking.mlflow import MlflowTracker
from resnet_cifar.tracking.multi import MultiTracker, check_trackers, start_trackers
from resnet_cifar.tracking.trackio import TrackioTracker
from resnet_cifar.tracking.wandb import WandbTracker

if TYPE_CHECKING:
    from mlflow import MlflowClient

RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
SCRIPT = Path(__file__).with_name("tracked.py")


def go(home: Path, *words: object, env: dict[str, str], half: Callable[[], None] = lambda: None) -> tuple[int, str]:
    """Runs tracked.py in `home` and calls `half()` half way; its code, and what it printed."""
    command = [sys.executable, str(SCRIPT), *map(str, words)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=home, env={**os.environ, **env}, **pipes) as process:
        printed = ""
        while not printed.endswith("half\n"):
            line = process.stdout.readline()
            assert line, printed
            printed += line
        half()
        # Not communicate(), which would lose what readline() has already taken from the pipe.
        limit = threading.Timer(120, process.kill)
        limit.start()
        process.stdin.write("\n")
        process.stdin.close()
        printed += process.stdout.read()
        limit.cancel()
    return process.returncode, printed.replace("half\n", "")


def sync(home: Path, command: str, server: WandbServer) -> None:
    """What a user's shell does with `cd RUN && wandb sync ...`."""
    words = [sys.executable, "-m", "wandb"]
    command = command.replace("&& wandb ", f"&& {shlex.join(words)} ")
    finished = subprocess.run(
        ["bash", "-c", command], cwd=home, env={**os.environ, **server.account()}, check=False, capture_output=True
    )
    assert finished.returncode == 0, finished.stderr.decode()


def steps(server: WandbServer) -> list[int]:
    """Of the rows that one run has on the server, without the one that holds the figures."""
    (run,) = server.runs.values()
    return [row["step"] for row in run.history if "figures/confusion" not in row]


def check_result(server: WandbServer) -> None:
    """The figure's bytes and a whole artifact are there, and the run is finished."""
    (run,) = server.runs.values()
    assert (run.state, run.summary["test/accuracy"]) == ("finished", 0.5)
    assert any(name.startswith("media/images/figures/confusion") for name in run.files)
    assert server.latest("result").files["eval-test.json"] == b'{"accuracy": 0.5}'


def check_model(server: WandbServer) -> None:
    """The model is there, whole, under its names, and says what it is."""
    model, (run,) = server.latest("model"), server.runs.values()
    assert set(model.files) == {"config.json", "model.safetensors", "recipe.yaml"}
    assert model.files["model.safetensors"] == b"weights"
    assert (model.run, model.name) == (run.name, f"model-{run.name}")
    assert {"latest", "best", "step-4"} == model.aliases
    scores = {"val/accuracy": 0.25, "test/accuracy": 0.5, "step": 4}
    assert model.metadata == {"data_fingerprint": "0123", "recipe_fingerprint": fingerprint(Recipe()), **scores}


def test_online_run_arrives_whole_and_nothing_is_said(tmp_path: Path):
    """With the row before all updates, which the evaluation of a linear probe writes."""
    with WandbServer() as server:
        env = server.account() | {"LOG_MODEL": "60"}
        assert go(tmp_path, "RUN", "wandb", 0, 6, "finish", env=env) == (0, "")
    assert steps(server) == [0, 1, 2, 3, 4, 5, 6]
    check_result(server)
    check_model(server)


def test_the_users_variables_win_over_defaults(tmp_path: Path):
    named = {"PROJECT": "theirs", "NAME": "first", "ENTITY": "team", "RUN_GROUP": "g", "TAGS": "a,b", "NOTES": "why"}
    named |= {"JOB_TYPE": "night", "DIR": str(tmp_path / "scratch"), "RUN_ID": "mine"}
    variables = {f"WANDB_{name}": value for name, value in named.items()}
    with WandbServer() as server:
        assert go(tmp_path, "RUN", "wandb", 1, 4, "interrupt", env=server.account() | variables) == (0, "")
        assert go(tmp_path, "RUN", "wandb", 5, 6, "finish", env=server.account() | variables) == (0, "")
    assert steps(server) == [1, 2, 3, 4, 5, 6]
    check_result(server)
    (key, run), *_ = server.runs.items()
    asked = {"entity": "team", "groupName": "g", "tags": ["a", "b"], "notes": "why", "jobType": "night"}
    assert (key, run.asked["displayName"]) == ("theirs/mine", "first")
    assert {name: run.asked[name] for name in asked} == asked
    assert len(list((tmp_path / "scratch" / "wandb").glob("run-*-mine"))) == 2
    assert not list((tmp_path / "RUN" / "wandb").glob("run-*"))
    with WandbServer() as later:  # a new run directory for a run that has rows
        later.runs.update(server.runs)
        code, said = go(tmp_path, "OTHER", "wandb", 1, 7, "interrupt", env=variables | later.account())
    sentence = "warning: track.trackers wandb: WANDB_RUN_ID=mine has rows up to step 6, which it keeps: this run adds"
    assert (code, said) == (0, f"{sentence} later ones only\n")
    assert steps(later) == [1, 2, 3, 4, 5, 6, 7]


def test_a_field_that_is_given_wins_over_the_variable(tmp_path: Path):
    with WandbServer() as server:
        env = {**server.account(), "WANDB_PROJECT": "theirs", "TRACKIO_DIR": str(tmp_path / "shared")}
        assert go(tmp_path, "RUN", "wandb,trackio", 1, 2, "finish", env=env | {"PROJECT": "ours"}) == (0, "")
    assert [key.split("/")[0] for key in server.runs] == ["ours"]
    assert (tmp_path / "shared" / "ours.db").is_file()
    assert [file.name for file in (tmp_path / "RUN" / "trackio").iterdir()] == [".id"]


def fail(server: WandbServer, status: int) -> None:
    server.status = status


def dawdle(server: WandbServer, path: str = "") -> None:
    server.seconds, server.slow = 30.0, path


@pytest.mark.parametrize(
    ("half", "end", "why"),
    [
        (lambda server: fail(server, 500), "finish", "answers 500"),
        (lambda server: fail(server, 401), "finish", ""),  # by what W&B says itself
        (WandbServer.vanish, "finish", "does not answer"),
        (dawdle, "finish", "does not answer"),
        (lambda server: dawdle(server, "/file_stream"), "finish", "Timed out finishing run"),
        (lambda server: None, "core", ""),
    ],
    ids=["500s", "refused", "gone", "slow", "slow uploads", "core killed"],
)
def test_what_breaks_in_mid_run_is_said_once_and_kept_offline(
    half: Callable[[WandbServer], None], end: str, why: str, tmp_path: Path
):
    with WandbServer() as server:
        code, said = go(tmp_path, "RUN", "wandb", 1, 6, end, env=server.account(), half=lambda: half(server))
    assert code == 0, said
    assert said.startswith("warning: W&B: continuing offline (")
    assert why in said
    assert said.count("\n") == 1
    with WandbServer() as later:
        sync(tmp_path, said.split("`")[1], later)
    assert steps(later) == [1, 2, 3, 4, 5, 6]
    check_result(later)


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        ([requests.exceptions.SSLError()], None),  # by other certificates than W&B's
        ([requests.Timeout(), 200], None),
        ([502, 404], None),
        ([requests.Timeout(), requests.Timeout()], "https://w does not answer: Timeout"),
        ([requests.Timeout(), 503], "https://w answers 503"),
    ],
)
def test_a_server_is_given_up_after_a_second_try(
    answers: list[int | Exception], problem: str | None, monkeypatch: pytest.MonkeyPatch
):
    def get(*_: object, **__: object) -> SimpleNamespace:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(status_code=answer)

    monkeypatch.setattr(requests, "get", get)
    tracker = object.__new__(WandbTracker)
    tracker._has_given_up = False
    tracker._run = SimpleNamespace(offline=False, settings=SimpleNamespace(mode="online", base_url="https://w"))
    with pytest.raises(ConnectionError, match=f"^{problem}$") if problem else contextlib.nullcontext():
        tracker._check_server()
    assert answers == []


def test_model_whose_upload_takes_too_long_is_kept_offline(tmp_path: Path):
    with WandbServer() as server:
        dawdle(server, "/artifact/")
        code, said = go(tmp_path, "RUN", "wandb", 1, 4, "finish", env=server.account() | {"LOG_MODEL": "1"})
    assert code == 0, said
    assert said.startswith("warning: W&B: continuing offline (Artifact upload wait timed out")
    assert said.count("\n") == 1
    with WandbServer() as later:
        sync(tmp_path, said.split("`")[1], later)
    check_result(later)
    check_model(later)


def test_key_that_is_refused_at_the_start_is_said_once(tmp_path: Path):
    with WandbServer() as server:
        server.status = 401
        code, said = go(tmp_path, "RUN", "wandb", 1, 2, "finish", env=server.account())
    assert code == 0, said
    assert said.startswith("warning: W&B is offline for this run (")
    assert said.count("\n") == 1
    assert [path.name[:8] for path in (tmp_path / "RUN" / "wandb").glob("*run-*")] == ["offline-"]


@pytest.mark.proof_only
def test_core_that_hangs_is_waited_for_twelve_seconds(tmp_path: Path):
    """Online, W&B itself may notice it before that: then another core writes everything into an offline run."""
    waited = "track.trackers wandb is disabled from here on (it did not finish within 12 s)"
    code, said = go(tmp_path, "OFFLINE", "wandb", 1, 6, "stop", env={"WANDB_MODE": "offline"})
    assert code == 0 and waited in said, said
    with WandbServer() as server:
        code, said = go(tmp_path, "RUN", "wandb", 1, 6, "stop", env=server.account())
    assert code == 0 and said.count("\n") == 1, said
    if waited not in said:
        assert said.startswith("warning: W&B: continuing offline (") and "the service process is busy" in said
        with WandbServer() as later:
            sync(tmp_path, said.split("`")[1], later)
        assert steps(later) == [1, 2, 3, 4, 5, 6]
        check_result(later)


@pytest.mark.parametrize(
    ("account", "end", "trackers"),
    [
        ("offline", "kill", "wandb,trackio,tensorboard,mlflow"),
        pytest.param("offline", "interrupt", "wandb,trackio", marks=pytest.mark.proof_only),
        ("online", "interrupt", "wandb"),
    ],
)
def test_run_that_is_resumed_from_further_back_has_every_row_once(
    account: str, end: str, trackers: str, tmp_path: Path
):
    """The first start comes to step 7, and the second resumes from a checkpoint of step 4.

    A kill takes rows of the last second from the trackers, which then lack some that metrics.jsonl has. All show the
    run's group and tags.
    """
    with WandbServer() as server:
        env = {"WANDB_RUN_GROUP": "seeds of mine", "WANDB_TAGS": "seeds, night"}
        env |= server.account() if account == "online" else {}
        if "mlflow" in trackers:
            env |= {"LOG_MODEL": "60"}
            (tmp_path / "RUN" / "mlflow").mkdir(parents=True)
            (tmp_path / "RUN" / "mlflow" / "mlflow.db").write_text("by a process that was killed while it created it")
        code, said = go(tmp_path, "RUN", trackers, 1, 7, end, env=env)
        assert (code, said) == (-signal.SIGKILL if end == "kill" else 0, "")
        assert go(tmp_path, "RUN", trackers, 5, 9, "finish", env=env) == (0, "")
        if account == "offline":
            sync(tmp_path, "cd RUN && wandb sync wandb/*run-*", server)
    assert steps(server) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    if "trackio" in trackers:
        assert trackio_steps(tmp_path / "RUN") == [1, 2, 3, 4, 5, 6, 7, 8, 9]
        with sqlite3.connect(tmp_path / "RUN" / "trackio" / "resnet-cifar.db") as data:
            ((config,),) = data.execute("SELECT config FROM configs").fetchall()
        assert (json.loads(config)["_Group"], json.loads(config)["tags"]) == ("seeds of mine", ["seeds", "night"])
    if "tensorboard" in trackers:
        assert tensorboard_steps(tmp_path / "RUN", "train/loss") == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    if "mlflow" in trackers:
        check_mlflow(tmp_path / "RUN", [1, 2, 3, 4, 5, 6, 7, 8, 9])
        read = event_accumulator(tmp_path / "RUN")
        texts = [read.Tensors(f"{name}/text_summary")[0].tensor_proto.string_val[0] for name in ("group", "tags")]
        assert texts == [b"    seeds of mine", b"    - seeds\n    - night"]
    assert {path.name for path in tmp_path.iterdir()} == {"RUN"}


def test_tracker_that_comes_later_gets_the_rows_from_the_beginning(tmp_path: Path):
    assert go(tmp_path, "RUN", "tensorboard", 1, 4, "finish", env={}) == (0, "")
    assert go(tmp_path, "RUN", "trackio", 5, 8, "finish", env={}) == (0, "")
    assert trackio_steps(tmp_path / "RUN") == [1, 2, 3, 4, 5, 6, 7, 8]
    assert tensorboard_steps(tmp_path / "RUN", "test/accuracy") == [4]
    assert tensorboard_steps(tmp_path / "RUN", "confusion") == [4]


def test_runs_of_one_name_share_a_trackio_folder(tmp_path: Path):
    """On a network file system, where trackio writes an inbox that the next start imports."""
    env = {"TRACKIO_DIR": str(tmp_path / "shared"), "TRACKIO_STORAGE_MODE": "jsonl"}
    for home, first, last, end in (("a", 1, 3, "interrupt"), ("a", 3, 5, "finish"), ("b", 1, 4, "finish")):
        (tmp_path / home).mkdir(exist_ok=True)
        assert go(tmp_path / home, "RUN", "trackio", first, last, end, env=env) == (0, "")
    with sqlite3.connect(tmp_path / "shared" / "resnet-cifar.db") as data:
        rows = data.execute("SELECT run_name, run_id, step, metrics FROM metrics ORDER BY step").fetchall()
    rows = [row for row in rows if "confusion" not in json.loads(row[-1])]
    for home, last in (("a", 5), ("b", 4)):
        name = (tmp_path / home / "RUN" / "trackio" / ".id").read_text()
        assert [step for found, _, step, _ in rows if found == name] == [*range(1, last + 1)]
    assert len({identity for _, identity, _, _ in rows}) == 2


def test_trackio_has_a_database_on_a_network_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    storage = SimpleNamespace(get_runs=lambda project: [], get_max_step_for_run=lambda project, name: None)
    modules = {"": {"init": lambda *_, **__: None, "Image": None}, ".sqlite_storage": {"SQLiteStorage": storage}}
    modules |= {".utils": {"TRACKIO_DIR": tmp_path / "trackio"}}
    for name, content in modules.items():
        monkeypatch.setitem(sys.modules, f"trackio{name}", SimpleNamespace(**content))
    for name in ("TRACKIO_DIR", "TRACKIO_STORAGE_MODE"):
        monkeypatch.setenv(name, "")
    TrackioTracker(TrackedRun(parse({"track": {"trackers": "trackio"}}), tmp_path, {}, pytest.fail, None))
    assert os.environ["TRACKIO_STORAGE_MODE"] == "sqlite"


@pytest.mark.parametrize("name", ["TRACKIO_SERVER_URL", "TRACKIO_SPACE_ID"])
def test_a_server_of_trackio_is_refused(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(name, "https://host/?write_token=SECRET")
    with pytest.raises(UserError, match=f"^{name} sends rows to a server, .* stores them here: unset {name}$"):
        check_trackers(parse({"track": {"trackers": "trackio"}}))


def trackio_steps(run: Path) -> list[int]:
    """Of the rows in trackio's one data base, without the one that holds the figures, whose file is there."""
    with sqlite3.connect(run / "trackio" / "resnet-cifar.db") as data:
        rows = data.execute("SELECT step, metrics FROM metrics ORDER BY id").fetchall()
    rows = [(step, json.loads(metrics)) for step, metrics in rows]
    (last,) = (metrics for _, metrics in rows if "confusion" in metrics)
    assert last["test/accuracy"] == 0.5
    assert (run / "trackio" / "media" / last["confusion"]["file_path"]).stat().st_size > 0
    return [step for step, metrics in rows if "confusion" not in metrics]


def check_mlflow(run: Path, steps: list[int]) -> None:
    """The store has one finished run with these rows, the recipe, the results and their files.

    Where the directory was is not written to when a copy of it, somewhere else, is continued.
    """
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("resnet-cifar")
    (found,) = client.search_runs([experiment.experiment_id])
    name, recipe = found.info.run_id, read_recipe(str(run / "recipe.yaml"))
    assert (found.info.run_name, found.info.status) == ("RUN", "FINISHED")
    history = client.get_metric_history(name, "train/loss")
    assert [(metric.step, metric.value) for metric in history] == [(step, 1 / step) for step in steps]
    assert found.data.metrics["test/accuracy"] == 0.5
    assert found.data.params == {field: str(value) for field, value in flatten(recipe).items()}
    assert (found.data.tags["group"], found.data.tags["tags"]) == ("seeds of mine", "seeds,night")
    folders = {
        folder: {file.path for file in client.list_artifacts(name, folder)} for folder in ("", "figures", "model")
    }
    assert folders[""] >= {"eval-test.json"} and folders["figures"] == {"figures/confusion.png"}
    stored = run / "mlflow" / "artifacts" / name / "artifacts"
    assert (stored / "eval-test.json").read_bytes() == (run / "eval-test.json").read_bytes()
    moved = shutil.copytree(run, run / "moved")
    opened(moved).summary(9, {}, {}, [moved / "metrics.jsonl"])
    assert not (stored / "metrics.jsonl").exists()
    shutil.rmtree(moved)


@pytest.fixture
def mlflow_store(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """A store of the user's, which MLFLOW_TRACKING_URI names."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path_factory.getbasetemp() / 'theirs.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return MlflowClient(uri)


def opened(run: Path, **track: Any) -> MlflowTracker:
    run.mkdir(exist_ok=True)
    recipe = parse({"track": {"trackers": "mlflow", **track}})
    return MlflowTracker(TrackedRun(recipe, run, {"commit": "abc"}, pytest.fail, None))


def test_mlflow_keeps_to_its_variables_and_states(
    mlflow_store: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """In one run that is interrupted, fails and loses a rank; a given run and experiment are used."""
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
    for state, status in (
        ("interrupted", "KILLED"),
        ("failed", "FAILED"),
        ("lost", "FAILED"),
        ("finished", "FINISHED"),
    ):
        tracker = opened(tmp_path / "RUN", project="resnet-cifar")
        (run,) = mlflow_store.search_runs([mlflow_store.get_experiment_by_name("theirs").experiment_id])
        assert (run.info.status, run.data.tags["mlflow.source.git.commit"]) == ("RUNNING", "abc")
        tracker.log({"step": tracker.latest() + 1, "epoch": 1.0, "val/loss": float("nan")})
        tracker.finish(state)
        assert mlflow_store.get_run(run.info.run_id).info.status == status
    assert [metric.step for metric in mlflow_store.get_metric_history(run.info.run_id, "val/loss")] == [0, 1, 2, 3]
    ((_, command),) = tracker.commands
    assert command.endswith(" ui --backend-store-uri $MLFLOW_TRACKING_URI")
    assert not (tmp_path / "RUN" / "mlflow" / "mlflow.db").exists()

    opened(tmp_path / "other", project="ours").finish("finished")  # a field that is given wins over the variable
    assert mlflow_store.get_experiment_by_name("ours") is not None
    assert run.data.tags["group"] == recipe_key(parse({"track": {"trackers": "mlflow"}}))
    given = mlflow_store.create_run(run.info.experiment_id).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    opened(tmp_path / "given").log({"step": 7, "epoch": 1.0})
    assert (opened(tmp_path / "given").latest(), opened(tmp_path / "given").named_run) == (7, "")
    assert opened(tmp_path / "again").named_run == f"MLFLOW_RUN_ID={given}"
    assert mlflow_store.get_run(given).data.params["batch_size"] == "256"
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with pytest.raises(UserError, match=f"^MLFLOW_RUN_ID={'0' * 32} is not a run of this store: correct or unset it$"):
        opened(tmp_path / "new")
    monkeypatch.delenv("MLFLOW_RUN_ID")
    for name in ("0" * 32, ""):  # another store has this run, or it was never written: a new one gets all rows
        (tmp_path / "RUN" / "mlflow" / ".id").write_text(name)
        assert opened(tmp_path / "RUN").latest() == -1


@pytest.mark.parametrize("content", ["", "mine"])
def test_an_id_is_kept_whole_and_written_once(content: str, tmp_path: Path):
    file = tmp_path / ".id"
    file.write_text(content)
    assert kept_identity(file) == (content or None)
    before = file.stat().st_ino
    keep_identity(file, "mine")
    assert (file.read_text(), file.stat().st_ino == before) == ("mine", bool(content))
    assert list(tmp_path.iterdir()) == [file]


def test_an_mlflow_run_whose_files_are_refused_is_finished(
    mlflow_store: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """And what is said has no password in it."""

    def refuse(*_: object) -> None:
        raise OSError("API request to https://ada:secret@host/api failed")

    said: list[str] = []
    recipe = parse({"track": {"trackers": "mlflow"}})
    trackers = start_trackers(recipe, tmp_path, {}, said.append)
    monkeypatch.setattr("mlflow.MlflowClient.log_artifact", refuse)
    (tmp_path / "eval-test.json").write_text("{}")
    trackers.log({"step": 0, "epoch": 0.0, "val/accuracy": 0.25})
    trackers.summary(6, {"test/accuracy": 0.5}, {}, [tmp_path / "eval-test.json"])
    trackers.finish("finished")
    (experiment,) = [each for each in mlflow_store.search_experiments() if each.name == "resnet-cifar"]
    (run,) = mlflow_store.search_runs([experiment.experiment_id])
    assert (run.info.status, run.data.metrics["test/accuracy"]) == ("FINISHED", 0.5)
    assert [metric.step for metric in mlflow_store.get_metric_history(run.info.run_id, "val/accuracy")] == [0]
    (sentence,) = said
    assert sentence.startswith(
        "track.trackers mlflow is disabled from here on (API request to https://host/api failed)"
    )


def test_a_mistake_in_a_second_tracker_ends_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise UserError("MLFLOW_RUN_ID is wrong")

    monkeypatch.setattr(RegisteredTracker, "opened", [])
    monkeypatch.setattr(MlflowTracker, "__init__", refuse)
    monkeypatch.setitem(schema.TRACKERS, "mine", f"{__name__}:RegisteredTracker")
    with pytest.raises(UserError, match=r"^MLFLOW_RUN_ID is wrong$"):
        start_trackers(parse({"track": {"trackers": "mine,mlflow"}}), tmp_path, {}, pytest.fail)
    (tracker,) = RegisteredTracker.opened
    assert tracker.given == ["failed"]


def test_mlflow_retries_little_only_while_training_waits(
    mlflow_store: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    retries: list[str | None] = []
    monkeypatch.setattr(MlflowTracker, "_log_params", lambda *_: retries.append(os.environ.get(RETRIES)))
    monkeypatch.delenv(RETRIES, raising=False)
    opened(tmp_path / "RUN")
    assert (retries, os.environ.get(RETRIES)) == (["1"], None)
    monkeypatch.setenv(RETRIES, "3")
    opened(tmp_path / "RUN")
    assert (retries, os.environ[RETRIES]) == (["1", "3"], "3")


@pytest.mark.parametrize(
    ("uri", "found"),
    [
        ("postgresql+psycopg2://ada:secret@host/db", ("host", 5432)),
        ("mysql://host:33/db", ("host", 33)),
        ("mssql+pyodbc://ada:secret@source", None),
        ("mssql+pyodbc://host:1433/db", ("host", 1433)),
        ("mysql://localhost/db", None),
        ("mysql://host/db?unix_socket=/run/mysqld.sock", None),
        ("postgresql:///db?host=/run/postgresql", None),
        ("postgresql://one:5432,two:5432/db", None),
        ("sqlite:////home/ada/mlflow.db", None),
        ("databricks://profile:name", None),
    ],
)
def test_where_an_mlflow_database_is_reached(uri: str, found: tuple[str, int] | None):
    assert mlflow_tracker._database(uri) == found


@pytest.mark.parametrize(
    ("uri", "named"),
    [
        ("http://ada:secret@127.0.0.1:9", "http://127.0.0.1:9"),
        ("postgresql://ada:secret@127.0.0.1:9/db", "127.0.0.1:9"),
    ],
)
def test_mlflow_server_that_does_not_answer_is_said_once(
    uri: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    said: list[str] = []
    assert not start_trackers(parse({"track": {"trackers": "mlflow"}}), tmp_path, {}, said.append)
    assert said == [
        f"track.trackers mlflow is disabled ({named}, of MLFLOW_TRACKING_URI, does not answer): every row is in "
        "metrics.jsonl"
    ]


def event_accumulator(run: Path) -> Any:
    """What TensorBoard reads."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(run / "tensorboard"))
    return read.Reload()


def tensorboard_steps(run: Path, tag: str) -> list[int]:
    read = event_accumulator(run)
    return [event.step for event in (read.Images(tag) if tag in read.Tags()["images"] else read.Scalars(tag))]


class RecordingTracker(Tracker):
    """Records its calls; the method named by `fails` raises, the one named by `hangs` waits until `abandon`."""

    def __init__(self, fails: str = "", hangs: str = "") -> None:
        self.fails, self.hangs = fails, hangs
        self.given: list[Any] = []
        self.abandoned = threading.Event()

    def log(self, row: dict[str, Any]) -> None:
        self._do("log", row["step"])

    def summary(self, step: int, values: dict[str, Any], figures: dict[str, Path], files: list[Path]) -> None:
        self._do("summary", values)

    def finish(self, state: str) -> None:
        self._do("finish", state)

    def abandon(self) -> None:
        self.abandoned.set()

    def _do(self, what: str, value: Any) -> None:
        if what == self.fails:
            raise OSError("broken on purpose")
        if what == self.hangs:
            self.abandoned.wait()
        self.given.append(value)


@pytest.mark.parametrize("what", ["log", "summary", "finish"])
@pytest.mark.parametrize("how", ["fails", "hangs"])
def test_one_tracker_that_breaks_leaves_the_others_alone(
    what: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(multi, "_FINISH_TIMEOUT", 0.2)
    broken, sound, said = RecordingTracker(**{how: what}), RecordingTracker(), []
    trackers = MultiTracker({"trackio": broken, "tensorboard": sound}, tmp_path, -1, said.append)
    for step in (1, 2, 3):
        trackers.log({"step": step})
    trackers.summary(3, {"test/accuracy": 1.0}, {}, [])
    trackers.finish("finished")
    assert sound.given == [1, 2, 3, {"test/accuracy": 1.0}, "finished"]
    why = "broken on purpose" if how == "fails" else "it did not finish within 0.2 s"
    assert said == [f"track.trackers trackio is disabled from here on ({why}): every row is in metrics.jsonl"]


def test_tracker_that_hangs_for_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(multi, "_MAX_QUEUED", 3)
    monkeypatch.setattr(multi, "_FINISH_TIMEOUT", 0.2)
    hanging, said = RecordingTracker(hangs="log"), []
    trackers = MultiTracker({"trackio": hanging}, tmp_path, -1, said.append)
    for step in range(10):
        trackers.log({"step": step + 1})
    trackers.finish("failed")
    assert said == [
        "track.trackers trackio is disabled from here on (3 calls are waiting): every row is in metrics.jsonl"
    ]


def test_rows_are_kept_while_the_file_grows(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step": {step}}}\n' for step in (1, 2, 4, 5)) + '{"st')
    assert [row["step"] for row in kept_rows(tmp_path, 1, 5)] == [2, 4, 5]
    assert [row["step"] for row in kept_rows(tmp_path, 0, 2)] == [1, 2]
    assert [row["step"] for row in kept_rows(tmp_path, 0, 3)] == [1, 2]
    assert list(kept_rows(tmp_path, 0, 0)) == []


@pytest.mark.parametrize("name", ["trackio", "tensorboard", "mlflow"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(name: str, monkeypatch: pytest.MonkeyPatch):
    recipe = parse({"track": {"trackers": f"wandb,{name}"}})
    check_trackers(recipe)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"^track.trackers '{name}' needs .* pip install -e '.\[trackers\]'$"):
        check_trackers(recipe)


def test_tracker_that_cannot_begin_is_left_out(tmp_path: Path):
    """A file lies where TensorBoard's folder should be."""
    (tmp_path / "tensorboard").write_text("")
    said: list[str] = []
    trackers = start_trackers(parse({"track": {"trackers": "tensorboard"}}), tmp_path, {}, said.append)
    assert not trackers
    assert len(said) == 1
    assert said[0].startswith("track.trackers tensorboard is disabled (")


def test_a_run_that_was_given_with_rows_is_said(tmp_path: Path):
    class Given(RecordingTracker):
        named_run = "ID=1"

        def latest(self) -> int:
            return 2

    tracker, said = Given(), []
    trackers = MultiTracker({"mlflow": tracker}, tmp_path, -1, said.append)
    for step in (1, 2, 3):
        trackers.log({"step": step})
    trackers.finish("finished")
    assert tracker.given == [3, "finished"]
    sentence = "track.trackers mlflow: ID=1 has rows up to step 2, which it keeps: this run adds later ones only"
    assert said == [sentence]


class RegisteredTracker(RecordingTracker):
    """A tracker of another module, opened by `start_trackers`."""

    opened: list[RegisteredTracker] = []  # noqa: RUF012

    def __init__(self, run: TrackedRun) -> None:
        super().__init__()
        self.identity = run.identity
        self.opened.append(self)


def test_a_registered_tracker_needs_no_other_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(schema.TRACKERS, "mine", f"{__name__}:RegisteredTracker")
    recipe = parse({"track": {"trackers": "mine"}})
    check_trackers(recipe)
    trackers = start_trackers(recipe, tmp_path, {}, pytest.fail, identity="abc")
    trackers.log({"step": 1})
    trackers.finish("finished")
    (tracker,) = RegisteredTracker.opened
    assert (tracker.given, trackers.identity) == ([1, "finished"], "abc")
    assert not (tmp_path / "tensorboard").exists()
