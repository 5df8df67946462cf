"""The images of containers/ are built and used where a builder is at hand: buildah, or docker with its engine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# A base image for builders that reach no registry, such as one imported from debootstrap with python3-venv.
BASE = os.environ.get("CONTAINER_BASE", "python:3.12-slim-bookworm")
ANOTHER_USER = "1234"  # whom the images do not know
pytestmark = pytest.mark.proof_only


def run(*words: str | Path) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run([*map(str, words)], check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def inside() -> Callable[..., list[str]]:
    """`inside(NAME, VOLUMES, *WORDS)`: the command that runs WORDS in a container of containers/NAME.Dockerfile."""
    builders = [name for name in ("buildah", "docker") if shutil.which(name)]
    alive = [name for name in builders if subprocess.run([name, "info"], check=False, capture_output=True).returncode == 0]
    if not alive:
        pytest.skip("there is neither buildah nor a running docker")
    for name in ("train", "serve"):
        words = ("--build-arg", f"BASE={BASE}", "--file", f"containers/{name}.Dockerfile")
        run(alive[0], "build", *words, "--tag", f"resnet-cifar-test:{name}", ".")

    def command(name: str, volumes: dict[Path, str], *words: str) -> list[str]:
        options = [word for outer, inner in volumes.items() for word in ("--volume", f"{outer}:{inner}")]
        options += ["--user", ANOTHER_USER]
        if alive[0] == "docker":
            return ["docker", "run", "--rm", "--init", "--network", "host", *options, "--entrypoint", "", f"resnet-cifar-test:{name}", *words]
        container = run("buildah", "from", f"localhost/resnet-cifar-test:{name}").strip()
        return ["buildah", "run", *options, container, "--", *words]

    return command


def test_a_run_is_trained_exported_and_served_in_containers(inside: Callable[..., list[str]], tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    words = ("--recipe", "debug", "--run", "runs/mine", "--track.trackers", "none")
    run(*inside("train", {tmp_path: "/app/runs"}, "accelerate", "launch", "train.py", *words))
    assert json.loads((tmp_path / "mine" / "result.json").read_text())["test"]["images"] == 200
    run(*inside("train", {tmp_path: "/app/runs"}, "resnet-cifar", "export", "runs/mine", "--to", "onnx"))
