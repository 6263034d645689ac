from __future__ import annotations

import io
import json
import random
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from _helpers.bundles import LABELS, TinyNet, write_bundle
from _helpers.fuzz import mutate, mutate_json, png
from krl_runtime import BackendError, Preprocessing, __version__, load

PIXELS = np.random.default_rng(3).integers(0, 256, (3, 3, 12, 10), dtype=np.uint8)


def question(pixels: np.ndarray = PIXELS, **more) -> dict:
    data = {"name": "pixels", "datatype": "UINT8", "shape": list(pixels.shape), "data": pixels.ravel().tolist()}
    return {"inputs": [data], **more}


def until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# health and metadata


def test_health(server):
    assert server.ask("GET", "/v2/health/live").status == 200
    for path in ("/v2/health/ready", "/v2/models/tiny/ready", "/v2/models/tiny/versions/1/ready"):
        answer = server.ask("GET", path)
        assert (answer.status, answer.json()) == (200, {"name": "tiny", "ready": True})


def test_health_tells_what_really_runs(server):
    health = server.ask("GET", "/v2/health").json()
    backend = server.model.backend
    assert health == {
        "live": True,
        "ready": True,
        "model": "tiny",
        "task": "classification",
        "backend": "onnxruntime-cpu",
        "variant": "fp32",
        "reason": backend.reason,
        "fault": None,
        "workers": 2,
        "queue": 64,
        "requests": 0,
    }
    assert "skipped: tensorrt (the bundle has no TensorRT engine" in health["reason"]


def test_metadata(server):
    assert server.ask("GET", "/v2").json() == {
        "name": "krl",
        "version": __version__,
        "extensions": ["binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics"],
    }
    for path in ("/v2/models/tiny", "/v2/models/tiny/versions/1"):
        assert server.ask("GET", path).json() == {
            "name": "tiny",
            "versions": ["1"],
            "platform": "onnxruntime_onnx",
            "inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [-1, 3, 12, 10]}],
            "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 4]}],
        }


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/v2/models/other", 404, "no model 'other' of version '1' here; accepted: 'tiny' of version '1'"),
        ("GET", "/v2/models/tiny/versions/2/ready", 404, "no model 'tiny' of version '2' here"),
        ("POST", "/v2/models/other/infer", 404, "no model 'other'"),
        ("GET", "/nothing", 404, "Not Found"),
        ("GET", "/classify", 405, "Method Not Allowed"),
    ],
)
def test_what_is_not_there(server, method, path, status, message):
    answer = server.ask(method, path, b"{}" if method == "POST" else None)
    assert answer.status == status
    assert message in answer.json()["error"]


def test_a_device_that_fails_is_not_ready_until_it_runs_again(server, monkeypatch, caplog):
    inner = server.model.backend.backend
    run = inner.run

    def broken(inputs: dict) -> dict:
        raise BackendError("the device is lost")

    monkeypatch.setattr(inner, "run", broken)
    answer = server.ask("POST", "/v2/models/tiny/infer", json.dumps(question()))
    assert (answer.status, answer.json()["error"]) == (500, "the device is lost")
    assert "the device is lost" in caplog.text
    assert server.ask("GET", "/v2/health/ready").status == 503
    health = server.ask("GET", "/v2/health")
    assert (health.status, health.json()["ready"], health.json()["fault"]) == (503, False, "the device is lost")
    assert server.ask("GET", "/v2/health/live").status == 200
    monkeypatch.setattr(inner, "run", run)
    assert server.ask("GET", "/v2/health/ready").status == 200
    assert server.ask("GET", "/v2/health").json()["fault"] is None


# images


def test_an_image(server, images: list[Path]):
    answer = server.ask("POST", "/classify?top_k=2", images[0].read_bytes())
    assert answer.status == 200
    result = answer.json()
    expected = server.model(images[0], top_k=2)
    assert list(result) == ["label", "index", "score", "top", "known", "model", "backend", "variant", "time_ms"]
    assert (result["label"], result["index"]) == (expected.label, expected.index)
    assert [(item["label"], item["score"]) for item in result["top"]] == [
        (label, pytest.approx(score)) for label, score in expected.top
    ]
    assert (result["model"], result["backend"], result["variant"]) == ("tiny", "onnxruntime-cpu", "fp32")
    times = result["time_ms"]
    assert list(times) == ["queue", "preprocess", "inference", "whole"]
    assert times["whole"] == pytest.approx(times["queue"] + times["preprocess"] + times["inference"])


def test_many_images_at_once_are_not_mixed_up(start, tmp_path: Path):
    rng = np.random.default_rng(5)
    server = start(workers=3, queue=200)
    files = []
    for _ in range(120):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(file, "PNG")
        files.append(file.getvalue())
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda data: server.ask("POST", "/classify?top_k=4", data).json(), files))
    for data, answer in zip(files, answers, strict=True):
        expected = server.model(data, top_k=4)
        assert [(item["label"], item["score"]) for item in answer["top"]] == [
            (label, pytest.approx(score)) for label, score in expected.top
        ]
    assert server.metric("krl_requests_total", endpoint="classify", status="200") == 120


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "message"),
    [
        ("/classify", b"abc", {}, 400, "image of 3 bytes is not an image of an accepted format"),
        ("/classify", b"", {}, 400, "image of 0 bytes is not an image of an accepted format"),
        ("/classify?top_k=0", b"abc", {}, 400, "top_k is '0'; accepted: 1 or more"),
        ("/classify?top_k=x", b"abc", {}, 400, "top_k is 'x'; accepted: 1 or more"),
        ("/classify", b"abc", {"Content-Encoding": "br"}, 415, "Content-Encoding is 'br'; accepted: identity, gzip"),
        ("/classify", b"abc", {"Content-Encoding": "gzip, gzip"}, 415, "Content-Encoding is 'gzip, gzip'"),
        ("/classify", b"abc", {"Content-Encoding": "zstd"}, 415, "Content-Encoding is 'zstd'"),
        ("/classify", b"abc", {"Content-Type": "multipart/form-data; boundary=x"}, 400, "the form has no end"),
        ("/classify", b"abc", {"Content-Type": "multipart/mixed; boundary=x"}, 415, "send an image, or multipart/form"),
        (
            "/v2/models/tiny/infer",
            b"abc",
            {"Inference-Header-Content-Length": "-1"},
            400,
            "accepted: a number of bytes",
        ),
    ],
)
def test_bad_requests(server, path, body, headers, status, message):
    answer = server.ask("POST", path, body, headers)
    assert answer.status == status
    assert answer.headers["content-type"] == "application/json"
    assert message in answer.json()["error"]
    assert server.ask("GET", "/v2/health/ready").status == 200


def test_logits_that_are_not_finite(server, images, monkeypatch):
    nan = np.full((1, 4), np.nan, np.float32)
    monkeypatch.setattr(server.model.backend.backend, "run", lambda inputs: {"logits": nan})
    answer = server.ask("POST", "/classify", images[0].read_bytes())
    assert answer.status == 500
    assert "not finite numbers" in answer.json()["error"]
    answer = server.ask("POST", "/v2/models/tiny/infer", json.dumps(question(PIXELS[:1])))
    assert answer.status == 500
    assert "JSON cannot hold them" in answer.json()["error"]
    asked = question(PIXELS[:1], parameters={"binary_data_output": True})
    answer = server.ask("POST", "/v2/models/tiny/infer", json.dumps(asked))
    assert answer.status == 200
    assert np.isnan(np.frombuffer(answer.body[-16:], np.float32)).all()


def test_a_failure_of_ours_is_logged_and_not_shown(server, images, monkeypatch, caplog):
    def wrong(*_, **__):
        raise RuntimeError("secret")

    monkeypatch.setattr(server.model, "interpret", wrong)
    answer = server.ask("POST", "/classify", images[0].read_bytes())
    assert (answer.status, answer.json()) == (500, {"error": "an unexpected failure; the server's log has it"})
    assert "secret" in caplog.text


# the protocol


def test_infer_in_json(server):
    answer = server.ask("POST", "/v2/models/tiny/infer", json.dumps(question(id="mine")))
    assert answer.status == 200
    result = answer.json()
    assert {key: result[key] for key in ("id", "model_name", "model_version", "parameters")} == {
        "id": "mine",
        "model_name": "tiny",
        "model_version": "1",
        "parameters": {"backend": "onnxruntime-cpu", "variant": "fp32"},
    }
    (output,) = result["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("logits", "FP32", [3, 4])
    expected = TinyNet.random(Preprocessing(12, 10), 4).logits(PIXELS)
    np.testing.assert_allclose(np.reshape(output["data"], (3, 4)), expected, atol=1e-4)


def test_large_batches_are_run_in_parts(start, tmp_path):
    pixels = np.random.default_rng(4).integers(0, 256, (37, 3, 12, 10), dtype=np.uint8)
    expected = TinyNet.random(Preprocessing(12, 10), 4).logits(pixels)
    for server in (start(), start(write_bundle(tmp_path / "one.krl", batch=1).path)):
        sizes = []
        inner = server.model.backend.backend
        run = inner.run
        inner.run = lambda inputs, run=run, sizes=sizes: sizes.append(len(inputs["pixels"])) or run(inputs)
        name = server.model.bundle.manifest.name
        answer = server.ask("POST", f"/v2/models/{name}/infer", json.dumps(question(pixels)))
        if name == "one":  # the graph takes one image, and says so
            assert answer.status == 400
            assert "accepted: uint8 of shape [1, 3, 12, 10]" in answer.json()["error"]
            continue
        assert sizes == [16, 16, 5]
        np.testing.assert_allclose(np.reshape(answer.json()["outputs"][0]["data"], (37, 4)), expected, atol=1e-4)


def test_a_shape_that_the_network_does_not_take(server):
    answer = server.ask("POST", "/v2/models/tiny/infer", json.dumps(question(PIXELS[:, :, :5])))
    assert answer.status == 400
    assert "input 'pixels' has dtype uint8 and shape [3, 3, 5, 10]; accepted: uint8 of shape" in answer.json()["error"]
    assert server.ask("GET", "/v2/health").json()["fault"] is None


def test_mutated_requests_are_refused_or_answered(server):
    """400 mutants with a fixed seed, in JSON and binary: never a failure of ours."""
    rng = random.Random(1)
    asked = question(PIXELS, parameters={"binary_data_output": True}, outputs=[{"name": "logits"}])
    described = {**asked["inputs"][0], "parameters": {"binary_data_size": PIXELS.nbytes}}
    del described["data"]
    header = json.dumps({**asked, "inputs": [described]}).encode()
    seen = Counter()
    for number in range(400):
        body, headers = json.dumps(mutate_json(json.loads(json.dumps(asked)), rng)).encode("utf-8", "surrogatepass"), {}
        if number % 4 == 0:
            body = mutate(json.dumps(asked).encode(), rng)
        if number % 4 == 1:
            body = mutate(header, rng) + PIXELS.tobytes()
            headers = {"Inference-Header-Content-Length": str(rng.choice((len(header), len(body) - PIXELS.nbytes)))}
        seen[server.ask("POST", "/v2/models/tiny/infer", body, headers).status] += 1
    assert set(seen) == {200, 400}
    assert min(seen.values()) > 20, seen


# limits


def test_a_body_that_is_too_large(start):
    server = start(max_body_bytes=1000)
    for body in (bytes(1001), bytes(300_000)):
        answer = server.ask("POST", "/classify", body)
        assert (answer.status, answer.json()["error"]) == (
            413,
            "the body is larger than 1000 bytes, which is the limit",
        )
    chunked = server.ask("POST", "/classify", iter([bytes(600), bytes(600)]))
    assert chunked.status == 413
    assert server.ask("POST", "/classify", bytes(1000)).status == 400
    assert server.metric("krl_requests_total", endpoint="classify", status="413") == 3


def test_a_client_that_asks_first_is_answered_before_it_sends(start):
    server = start(max_body_bytes=1000)
    with socket.create_connection((server.host, server.port), timeout=20) as connection:
        connection.sendall(
            b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\nExpect: 100-continue\r\n\r\n"
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_a_body_that_does_not_arrive(start):
    server = start(read_seconds=0.2)
    with socket.create_connection((server.host, server.port), timeout=20) as connection:
        connection.sendall(b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
        answer = b""
        while part := connection.recv(4096):
            answer += part
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"the body did not arrive within 0.2 seconds" in answer
    assert server.metric("krl_requests_in_progress") == 0


def test_a_client_that_goes_away_gives_its_place_back(start):
    server = start(workers=1, queue=0)
    with socket.create_connection((server.host, server.port), timeout=20) as connection:
        connection.sendall(b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
        until(lambda: server.metric("krl_requests_in_progress") == 1)
    until(lambda: server.metric("krl_requests_in_progress") == 0)
    assert server.ask("POST", "/classify", b"abc").status == 400


def test_an_image_with_too_many_pixels(start):
    server = start(max_pixels=10_000)
    assert server.ask("POST", "/classify", png(100, 100)).status == 200
    answer = server.ask("POST", "/classify", png(101, 100))
    assert answer.status == 413
    assert answer.json()["error"] == "the image has 101x100 pixels; at most 10000 are accepted"
    assert server.ask("POST", "/classify", png(60_000, 1)[:60] + bytes(20)).status == 413


def test_a_full_queue(start, slow, images: list[Path]):
    server = start(workers=1, queue=2)
    go, calls = slow(server)
    data = images[0].read_bytes()
    with ThreadPoolExecutor(3) as pool:
        accepted = [pool.submit(server.ask, "POST", "/classify", data) for _ in range(3)]
        until(lambda: server.ask("GET", "/v2/health").json()["requests"] == 3)
        refused = server.ask("POST", "/classify", data)
        assert refused.status == 503
        assert refused.headers["retry-after"] == "1"
        assert "3 requests run or wait already" in refused.json()["error"]
        assert server.metric("krl_requests_in_progress") == 3
        assert len(calls) == 1
        go.set()
        assert [answer.result().status for answer in accepted] == [200] * 3
    assert server.ask("POST", "/classify", data).status == 200
    assert server.metric("krl_requests_total", endpoint="classify", status="503") == 1


def test_workers_work_at_once(start, slow, images: list[Path]):
    server = start(workers=3)
    go, calls = slow(server)
    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(server.ask, "POST", "/classify", images[0].read_bytes()) for _ in range(3)]
        until(lambda: len(calls) == 3)
        go.set()
        assert [answer.result().status for answer in answers] == [200] * 3


def test_images_of_several_requests_are_run_together(start, images: list[Path]):
    server = start(workers=2, max_batch=8, max_delay_seconds=10)
    sizes = []
    inner = server.model.backend.backend
    run = inner.run
    inner.run = lambda inputs: sizes.append(len(inputs["pixels"])) or run(inputs)
    files = [image.read_bytes() for image in images]
    expected = [server.model(data).top for data in files]
    sizes.clear()
    with ThreadPoolExecutor(8) as pool:  # more than workers: those do not wait for the batch
        asked = [pool.submit(server.ask, "POST", "/classify?top_k=4", files[index % 3]) for index in range(8)]
        answers = [answer.result().json() for answer in asked]
    assert sizes == [8]
    for index, answer in enumerate(answers):
        assert [(item["label"], item["score"]) for item in answer["top"]] == [
            (label, pytest.approx(score, abs=1e-5)) for label, score in expected[index % 3]
        ]
        assert list(answer["time_ms"]) == ["queue", "preprocess", "inference", "whole"]
    assert server.metric("krl_stage_seconds_count", stage="inference") == 8


def test_a_batch_that_fails(start, images: list[Path], monkeypatch):
    server = start(max_batch=4, max_delay_seconds=0)
    data = images[0].read_bytes()
    assert server.ask("POST", "/classify", data).status == 200
    assert server.ask("POST", "/classify", b"abc").status == 400

    def broken(inputs: dict) -> dict:
        raise BackendError("the device is lost")

    monkeypatch.setattr(server.model.backend.backend, "run", broken)
    answer = server.ask("POST", "/classify", data)
    assert (answer.status, answer.json()["error"]) == (500, "the device is lost")
    assert server.ask("GET", "/v2/health").json()["fault"] == "the device is lost"


# metrics and page


def test_metrics(server, images: list[Path]):
    for _ in range(3):
        server.ask("POST", "/classify", images[0].read_bytes())
    server.ask("POST", "/classify", b"abc")
    server.ask("POST", "/v2/models/tiny/infer", json.dumps(question()))
    assert server.metric("krl_requests_total", endpoint="classify", status="200") == 3
    assert server.metric("krl_requests_total", endpoint="classify", status="400") == 1
    assert server.metric("krl_requests_total", endpoint="infer", status="200") == 1
    assert server.metric("krl_request_seconds_count", endpoint="classify") == 4
    assert server.metric("krl_stage_seconds_count", stage="inference") == 4
    assert server.metric("krl_stage_seconds_sum", stage="inference") > 0
    assert server.metric("krl_model_info", model="tiny", backend="onnxruntime-cpu", variant="fp32") == 1
    assert server.metric("process_resident_memory_bytes") > 1e7
    assert server.ask("GET", "/metrics").headers["content-type"].startswith("text/plain; version=")


def test_the_page_has_no_external_parts(server):
    answer = server.ask("GET", "/")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    text = answer.body.decode()
    assert "http:" not in text
    assert "https:" not in text
    assert "//" not in text.replace("</", "")


def test_keep_alive(server):
    connection = HTTPConnection(server.host, server.port, timeout=20)
    for _ in range(3):
        connection.request("POST", "/classify", b"abc")
        answer = connection.getresponse()
        assert answer.status == 400
        assert "image of 3 bytes" in json.loads(answer.read())["error"]
    connection.close()


def test_the_name_is_the_files_or_another(start, tmp_path):
    path = write_bundle(tmp_path / "student-0.25.krl", name="resnet8").path
    assert start(path).ask("GET", "/v2/models/student-0.25").json()["name"] == "student-0.25"
    other = start(path, name="mine")
    assert other.ask("GET", "/v2/models/mine/ready").status == 200
    assert other.ask("GET", "/v2/models/student-0.25").status == 404
    assert other.ask("GET", "/v2/health").json()["model"] == "mine"


def test_names_with_spaces(start, tmp_path):
    server = start(write_bundle(tmp_path / "my net.krl").path)
    assert server.ask("GET", "/v2/models/my%20net").json()["name"] == "my net"
    assert load(server.model.bundle.path).labels == LABELS
