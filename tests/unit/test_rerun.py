"""Messages say how to resume: by the same command, or by the `sbatch` of a batch job."""

from __future__ import annotations

import ast
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from resnet_cifar.config import rerun
from resnet_cifar.config.rerun import how_to_resume, how_to_start_again

ROOT = Path(__file__).parents[2]
SUBMIT = "sbatch --nodes=2 slurm/train.sh --recipe scratch --run runs/a-71"


@pytest.mark.parametrize(
    ("submit", "words", "resume", "start_again"),
    [
        ("", [], "rerun the same command", "rerun the same command"),
        ("", ["--restart"], "rerun the same command without --restart", "rerun the same command"),
        (SUBMIT, ["--restart"], *2 * (f"run `{SUBMIT}`, unless this job is requeued,",)),
    ],
    ids=["outside a job", "after --restart", "in a job"],
)
def test_a_job_is_resumed_by_its_own_command(
    submit: str, words: list[str], resume: str, start_again: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    if submit:
        monkeypatch.setenv(rerun.SUBMIT, submit)
    else:
        monkeypatch.delenv(rerun.SUBMIT, raising=False)
    assert (how_to_resume(), how_to_start_again()) == (resume, start_again)


def test_one_module_decides_the_words() -> None:
    """Other strings that a user can read come from there; docstrings speak of the command line."""
    for file in sorted((ROOT / "resnet_cifar").rglob("*.py")):
        tree = ast.parse(file.read_text())
        statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in statements]
        said = [text for text in texts if isinstance(text, str) and "rerun the same command" in text]
        assert not said or file.name in ("rerun.py", "synonyms.py"), (file, said)


def test_a_process_that_is_stopped_in_a_job_names_its_command() -> None:
    program = "import os, signal, time\nfrom resnet_cifar.distributed.signals import StopSignals\n"
    program += "StopSignals()\nos.kill(os.getpid(), signal.SIGUSR1)\ntime.sleep(60)"
    command, job = [sys.executable, "-c", program], {rerun.SUBMIT: SUBMIT}
    done = subprocess.run(command, check=False, cwd=ROOT, env=job, capture_output=True, text=True, timeout=60)
    assert done.returncode == 75, done.stderr
    sentence = f"stopped by {signal.SIGUSR1.name} before training began: run `{SUBMIT}`, unless this job is requeued,"
    assert done.stderr == f"{sentence} to start again\n"
