"""The HTTP service of `resnet-cifar serve`: /predict, a page at /, /health and /metrics."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from PIL import Image
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response

import resnet_cifar
from resnet_cifar.cli.predict import as_json
from resnet_cifar.cli.request_images import FIELD, RequestLimits, Upload, read_images
from resnet_cifar.cli.serve_metrics import MeasureRequests, ServiceMetrics
from resnet_cifar.data.sources import image_io
from resnet_cifar.data.sources.image_io import Limits, TooManyPixels, UndecodableImage
from resnet_cifar.evaluation.micro_batches import MicroBatches
from resnet_cifar.reporting import html_page

if TYPE_CHECKING:
    from resnet_cifar.evaluation.loaded_model import LoadedModel
    from resnet_cifar.evaluation.onnx_model import OnnxModel

# Not all that Pillow reads: EPS files, for instance, are programs that it hands to Ghostscript.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "HEIF")
_POLICY = (
    "default-src 'none'; img-src blob: data:; style-src 'unsafe-inline'; script-src 'sha256-{}'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SENTENCES = {
    404: "there is nothing at this address: POST images to /predict, or open / in a browser",
    405: "this address does not take this method: POST images to /predict, and GET everything else",
}
_TOP = 5  # classes that the page shows of an image
_NOBODY = 499  # the status, in metrics, if the client has gone
_FILES = {"type": "array", "items": {"type": "string", "format": "binary"}}
_FORM = {"schema": {"type": "object", "required": [FIELD], "properties": {FIELD: _FILES}}}
_BODY = {"required": True, "content": {"multipart/form-data": _FORM, "image/*": {}, "application/octet-stream": {}}}


class Prediction(BaseModel):
    """The prediction for one image, or why there is none."""

    file: str
    label: str | None = None
    probability: float | None = None
    probabilities: dict[str, float] | None = None
    error: str | None = None


class Predictions(BaseModel):
    """One prediction per image, in the order of the request."""

    images: list[Prediction]


class Refusal(BaseModel):
    """Why a request is refused, in one sentence."""

    error: str


@dataclass(frozen=True)
class ServiceLimits:
    """`request`: of one request; `requests` that may be in progress at a time; `megapixels` of an image."""

    request: RequestLimits
    requests: int
    megapixels: int


def create_app(
    model: LoadedModel | OnnxModel,
    backend: str,
    limits: ServiceLimits,
    metrics: ServiceMetrics,
    batches: MicroBatches,
    threads: Executor,
) -> FastAPI:
    """The service. `backend`: in words. `threads` decode images with `model.read`, `batches` classify these, each to
    probabilities [classes].
    """
    app = FastAPI(title="resnet-cifar", version=resnet_cifar.__version__, docs_url=None, redoc_url=None)
    in_progress = 0
    metrics.gauge("queued_images", "Decoded images that wait to be classified.", lambda: batches.waiting)
    metrics.gauge("requests_in_progress", "Requests to classify that are being answered.", lambda: in_progress)
    app.add_middleware(MeasureRequests, metrics=metrics, paths=("/", "/predict", "/health", "/metrics"))
    Image.init()  # registers all formats
    accepted = Limits(tuple(each for each in _FORMATS if each in Image.OPEN), limits.megapixels * 10**6)
    health = {
        "status": "ok",
        "model": model.architecture,
        "classes": list(model.classes),
        "weights": Path(model.name).name if Path(model.name).is_absolute() else model.name,  # no path of this machine
        "fingerprint": model.fingerprint,
        "backend": backend,
    }
    page = html_page.render("serve.html", **health, limits=limits, formats=accepted.formats, top=_TOP)
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()

    def read(content: bytes) -> Any:
        return model.read({"bytes": content, "path": None}, accepted)

    async def classify(upload: Upload) -> dict[str, Any]:
        try:
            pixels = await asyncio.get_running_loop().run_in_executor(threads, read, upload.content)
        except UndecodableImage as error:
            metrics.images.labels("refused").inc()
            return {"file": upload.name, "error": _reason(error, upload.content, limits, accepted)}
        row = await asyncio.wrap_future(batches.submit(pixels))
        metrics.images.labels("classified").inc()
        return {"file": upload.name, **as_json(row, model.classes)}

    @app.post(
        "/predict",
        summary="Classify images",
        response_model=Predictions,
        responses={code: {"model": Refusal} for code in (400, 408, 413, 415, 422, 503)},
        openapi_extra={"requestBody": _BODY},
    )
    async def predict(request: Request) -> Response:
        nonlocal in_progress
        if in_progress >= limits.requests:
            told = f"too many requests are in progress (limit: {limits.requests}): retry in a second"
            raise HTTPException(503, told, {"Retry-After": "1"})
        in_progress += 1
        try:
            uploads = await read_images(request, limits.request)
            return _answer(await asyncio.gather(*map(classify, uploads)))
        finally:
            in_progress -= 1

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": _POLICY.format(digest)})

    @app.get("/health", summary="What is served")
    async def served() -> dict[str, Any]:
        return health

    @app.get("/metrics", summary="Metrics in Prometheus' text format", response_class=Response)
    async def measured() -> Response:
        return metrics.response()

    @app.exception_handler(HTTPException)
    async def refuse(request: Request, error: HTTPException) -> JSONResponse:
        detail = _SENTENCES.get(error.status_code, error.detail)
        return JSONResponse({"error": detail}, error.status_code, error.headers)

    @app.exception_handler(ClientDisconnect)
    async def ignore(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=_NOBODY)

    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": "the service failed: its log says why"}, 500)

    return app


def _reason(error: UndecodableImage, content: bytes, limits: ServiceLimits, accepted: Limits) -> str:
    if isinstance(error, TooManyPixels):
        return f"it has {error}: send an image of up to {limits.megapixels} megapixels"
    reason = image_io.unreadable_reason({"bytes": content, "path": None})
    return f"{reason}: send one of {', '.join(accepted.formats)}"


def _answer(images: Sequence[dict[str, Any]]) -> JSONResponse:
    """Status 422 if no image could be classified."""
    if any("error" not in each for each in images):
        return JSONResponse({"images": images})
    first = f"{images[0]['file']}: {images[0]['error']}"
    error = first if len(images) == 1 else f"none of {len(images)} images can be classified ({first})"
    return JSONResponse({"error": error, "images": images}, 422)
