"""What must hold after many requests: nothing of them is kept, and metrics show what runs now."""

from __future__ import annotations

import gc
import json
import time
import weakref
from dataclasses import replace

import numpy as np
import pytest

from _helpers.fuzz import png

PIXELS = np.random.default_rng(3).integers(0, 256, (2, 3, 12, 10), dtype=np.uint8)


class Array(np.ndarray):
    """An array that can be referred to weakly, which views of it keep alive."""


@pytest.mark.parametrize("max_batch", [1, 4])
@pytest.mark.parametrize("path", ["/classify", "/v2/models/tiny/infer"])
def test_inputs_and_outputs_of_requests_are_not_kept(start, monkeypatch, max_batch, path):
    server = start(workers=2, max_batch=max_batch, max_delay_seconds=0)
    alive: weakref.WeakSet[Array] = weakref.WeakSet()
    made = []

    def run(inputs: dict) -> dict:
        kept = {"logits": np.zeros((len(inputs["pixels"]), 4), np.float32).view(Array)}
        alive.add(kept["logits"])
        made.append(len(inputs["pixels"]))
        return kept

    monkeypatch.setattr(Array, "__hash__", lambda self: id(self))
    monkeypatch.setattr(Array, "__eq__", lambda self, other: self is other)
    monkeypatch.setattr(server.model.backend.backend, "run", run)
    data = {"name": "pixels", "datatype": "UINT8", "shape": list(PIXELS.shape), "data": PIXELS.ravel().tolist()}
    body = png(20, 20) if path == "/classify" else json.dumps({"inputs": [data]})
    for _ in range(20):
        assert server.ask("POST", path, body).status == 200
    deadline = time.monotonic() + 20
    while len(alive) > 2:  # at most the last ones of threads that wait
        assert time.monotonic() < deadline, len(alive)
        gc.collect()
    assert len(made) >= 20


def test_metrics_show_what_runs_now(server):
    """A warm start changes the backend while the server runs."""
    first = server.model.backend
    assert server.metric("krl_model_info", backend="onnxruntime-cpu", variant="fp32") == 1
    for name, variant in (("tensorrt", "fp16"), ("openvino", "int8"), ("onnxruntime-cuda", "fp16")):
        inner = type("Other", (), {"name": name, "close": lambda self: None})()
        server.model.backend = replace(first, backend=inner, variant=variant)
        assert server.metric("krl_model_info", model="tiny") == 1  # one series, no old one beside it
        assert server.metric("krl_model_info", backend=name, variant=variant) == 1
        health = server.ask("GET", "/v2/health").json()
        assert (health["backend"], health["variant"]) == (name, variant)
    server.model.backend = first
