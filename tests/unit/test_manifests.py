"""The manifests of containers/ say what Kubernetes, Kubeflow and SkyPilot understand, and what train.py takes."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

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
    [("lost", 8, EXIT_RESUBMIT), ("lost", 4, 1), ("interrupted", 4, EXIT_RESUBMIT), ("failed", 8, 1)],
)
def test_a_run_that_loses_a_rank_is_started_again_if_it_has_saved(
    tmp_path: Path, state: str, checkpoint: int, code: int
) -> None:
    """In place of torchrun, which ends with 1: what a run that resumes from step 4 leaves."""
    (tmp_path / "run/checkpoints/step-00000004").mkdir(parents=True)
    program = tmp_path / "python"
    status = f'{{\n "state": "{state}",\n "step": 9\n}}'
    program.write_text(
        f"#!/bin/bash\nmkdir -p run/checkpoints/step-0000000{checkpoint}\necho '{status}' > run/status.json\nexit 1\n"
    )
    program.chmod(0o755)
    (tmp_path / "containers").mkdir()
    script = shutil.copy(FOLDER / "train.sh", tmp_path / "containers")  # it works in the folder above its own
    env = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", script, "--run", "run"], env=env, check=False, capture_output=True, timeout=60)
    assert done.returncode == code, done.stderr
