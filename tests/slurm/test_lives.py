"""What a job of slurm/train.sh survives by itself: in each case the run is the undisturbed one, to the bit."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster import Cluster
from jobs import Job, arguments, check_same, killed, tracker_runs
from metric_rows import rows_of
from wandb_server import WandbServer

pytestmark = pytest.mark.proof_only


@pytest.mark.parametrize(("nodes", "gpus"), [(1, 2), (3, 2)])
def test_every_shape_trains_the_same_run(submit, undisturbed, record, nodes, gpus):
    job = submit(f"--nodes={nodes}", f"--gpus-per-node={gpus}", words=arguments())
    job.wait()
    check_same(job.run, undisturbed(), tolerance=1e-9)
    assert json.loads((job.run / "result.json").read_text())["world_size"] == nodes * gpus
    assert len(tracker_runs(job.run)) == 1
    assert len(list(job.project.glob("runs/*"))) == 1
    record(f"{nodes} nodes of {gpus}", equal_to_one_process_within=1e-9)


def requeue(cluster: Cluster, job: Job) -> None:
    cluster.run("scontrol", "requeue", job.id)


def signal_steps(cluster: Cluster, job: Job) -> None:
    cluster.run("scancel", "--signal=USR1", job.id)


def preempt(cluster: Cluster, job: Job) -> None:
    cluster.wait(job.preempt())


@pytest.mark.parametrize("disturb", [requeue, signal_steps, preempt])
def test_a_job_that_is_asked_to_stop_saves_and_comes_back(
    cluster: Cluster, submit, undisturbed, record, disturb: Callable[[Cluster, Job], None]
):
    job = submit("--nodes=2", words=arguments())
    job.wait_until_step(5)
    disturb(cluster, job)
    job.wait()
    assert job.starts == 2
    assert job.log.count("interrupted by SIG") == job.log.count("resuming at step") == 1
    check_same(job.run, undisturbed(2))
    assert len(tracker_runs(job.run)) == 1
    record(f"{disturb.__name__}", starts=job.starts, bit_for_bit=True)


def test_the_command_in_the_log_resumes_a_canceled_job(cluster: Cluster, submit, undisturbed, record):
    """With a name, a recipe and sbatch's options that a shell would take apart, and without --restart."""
    words = (*arguments(checkpoint__every_steps=4), "--track.project", "a b's", "--restart")
    job = submit("--nodes=2", "--job-name=my job", "--time=90", "--mem=1G", words=words)
    job.wait_until_step(10)
    cluster.run("scancel", job.id)
    job.wait("CANCELLED")
    assert job.log.count(job.resubmission) >= 3  # at the start, where it stopped, and at the end
    again = job.submit_again()
    assert cluster.wait(again) == "COMPLETED"
    for name in ("JobName", "Partition", "TimeLimit", "NumNodes", "MinMemoryNode", "TresPerNode", "CpusPerTres"):
        assert cluster.fact(again, name) == cluster.fact(job.id, name), name
    (log,) = job.project.glob(f"logs/*-{again}.out")
    assert "resuming at step" in log.read_text()
    check_same(job.run, undisturbed(2, checkpoint__every_steps=4))
    assert len(list(job.project.glob("runs/*"))) == 1
    record("the printed sbatch command after scancel", bit_for_bit=True)


@pytest.mark.parametrize(
    ("moment", "signal"),
    [
        ("== job", ("--signal=USR1", "--batch")),
        ("images are in", ("--signal=USR1",)),
        ("== ranks meet", ("--signal=TERM",)),
    ],
)
def test_a_job_that_is_asked_while_it_starts_comes_back(cluster: Cluster, submit, record, moment: str, signal: tuple):
    job = submit(words=(*arguments(phases__0__epochs=1), "--phases.1.epochs", 0.5))
    cluster.wait_until(lambda: moment in job.log, moment)
    cluster.run("scancel", *signal, job.id)
    job.wait()
    assert job.starts == 2, job.log
    record(f"scancel {' '.join(signal)} at `{moment}`", starts=job.starts)


def test_a_job_saves_ahead_of_its_time_limit(cluster: Cluster, submit, undisturbed, record):
    longer = {"phases__0__epochs": 80, "evaluate__every_epochs": 30}
    job = submit("--nodes=2", "--time=2", "--signal=B:USR1@30", words=arguments(**longer))
    job.wait(seconds=600)
    assert job.starts >= 2
    assert "interrupted by SIGUSR1 at step" in job.log
    assert "TIME LIMIT" not in job.log
    check_same(job.run, undisturbed(2, **longer))
    record("time limit", starts=job.starts, bit_for_bit=True)


@pytest.mark.parametrize("node", ["node1", "node2"])
def test_a_job_survives_the_death_of_a_node(cluster: Cluster, submit, undisturbed, record, node: str):
    often = {"checkpoint__every_steps": 4}
    job = submit("--nodes=2", words=arguments(**often))
    job.wait_until_step(10)
    cluster.crash(node)
    try:
        job.wait()
    finally:
        cluster.boot(node)
    assert job.starts == 2
    assert "resuming at step" in job.log
    check_same(job.run, undisturbed(2, **often))
    record(f"{node} crashed", starts=job.starts, bit_for_bit=True)


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_job_survives_a_network_that_is_gone_for_a_while(cluster: Cluster, submit, undisturbed, record, nodes: int):
    longer = {"phases__0__epochs": 60, "checkpoint__every_steps": 20, "evaluate__every_epochs": 30}
    job = submit(f"--nodes={nodes}", words=arguments(**longer))
    job.wait_until_step(25)
    cluster.cut_off("node1")  # where rank 0 and the batch script go on, and see the same run directory
    try:
        cluster.wait_until(lambda: job.log.count("resuming at step") == 1, "the second start", 240)
    finally:
        cluster.heal("node1")
    job.wait()
    assert job.starts == 2, job.log
    check_same(job.run, undisturbed(nodes, **longer))
    record(f"network of the first of {nodes} nodes cut and healed", starts=job.starts, bit_for_bit=True)


def test_the_curve_of_a_job_with_two_lives_is_one_run(cluster: Cluster, submit, tmp_path: Path):
    job = submit("--nodes=2", words=arguments())
    job.wait_until_step(5)
    cluster.run("scancel", "--signal=USR1", "--batch", job.id)
    job.wait()
    assert job.starts == 2
    (command,) = {line.split(maxsplit=1)[1] for line in job.log.splitlines() if line.startswith("upload ")}
    with WandbServer() as server:
        done = subprocess.run(
            command,
            shell=True,
            check=False,
            cwd=job.project,
            env=os.environ | server.account() | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        (stored,) = copy.deepcopy(server.runs).values()
    steps = [row["step"] for row in stored.history]
    assert steps == [row["step"] for row in rows_of(job.run)]
    assert stored.state == "finished"


def test_a_job_that_loses_ranks_comes_back_while_it_makes_progress(submit, undisturbed, record, tmp_path: Path):
    often = {"checkpoint__every_steps": 4}
    job = submit("--nodes=2", words=arguments(**often), **killed(1, 15, "SIGKILL self", tmp_path / "journal"))
    job.wait(seconds=400)
    assert job.starts == 4  # 39 steps, 12 or so a start
    assert job.log.count("error: rank 1 (last heard of at step") == 3
    check_same(job.run, undisturbed(2, **often))
    record("rank killed in every start", starts=job.starts, bit_for_bit=True)


def test_a_job_that_makes_no_progress_gives_up(submit, record, tmp_path: Path):
    job = submit("--nodes=2", words=arguments(), **killed(1, 2, "SIGKILL self", tmp_path / "journal"))
    job.wait("FAILED", seconds=400)
    assert job.starts == 3
    assert "error: 3 starts of this job went no further than step 0 (STARTS_WITHOUT_PROGRESS" in job.log
    record("no progress", starts=job.starts)
