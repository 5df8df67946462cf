"""What `sbatch slurm/check.sh` makes of what the ranks have seen, and the command with which a job resumes.

tests/slurm runs both on a cluster.
"""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from typing import Any

import pytest

from resnet_cifar import hub_access

ROOT = Path(__file__).parents[2]
FILE = ROOT / "slurm" / "check.py"


@pytest.fixture(scope="module")
def check() -> Any:
    spec = importlib.util.spec_from_file_location("cluster_check", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rank(number: int, **changes: Any) -> dict[str, Any]:
    facts = {
        "rank": number,
        "host": f"node{number}",
        "device": "H100",
        "torch": "2.15",
        "identity": number,
        "ahead": 0.0,
    }
    node = {"room": {"runs": 10**12}, "reached": {hub_access.endpoint(): True, "https://wandb": True}}
    return facts | node | changes


@pytest.mark.parametrize(
    ("changes", "warning", "error"),
    [
        ({}, None, None),
        ({"identity": 0}, None, "ranks 0 and 1 share one GPU: ask with --gpus-per-node"),
        ({"ahead": -3.0}, "the clock of node1 is -3.0 s off rank 0's: fix its NTP", None),
        ({"device": "A100"}, "nodes differ in device (A100; H100): the slowest sets the pace", None),
        ({"room": {"runs": 2**30}}, "node1 has 1.0 GiB left for runs", None),
        ({"reached": {hub_access.endpoint(): False}}, None, None),  # only the first node fetches
    ],
)
def test_what_is_worth_knowing_and_what_stops_training(check, changes, warning, error) -> None:
    everyone = [rank(0), rank(1, **changes)]
    warnings, wrong = check._judge(everyone, everyone)
    assert warnings == ([warning] if warning else [])
    assert wrong == ([error] if error else [])


def test_ways_out_of_the_first_node(check) -> None:
    first = rank(0, reached={hub_access.endpoint(): False, "https://wandb": False})
    warnings, wrong = check._judge([first], [first])
    assert [sentence.rsplit(": ", 1)[1] for sentence in warnings] == [
        "fetch on a login node (python train.py --download-only)",
        "runs stay offline",
    ]
    assert wrong == []


def test_ranks_without_gpus_share_none(check) -> None:
    everyone = [rank(number, device="CPU (1 thread)") for number in range(2)]
    for facts in everyone:
        del facts["identity"]
    assert check._judge(everyone, everyone) == ([], [])


@pytest.mark.parametrize(
    ("site", "said"),
    [
        ({}, "sbatch --partition=gpu --time=01:00:00 slurm/train.sh --seed 1"),
        (
            {"SBATCH_GPUS_PER_NODE": "h100:8", "SBATCH_QOS": "long", "SBATCH_CPUS_PER_GPU": "4"},
            "sbatch --partition=gpu --qos=normal --gpus-per-node=1 --cpus-per-gpu=8 --time=01:00:00 "
            "slurm/train.sh --seed 1",
        ),
    ],
)
def test_the_command_that_resumes_asks_for_what_the_job_had(tmp_path: Path, site: dict[str, str], said: str) -> None:
    """Defaults of the script are left out, unless variables of site.sh, which win over the script's lines, differ."""
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho 'JobId=7 TimeLimit=01:00:00 Features=(null)'\n")
    (tmp_path / "scontrol").chmod(0o755)
    job = {"PARTITION": "gpu", "QOS": "normal", "ID": "7", "NAME": "resnet-cifar", "NUM_NODES": "1"}
    env = {f"SLURM_JOB_{name}": value for name, value in job.items()}
    env |= {"SLURM_GPUS_PER_NODE": "1", "SLURM_CPUS_PER_GPU": "8", "PATH": f"{tmp_path}:/usr/bin:/bin", **site}
    script = "source slurm/job.sh; submission slurm/train.sh --seed 1"
    done = subprocess.run(["bash", "-c", script], env=env, cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout == said
