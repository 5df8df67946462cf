"""Jobs of the project's scripts, what they leave, and whether an undisturbed run leaves the same."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import safetensors.torch
from cluster import Cluster
from metric_rows import rows_of

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
# 39 steps of a tenth of a second and more; fp64, so that runs on other numbers of processes are comparable.
RECIPE: dict[str, object] = {
    "--recipe": "debug",
    "--track.report": False,
    "--data.limit": 300,
    "--data.image_size": 64,
    "--model.name": "test_resnet",
    "--batch_size": 48,
    "--micro_batch": 8,
    "--precision": "fp64",
    "--phases.0.epochs": 6,
    "--checkpoint.every_steps": 0,
    "--evaluate.every_epochs": 2,
}


def arguments(**changes: object) -> tuple[object, ...]:
    """RECIPE as words of a command line; `phases__1__epochs=9` changes `--phases.1.epochs`."""
    fields = RECIPE | {f"--{name.replace('__', '.')}": value for name, value in changes.items()}
    return tuple(word for pair in fields.items() for word in pair)


def killed(rank: int, update: int, then: str, journal: Path) -> dict[str, str]:
    """The environment in which a rank dies or fails in an update, in every start."""
    journal.touch()
    fault = {"at": "update", "count": update, "then": then, "rank": rank, "restart": 0}
    plan = {"journal": str(journal), "tester": os.getpid(), "faults": [fault]}
    return {"FAULTS": json.dumps(plan), "PYTHONPATH": str(ROOT / "tests/faults/inject")}


class Job:
    """A job of the project's scripts, its log and its run directory."""

    def __init__(self, cluster: Cluster, project: Path, *words: object, **env: str) -> None:
        self.cluster, self.project, self.environment = cluster, project, env
        self.id = cluster.submit(project, *words, **env)

    @property
    def log(self) -> str:
        """Everything its starts have printed."""
        return "".join(file.read_text() for file in self.project.glob(f"logs/*-{self.id}.out"))

    @property
    def run(self) -> Path:
        """The run directory that is named after it."""
        (folder,) = self.project.glob(f"runs/*-{self.id}")
        return folder

    @property
    def starts(self) -> int:
        """How often SLURM has started it."""
        return 1 + int(self.cluster.fact(self.id, "Restarts"))

    @property
    def resubmission(self) -> str:
        """The `sbatch ...` that its log says resumes its run."""
        (line,) = {line for line in self.log.splitlines() if line.startswith("== resumes this run")}
        return line.split(": ", 1)[1]

    @property
    def exit_code(self) -> int:
        """With which its script has ended."""
        return int(self.cluster.fact(self.id, "ExitCode").split(":")[0])

    def submit_again(self) -> str:
        """Pastes `resubmission` into a shell on the login node; the number of the new job."""
        said = self.cluster.run("bash", "-c", self.resubmission, cwd=self.project, **self.environment)
        return said.removeprefix("Submitted batch job ")

    @property
    def step(self) -> int:
        """The last step in metrics.jsonl."""
        found = list(self.project.glob(f"runs/*-{self.id}/metrics.jsonl"))
        lines = found[0].read_text().splitlines() if found else []
        return json.loads(lines[-1])["step"] if lines else 0

    def wait_until_step(self, step: int) -> None:
        """Returns when this many steps have been reported."""
        self.cluster.wait_until(lambda: self.step >= step or self.cluster.state(self.id) == "FAILED", f"step {step}")
        assert self.step >= step, self.log

    def preempt(self, *options: str) -> str:
        """Submits a job that SLURM takes nodes from this one for; its number."""
        options = options or ("--nodes=3", "--gpus-per-node=2")
        return self.cluster.submit(self.project, "--partition=high", *options, "--output=/dev/null", "--wrap=true")

    def wait(self, state: str = "COMPLETED", seconds: float = 300) -> None:
        """Returns when it has ended in `state`."""
        ended = self.cluster.wait(self.id, seconds)
        assert ended == state, f"{ended}\n{self.log}\n{self.cluster.log()}"


def tracker_runs(run: Path) -> set[str]:
    """The ids of the W&B runs whose pieces lie in a run directory."""
    return {piece.name.rsplit("-", 1)[1] for piece in (run / "wandb").glob("offline-run-*")}


def check_same(run: Path, other: Path, tolerance: float = 0.0) -> None:
    """Weights, rows and scores of two finished runs: to the bit, or within `tolerance`."""
    ours, theirs = (safetensors.torch.load_file(folder / "model/model.safetensors") for folder in (run, other))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert (tensor.double() - theirs[name].double()).abs().max() <= tolerance, name
    (run_rows, other_rows) = rows_of(run), rows_of(other)
    assert [row["step"] for row in run_rows] == [row["step"] for row in other_rows]
    for a, b in zip(run_rows, other_rows, strict=True):
        # A row that a save cut in two sums in another order.
        assert a == pytest.approx(b, rel=0, abs=max(tolerance, 1e-12))
    scores = [json.loads((folder / "result.json").read_text()) for folder in (run, other)]
    for values in scores:
        del values["seconds"], values["world_size"], values["weights_sha256"]
    for name in ("checkpoint", "selected_by"):
        assert scores[0].pop(name) == scores[1].pop(name)
    assert scores[0] == pytest.approx(scores[1], rel=0, abs=tolerance)
