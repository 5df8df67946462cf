"""The dashboard of three real runs, while they go on: one is killed, and resumed by the same command."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SMALL = "--recipe debug --model.name test_resnet --data.image_size 32 --data.limit 100 --batch_size 16 "
SMALL += "--phases.0.epochs 4 --phases.1.epochs 8 --evaluate.every_epochs 1 --track.trackers none"
KILLED = "seeds/seed-1"
RUNS = {"seeds/seed-0": "--seed 0", KILLED: "--seed 1", "other": "--phases.1.lr 0.002"}


def start(words: str, folder: Path) -> subprocess.Popen:
    command = [sys.executable, *words.split()]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def train(name: str, folder: Path) -> subprocess.Popen:
    with (folder / "train.log").open("ab") as log:
        words = [str(ROOT / "train.py"), *SMALL.split(), *RUNS[name].split(), "--run", f"runs/{name}"]
        return subprocess.Popen([sys.executable, *words], cwd=folder, stdout=log, stderr=log)


class Page:
    """What a browser knows: the parts of the page as the events change them."""

    def __init__(self, address: str) -> None:
        connection = http.client.HTTPConnection(address, timeout=600)
        connection.request("GET", "/events")
        self.answer = connection.getresponse()
        self.parts: dict[str, Any] = {}

    def wait(self, reached: Callable[[], Any]) -> None:
        while not self.parts or not reached():
            line = self.answer.readline()
            if line.startswith(b"data: "):
                self.parts |= json.loads(line.removeprefix(b"data: "))

    def run(self, name: str) -> dict[str, Any]:
        found = [part for key, part in self.parts.items() if key.startswith("run:") and key.endswith(f"/{name}")]
        return found[0] if found else {"lines": {}}

    def states(self) -> list[str]:
        return re.findall(r'<span class="state (\w+)">', self.parts["html:overview"])


@pytest.mark.proof_only
def test_three_runs_of_which_one_is_killed_and_resumed(tmp_path: Path) -> None:
    training = {name: train(name, tmp_path) for name in RUNS}
    showing: list[subprocess.Popen] = []
    try:
        while not all((tmp_path / "runs" / name / "metrics.jsonl").is_file() for name in RUNS):
            with contextlib.suppress(subprocess.TimeoutExpired):
                assert training[KILLED].wait(0.5) == 0, (tmp_path / "train.log").read_text()
        serving = start("-m resnet_cifar dashboard --local runs", tmp_path)
        showing.append(serving)
        writing = start("-m resnet_cifar dashboard --local runs --out page.html", tmp_path)
        showing.append(writing)
        address = re.search(r"http://(127\.0\.0\.1:\d+)", serving.stdout.readline())[1]
        assert writing.stdout.readline().startswith("written: page.html, and again until no run goes on")
        page = Page(address)
        page.wait(lambda: any((tmp_path / "runs" / KILLED / "checkpoints").glob("step-*[0-9]")))
        page.wait(lambda: len(page.run(KILLED)["lines"].get("val/accuracy", [])) >= 2)
        training[KILLED].kill()
        training[KILLED].wait()
        page.wait(lambda: "killed" in page.states())
        training[KILLED] = train(KILLED, tmp_path)
        page.wait(lambda: page.states() == ["finished"] * 3 and page.parts["html:predictions"].count("<details") == 3)
        assert [process.wait(600) for process in training.values()] == [0, 0, 0]

        ((step, _, text),) = page.run(KILLED)["stops"]
        assert text == f"killed, resumed from step {step}" and step > 0
        for name in RUNS:
            rows = [json.loads(line) for line in (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()]
            assert [point[0] for point in page.run(name)["lines"]["lr"]] == [row["step"] for row in rows], "one curve"
        (seeds,) = [panel for panel in page.parts["layout"]["panels"] if panel["section"] == "seeds"]
        assert len(seeds["bands"]) == 1 and "2 of 2" in page.parts["html:seeds"]
        assert "phases.1.lr" in page.parts["html:sweep"]

        serving.send_signal(signal.SIGINT)
        assert serving.wait(60) == 0
        assert writing.wait(180) == 0, "a minute after the last run of a directory"
        text = (tmp_path / "page.html").read_text()
        assert '"reload": 0' in text and text.count('<span class="state finished">') == 3
    finally:
        for process in (*training.values(), *showing):
            process.kill()
            process.wait()
