"""A tiny exported model, and `resnet-cifar serve` as a process of its own with what tests ask of it."""

from __future__ import annotations

import http.client
import re
from pathlib import Path
from typing import Any

import requests
import torch

from benchmarks import serving
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.models.factory import create_model

CLASSES = ("<i>cat</i>", "dog", "frog & co", "truck")
TIMEOUT = 60  # seconds for an answer that is on its way


def write_model(folder: Path, formats: tuple[str, ...] = ("onnx",)) -> Path:
    """FOLDER/model, of random weights whose predictions differ, and FOLDER/export; returns FOLDER."""
    torch.manual_seed(0)
    recipe = read_recipe("debug", {"model.name": "test_resnet", "data.image_size": "32", "precision": "no"})
    model = create_model(recipe, len(CLASSES), pretrained=False)
    with torch.no_grad():
        model.get_classifier().weight.mul_(30)
    serving.write_model(folder, model, recipe, CLASSES, (40, 48), formats)
    return folder


class Serving(serving.Service):
    """The process."""

    def post(self, **words: Any) -> requests.Response:
        """The answer to a POST of /predict; `words` as of `requests.post`."""
        return requests.post(f"{self.url}/predict", timeout=TIMEOUT, **words)

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
