"""``max_batch``: images and tensors of several requests are run together."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from _helpers.bundles import TinyNet, write_bundle
from krl_runtime import BackendError, Preprocessing

PIXELS = np.random.default_rng(3).integers(0, 256, (8, 3, 12, 10), dtype=np.uint8)
LOGITS = TinyNet.random(Preprocessing(12, 10), 4).logits(PIXELS)


def question(pixels: np.ndarray) -> str:
    data = {"name": "pixels", "datatype": "UINT8", "shape": list(pixels.shape), "data": pixels.ravel().tolist()}
    return json.dumps({"inputs": [data]})


@pytest.fixture
def sizes(monkeypatch):
    """Return what notes the sizes of a server's runs."""

    def note(server) -> list[int]:
        found: list[int] = []
        inner = server.model.backend.backend
        run = inner.run
        monkeypatch.setattr(inner, "run", lambda inputs: found.append(len(inputs["pixels"])) or run(inputs))
        return found

    return note


def logits_of(answer) -> np.ndarray:
    assert answer.status == 200, answer.body
    (output,) = answer.json()["outputs"]
    return np.reshape(output["data"], output["shape"])


def test_tensors_of_several_requests(start, sizes):
    server = start(workers=2, max_batch=8, max_delay_seconds=10)
    found = sizes(server)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(server.ask, "POST", "/v2/models/tiny/infer", question(image[None])) for image in PIXELS]
        answers = [answer.result() for answer in asked]
    assert found == [8]
    np.testing.assert_allclose(np.concatenate([logits_of(answer) for answer in answers]), LOGITS, atol=1e-4)
    assert server.metric("krl_stage_seconds_count", stage="inference") == 8


def test_tensors_and_images(start, sizes, images):
    server = start(workers=2, max_batch=4, max_delay_seconds=10)
    expected = server.model(images[0])
    found = sizes(server)
    with ThreadPoolExecutor(3) as pool:
        tensors = [
            pool.submit(server.ask, "POST", "/v2/models/tiny/infer", question(PIXELS[part]))
            for part in (slice(0, 2), slice(2, 3))
        ]
        image = pool.submit(server.ask, "POST", "/classify", images[0].read_bytes())
        answers = np.concatenate([logits_of(tensor.result()) for tensor in tensors])
    assert found == [4]
    np.testing.assert_allclose(answers, LOGITS[:3], atol=1e-4)
    assert image.result().json()["label"] == expected.label


@pytest.mark.parametrize(("limit", "expected"), [(2, [2, 2, 2, 2]), (3, [3, 3, 2]), (8, [8])])
def test_a_request_of_many_images_is_run_in_batches(start, sizes, limit, expected):
    server = start(workers=1, queue=0, max_batch=limit, max_delay_seconds=0.05)
    found = sizes(server)
    answer = server.ask("POST", "/v2/models/tiny/infer", question(PIXELS))
    assert found == expected
    np.testing.assert_allclose(logits_of(answer), LOGITS, atol=1e-4)


def test_a_graph_of_one_image(start, sizes, tmp_path):
    server = start(write_bundle(tmp_path / "one.krl", batch=1).path, max_batch=8, max_delay_seconds=0)
    found = sizes(server)
    answer = server.ask("POST", "/v2/models/one/infer", question(PIXELS[:1]))
    np.testing.assert_allclose(logits_of(answer), LOGITS[:1], atol=1e-4)
    assert found == [1]


def test_a_batch_of_tensors_that_fails(start, monkeypatch):
    server = start(max_batch=4, max_delay_seconds=0)

    def broken(inputs: dict) -> dict:
        raise BackendError("the device is lost")

    monkeypatch.setattr(server.model.backend.backend, "run", broken)
    answer = server.ask("POST", "/v2/models/tiny/infer", question(PIXELS[:3]))
    assert (answer.status, answer.json()["error"]) == (500, "the device is lost")
    assert server.ask("GET", "/v2/health").json()["fault"] == "the device is lost"


def test_numbers_that_are_not_finite_spoil_no_other_request(start, monkeypatch, images):
    server = start(max_batch=2, max_delay_seconds=10)
    inner = server.model.backend.backend
    rows = np.array([[np.nan] * 4, [0, 1, 2, 3]], np.float32)
    monkeypatch.setattr(inner, "run", lambda inputs: {"logits": rows[: len(inputs["pixels"])]})
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(server.ask, "POST", "/classify", images[0].read_bytes()) for _ in range(2)]
        assert sorted(answer.result().status for answer in asked) == [200, 500]
