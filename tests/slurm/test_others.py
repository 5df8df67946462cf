"""Arrays, evaluation, the check of a cluster, and what one job shares with others."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import Cluster
from jobs import ROOT, arguments, check_same

pytestmark = pytest.mark.proof_only


def test_an_array_in_which_one_task_is_preempted_and_one_fails(cluster: Cluster, submit, project: Path, record):
    """Another task has to save, the last one: SLURM gives it the number of the whole array."""
    lines = ["# six runs", "--optimizer.name nonesuch", "", *(f"--seed {seed}" for seed in range(1, 6))]
    (project / "sweep.txt").write_text("\n".join(lines) + "\n")
    array = submit("--array=0-5%2", script="array.sh", words=("list", "sweep.txt", *arguments()))

    def tasks(state: str) -> set[str]:
        return set(cluster.run("squeue", "-h", "-r", "-t", state, "-j", array.id, "-o", "%K").split())

    cluster.wait_until(lambda: list(project.glob("runs/*_1/metrics.jsonl")), "the first run")
    assert len(tasks("RUNNING")) == 2
    cluster.wait(array.preempt("--nodelist=node1", "--gpus-per-node=1"))
    cluster.wait_until(lambda: list(project.glob("runs/*_5/metrics.jsonl")), "the last run", 240)
    cluster.run("scancel", "--signal=USR1", "--batch", f"{array.id}_5")
    cluster.wait_until(lambda: not tasks("RUNNING,PENDING,COMPLETING"), "the array", 400)
    logs = {task: (project / f"logs/resnet-cifar-array-{array.id}_{task}.out").read_text() for task in range(6)}
    assert tasks("COMPLETED") == {"1", "2", "3", "4", "5"}, logs
    assert tasks("FAILED") == {"0"}
    assert "start 2" in logs[5]
    assert sum("start 2" in log for log in logs.values()) == 2
    assert "error: optimizer.name 'nonesuch'" in logs[0]

    (command,) = {line.split(": ", 1)[1] for line in logs[0].splitlines() if line.startswith("== compare")}
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    table = subprocess.run(
        command, shell=True, check=True, cwd=project, env=environment, capture_output=True, text=True, timeout=60
    ).stdout.splitlines()
    assert table[0].split()[:3] == ["run", "seed", "state"]
    assert [row.split()[1:3] for row in table[1:6]] == [[str(seed), "finished"] for seed in range(1, 6)]
    assert table[6].startswith("val/accuracy: mean 0.") and table[6].endswith(" (5 seeds)")
    record("array", finished=5, failed=1, preempted=1)


def test_an_array_answers_mistakes(submit):
    small = {"words": ("recipes", "debug,demo"), "script": "array.sh"}
    beyond = submit("--array=2", **small)
    cases = {
        beyond: "error: task 2 has nothing to do: the list of recipes holds 2, so submit with --array=0-1",
        submit("--array=0", script="array.sh", words=("seeds", "--run", "x")): "error: --run would put every task",
        submit(
            "--array=0", script="array.sh"
        ): "error: slurm/array.sh takes seeds, recipes NAME,NAME, list FILE or tune",
        submit(**small): "error: slurm/array.sh is for job arrays",
    }
    for job, sentence in cases.items():
        job.wait("FAILED")
        (log,) = job.project.glob(f"logs/*-{job.id}_*.out")
        assert sentence in log.read_text()


def test_two_jobs_on_the_same_nodes_do_not_collide(submit, undisturbed):
    words = arguments()
    jobs = [submit("--nodes=2", words=words), submit("--nodes=2", words=words)]
    for job in jobs:
        job.wait()
        assert "node1 node2" in job.log
        check_same(job.run, undisturbed(2))
    heads = {line.rsplit(":", 1)[1] for job in jobs for line in job.log.splitlines() if line.startswith("== ranks")}
    assert len(heads) == 2


def test_a_run_is_scored_by_a_job(submit, undisturbed):
    run = undisturbed()
    scored = json.loads((run / "eval-test.json").read_text())
    job = submit("--nodes=2", script="eval.sh", words=(str(run), "--split", "validation"))
    job.wait()
    assert "validation split of synthetic" in job.log
    job = submit("--nodes=3", script="eval.sh", words=(str(run),))
    job.wait()
    assert json.loads((run / "eval-test.json").read_text())["accuracy"] == scored["accuracy"]


def test_the_cluster_is_checked(submit):
    job = submit("--nodes=3", "--gpus-per-node=2", script="check.sh", INTERFACE="eth0")
    job.wait()
    assert "ranks meet at 10.77.0.11:" in job.log
    for rank, host in enumerate(["node1", "node1", "node2", "node2", "node3", "node3"]):
        assert any(line.split()[:2] == [str(rank), host] for line in job.log.splitlines())
    assert "proctrack/cgroup" in job.log
    assert "all-reduce   16 MiB over 6 ranks in" in job.log
    assert "which fetches for all, does not reach https://huggingface.co" in job.log


@pytest.mark.parametrize(
    ("interface", "sentence"),
    [
        ("ib7", "error: INTERFACE ib7 of slurm/site.sh has no address on node1"),
        ("lo", "did not meet the other nodes ("),
    ],
)
def test_a_network_that_nodes_do_not_share_is_found(submit, interface: str, sentence: str):
    job = submit("--nodes=2", script="check.sh", INTERFACE=interface)
    job.wait("FAILED")
    assert sentence in job.log


@pytest.mark.parametrize(
    ("kind", "field"), [(("seeds", "--recipe", "debug"), "seed: 1"), (("recipes", "debug,demo"), "batch_size: 64")]
)
def test_an_array_over_seeds_or_recipes(cluster: Cluster, submit, project: Path, kind: tuple, field: str):
    small = ("--model.name", "test_resnet", "--data.limit", 200, "--phases.0.epochs", 1, "--phases.0.warmup_epochs", 0)
    array = submit("--array=0-1", script="array.sh", words=(*kind, *small))
    cluster.wait_until(lambda: cluster.run("squeue", "-h", "-r", "-j", array.id) == "", "the array", 240)
    logs = [(project / f"logs/resnet-cifar-array-{array.id}_{task}.out").read_text() for task in range(2)]
    assert all("evaluated once" in log for log in logs), logs
    assert field in (project / f"runs/resnet-cifar-array-{array.id}_1/recipe.yaml").read_text()
    for tracked in project.glob("runs/*/wandb/*/run-*.wandb"):  # W&B's own variables, stored with the run
        stored = tracked.read_bytes()
        assert re.search(rf"resnet-cifar-array-{array.id}(?!_)".encode(), stored) and kind[0].encode() in stored


def test_images_and_weights_come_once_and_the_ranks_ask_nobody(
    cluster: Cluster, submit, hub_root: Path, tmp_path: Path
):
    """The hub answers on the first node only."""
    serve = "from hub_server import HubServer; import pathlib, sys\n"
    serve += "with HubServer(pathlib.Path(sys.argv[1])) as hub:\n"
    serve += " print(hub.url, flush=True)\n while sys.stdin.read(1): pass\n"
    serve += " print('\\n'.join(hub.requests), flush=True)"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests/hub")}
    server = cluster.popen(
        "node1",
        *(sys.executable, "-c", serve, hub_root),
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    url = server.stdout.readline().strip()
    changes = {"recipe": "finetune", "model__name": "test_resnet.r160_in1k", "data__limit": 0, "phases__0__epochs": 2}
    homes = {"HF_HOME": str(tmp_path / "hf"), "RESNET_CIFAR_CACHE": str(tmp_path / "cache"), "HF_ENDPOINT": url}
    words = (*arguments(**changes), "--phases.0.warmup_epochs", 0, "--model.ghost_batch_size", 8)
    job = submit("--nodes=2", words=words, **homes)
    job.wait()
    requests = server.communicate()[0].splitlines()
    assert sum("parquet" in line and line.startswith("GET") for line in requests) == 2
    assert sum("model.safetensors" in line and line.startswith("GET") for line in requests) == 1
    assert "evaluated once" in job.log


def test_the_environment_can_come_from_the_nodes_own_disks(submit, tmp_path: Path):
    """A small environment that leads to this one, packed and copied to each node, which removes it afterwards."""
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True, timeout=60)
    (packages,) = environment.glob("lib/python*/site-packages")
    lines = [path for path in sys.path if path.endswith("site-packages")]
    lines += ["import sys; print('python of', sys.prefix, file=sys.stderr)"]
    (packages / "site.pth").write_text("\n".join(lines))
    archive, disk = tmp_path / "environment.tar", tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["tar", "-C", environment, "-cf", archive, "."], check=True, timeout=60)
    words = (*arguments(phases__0__epochs=1), "--phases.1.epochs", 0.5)
    job = submit(words=words, ENVIRONMENT_ARCHIVE=str(archive), LOCAL_DISK=str(disk))
    job.wait()
    assert f"python of {disk}/resnet-cifar-{job.id}.0" in job.log
    assert not list(disk.iterdir())


def test_fresh_starts_over_once(cluster: Cluster, submit, project: Path):
    words = (*arguments(), "--run", "runs/named")
    submit(words=words).wait()
    job = submit(words=(*words, "--restart"))
    cluster.wait_until((project / "runs/named.before-1").exists, "the start over")
    cluster.wait_until((project / "runs/named/metrics.jsonl").exists, "the first row")
    cluster.run("scontrol", "requeue", job.id)
    job.wait()
    assert job.starts == 2
    assert not (project / "runs/named.before-2").exists()
    check_same(project / "runs/named", project / "runs/named.before-1")


def test_outside_the_project_a_job_says_where_to_go(cluster: Cluster, project: Path, tmp_path: Path):
    (tmp_path / "logs").mkdir()
    job = cluster.submit(tmp_path, project / "slurm/train.sh")
    assert cluster.wait(job) == "FAILED"
    (log,) = (tmp_path / "logs").iterdir()
    assert "is not the project's folder: cd there, then sbatch slurm/train.sh" in log.read_text()


def test_a_job_measures_how_training_scales_over_nodes(submit, record):
    """Every number of processes is started alike, so the precision that the site's options ask for is that of all."""
    small = {"model.name": "test_resnet", "data.limit": 100, "data.image_size": 32, "micro_batch": 8}
    words = [word for name, value in small.items() for word in (f"--{name}", str(value))]
    options, env = ("--nodes=2", "--gpus-per-node=2"), {"LAUNCH_OPTIONS": "--mixed_precision no"}
    job = submit(*options, script="scale.sh", words=("--recipe", "debug", "--seconds", "0.1", *words), **env)
    job.wait()
    found = json.loads((job.run / "scaling.json").read_text())
    assert {name: world["machines"] for name, world in found["worlds"].items()} == {"1": 1, "2": 1, "4": 2}
    assert {world["precision"] for world in found["worlds"].values()} == {"no"}
    assert found["model"]["machine"]["bandwidth"] > 0 and found["model"]["network"]["bandwidth"] > 0
    assert f"== {job.run.relative_to(job.project)}/index.html" in job.log
    refused = submit(script="scale.sh", words=("--processes", "1,2"))
    refused.wait("FAILED")
    assert "error: --processes is for one machine: here sbatch --nodes and --gpus-per-node say how many" in refused.log
    record("scaling", worlds=len(found["worlds"]), nodes=2)
