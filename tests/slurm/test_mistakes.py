"""What ends a job of slurm/train.sh for good: at once, with the reason in its log."""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster import Cluster
from jobs import arguments, killed

pytestmark = pytest.mark.proof_only
MINUTE = 60.0


def check_failed(job, sentence: str, code: int = 2, seconds: float = MINUTE) -> None:
    job.wait("FAILED", seconds=seconds)
    assert sentence in job.log, job.log
    assert job.starts == 1
    assert job.exit_code == code
    assert "is not requeued" in job.log


def test_a_missing_data_set_ends_the_job(submit):
    check_failed(
        submit("--nodes=2", words=(*arguments(), "--data.source", "/nowhere")), "error: data.source '/nowhere'"
    )


def test_a_run_folder_that_cannot_be_written_ends_the_job(submit):
    job = submit("--nodes=2", words=(*arguments(), "--run", "/proc/run"))
    check_failed(job, "error: --run /proc/run cannot be written")


def test_a_rank_that_raises_ends_the_job(submit, tmp_path: Path):
    job = submit("--nodes=2", words=arguments(), **killed(1, 5, "raise", tmp_path / "journal"))
    check_failed(job, "error: rank 1 failed at step 4: injected", code=1, seconds=2 * MINUTE)  # imports included
    assert "rank 1 on node2 failed:\n[rank1]: Traceback" in job.log
    assert "ChildFailedError" not in job.log


def test_a_mistake_of_one_node_is_said_by_that_node(submit, project: Path):
    """A cache that one machine cannot have: the others wait for it, and rank 0 has nothing to say."""
    with (project / "slurm/site.sh").open("a") as site:
        site.write('[ "$SLURMD_NODENAME" = node1 ] || export RESNET_CIFAR_CACHE=/proc/cache\n')
    check_failed(
        submit("--nodes=2", words=arguments()), "error: rank 1 on node2: the cache folder /proc/cache cannot be created"
    )


def test_an_environment_without_python_ends_the_job(submit, project: Path):
    with (project / "slurm/site.sh").open("a") as site:
        site.write("site_environment() { PATH=/nowhere; }\n")
    check_failed(submit(words=arguments()), "error: there is no python on node1: say in slurm/site.sh")


def test_a_cancelled_job_stays_cancelled(cluster: Cluster, submit):
    job = submit("--nodes=2", words=arguments())
    job.wait_until_step(5)
    cluster.run("scancel", job.id)
    job.wait("CANCELLED")
    cluster.wait_until_idle()
    assert job.starts == 1
    assert '"state": "interrupted"' in (job.run / "status.json").read_text()
