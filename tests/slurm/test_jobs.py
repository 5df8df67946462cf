"""`sbatch slurm/train.sh` on a real SLURM of three machines; the long form of the same is test_lives.py and beyond."""

from __future__ import annotations

import re

from jobs import arguments, check_same, tracker_runs


def test_two_nodes_train_one_run(submit, undisturbed):
    job = submit("--nodes=2", words=arguments())
    job.wait()
    check_same(job.run, undisturbed(), tolerance=1e-9)
    assert len(tracker_runs(job.run)) == 1
    assert "node1 node2, 1 process(es) a node" in job.log
    assert len(list(job.project.glob("runs/*"))) == 1


def test_a_preempted_job_comes_back(cluster, submit, undisturbed):
    job = submit(words=arguments())
    job.wait_until_step(5)
    cluster.wait(job.preempt())
    job.wait()
    assert job.starts == 2
    again = f"run `{job.resubmission}`, unless this job is requeued, to resume from step"
    assert re.search(rf"interrupted by SIGTERM at step \d+, and saved: {re.escape(again)}", job.log), job.log
    assert "same command" not in job.log
    assert "resuming at step" in job.log
    check_same(job.run, undisturbed())
    assert len(tracker_runs(job.run)) == 1


def test_a_wrong_recipe_ends_the_job(submit):
    job = submit("--nodes=2", words=("--recipe", "debug", "--optimizer.nmae", "sgd"))
    job.wait("FAILED", seconds=60)
    assert "error: unknown field --optimizer.nmae; did you mean optimizer.name?" in job.log
    assert (job.starts, job.exit_code) == (1, 2)
    assert not list(job.project.glob("runs/*"))
    again = "sbatch --partition=gpu --nodes=2 --cpus-per-gpu=1 slurm/train.sh --recipe debug"
    assert f"When it is fixed: {again} --optimizer.nmae sgd --run runs/resnet-cifar-{job.id}" in job.log
