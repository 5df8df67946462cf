"""Starts of a run in this process, which nobody or a test asks to stop."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState
from metric_rows import rows_of

from resnet_cifar.config.schema import Recipe
from resnet_cifar.config.train_options import TrainOptions
from resnet_cifar.distributed.watchdog import Watchdog
from resnet_cifar.evaluation import predict
from resnet_cifar.training import trainer


class FakeStopSignals:
    """In place of StopSignals, which would handle the signals of this process."""

    def __init__(self) -> None:
        self.ask: Callable[[str], None] = lambda reason: None

    def hand_over(self, answer: Callable[[str], None]) -> None:
        self.ask = answer


def train(options: TrainOptions, recipe: Recipe, stop: FakeStopSignals | None = None) -> None:
    """What train.py does after it has read its words, with small batches of an evaluation, to be stopped between."""
    AcceleratorState._reset_state(True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict, "_FULL", 32)
        trainer.train(recipe, options, stop or FakeStopSignals())


def interrupt(options: TrainOptions, recipe: Recipe, kind: str, number: int) -> dict[str, Any]:
    """The same, asked to stop in `update` NUMBER or in the NUMBER-th batch of `evaluation`; returns status.json."""
    stop, check_stop, batches = FakeStopSignals(), Watchdog.check_stop, itertools.count(1)

    def stopping(self: Watchdog, step: int | None = None) -> None:
        check_stop(self, step)
        where = ("evaluation", next(batches)) if step is None else ("update", step)
        if where == (kind, number):
            stop.ask("SIGTERM")
            with self._changed:
                self._changed.wait_for(lambda: self._stop is not None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Watchdog, "check_stop", stopping)
        with pytest.raises(SystemExit) as ended:
            train(options, recipe, stop)
    assert ended.value.code == 75
    status = json.loads((Path(options.run) / "status.json").read_text())
    assert (status["state"], status["why"]) == ("interrupted", "SIGTERM")
    return status


def assert_same_run(run: str, other: str) -> None:
    """Weights and optimizer to the bit, rows and scores; sums of a row that was cut may be rounded elsewhere."""
    assert_same_weights(run, other)
    ours, theirs = rows_of(run), rows_of(other)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for a, b in zip(ours, theirs, strict=True):
        sums = {"train/loss", "train/accuracy"}
        assert {name: a[name] for name in a.keys() - sums} == {name: b[name] for name in b.keys() - sums}
        assert a == pytest.approx(b, abs=1e-12, rel=0)
    ours, theirs = (json.loads(Path(name, "result.json").read_text()) for name in (run, other))
    assert ours | {"seconds": 0} == theirs | {"seconds": 0}
    assert Path(run, "predictions-test.parquet").read_bytes() == Path(other, "predictions-test.parquet").read_bytes()


def assert_same_weights(run: str, other: str) -> None:
    """The newest checkpoint's files, byte for byte."""
    ours, theirs = (max(Path(name, "checkpoints").iterdir()) for name in (run, other))
    assert ours.name == theirs.name
    ours, theirs = ({file.name: file.read_bytes() for file in each.glob("*.safetensors")} for each in (ours, theirs))
    assert ours.keys() == theirs.keys() >= {"model.safetensors", "optimizer.safetensors"}
    assert [name for name in ours if ours[name] != theirs[name]] == []
