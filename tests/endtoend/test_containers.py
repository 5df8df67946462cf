"""The images of containers/ are built and used where a builder is at hand: buildah, or docker with its engine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
import sklearn.datasets

ROOT = Path(__file__).parents[2]
# A base image for builders that reach no registry, such as one imported from debootstrap with python3-venv.
BASE = os.environ.get("CONTAINER_BASE", "python:3.12-slim-bookworm")
USER = "1234"  # whom the images do not know
pytestmark = pytest.mark.proof_only


def run(*words: str | Path) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run([*map(str, words)], check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def is_ready(builder: str) -> bool:
    return (
        bool(shutil.which(builder))
        and not subprocess.run([builder, "info"], check=False, capture_output=True).returncode
    )


@pytest.fixture(scope="module")
def inside() -> Callable[..., list[str]]:
    """`inside(NAME, VOLUMES, *WORDS)`: the command that runs WORDS in a container of containers/NAME.Dockerfile."""
    builder = next(filter(is_ready, ("buildah", "docker")), None)
    if builder is None:
        pytest.skip("there is neither buildah nor a running docker")
    for name in ("train", "serve"):
        words = ("--build-arg", f"BASE={BASE}", "--file", f"containers/{name}.Dockerfile")
        run(builder, "build", *words, "--tag", f"resnet-cifar-test:{name}", ".")

    def command(name: str, volume: str, *words: str) -> list[str]:
        options = ("--user", USER, "--volume", volume, "--network", "host")
        image = f"localhost/resnet-cifar-test:{name}"
        if builder == "buildah":
            return ["buildah", "run", *options, run("buildah", "from", image).strip(), "--", *words]
        image = image.removeprefix("localhost/")
        return ["docker", "run", "--rm", "--init", "--entrypoint", "", *options, image, *words]

    return command


def test_a_run_is_trained_exported_and_served_in_containers(inside: Callable[..., list[str]], tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    runs, words = f"{tmp_path}:/app/runs", ("--recipe", "debug", "--run", "runs/mine", "--track.trackers", "none")
    run(*inside("train", runs, "containers/train.sh", *words))
    assert "test/accuracy" in json.loads((tmp_path / "mine" / "result.json").read_text())
    run(*inside("train", runs, "resnet-cifar", "export", "runs/mine", "--to", "onnx"))
    serve = ("resnet-cifar", "serve", "/model", "--host", "0.0.0.0", "--port", "0")
    with subprocess.Popen(
        inside("serve", f"{tmp_path}/mine/export:/model", *serve), stdout=subprocess.PIPE, text=True
    ) as service:
        address = next(word for line in service.stdout for word in line.split() if word.startswith("http://"))
        photograph = (Path(sklearn.datasets.__file__).parent / "images" / "flower.jpg").read_bytes()
        request = urllib.request.Request(f"{address}/predict", photograph, {"Content-Type": "image/jpeg"})
        try:
            with urllib.request.urlopen(request) as answer:
                (found,) = json.load(answer)["images"]
        finally:
            service.send_signal(signal.SIGTERM)
    assert found["label"] in found["probabilities"] and len(found["probabilities"]) == 10
