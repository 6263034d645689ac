"""Metrics for Prometheus at ``/metrics``."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

from .service import Service
from .statistics import Statistics

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = CONTENT_TYPE_LATEST
"""Of what ``Metrics.render`` returns."""

# 1-2-5 steps, from an engine's half millisecond to a time-out.
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics:
    """Counts requests and times them, in a registry of its own.

    Attributes:
        statistics: The same for Triton's clients.
    """

    def __init__(self) -> None:
        self.statistics = Statistics()
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "krl_requests",
            "Requests by endpoint and HTTP status.",
            ["endpoint", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "krl_request_seconds",
            "From the request's head to the response, the body's arrival included.",
            ["endpoint"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._stages = Histogram(
            "krl_stage_seconds",
            "Stages of a request: queue, preprocess, inference.",
            ["stage"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._in_progress = Gauge(
            "krl_requests_in_progress", "Requests that arrive, wait or run.", registry=self._registry
        )
        self._model = Gauge(
            "krl_model_info", "The model and its backend; always 1.", ["model", "backend", "variant"],
            registry=self._registry,
        )  # fmt: skip

    def stage(self, name: str, seconds: float) -> None:
        """Take note of one stage of one request."""
        self._stages.labels(name).observe(seconds)
        self.statistics.add(name, seconds)

    def ran(self, images: int) -> None:
        """Take note of one run of the network."""
        self.statistics.ran(images)

    def request(self, endpoint: str, status: int, seconds: float) -> None:
        """Count and time one finished request."""
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)
        self.statistics.add("success" if status == 200 else "fail", seconds)

    def render(self, service: Service) -> bytes:
        """Return all metrics in Prometheus' text format."""
        status = service.status()
        self._model.clear()
        self._model.labels(status["model"], status["backend"], status["variant"]).set(1)
        self._in_progress.set(service.in_progress)
        return generate_latest(self._registry)
