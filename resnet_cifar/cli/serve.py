"""`resnet-cifar serve RUN [--host 127.0.0.1] [--port 8000]`: answers HTTP requests with a trained model."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib.util
import logging
import os
import signal
import socket
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from resnet_cifar.atomic_io import read_json
from resnet_cifar.cli.parser import parse
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import is_digits
from resnet_cifar.config.schema import Recipe
from resnet_cifar.distributed.launcher_env import check_launcher
from resnet_cifar.evaluation import model_location

if TYPE_CHECKING:
    from resnet_cifar.evaluation.loaded_model import LoadedModel
    from resnet_cifar.evaluation.onnx_model import OnnxModel

_PACKAGES = {
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "python_multipart": "python-multipart",
    "prometheus_client": "prometheus_client",
}
_ONNX = "model.onnx"
_EVERYWHERE = ("0.0.0.0", "::", "")
_PATIENCE = 10  # seconds that a request has for its answer after it has arrived, when the service ends
_HEADERS = [
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
]


@dataclass(frozen=True)
class ServeOptions:
    """Answer HTTP requests with a trained model: images posted to /predict, or dropped on the page at /."""

    run: str
    """A run directory, its RUN/model, its RUN/export, or an ONNX model of `resnet-cifar export`."""
    host: str = "127.0.0.1"
    """The address to listen on; 0.0.0.0 is every one of this machine."""
    port: str = "8000"
    """The port to listen on; 0 is any free one."""
    backend: Literal["auto", "torch", "onnx"] = "auto"
    """`onnx`: onnxruntime on the CPU, with RUN/export/model.onnx; `auto`: onnx if RUN names an export, else torch."""
    max_batch: int = 32
    """Images that are classified together, at most."""
    max_requests: int = 64
    """Requests in progress at a time; others are answered with status 503 and Retry-After."""
    max_images: int = 32
    """Images per request."""
    max_mebibytes: int = 32
    """Size of a request in MiB."""
    max_megapixels: int = 50
    """Size of an image in millions of pixels."""
    timeout: int = 30
    """Seconds in which a request must have arrived."""


def parse_arguments(arguments: list[str]) -> tuple[ServeOptions, Recipe | None]:
    """The options, and for torch the recipe of the run. Raises UserError."""
    usage = "resnet-cifar serve RUN [--host 127.0.0.1] [--port 8000] [--backend onnx] [--precision bf16]"
    options, overrides = parse(ServeOptions, usage, arguments, fields=("precision",))
    if not is_digits(options.port) or int(options.port) > 65535:
        raise UserError(f"--port cannot be {options.port!r}: it should be a number up to 65535, such as 8000")
    onnx = _onnx_file(options)
    packages = {**_PACKAGES, **({"onnxruntime": "onnxruntime"} if onnx else {})}
    for module, package in packages.items():
        if importlib.util.find_spec(module) is None:
            raise UserError(f"serve needs the package {package}: pip install -e '.[serve]'")
    if onnx is None:
        return options, model_location.recipe(model_location.find_target(Path(options.run)), overrides)
    if overrides:
        raise UserError("--precision is for --backend torch: remove it, an ONNX model computes in float32")
    return options, None


def _onnx_file(options: ServeOptions) -> Path | None:
    """The ONNX model to serve; None for torch. Raises UserError."""
    path = Path(options.run)
    if path.suffix == ".onnx" and options.backend == "torch":
        raise UserError(f"--backend torch cannot run {path}: name its run, or remove --backend")
    if options.backend == "torch":
        return None
    if path.suffix == ".onnx" or (path / _ONNX).is_file():
        file = path if path.suffix == ".onnx" else path / _ONNX
        if not file.is_file():
            raise UserError(f"{file}: there is no such file")
        return file
    if options.backend == "auto":
        return None
    target = model_location.find_target(path)
    file = (target.run or target.path) / "export" / _ONNX
    if not file.is_file():
        raise UserError(f"--backend onnx needs {file}: run resnet-cifar export {target.run or target.path}")
    return file


def main(arguments: list[str]) -> None:
    """Serves until SIGINT or SIGTERM, and answers the requests in progress before it ends. Raises UserError."""
    options, recipe = parse_arguments(arguments)
    check_launcher()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("serve is one process: run it without a launcher, resnet-cifar serve RUN")
    with contextlib.closing(_bound(options)) as listener:
        model, backend = _load(options, recipe)
        _serve(options, model, backend, listener)


def _bound(options: ServeOptions) -> socket.socket:
    """A socket at the address, which is refused to others but does not listen yet. Raises UserError."""
    with _address_errors(options):
        (family, kind, _, _, address), *_ = socket.getaddrinfo(
            options.host or None, int(options.port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    return listener


@contextlib.contextmanager
def _address_errors(options: ServeOptions) -> Iterator[None]:
    """Turns errors of the address into UserError."""
    try:
        yield
    except (OSError, UnicodeError) as error:  # a part of the name is empty, or too long for a name of the DNS
        reason = "not a host name" if isinstance(error, UnicodeError) else error.strerror
        if isinstance(error, socket.gaierror | UnicodeError) or error.errno == errno.EADDRNOTAVAIL:
            raise UserError(
                f"--host {options.host} is not an address of this machine ({reason}): use 127.0.0.1, or 0.0.0.0 to be "
                "reached from others"
            ) from None
        raise UserError(
            f"--port {options.port} cannot be used on {options.host} ({reason}): choose another, such as "
            f"--port {int(options.port) % 65535 + 1}"
        ) from None


def _load(options: ServeOptions, recipe: Recipe | None) -> tuple[LoadedModel | OnnxModel, str]:
    """The model, and what runs it, in words. Raises UserError."""
    if recipe is None:
        import onnxruntime

        from resnet_cifar.evaluation.onnx_model import OnnxModel

        file = _onnx_file(options)
        model = OnnxModel(file)
        _check_current(Path(options.run), file, model)
        return model, f"onnxruntime {onnxruntime.__version__} on the CPU, {file.name}"

    import torch

    from resnet_cifar.distributed.context import DistributedContext
    from resnet_cifar.evaluation import loaded_model
    from resnet_cifar.reporting.console import Screen

    context = DistributedContext(recipe.precision)
    recipe = dataclasses.replace(recipe, precision=context.precision)
    model = loaded_model.load_model(model_location.find_target(Path(options.run)), recipe, context)
    model.check_fresh()
    if model.remark:
        Screen(shown=True).warn(model.remark)
    return model, f"torch {torch.__version__} on {context.describe()}, precision {context.precision}"


def _check_current(run: Path, file: Path, model: OnnxModel) -> None:
    """Raises UserError if the run has other weights than its export: it was trained further."""
    weights = (read_json(run / "result.json") or {}).get("checkpoint")
    if weights and model.name != weights and model.name.startswith("checkpoints/"):
        raise UserError(f"{file} has the weights of {model.name}, and {run} has {weights}: export it again")


def _serve(options: ServeOptions, model: LoadedModel | OnnxModel, backend: str, listener: socket.socket) -> None:
    import uvicorn
    from PIL import Image

    from resnet_cifar.cli.request_images import RequestLimits
    from resnet_cifar.cli.serve_app import ServiceLimits, create_app
    from resnet_cifar.cli.serve_metrics import ServiceMetrics
    from resnet_cifar.evaluation.micro_batches import MicroBatches
    from resnet_cifar.reporting.console import Screen

    # What clients send wrongly is told to them, and does not fill the log.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)
    request = RequestLimits(options.max_images, options.max_mebibytes, options.timeout)
    limits = ServiceLimits(request, options.max_requests, options.max_megapixels)
    metrics, screen = ServiceMetrics(), Screen(shown=True)
    batches = MicroBatches(
        lambda images: model.probabilities(model.logits(images)).tolist(), options.max_batch, metrics.batches.observe
    )
    with batches, ThreadPoolExecutor(len(os.sched_getaffinity(0)), "decode") as threads:
        app = create_app(model, backend, limits, metrics, batches, threads)
        config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            headers=_HEADERS,
            server_header=False,
            proxy_headers=False,
            access_log=False,
            log_level="error",
            timeout_graceful_shutdown=options.timeout + _PATIENCE,
        )
        server = uvicorn.Server(config)
        # uvicorn's own handlers replace these while it runs, and then raise the signal once more.
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, lambda *_: setattr(server, "should_exit", True))
        with _address_errors(options):
            listener.listen()
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        screen.facts([("model", f"{model.architecture}, {model.name}"), ("backend", backend)])
        if host in _EVERYWHERE:
            screen.warn("every machine that reaches this one can use the service: it has no authentication")
        screen.say(f"listening on http://{shown}:{port} (Ctrl-C ends it)")
        server.run(sockets=[listener])
    count = metrics.cut_off
    many = f"{count} request{'s were' if count > 1 else ' was'} cut off"
    screen.say(f"ended: {many if count else 'all requests are answered'}")
