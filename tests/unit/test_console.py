"""reporting/console.py: what is said of speed and time, and where a progress bar is drawn."""

from __future__ import annotations

import io
import json
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from resnet_cifar.checkpoints.run_dir import RunDir
from resnet_cifar.config.schema import Recipe
from resnet_cifar.reporting.console import Screen, duration, speed, time_left, track
from resnet_cifar.training.run_writer import RunWriter


def row(step: int, speed: float = 10.0, **more: float) -> dict[str, Any]:
    return {
        "step": step,
        "epoch": step / 4,
        "images": 32 * step,
        "lr": 0.1,
        "train/loss": 1.0,
        "images_per_second": speed,
        **more,
    }


@pytest.mark.parametrize(
    ("images", "said"),
    [(0.0, ""), (0.004, "0.004 images/s"), (0.34, "0.34 images/s"), (9.6, "9.6 images/s"), (1234.5, "1,234 images/s")],
)
def test_a_speed_is_never_zero(images: float, said: str) -> None:
    assert speed(images) == said


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.0, "<1 s"), (0.6, "1 s"), (99, "99 s"), (100, "2 min"), (6000, "1.7 h")]
)
def test_a_duration_is_in_the_unit_that_fits(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_what_is_left_is_said_once_it_is_known() -> None:
    slow, rest = row(1, 0.001), [row(step) for step in range(2, 12)]
    assert time_left(20, [slow]) == "", "the first row includes warm-up and compilation"
    assert time_left(20, [slow, rest[0]]) == "58 s left"  # 18 steps of 32 images, 10 per second
    assert time_left(20, [slow, *rest[:3]]) == "51 s left"
    assert time_left(20, [slow, *rest]) == "29 s left"
    assert time_left(20, [*rest[:4], row(11, 0.001)]) == "29 s left", "nor does that after an interruption decide"
    assert time_left(11, [slow, *rest]) == "", "nothing is left at the end"
    assert time_left(1, [slow]) == "", "a run of one step"


def test_the_lines_of_a_run(capsys: pytest.CaptureFixture) -> None:
    screen = Screen(shown=True)
    screen.begin(4, 1)  # resumed at step 1
    for each in (row(2, 0.02), row(3, 12.0, mfu=0.4123), row(4, 3.4)):
        screen.row(each)
    assert [line.split("lr 0.1  ")[1] for line in capsys.readouterr().out.splitlines()] == [
        "0.02 images/s",
        "12 images/s  41% MFU  3 s left",
        "3.4 images/s",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_is_drawn_on_a_terminal_and_nothing_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich would take any output for a terminal
    for terminal, shown, drawn in ((Terminal(), True, True), (Terminal(), False, False), (io.StringIO(), True, False)):
        monkeypatch.setattr(sys, "stderr", terminal)
        assert list(track(iter(range(3)), 3, "test split", shown)) == [0, 1, 2]
        assert ("test split" in terminal.getvalue()) == drawn, (terminal, shown)


@pytest.mark.parametrize(
    ("saved", "said"),
    [
        (0, "interrupted by SIGINT before the first checkpoint: rerun the same command to start again"),
        (8, "interrupted by SIGINT at step 8, with nothing new to save: rerun the same command to resume from step 8"),
    ],
)
def test_an_interruption_promises_no_checkpoint_that_is_not_there(
    saved: int, said: str, capsys: pytest.CaptureFixture
) -> None:
    ended: list[str] = []
    writer = SimpleNamespace(done=3, saved=saved, is_stopped=False, screen=Screen(shown=True))
    writer.end = lambda state, why: ended.append(state)
    writer.say_interrupted = partial(RunWriter.say_interrupted, writer)
    RunWriter.leave(writer, "interrupted", "SIGINT")
    assert (capsys.readouterr().out, ended) == (f"{said}\n", ["interrupted"])


def test_a_main_thread_that_goes_on_does_not_replace_the_final_state(tmp_path: Path) -> None:
    """The watchdog's thread ends a run while the first step compiles, and the step then ends before the process."""
    folder = RunDir(tmp_path / "run")
    folder.acquire(Recipe(), {})
    context = SimpleNamespace(is_main=True, device=torch.device("cpu"), size=1)
    writer = RunWriter(
        SimpleNamespace(recipe=Recipe(), steps=10), context, None, folder, Screen(shown=False), SimpleNamespace()
    )
    writer.status("running")
    writer.leave("interrupted", "SIGTERM")
    writer.done = 1
    writer.status("running")
    writer.row(row(1), is_best=False)
    writer.wait()
    status = json.loads((folder.path / "status.json").read_text())
    assert (status["state"], status["step"], status["why"]) == ("interrupted", 0, "SIGTERM")
    assert not (folder.path / "metrics.jsonl").exists()
