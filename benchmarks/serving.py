"""`resnet-cifar serve` under load: clients that each send an image, wait for its answer and send the next one."""

from __future__ import annotations

import importlib.metadata
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import requests
import torch
from accelerate.state import AcceleratorState
from torch import nn

from benchmarks import pipeline
from resnet_cifar.cli import export_files
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.config.schema import Recipe
from resnet_cifar.data.preprocess import Preprocess
from resnet_cifar.data.sources.image_io import Decoding
from resnet_cifar.distributed.context import DistributedContext
from resnet_cifar.evaluation import loaded_model, model_location
from resnet_cifar.models.export import export_model
from resnet_cifar.models.factory import create_model, normalization

_TIMEOUT = 120  # seconds for an answer, and for the end
_PACKAGES = ("fastapi", "uvicorn", "starlette", "python-multipart", "onnxruntime")
_CLASSES = tuple(f"class {number}" for number in range(10))


def measure(source: str, model: str = "resnet50", clients: int = 8, count: int = 500) -> dict[str, Any]:
    """Latencies and requests/s of `count` requests with one image of `source` each, by torch and by onnxruntime.

    The network is that of `model` in the recipe `finetune`, with random weights. Clients share the machine.
    """
    recipe = read_recipe("finetune", {"model.name": model, "data.source": source, "precision": "no"})
    encoded = pipeline.encoded(source).cast_column("image", datasets.Image(decode=False))
    images = [encoded[row]["image"]["bytes"] for row in range(min(count, len(encoded)))]
    found: dict[str, Any] = {
        "clients": clients,
        "requests": count,
        "image_size": recipe.data.image_size,
        "model": model,
    }
    found["packages"] = {name: importlib.metadata.version(name) for name in _PACKAGES}
    with tempfile.TemporaryDirectory() as folder:
        network = create_model(recipe, len(_CLASSES), pretrained=False)
        write_model(Path(folder), network, recipe, _CLASSES, (32, 32))
        for name, target in {"torch": "model", "onnx": "export"}.items():
            with Service(Path(folder) / target) as service:
                found[name] = _load(service, images, clients, count)
    return found


def _load(service: Service, images: Sequence[bytes], clients: int, count: int) -> dict[str, Any]:
    local = threading.local()

    def send(number: int) -> float | None:
        """Seconds until the answer; None if the request failed."""
        if not hasattr(local, "session"):
            local.session = requests.Session()
        files = {"images": (f"{number}.png", images[number % len(images)])}
        began = time.perf_counter()
        try:
            answer = local.session.post(f"{service.url}/predict", files=files, timeout=_TIMEOUT)
        except requests.RequestException:
            return None
        seconds = time.perf_counter() - began
        return seconds if answer.ok and "label" in answer.json()["images"][0] else None

    with ThreadPoolExecutor(clients) as threads:
        list(threads.map(send, range(2 * clients)))  # warms up
        before = service.metric("batch_images_count")
        began = time.perf_counter()
        latencies = list(threads.map(send, range(count)))
        seconds = time.perf_counter() - began
    answered = [each for each in latencies if each is not None]
    if not answered:
        raise RuntimeError(f"serve answered none of {count} requests: {service.errors()}")
    median, p95, p99 = np.percentile(answered, (50, 95, 99)) * 1000
    return {
        "failed": count - len(answered),
        "requests_per_second": round(len(answered) / seconds, 1),
        "milliseconds": {"p50": round(median, 1), "p95": round(p95, 1), "p99": round(p99, 1)},
        "mean_batch": round(len(answered) / (service.metric("batch_images_count") - before), 2),
    }


def write_model(
    folder: Path,
    network: nn.Module,
    recipe: Recipe,
    classes: tuple[str, ...],
    stored_size: tuple[int, int],
    formats: Sequence[str] = ("onnx",),
) -> None:
    """Writes FOLDER/model in timm's format, for images of `stored_size` (height, width), and the `formats` of
    `resnet-cifar export` to FOLDER/export, unverified."""
    preprocess = Preprocess(recipe.data, *map(torch.tensor, normalization(network, recipe)), Decoding(stored_size))
    facts = {"preprocess": preprocess.facts, "temperature": 1.7, "fingerprint": "f00d"}
    export_model(network, folder / "model", recipe, classes, network.state_dict(), preprocess.timm_config, facts)
    target = model_location.find_target(folder / "model")
    AcceleratorState._reset_state(True)
    loaded = loaded_model.load_model(target, model_location.recipe(target), DistributedContext("no", cpu=True))
    AcceleratorState._reset_state(True)
    (folder / "export").mkdir()
    export_files.write_formats(formats, loaded, target, folder / "export", iter(()))


class Service:
    """`resnet-cifar serve TARGET` as a process of its own on a free port of 127.0.0.1, which has said that it listens.

    `said`: the lines of its output before; `url`: its address. Interrupted at the end of the context, if it still runs.
    """

    def __init__(self, target: Path, *options: str) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        command = [sys.executable, "-m", "resnet_cifar", "serve", str(target), "--port", "0", *options]
        self.process = subprocess.Popen(
            command,
            env={**os.environ, "ACCELERATE_USE_CPU": "true"},
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.said: list[str] = []
        for line in self.process.stdout:
            self.said.append(line.rstrip())
            if found := re.search(r"listening on (http://\S+)", line):
                self.url = found[1]
                return
        raise RuntimeError(f"serve ended with {self.process.wait()}: {self.errors()}")

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        self.process.wait(_TIMEOUT)
        self.process.stdout.close()
        self._errors.close()

    def errors(self) -> str:
        """What it has written to standard error so far."""
        self._errors.seek(0)
        return self._errors.read()

    def metric(self, name: str) -> float:
        """The value of a metric; 0 while it has none."""
        text = requests.get(f"{self.url}/metrics", timeout=_TIMEOUT).text
        found = re.search(rf"^resnet_cifar_{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0
