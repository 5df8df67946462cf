"""A tiny exported model, and `resnet-cifar serve` as a process of its own on a free port of 127.0.0.1."""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import requests
import torch
from accelerate.state import AcceleratorState

from resnet_cifar.cli import export_files
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.data.preprocess import Preprocess
from resnet_cifar.data.sources.image_io import Decoding
from resnet_cifar.distributed.context import DistributedContext
from resnet_cifar.evaluation import loaded_model, model_location
from resnet_cifar.models.export import export_model
from resnet_cifar.models.factory import create_model, normalization

CLASSES = ("<i>cat</i>", "dog", "frog & co", "truck")
TIMEOUT = 60  # seconds for an answer that is on its way


def write_model(folder: Path, onnx: bool = True) -> Path:
    """FOLDER/model in timm's format, of random weights whose predictions differ, and FOLDER/export/model.onnx."""
    torch.manual_seed(0)
    recipe = read_recipe("debug", {"model.name": "test_resnet", "data.image_size": "32", "precision": "no"})
    model = create_model(recipe, len(CLASSES), pretrained=False)
    with torch.no_grad():
        model.get_classifier().weight.mul_(30)
    preprocess = Preprocess(recipe.data, *map(torch.tensor, normalization(model, recipe)), Decoding((40, 48)))
    facts = {"preprocess": preprocess.facts, "temperature": 1.7, "fingerprint": "f00d"}
    export_model(model, folder / "model", recipe, CLASSES, model.state_dict(), preprocess.timm_config, facts)
    if onnx:
        target = model_location.find_target(folder / "model")
        AcceleratorState._reset_state(True)
        loaded = loaded_model.load_model(target, model_location.recipe(target), DistributedContext("no", cpu=True))
        AcceleratorState._reset_state(True)
        (folder / "export").mkdir()
        export_files._write({"onnx"}, loaded, target, folder / "export", iter(()))
    return folder


class Serving:
    """The process, which has said that it listens; interrupted at the end of the context, if it still runs."""

    def __init__(self, target: Path, *options: str) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        command = [sys.executable, "-m", "resnet_cifar", "serve", str(target), "--port", "0", *options]
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        self.said: list[str] = []
        for line in self.process.stdout:
            self.said.append(line.rstrip())
            if found := re.search(r"listening on (http://\S+)", line):
                self.url = found[1]
                return
        raise AssertionError(f"it ended with {self.process.wait()}: {self.errors()}")

    def __enter__(self) -> Serving:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        self.process.wait(TIMEOUT)
        self.process.stdout.close()
        self._errors.close()

    def errors(self) -> str:
        """What it has written to standard error so far."""
        self._errors.seek(0)
        return self._errors.read()

    def post(self, **words: Any) -> requests.Response:
        """The answer to a POST of /predict; `words` as of `requests.post`."""
        return requests.post(f"{self.url}/predict", timeout=TIMEOUT, **words)

    def metric(self, name: str) -> float:
        """The value of a metric; 0 while it has none."""
        text = requests.get(f"{self.url}/metrics", timeout=TIMEOUT).text
        found = re.search(rf"^resnet_cifar_{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def connect(self) -> http.client.HTTPConnection:
        """A connection to it."""
        return http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=TIMEOUT)

    def half_a_request(self, image: bytes) -> http.client.HTTPConnection:
        """A connection on which the first half of an image has been sent; returns once the service works on it."""
        connection = self.connect()
        connection.putrequest("POST", "/predict")
        connection.putheader("Content-Type", "image/png")
        connection.putheader("Content-Length", str(len(image)))
        connection.endheaders(image[: len(image) // 2])
        while not self.metric("requests_in_progress"):
            pass
        return connection

    def peak_memory(self) -> int:
        """In bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])
