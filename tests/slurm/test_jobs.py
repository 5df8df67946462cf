"""`sbatch slurm/train.sh` on a real SLURM of three machines; the long form of the same is test_lives.py and beyond."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from cluster import Cluster
from jobs import arguments, check_same, tracker_runs


def test_a_preempted_job_of_two_nodes_comes_back(cluster, submit, undisturbed):
    job = submit("--nodes=2", words=arguments())
    job.wait_until_step(5)
    cluster.wait(job.preempt())
    job.wait()
    assert job.starts == 2
    assert "node1 node2, 1 process(es) a node" in job.log
    again = f"run `{job.resubmission}`, unless this job is requeued, to resume from step"
    assert re.search(rf"interrupted by SIGTERM at step \d+, and saved: {re.escape(again)}", job.log), job.log
    assert "same command" not in job.log
    assert "resuming at step" in job.log
    check_same(job.run, undisturbed(2))
    assert len(tracker_runs(job.run)) == 1
    assert len(list(job.project.glob("runs/*"))) == 1


def test_a_wrong_recipe_ends_the_job(submit):
    job = submit("--nodes=2", words=("--recipe", "debug", "--optimizer.nmae", "sgd"))
    job.wait("FAILED", seconds=60)
    assert "error: unknown field --optimizer.nmae; did you mean optimizer.name?" in job.log
    assert (job.starts, job.exit_code) == (1, 2)
    assert not list(job.project.glob("runs/*"))
    again = "sbatch --partition=gpu --nodes=2 --cpus-per-gpu=1 slurm/train.sh --recipe debug"
    assert f"When it is fixed: {again} --optimizer.nmae sgd --run runs/resnet-cifar-{job.id}" in job.log


def test_a_job_that_another_job_submits_is_its_own(submit, project: Path):
    """SLURM passes on the variables of the outer one: a task of an array, at its third start, with other memory."""
    outer = {"ARRAY_JOB_ID": 1, "ARRAY_TASK_ID": 3, "RESTART_COUNT": 2, "MEM_PER_CPU": 100, "MEM_PER_NODE": 1000}
    shutil.copy(project / "slurm/train.sh", project / "slurm/mine.sh")
    words = ("--recipe", "debug", "--optimizer.nmae", "sgd")
    job = submit(script="mine.sh", words=words, **{f"SLURM_{name}": str(value) for name, value in outer.items()})
    job.wait("FAILED", seconds=60)
    assert f"== job {job.id} (resnet-cifar), start 1: node1" in job.log
    assert "error: unknown field --optimizer.nmae" in job.log  # so srun has started a process
    again = f"{' '.join(words)} --run runs/resnet-cifar-{job.id}"
    assert job.resubmission == f"sbatch --partition=gpu --cpus-per-gpu=1 slurm/mine.sh {again}"


def test_a_wrong_recipe_is_not_submitted_and_a_right_one_is(cluster: Cluster, project: Path):
    """`slurm/submit.sh` takes the place of `sbatch`; tests/unit/test_preflight.py has what it finds."""
    environment = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    options = ("--hold", "--nodes=3", "--gpus-per-node=2", "--cpus-per-gpu=1", "slurm/train.sh", *arguments())

    def submit(*words: object) -> subprocess.CompletedProcess[str]:
        return cluster.attempt("bash", "slurm/submit.sh", *words, cwd=project, **environment)

    for words, sentence in (
        ((*options, "--optimizer.nmae", "sgd"), "error: unknown field --optimizer.nmae; did you mean optimizer.name?"),
        (("--hold", "--nodes=2"), "error: no script is named: slurm/submit.sh [OPTIONS OF sbatch] slurm/train.sh"),
    ):
        refused = submit(*words)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
        assert refused.stderr.startswith(sentence)
    assert cluster.run("squeue", "-h") == ""

    accepted = submit(*options)
    assert "the recipe is valid for 6 processes (cuda), 8 of the 48 images of a batch each" in accepted.stdout
    job = accepted.stdout.split()[-1]
    assert (cluster.state(job), cluster.fact(job, "NumNodes")) == ("PENDING", "3-3"), accepted.stderr
    cluster.run("scancel", job)

    too_large = cluster.attempt("sbatch", "--gpus-per-node=3", "slurm/train.sh", cwd=project)
    assert "Requested node configuration is not available" in too_large.stderr
