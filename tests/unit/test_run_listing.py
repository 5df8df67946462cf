"""`resnet-cifar runs` shows what run directories hold; they are written by the run's own code."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from resnet_cifar.checkpoints.run_dir import EARLIER_FILES, RunDir
from resnet_cifar.cli import runs
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.reporting.run_listing import ListedRun, list_runs

ROOT = Path(__file__).parents[2]
ROW = {"epoch": 0.1, "lr": 0.1, "train/loss": 1.0, "train/accuracy": 0.5, "images_per_second": 10.0, "wait_share": 0.0}
Make = Callable[..., RunDir]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """`make("runs/a", "interrupted", step=5)`: a run of 20 updates of 10 images that has reached a state."""
    monkeypatch.chdir(tmp_path)

    def run(path: str, state: str, step: int = 5, **facts: object) -> RunDir:
        made = RunDir(Path(path))
        made.acquire(read_recipe("debug"), {})
        made.status("running", step=0, steps=20)
        made.resume_metrics(0)
        for number in range(1, step + 1):
            made.append_metrics({"step": number, "images": 10 * number, **ROW})
        made.status(state, step=step, steps=20, **facts)
        return made

    return run


def listed(*roots: str) -> dict[str, ListedRun]:
    return {run.run: run for run in list_runs([Path(root) for root in roots or ("runs",)])}


def test_states_progress_and_scores_at_any_depth_the_latest_active_first(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "71")
    make("runs/asked", "interrupted", why="SIGUSR1")
    monkeypatch.delenv("SLURM_JOB_ID")
    done = make("runs/seeds/seed-0", "finished", 20)
    (done.path / "result.json").write_text('{"val/accuracy": 0.75, "test/accuracy": 0.5}')
    make("runs/search/study/trial-3", "failed", why="rank 1 failed at step 4: injected").path.touch()
    (making := make("runs/at-work", "running").checkpoints / "step-00000004").mkdir(parents=True)
    (making / "state.json").write_text('{"best": {"step": 4, "val/accuracy": 0.25}}')
    making.with_name("step-00000005.writing-1234abcd").mkdir()
    for age, name in enumerate(("seeds/seed-0", "at-work", "asked", "search/study/trial-3")):
        for file in (Path("runs") / name).glob("*.json*"):
            os.utime(file, (time.time() - 100 * age,) * 2)
    found = listed()
    assert list(found) == ["runs/seeds/seed-0", "runs/at-work", "runs/asked", "runs/search/study/trial-3"]
    finished, running, interrupted, failed = found.values()
    assert (finished.state, finished.step, finished.val_accuracy, finished.test_accuracy) == ("finished", 20, 0.75, 0.5)
    assert (running.state, running.step, running.steps, running.val_accuracy) == ("running", 5, 20, 0.25)
    assert running.seconds_left == pytest.approx(15)  # updates of 10 images at 10 images a second
    assert (interrupted.state, interrupted.job, interrupted.why) == ("interrupted", "71", "SIGUSR1")
    assert (failed.state, failed.why) == ("failed", "rank 1 failed at step 4: injected")
    assert list(listed("runs/seeds", "runs/seeds/seed-0")) == ["runs/seeds/seed-0"], "each run once"


def test_a_run_that_calls_itself_running_and_is_not(make: Make, tmp_path: Path) -> None:
    """One whose process is killed here; one of another machine that gives no sign; one that has begun to start."""
    program = "import pathlib, sys, time\nfrom resnet_cifar.checkpoints.run_dir import RunDir\n"
    program += "from resnet_cifar.config.loading import read_recipe\nrun = RunDir(pathlib.Path('runs/killed'))\n"
    program += "run.acquire(read_recipe('debug'), {})\nrun.status('running', step=0, steps=20)\n"
    program += "print('begun', flush=True)\nsys.stdin.read()"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", program], env=environment, **pipes) as process:
        assert process.stdout.readline() == "begun\n"
        assert listed()["runs/killed"].state == "running"
        process.kill()
    assert listed()["runs/killed"].state == "killed"

    elsewhere = make("runs/elsewhere", "running").path
    lease = json.loads((elsewhere / "lease.json").read_text())
    (elsewhere / "lease.json").write_text(json.dumps(lease | {"host": "another"}))
    assert listed()["runs/elsewhere"].state == "running"
    for file in elsewhere.iterdir():
        os.utime(file, (time.time() - 1000,) * 2)
    assert listed()["runs/elsewhere"].state == "silent"
    slow = [{"step": step, "images": 10 * step, **ROW, "images_per_second": 0.01} for step in (1, 2, 3)]
    (elsewhere / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in slow))
    os.utime(elsewhere / "metrics.jsonl", (time.time() - 3000,) * 2)
    assert listed()["runs/elsewhere"].state == "running", "its rows are 1,000 seconds apart"

    RunDir(Path("runs/new")).acquire(read_recipe("debug"), {})
    assert listed()["runs/new"].state == "starting"


@pytest.mark.parametrize(
    ("file", "content", "why"),
    [
        ("status.json", "{", "status.json"),
        (
            "status.json",
            '{"state": "running", "time": 1, "step": "many"}',
            "Status: step: Input should be a valid integer",
        ),
        ("status.json", '{"time": 1}', "Status: state: Field required"),
        ("lease.json", "[]", "lease.json"),
        (EARLIER_FILES[0], "{}", "written by an earlier version"),
    ],
)
def test_a_damaged_run_is_listed_with_the_reason(
    make: Make, capsys: pytest.CaptureFixture, file: str, content: str, why: str
) -> None:
    make("runs/good", "interrupted")
    (make("runs/bad", "running").path / file).write_text(content)
    found = listed()
    assert (found["runs/good"].state, found["runs/bad"].state) == ("interrupted", "damaged")
    assert why in found["runs/bad"].why
    runs.main([])
    assert "damaged" in capsys.readouterr().out


def test_damaged_rows_checkpoints_and_foreign_directories_are_passed_over(make: Make) -> None:
    run = make("runs/torn", "running")
    with (run.path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 6, "ima')
    (run.checkpoints / "step-00000004").mkdir(parents=True)
    (run.checkpoints / "step-00000004/state.json").write_text("\0" * 100)
    Path("runs/notes/pictures").mkdir(parents=True)
    Path("runs/notes/recipe.yaml").write_text("my favorite recipe")
    Path("runs/loop").symlink_to("..")
    (torn,) = listed().values()
    assert (torn.state, torn.step, torn.val_accuracy) == ("running", 5, None)


def test_a_thousand_runs_are_read_from_a_few_small_files_without_torch(make: Make) -> None:
    run = make("runs/first/0", "running").path
    with (run / "metrics.jsonl").open("ab") as stream:  # a long run's
        stream.seek(2**24)
        stream.write(b"\n")
    for number in range(1, 1000):
        shutil.copytree(run, run.parent / str(number), copy_function=os.link)
    program = "import json, sys, time\nopened = []\n"
    program += "def note(event, words):\n    if event == 'open' and 'runs/' in str(words[0]): opened.append(words[0])\n"
    program += "from resnet_cifar.cli import runs\nsys.addaudithook(note)\nruns.main(['--json'])\n"
    program += "assert not {'torch', 'timm', 'datasets'} & sys.modules.keys()\nprint(len(opened), file=sys.stderr)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], check=True, env=environment, capture_output=True, text=True)
    assert len(json.loads(done.stdout)) == 1000
    assert int(done.stderr) <= 4000


def test_watch_follows_a_run_on_a_terminal_until_ctrl_c(make: Make) -> None:
    run = make("runs/followed", "running")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "resnet_cifar", "runs", "--watch"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "150", "LINES": "30"}
    with subprocess.Popen(command, env=environment, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE) as process:
        os.close(theirs)

        def read_until(pattern: str) -> None:
            said = ""
            while not re.search(pattern, said):
                said += os.read(ours, 4096).decode()

        read_until(r"runs/followed.*running.*5/20")
        run.status("interrupted", step=5, steps=20, why="SIGTERM")
        read_until(r"runs/followed.*interrupted.*SIGTERM")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stderr.read() == b""
    os.close(ours)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("nowhere",), "nowhere is not a directory: name one that holds runs"),
        (("--json", "."), ""),
        (("--watch", "."), "--watch needs a terminal to draw on"),
        (("--watch", "--json", "."), "--watch draws a list and --json prints one: give one of them"),
    ],
)
def test_mistakes_are_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if sentence:
        with pytest.raises(UserError, match=re.escape(sentence)):
            runs.parse_arguments(list(arguments))
    else:
        assert runs.parse_arguments(list(arguments)).json
