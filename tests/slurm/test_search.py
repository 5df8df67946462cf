"""A search whose trials the tasks of an array share: whatever happens to them, it ends as the undisturbed one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import psutil
import pytest
from cluster import Cluster
from jobs import ROOT, Job, arguments, check_same

pytestmark = pytest.mark.proof_only
TRIALS = 8
WORDS = (
    *("debug", "--trials", TRIALS, "--prune", 2, "--phases.0.lr", "1e-3..1e-1", "--optimizer.name", "sgd,adamw"),
    *arguments(checkpoint__every_steps=4)[2:],
)


class Search:
    """The search of an array: who trains which trial, and what its tasks have printed."""

    def __init__(self, array: Job, home: Path) -> None:
        self.array, self.cluster, self.home = array, array.cluster, home

    @property
    def log(self) -> str:
        return "".join(file.read_text() for file in sorted(self.array.project.glob(f"logs/*-{self.array.id}_*.out")))

    @property
    def study(self) -> dict:
        return json.loads((self.home / "study.json").read_text())

    def running(self) -> dict[str, str]:
        """Task -> node."""
        listed = self.cluster.run("squeue", "-h", "-r", "-t", "RUNNING", "-j", self.array.id, "-o", "%K %N")
        return dict(line.split() for line in listed.splitlines())

    def training(self, step: int) -> tuple[str, int] | None:
        """The node and the process of a trial that trains, with at least this many steps behind it and some ahead."""
        for file in sorted(self.home.glob("trial-*/metrics.jsonl")):
            lease, status = (json.loads((file.parent / name).read_text()) for name in ("lease.json", "status.json"))
            rows = file.read_text().split("\n")[:-1] if status["state"] == "running" else []  # the last may be partial
            reached = json.loads(rows[-1])["step"] if rows else 0
            if step <= reached < status["steps"] - 8 and psutil.pid_exists(lease["pid"]):
                return lease["host"], lease["pid"]
        return None

    def wait_for_training(self, step: int) -> tuple[str, int]:
        """Returns when a trial has reached this step; its node and process."""
        found: list[tuple[str, int]] = []
        self.cluster.wait_until(
            lambda: found.append(self.training(step)) or found[-1] is not None,
            f"step {step} of a trial\n{self.log}",
            200,
        )
        return found[-1]

    def task_on(self, node: str) -> str:
        """The number of a task on the node, as scontrol takes it."""
        task = next(task for task, place in self.running().items() if place == node)
        return f"{self.array.id}_{task}"

    def wait_until_over(self) -> None:
        """Returns when no task runs or will."""
        listed = ("squeue", "-h", "-r", "-t", "RUNNING,PENDING,COMPLETING", "-j", self.array.id)
        self.cluster.wait_until(lambda: self.cluster.run(*listed) == "", f"the end of the search\n{self.log}", 600)


@pytest.fixture
def search(submit, project: Path) -> Search:
    """Four tasks, two at a time."""
    array = submit("--array=0-3%2", script="array.sh", words=("tune", *WORDS))
    return Search(array, project / f"runs/resnet-cifar-array-{array.id}")


def tune(*words: object, cwd: Path) -> None:
    command = [sys.executable, "-m", "resnet_cifar", "tune", *map(str, words)]
    done = subprocess.run(command, check=False, cwd=cwd, env=os.environ, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_search_ends_as_the_undisturbed_one(cluster: Cluster, search: Search, record, tmp_path: Path):
    happened: Counter[str] = Counter()

    def requeue(node: str) -> None:
        cluster.run("scontrol", "requeue", search.task_on(node))
        happened["scontrol requeue"] += 1

    cluster.wait_until(lambda: "images are in" in search.log, "the images")
    requeue(next(iter(search.running().values())))  # before its first trial
    node, _ = search.wait_for_training(5)
    requeue(node)
    node, _ = search.wait_for_training(8)
    cluster.wait(search.array.preempt(f"--nodelist={node}", "--gpus-per-node=2"))
    happened["preemption"] += 1
    node, _ = search.wait_for_training(12)
    cluster.run("scancel", "--signal=USR1", "--batch", search.task_on(node))
    happened["scancel --signal=USR1 --batch"] += 1
    _, process = search.wait_for_training(10)
    os.kill(process, signal.SIGKILL)  # as the kernel does when memory runs out: the task itself resumes the trial
    happened["SIGKILL of train.py"] += 1
    node, _ = search.wait_for_training(10)
    cluster.crash(node)
    happened["crash of a node"] += 1
    try:
        cluster.wait_until(lambda: node not in search.running().values(), "the loss of the node")
    finally:
        cluster.boot(node)
    ended = len(re.findall(r"^== trial \d+ \w", search.log, re.MULTILINE))
    cluster.wait_until(lambda: len(re.findall(r"^== trial \d+ \w", search.log, re.MULTILINE)) > ended, "a trial's end")
    requeue(next(iter(search.running().values())))  # between two trials, or early in one
    search.wait_until_over()
    states = cluster.run("squeue", "-h", "-r", "-t", "all", "-j", search.array.id, "-o", "%T").split()
    assert states == ["COMPLETED"] * 4, search.log
    starts = search.log.count("== job") - 4
    assert starts >= 5, "preempted and requeued"
    assert search.log.count("resuming at step") == 0, "that is in the logs of the trials"
    resumed = sum(file.read_text().count("resuming at step") for file in search.home.glob("trial-*.log"))

    reference = tmp_path / "reference"
    tune(*WORDS, "--parallel", 2, "--run", reference, cwd=ROOT)
    undisturbed = json.loads((reference / "study.json").read_text())
    assert search.study == undisturbed
    assert search.study["parallel"] == 2
    finished = [number for number, trial in enumerate(undisturbed["trials"]) if trial["state"] == "finished"]
    for number in finished:
        check_same(search.home / f"trial-{number:03d}", reference / f"trial-{number:03d}")
    assert (search.home / "index.html").is_file()
    record(
        "search",
        trials=TRIALS,
        finished=len(finished),
        tasks=4,
        at_once=2,
        disturbances=dict(happened),
        requeues=starts,
        resumed_inside_a_trial=resumed,
        bit_for_bit=True,
    )


def test_a_canceled_search_is_resumed_by_the_printed_command_on_all_gpus_of_a_task(
    cluster: Cluster, submit, project: Path, tmp_path: Path
):
    """One task of two GPUs, canceled inside its first trial."""
    words = ("tune", *WORDS, "--trials", 2)
    array = submit("--array=0", "--gpus-per-node=2", script="array.sh", words=words)
    search = Search(array, project / f"runs/resnet-cifar-array-{array.id}")
    search.wait_for_training(5)
    cluster.run("scancel", array.id)
    search.wait_until_over()
    assert "interrupted by SIGTERM at step" in (search.home / "trial-000.log").read_text()
    (line,) = {line for line in search.log.splitlines() if line.startswith("== resumes this search")}
    said = cluster.run("bash", "-c", line.split(": ", 1)[1], cwd=project, **array.environment)
    search.array.id = said.removeprefix("Submitted batch job ")
    search.wait_until_over()
    assert [trial["state"] for trial in search.study["trials"]] == ["finished"] * 2, search.log
    assert search.study["parallel"] == 1
    assert "resuming at step" in (search.home / "trial-000.log").read_text()
    assert json.loads((search.home / "trial-000/result.json").read_text())["world_size"] == 2


def test_an_array_of_a_search_answers_mistakes(submit):
    cases = {
        submit("--array=0", "--nodes=2", script="array.sh", words=("tune", *WORDS)): "error: --nodes=2 is too many",
        submit("--array=0", script="array.sh", words=("tune", "debug", "--launch", "x")): "error: --launch is set by",
        submit("--array=0", script="array.sh", words=("tune", "debug")): "error: tune needs a range",
    }
    for job, sentence in cases.items():
        job.wait("FAILED")
        (log,) = job.project.glob(f"logs/*-{job.id}_*.out")
        assert sentence in log.read_text()
