"""Metrics of the HTTP service for Prometheus: requests, latency, unsure answers, drift, and the model.

They need prometheus-client; without it the service counts nothing.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from runtime import Classifier, Prediction

try:
    import prometheus_client as prometheus
except ImportError:
    prometheus = None  # type: ignore[assignment]


class ServiceMetrics:
    """Counts of one service; `classify` is its model."""

    def __init__(self, classify: Classifier) -> None:
        self._classify = classify
        self._lock = threading.Lock()  # reading drift fills several gauges
        if prometheus is None:
            return
        self._registry = registry = prometheus.CollectorRegistry()
        self._requests = prometheus.Counter(
            "vit_edge_requests", "Requests to /classify by HTTP status", ["status"], registry=registry
        )
        self._latency = prometheus.Histogram(
            "vit_edge_request_seconds", "Time of a request to /classify", registry=registry
        )
        self._unsure = prometheus.Counter(
            "vit_edge_unsure", "Answers with a score below --min-score", registry=registry
        )
        self._distance = prometheus.Gauge(
            "vit_edge_drift_bits",
            "Distance of the last images from those at export (Jensen-Shannon)",
            ["statistic"],
            registry=registry,
        )
        self._raised = prometheus.Gauge(
            "vit_edge_drift_raised",
            "1 if the distance is above what chance explains",
            ["statistic"],
            registry=registry,
        )
        info = classify.info
        placement = "unknown" if info.placement is None else info.placement.to_text()
        prometheus.Info("vit_edge_model", "The model and where it runs", registry=registry).info(
            {
                "sha256": info.sha256,
                "variant": info.variant,
                "device": info.device,
                "placement": placement,
            }
        )

    @contextmanager
    def time_request(self) -> Iterator[Callable[[int], None]]:
        """Count a request and its time; call what is yielded with its HTTP status. No call counts as 500."""
        began, status = time.perf_counter(), 500

        def finish(code: int) -> None:
            nonlocal status
            status = code

        try:
            yield finish
        finally:
            if prometheus is not None:
                self._requests.labels(str(status)).inc()
                self._latency.observe(time.perf_counter() - began)

    def count_prediction(self, prediction: Prediction) -> None:
        """Count an answer that is unsure."""
        if prometheus is not None and prediction.label is None:
            self._unsure.inc()

    @property
    def routes(self) -> list[Route]:
        """Routes for load balancers (/healthz) and for Prometheus (/metrics)."""
        return [Route("/healthz", self._answer_health), Route("/metrics", self._answer_metrics)]

    async def _answer_health(self, _request: Request) -> Response:
        return JSONResponse({"status": "ok", "sha256": self._classify.info.sha256})

    async def _answer_metrics(self, _request: Request) -> Response:
        if prometheus is None:
            return JSONResponse({"error": "install prometheus-client to get metrics, and start again"}, 501)
        text = await asyncio.to_thread(self._make_text)
        return Response(text, media_type="text/plain; version=0.0.4")

    def _make_text(self) -> bytes:
        with self._lock:
            if self._classify.monitor is not None:
                for name, found in self._classify.monitor.read().statistics.items():
                    if found.distance is not None:
                        self._distance.labels(name).set(found.distance)
                        self._raised.labels(name).set(found.raised)
            text: bytes = prometheus.generate_latest(self._registry)
            return text
