"""A search whose trials the tasks of an array share: whatever happens to them, it ends as the undisturbed one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from cluster import Cluster
from jobs import ROOT, Job, arguments, check_same

pytestmark = pytest.mark.proof_only
TRIALS = 6
WORDS = (
    *("debug", "--trials", TRIALS, "--prune", 2, "--phases.0.lr", "1e-3..1e-1", "--optimizer.name", "sgd,adamw"),
    *arguments(checkpoint__every_steps=4, track__trackers="none")[2:],
)


@dataclass(frozen=True)
class Training:
    """A trial under way: the task (ARRAY_TASK), its node, the process, the run directory and its attempt."""

    task: str
    node: str
    process: int
    run: Path
    attempt: int


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

    def tasks(self) -> dict[str, str]:
        """Job -> ARRAY_TASK of the tasks that run."""
        listed = self.cluster.run("squeue", "-h", "-r", "-t", "RUNNING", "-j", self.array.id, "-o", "%A %K")
        return {job: f"{self.array.id}_{task}" for job, task in map(str.split, listed.splitlines())}

    def training(self, step: int) -> Training | None:
        """A trial that trains, with at least this many steps behind it and some ahead."""
        tasks = self.tasks()
        for file in sorted(self.home.glob("trial-*/metrics.jsonl")):
            lease, status = (json.loads((file.parent / name).read_text()) for name in ("lease.json", "status.json"))
            rows = file.read_text().split("\n")[:-1] if status["state"] == "running" else []  # the last may be partial
            reached, job = json.loads(rows[-1])["step"] if rows else 0, status["job"].split(".")[0]
            if step <= reached < status["steps"] - 8 and job in tasks and psutil.pid_exists(lease["pid"]):
                return Training(tasks[job], lease["host"], lease["pid"], file.parent, lease["attempt"])
        return None

    def wait_for_training(self, step: int) -> Training:
        """Returns when a trial has reached this step."""
        found: list[Training | None] = []
        self.cluster.wait_until(
            lambda: found.append(self.training(step)) or found[-1] is not None,
            f"step {step} of a trial\n{self.log}",
            300,
        )
        return found[-1]

    def restarts(self, task: str) -> int:
        """How often SLURM has requeued a task."""
        return int(self.cluster.fact(task, "Restarts"))

    def wait_until_over(self) -> None:
        """Returns when no task runs or will."""
        listed = ("squeue", "-h", "-r", "-t", "RUNNING,PENDING,COMPLETING", "-j", self.array.id)
        self.cluster.wait_until(lambda: self.cluster.run(*listed) == "", f"the end of the search\n{self.log}", 1500)


@pytest.fixture
def search(submit, project: Path) -> Search:
    """Four tasks, two at a time."""
    array = submit("--array=0-3%2", script="array.sh", words=("tune", *WORDS))
    return Search(array, project / f"runs/resnet-cifar-array-{array.id}")


def tune(*words: object, cwd: Path) -> None:
    command = [sys.executable, "-m", "resnet_cifar", "tune", *map(str, words)]
    done = subprocess.run(command, check=False, cwd=cwd, env=os.environ, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_search_ends_as_the_undisturbed_one(cluster: Cluster, search: Search, record, tmp_path: Path):
    happened: Counter[str] = Counter()

    def disturb(task: str, how: str, act: Callable[[], object]) -> None:
        before = search.restarts(task)
        act()
        cluster.wait_until(lambda: search.restarts(task) > before, f"{how} of {task}\n{search.log}", 400)
        happened[how] += 1

    def requeue(task: str, moment: str) -> None:
        disturb(task, f"scontrol requeue {moment}", lambda: cluster.run("scontrol", "requeue", task))

    def preempt(found: Training) -> None:
        options = (f"--nodelist={found.node}", "--gpus-per-node=2")
        disturb(found.task, "preemption inside a trial", lambda: cluster.wait(search.array.preempt(*options)))

    cluster.wait_until(lambda: "images are in" in search.log, "the images", 300)
    requeue(next(iter(search.tasks().values())), "before the first trial")
    requeue(search.wait_for_training(5).task, "inside a trial")
    preempt(search.wait_for_training(5))
    task = search.wait_for_training(8).task
    signaled = ("scancel", "--signal=USR1", "--batch", task)
    disturb(task, "scancel --signal=USR1 --batch inside a trial", lambda: cluster.run(*signaled))
    assert "of all trials, and coming again" in search.log
    killed = search.wait_for_training(8)
    os.kill(killed.process, signal.SIGKILL)  # as the kernel does when memory runs out: the task resumes the trial
    lease = killed.run / "lease.json"
    cluster.wait_until(lambda: json.loads(lease.read_text())["attempt"] > killed.attempt, "the next attempt", 400)
    happened["SIGKILL of train.py"] += 1
    lost = search.wait_for_training(5)
    try:
        disturb(lost.task, "crash of a node", lambda: cluster.crash(lost.node))
    finally:
        cluster.boot(lost.node)
    ended = re.compile(r"^== trial \d+ [a-z]", re.MULTILINE)
    before = len(ended.findall(search.log))
    cluster.wait_until(lambda: len(ended.findall(search.log)) > before, "the end of a trial", 600)
    requeue(next(iter(search.tasks().values())), "at the end of a trial")
    preempt(search.wait_for_training(3))
    search.wait_until_over()
    states = cluster.run("squeue", "-h", "-r", "-t", "all", "-j", search.array.id, "-o", "%T").split()
    assert states == ["COMPLETED"] * 4, search.log
    restarts = sum(search.restarts(f"{search.array.id}_{task}") for task in range(4))
    assert restarts >= sum(happened.values()) - 1, "all but that of the killed train.py"
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
        restarts=restarts,
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
