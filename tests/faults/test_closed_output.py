"""Nobody reads any more what a run prints: a closed terminal, a `| tee` that died. The run goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from faulty import RECIPE, ROOT, TRY_AGAIN


def read_until(text: str, folder: Path) -> subprocess.Popen:
    """A start whose output is closed after the first line that begins with `text`."""
    rare = {"--checkpoint.every_steps": 0, "--evaluate.every_epochs": 20}  # a long run, and little but steps in it
    recipe = {**RECIPE, **rare, "--phases.0.epochs": 60, "--track.trackers": "none", "--run": "RUN"}
    words = [str(word) for pair in recipe.items() for word in pair]
    command = [sys.executable, str(ROOT / "train.py"), *words]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    line = "\n"
    while not line.startswith(text):
        line = process.stdout.readline()
        assert line, "it ended before"
    process.stdout.close()
    return process


def test_a_run_that_nobody_reads_goes_on_and_hears_signals(tmp_path: Path) -> None:
    process = read_until("step ", tmp_path)
    process.send_signal(signal.SIGHUP)
    assert process.wait(120) == TRY_AGAIN
    status = json.loads((tmp_path / "RUN" / "status.json").read_text())
    assert (status["state"], status["why"]) == ("interrupted", "SIGHUP")
    assert 0 < status["step"] < status["steps"]

    read_until("resuming at step ", tmp_path).wait(120)
    rows = [json.loads(line)["step"] for line in (tmp_path / "RUN" / "metrics.jsonl").read_text().splitlines()]
    assert rows == list(range(1, status["steps"] + 1)), "a row for every step, each once"
    assert json.loads((tmp_path / "RUN" / "status.json").read_text())["state"] == "finished"
