"""Prometheus metrics of `resnet-cifar serve`, and the middleware that measures requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection

import prometheus_client as prometheus
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

prometheus.disable_created_metrics()  # a second line for each
_PREFIX = "resnet_cifar_"
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class ServiceMetrics:
    """Counters and histograms; `gauge` adds values that are asked for. `cut_off`: requests that the end cut off."""

    def __init__(self) -> None:
        self.cut_off = 0
        self._registry = registry = prometheus.CollectorRegistry()
        self.requests = prometheus.Counter(
            f"{_PREFIX}requests", "Answered requests.", ["path", "status"], registry=registry
        )
        self.images = prometheus.Counter(
            f"{_PREFIX}images", "Images: classified, or refused as unreadable.", ["outcome"], registry=registry
        )
        told = "Seconds from the headers of a request to classify to its answer."
        self.seconds = prometheus.Histogram(f"{_PREFIX}predict_seconds", told, buckets=_SECONDS, registry=registry)
        self.batches = prometheus.Histogram(
            f"{_PREFIX}batch_images", "Images that were classified together.", buckets=_BATCHES, registry=registry
        )

    def gauge(self, name: str, text: str, value: Callable[[], int]) -> None:
        """Adds a metric whose value is `value()` at the time of a query."""
        prometheus.Gauge(_PREFIX + name, text, registry=self._registry).set_function(value)

    def response(self) -> Response:
        """All values in Prometheus' text format."""
        return Response(prometheus.generate_latest(self._registry), media_type=prometheus.CONTENT_TYPE_LATEST)


class MeasureRequests:
    """ASGI middleware that counts and times requests; `paths`: those that are told apart."""

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics, paths: Collection[str]) -> None:
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        status, has_begun, began = 500, False, time.perf_counter()

        async def observed(message: Message) -> None:
            nonlocal status, has_begun
            status, has_begun = message.get("status", status), True
            await send(message)

        try:
            await self._app(scope, receive, observed)
        except asyncio.CancelledError:  # the server ends and waits no longer
            self._metrics.cut_off += 1
            if not has_begun:
                refusal = {"error": "the service is ending: retry in a second"}
                await JSONResponse(refusal, 503, {"Retry-After": "1"})(scope, receive, observed)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.requests.labels(path, str(status)).inc()
            if path == "/predict":
                self._metrics.seconds.observe(time.perf_counter() - began)
