"""What `sbatch slurm/check.sh` makes of what the ranks have seen, the command with which a job resumes, and
the variables that it forgets.

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
JOB = {
    "SLURM_JOB_PARTITION": "gpu",
    "SLURM_JOB_QOS": "normal",
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NAME": "resnet-cifar",
    "SLURM_JOB_NUM_NODES": "1",
    "SLURM_GPUS_PER_NODE": "1",
    "SLURM_CPUS_PER_GPU": "8",
}


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


def sourced(script: str, home: Path, facts: str, **env: str) -> str:
    """What `script` prints after slurm/job.sh, in the job of which SLURM says `facts`."""
    (home / "scontrol").write_text(f"#!/bin/sh\ncat <<'END'\n{facts}\nEND\n")
    (home / "scontrol").chmod(0o755)
    env["PATH"] = f"{home}:/usr/bin:/bin"
    command = ["bash", "-c", f"source slurm/job.sh; {script}"]
    return subprocess.run(command, env=env, cwd=ROOT, check=True, capture_output=True, text=True, timeout=60).stdout


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
    facts = f"JobId=7 TimeLimit=01:00:00 Features=(null)\n   Command={ROOT}/slurm/train.sh --seed 1"
    assert sourced("submission slurm/train.sh --seed 1", tmp_path, facts, **JOB, **site) == said


@pytest.mark.parametrize(
    ("command", "script"),
    [
        (f"{ROOT}/slurm/eval.sh --seed 1", "slurm/eval.sh"),  # as a copy would be
        ("/nowhere/gone.sh", "slurm/train.sh"),
        ("(null)", "slurm/train.sh"),
    ],
)
def test_the_command_that_resumes_names_the_script_that_was_submitted(
    tmp_path: Path, command: str, script: str
) -> None:
    said = sourced("submission slurm/train.sh --seed 1", tmp_path, f"JobId=7\n   Command={command}", **JOB)
    assert said.endswith(f" {script} --seed 1")


@pytest.mark.parametrize(
    ("facts", "kept"),
    [
        (
            "JobId=7 JobName=a\n Requeue=1 Restarts=0 BatchFlag=1\n MinMemoryNode=700M\n CpusPerTres=gres:gpu:8\n "
            "TresPerNode=gres:gpu:2\n",
            "CPUS_PER_GPU GPUS_PER_NODE MEM_PER_NODE",
        ),
        (
            "JobId=6 ArrayJobId=7 ArrayTaskId=0\n Requeue=1 Restarts=0 BatchFlag=1\n\n"
            "JobId=7 ArrayJobId=7 ArrayTaskId=1\n Requeue=1 Restarts=2 BatchFlag=1\n MinMemoryNode=0\n "
            "MemPerTres=gres:gpu:500\n TresPerNode=gres:gpu:2\n",
            "ARRAY_JOB_ID ARRAY_TASK_ID CPUS_PER_TASK GPUS_PER_NODE MEM_PER_GPU RESTART_COUNT",
        ),
        ("", "everything"),
    ],
    ids=["a job", "the last task of an array", "a controller that does not know it"],
)
def test_a_job_forgets_the_variables_of_the_one_that_submitted_it(tmp_path: Path, facts: str, kept: str) -> None:
    names = "ARRAY_JOB_ID ARRAY_TASK_ID CPUS_PER_GPU CPUS_PER_TASK GPUS GPUS_PER_NODE MEM_PER_CPU MEM_PER_GPU "
    names += "MEM_PER_NODE RESTART_COUNT TRES_PER_TASK"
    env = {f"SLURM_{name}": "7" for name in names.split()}
    script = "sleep() { :; }; forget_outer_job; compgen -e SLURM_ | sort"
    left = sourced(script, tmp_path, facts, SLURM_JOB_ID="7", **env).split()
    expected = names if kept == "everything" else kept
    assert left == sorted([f"SLURM_{name}" for name in expected.split()] + ["SLURM_JOB_ID"])


def test_a_canceled_job_says_how_to_resume(tmp_path: Path) -> None:
    """It had saved, and wanted to come back."""
    script = "folder=run starts=/dev/null begun_at=4 STARTS_WITHOUT_PROGRESS=3; (come_again) || echo code $?"
    facts = "JobId=7\n   JobState=CANCELLED Reason=None\n   Requeue=1 Restarts=0 BatchFlag=1"
    said = sourced(script, tmp_path, facts, SLURM_JOB_ID="7", RESNET_CIFAR_SUBMIT="sbatch slurm/train.sh")
    assert said.startswith("== ended by SLURM at step 0, which starts this job again if")
    assert said.endswith("otherwise, to resume: sbatch slurm/train.sh\ncode 1\n")


@pytest.mark.parametrize(
    ("srun", "code", "tried"),
    [
        ("[ $STARTED_PER_NODE -ne 4 ] || exit 78", 0, [1, 2, 4, 6]),  # 76 and the 2 of a user's mistake
        ("exit 78", 2, [1]),
        ("[ $STARTED_PER_NODE -ne 4 ] || exit 77", 1, [1, 2, 4]),
    ],
    ids=["a batch that does not divide over 4", "nothing is measured", "a failure"],
)
def test_scale_skips_a_number_of_processes_that_the_batch_does_not_divide_over(
    tmp_path: Path, srun: str, code: int, tried: list[int]
) -> None:
    (tmp_path / "srun").write_text(f"#!/bin/bash\necho $STARTED_PER_NODE >> {tmp_path}/tried\n{srun}\n")
    (tmp_path / "srun").chmod(0o755)
    env = JOB | {"SLURM_JOB_NODELIST": "node1", "SLURM_GPUS_ON_NODE": "6", "LOCAL_DISK": str(tmp_path)}
    said = sourced("(source slurm/scale.sh) || echo code $?", tmp_path, "node1", **env).splitlines()
    assert (tmp_path / "tried").read_text().split() == list(map(str, tried))
    assert said[-1] == (f"code {code}" if code else "== runs/resnet-cifar-7/index.html")
    assert ("== not measured, for the reason above: 4 processes" in said) == (code == 0)
