"""`track.notify`: who is told what, once; a receiver that is away is no reason to fail or to show its address."""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from receiver import Receiver

from resnet_cifar.config.errors import UserError
from resnet_cifar.config.validation import parse
from resnet_cifar.tracking import notify
from resnet_cifar.tracking.multi import MultiTracker, check_trackers, start_trackers

DONE = {"best/val/accuracy": 0.7, "test/accuracy": 0.65, "best/step": 3}


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "_WAITS", (0.0, 0.0, 0.0))


def opened(run: Path, said: list[str], monkeypatch: pytest.MonkeyPatch, kind: str, address: str) -> MultiTracker:
    monkeypatch.setenv("HOOK", address)
    recipe = parse({"track": {"trackers": "none", "notify": f"{kind}:HOOK", "notify_accuracy": 0.6}})
    check_trackers(recipe)
    return start_trackers(recipe, run, {}, said.append)


def told(run: Path, kind: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, state: str, **status: Any) -> list:
    """The messages of an attempt whose accuracy is 0.5, 0.6 and 0.7."""
    run.mkdir(exist_ok=True)
    (run / "status.json").write_text(json.dumps({"state": state, "step": 3, **status}))
    said: list[str] = []
    trackers = opened(run, said, monkeypatch, kind, receiver.url)
    for step, accuracy in enumerate((0.5, 0.6, 0.7), start=1):
        trackers.log({"step": step, "val/accuracy": accuracy})
    if state == "finished":
        trackers.summary(3, DONE, {}, [])
    trackers.finish(state)
    assert said == []
    return receiver.messages


def test_a_target_is_told_once_and_then_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "71")
    with Receiver() as receiver:
        reached, ended = told(tmp_path / "mine", "env", receiver, monkeypatch, "finished")
    assert (reached["event"], reached["step"], reached["val/accuracy"]) == ("accuracy", 2, 0.6)
    assert (ended["event"], ended["run"], ended["step"], ended["job"]) == ("finished", "mine", 3, "71")
    assert (ended["val/accuracy"], ended["test/accuracy"], ended["why"]) == (0.7, 0.65, None)


def test_a_resumed_run_does_not_repeat_its_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "val/accuracy": 0.61}\n{"step": 2}\n')
    with Receiver() as receiver:
        messages = told(tmp_path, "env", receiver, monkeypatch, "lost", why="rank 3 is stuck")
    assert [(message["event"], message["why"]) for message in messages] == [("lost", "rank 3 is stuck")]


def test_slack_gets_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Receiver() as receiver:
        messages = told(tmp_path / "mine", "slack", receiver, monkeypatch, "failed", why="the disk is full")
    assert messages == [
        {"text": "mine has reached its target at step 2: validation accuracy 0.6000"},
        {"text": "mine failed at step 3 (the disk is full): validation accuracy 0.7000"},
    ]


@pytest.mark.parametrize(
    ("statuses", "requests", "why"),
    [
        ((500, 429), 3, None),
        ((503, 503, 503), 3, "it answered 503"),
        ((404,), 1, "it answered 404"),
        ((302,), 1, "it answered 302"),
    ],
)
def test_a_message_is_sent_again_where_that_can_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statuses: tuple[int, ...], requests: int, why: str | None
) -> None:
    said: list[str] = []
    with Receiver(*statuses) as receiver:
        trackers = opened(tmp_path, said, monkeypatch, "env", receiver.url)
        trackers.finish("finished")
    assert (receiver.requests, len(receiver.messages)) == (requests, int(why is None))
    expected = f"track.notify: 127.0.0.1 did not take the message that the run {tmp_path.name} finished ({why})"
    assert said == ([expected] if why else [])


def test_nobody_there_is_said_without_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    trackers = opened(tmp_path, said, monkeypatch, "env", "http://127.0.0.1:9/hook/SECRET")  # the discard port
    trackers.finish("finished")
    (sentence,) = said
    assert sentence.endswith("(ConnectionError)") and "SECRET" not in sentence


@pytest.mark.parametrize(
    "address",
    [
        "https://hooks.slack.com/services/T/B/SECRET",
        "https://me:SECRET@host/x",
        "https://:SECRET@host/x",
        "https://host/?key=SECRET",
        "slack:https://hooks.slack.com/services/T/B/SECRET",  # the address in place of the variable that holds it
        "env:https://me:SECRET@host/x",
        "hooks.slack.com/services/T/B/SECRET",
    ],
)
def test_a_secret_is_refused_without_repeating_it(address: str) -> None:
    with pytest.raises(UserError, match=r"^track.notify .* env:VARIABLE(,| or) slack:VARIABLE( or wandb)?$") as caught:
        parse({"track": {"notify": address}})
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("address", ["hook.example", "https://[x"])
def test_mistakes_are_named_before_training(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK", address)
    with pytest.raises(
        UserError, match=r"^track.notify 'env:HOOK': HOOK holds no address: set it to https://HOST/PATH$"
    ):
        check_trackers(parse({"track": {"trackers": "none", "notify": "env:HOOK"}}))
    with pytest.raises(UserError, match=r"^track.notify wandb needs W&B, and track.trackers is none: add wandb to it$"):
        parse({"track": {"trackers": "none", "notify": "wandb"}})
    with pytest.raises(UserError, match=r"^track.notify_accuracy 0.9 has nobody to tell: set track.notify"):
        parse({"track": {"notify_accuracy": 0.9}})
    with pytest.raises(UserError, match=r"^track.notify cannot be what it is set to: it should be https://H"):
        parse({"track": {"notify": "mail:me"}})
    assert parse({"track": {"notify": "https://host/path"}}).track.notify == "https://host/path"


@pytest.mark.proof_only
def test_a_target_told_to_nobody_delays_no_step(tmp_path: Path, record) -> None:
    """Rounds of four runs: without messages, again without, to a port where nobody listens, and to a silent one.

    The ratio of the first two is what the machine's noise alone makes of equal runs. The order rotates.
    """
    train = Path(__file__).parents[2] / "train.py"
    recipe = {"data.source": "synthetic", "data.limit": 1200, "data.image_size": 32, "model.name": "test_resnet"}
    recipe |= {"model.pretrained": False, "batch_size": 16, "model.ghost_batch_size": 16, "phases.0.epochs": 3}
    recipe |= {"evaluate.every_epochs": 1, "track.trackers": "none", "track.report": False}
    words = [sys.executable, train, "--recipe", "scratch", *(f"--{field}={value}" for field, value in recipe.items())]
    seconds: dict[str, list[float]] = {"none": [], "none again": [], "refused": [], "silent": []}
    with socket.create_server(("127.0.0.1", 0)) as silent:
        addresses = {"refused": "http://127.0.0.1:9", "silent": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        for number in range(4):
            for name in [*seconds][number:] + [*seconds][:number]:
                told = ["--track.notify=env:HOOK", "--track.notify_accuracy=0.000001"] if name in addresses else []
                run = tmp_path / f"{name}-{number}"
                env = {**os.environ, "HOOK": addresses.get(name, "")}
                subprocess.run([*words, "--run", run, *told], env=env, check=True, capture_output=True, timeout=300)
                rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
                first = next(row["step"] for row in rows if "val/accuracy" in row)  # the message is sent here
                after = [16 / row["images_per_second"] for row in rows if row["step"] > first]
                assert len(after) > 10
                seconds[name].append(statistics.median(after))
    weights = {(run / "model" / "model.safetensors").read_bytes() for run in tmp_path.iterdir() if run.is_dir()}
    assert len(weights) == 1
    ratios = {
        name: sorted(round(b / a, 3) for a, b in zip(seconds["none"], seconds[name], strict=True))
        for name in ("none again", "refused", "silent")
    }
    record(
        "median step with an alert to a dead address, over one without",
        ratios=ratios,
        medians={name: statistics.median(found) for name, found in ratios.items()},
    )
