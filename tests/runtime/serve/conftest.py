"""A real server in a thread, and a plain client."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPMessage
from typing import Any

import pytest

from krl_runtime import load
from krl_runtime.serve.config import ServeConfig

pytest.importorskip("starlette", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")
pytest.importorskip("prometheus_client", reason="the extra serve is not installed")


@dataclass
class Answer:
    status: int
    headers: HTTPMessage
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Running:
    """A server that runs, and what it runs."""

    model: Any
    host: str
    port: int
    server: Any = field(repr=False)

    @property
    def netloc(self) -> str:
        return f"{self.host}:{self.port}"

    def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        connection = HTTPConnection(self.host, self.port, timeout=30)
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def metric(self, name: str, **labels: str) -> float | None:
        from prometheus_client.parser import text_string_to_metric_families

        text = self.ask("GET", "/metrics").body.decode()
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        found = [sample.value for sample in samples if sample.name == name and labels.items() <= sample.labels.items()]
        assert len(found) <= 1, found
        return found[0] if found else None


@contextmanager
def running(model: Any, index: Any = None, **limits: Any) -> Iterator[Running]:
    from krl_runtime.serve.app import make_app
    from krl_runtime.serve.server import listen, make_server

    config = ServeConfig(port=0, **{"workers": 2, "grace_seconds": 5, **limits})
    listener = listen(config.host, config.port)
    server = make_server(make_app(model, config, index), config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        yield Running(model, *listener.getsockname(), server)
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()
        assert not thread.is_alive()


@pytest.fixture
def start(bundle) -> Iterator[Callable[..., Running]]:
    """Start servers of the bundle, each with the limits given; all end with the test."""
    with ExitStack() as stack:

        def begin(path: Any = None, **limits: Any) -> Running:
            model = stack.enter_context(load(path or bundle.path, threads=1))
            return stack.enter_context(running(model, **limits))

        yield begin


@pytest.fixture
def server(start: Callable[..., Running]) -> Running:
    return start()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch):
    """Let a server's network take its time: returns the event that lets it go on, and what counts its calls."""

    def slow_down(server):
        go, calls = threading.Event(), []
        run = server.model.backend.backend.run

        def wait(inputs: dict) -> dict:
            calls.append(time.monotonic())
            assert go.wait(20)
            return run(inputs)

        monkeypatch.setattr(server.model.backend.backend, "run", wait)
        return go, calls

    return slow_down
