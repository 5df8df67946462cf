"""The manifests of containers/ say what Kubernetes, Kubeflow and SkyPilot understand, and what train.py takes."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed import run as torchrun

from resnet_cifar.cli import train
from resnet_cifar.distributed.signals import EXIT_RESUBMIT

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "containers"


@pytest.fixture
def manifests() -> dict[str, dict[str, Any]]:
    """The documents of trainjob.yaml by kind."""
    return {made["kind"]: made for made in yaml.safe_load_all((FOLDER / "trainjob.yaml").read_text())}


@pytest.mark.parametrize(
    ("kind", "model"),
    [
        ("PersistentVolumeClaim", "IoK8sApiCoreV1PersistentVolumeClaim"),
        ("TrainingRuntime", "TrainerV1alpha1TrainingRuntime"),
        ("TrainJob", "TrainerV1alpha1TrainJob"),
    ],
)
def test_kubeflows_api_knows_every_field(manifests: dict[str, dict[str, Any]], kind: str, model: str) -> None:
    """Its models, made from the schema of the custom resources, drop a field that they do not know."""
    api = pytest.importorskip("kubeflow_trainer_api.models", reason="kubeflow-trainer-api has the schema")
    assert getattr(api, model).from_dict(manifests[kind]).to_dict() == manifests[kind]


def test_the_parts_of_the_train_job_belong_together(manifests: dict[str, dict[str, Any]]) -> None:
    claim, runtime, job = (manifests[kind] for kind in ("PersistentVolumeClaim", "TrainingRuntime", "TrainJob"))
    assert job["spec"]["runtimeRef"] == {
        "apiGroup": runtime["apiVersion"].partition("/")[0],
        "kind": runtime["kind"],
        "name": runtime["metadata"]["name"],
    }
    (replicated,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    spec = replicated["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert [volume["name"] for volume in pod["volumes"]] == ["storage", "memory"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {"storage", "memory"}
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]

    saved, evicted = spec["podFailurePolicy"]["rules"]
    assert (saved["onExitCodes"]["containerName"], saved["onExitCodes"]["values"]) == (
        container["name"],
        [EXIT_RESUBMIT],
    )
    assert {saved["action"], evicted["action"]} == {"Ignore"}
    assert pod["restartPolicy"] == "Never", "Kubernetes refuses a podFailurePolicy with another one"
    (patience,) = re.findall(r"TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-(\d+)", (FOLDER / "train.sh").read_text())
    assert int(patience) < pod["terminationGracePeriodSeconds"]

    (command,) = job["spec"]["trainer"]["command"]
    assert os.access(ROOT / command, os.X_OK)
    options, _ = train.parse_arguments(job["spec"]["trainer"]["args"])
    assert options.run.startswith("/runs/")
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/runs", "/cache", "/dev/shm"}


def test_skypilots_file_runs_train_py_and_comes_back_after_its_exit_code() -> None:
    task = yaml.safe_load((FOLDER / "skypilot.yaml").read_text())
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [EXIT_RESUBMIT]
    command, *arguments = shlex.split(task["run"].splitlines()[-1])
    assert os.access(ROOT / command, os.X_OK)
    options, _ = train.parse_arguments(arguments)
    assert Path(options.run).parent == Path(*task["file_mounts"])


def test_skypilot_takes_its_file() -> None:
    sky = pytest.importorskip("sky", reason="skypilot has the schema, and too many packages for the tests")
    assert sky.Task.from_yaml(str(FOLDER / "skypilot.yaml")).num_nodes == 2


@pytest.mark.parametrize(
    ("state", "checkpoint", "code"),
    [
        ("lost", "step-00000008", EXIT_RESUBMIT),
        ("lost", "step-00000004", 1),
        ("lost", "step-00000008.writing-ab12", 1),
        ("lost", "step-00000004.damaged", 1),
        ("running", "step-00000008", EXIT_RESUBMIT),  # rank 0, which writes the state, was killed
        ("running", "step-00000004", 1),
        ("interrupted", "step-00000004", EXIT_RESUBMIT),
        ("failed", "step-00000008", 1),
    ],
)
def test_a_run_that_loses_a_rank_is_started_again_if_it_has_saved(
    tmp_path: Path, state: str, checkpoint: str, code: int
) -> None:
    """In place of torchrun, which ends with 1: what a run that resumes from step 4 leaves."""
    left = f"mkdir -p run/checkpoints/{checkpoint}\n{status_as(state)}"
    assert node_ends(tmp_path, python=f"{left}\nexit 1") == code


@pytest.mark.parametrize(
    ("node", "state", "code"),
    [(1, "finished", 0), (1, "interrupted", EXIT_RESUBMIT), (1, "failed", 1), (0, "finished", 1)],
)
def test_other_nodes_wait_for_what_the_first_one_writes(tmp_path: Path, node: int, state: str, code: int) -> None:
    """Where /runs is a cached bucket, status.json says how the run ended only when the second wait is over."""
    late = f"[ -e waited ] && {status_as(state)}\ntouch waited"
    assert node_ends(tmp_path, python=status_as("running"), sleep=late, PET_NODE_RANK=str(node)) == code


def test_a_node_waits_for_others_that_have_no_machine_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun's own quarter of an hour would be a failure, and four of them the end of the TrainJob."""
    node_ends(tmp_path, python='echo "$PET_RDZV_CONF" > waits')
    monkeypatch.setenv("PET_RDZV_CONF", (tmp_path / "waits").read_text().strip())
    config, *_ = torchrun.config_from_args(torchrun.parse_args(["--nnodes", "2", "train.py"]))
    assert int(config.rdzv_configs["timeout"]) >= 24 * 3600


@pytest.mark.parametrize(("nodes", "address"), [("", "127.0.0.1"), ("1:1", "127.0.0.1"), ("2", None)])
def test_one_node_does_not_look_for_its_host_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: str, address: str | None
) -> None:
    """Where it does not resolve, torchrun would wait for it without a word."""
    node_ends(tmp_path, python='echo "$PET_LOCAL_ADDR" > address', PET_NNODES=nodes)
    if given := (tmp_path / "address").read_text().strip():
        monkeypatch.setenv("PET_LOCAL_ADDR", given)
    config, *_ = torchrun.config_from_args(torchrun.parse_args(["--nnodes", nodes or "1", "train.py"]))
    assert config.local_addr == address


def test_the_image_starts_what_hears_docker_stop() -> None:
    """The first process of a container gets SIGTERM alone, and `accelerate launch` dies of it."""
    (line,) = re.findall(r"^CMD (.*)$", (FOLDER / "train.Dockerfile").read_text(), flags=re.MULTILINE)
    command, *arguments = json.loads(line)
    assert command == "containers/train.sh"
    assert train.parse_arguments(arguments)[0].run


def status_as(state: str) -> str:
    """A command."""
    return f'printf \'{{\\n "state": "{state}",\\n "step": 9\\n}}\' > run/status.json'


def node_ends(home: Path, python: str, sleep: str = "exit 1", **env: str) -> int:
    """The exit code of containers/train.sh, with scripts in place of two programs."""
    (home / "run/checkpoints/step-00000004").mkdir(parents=True)
    for name, script in (("python", python), ("sleep", sleep)):
        (home / name).write_text(f"#!/bin/bash\n{script}\n")
        (home / name).chmod(0o755)
    (home / "containers").mkdir()
    script = shutil.copy(FOLDER / "train.sh", home / "containers")  # it works in the folder above its own
    env["PATH"] = f"{home}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(["bash", script, "--run", "run"], env=env, check=False, capture_output=True, timeout=60)
    return done.returncode
