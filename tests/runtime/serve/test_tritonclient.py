"""A real client of the protocol that others wrote."""

from __future__ import annotations

import numpy as np
import pytest

from _helpers.bundles import LABELS, TinyNet
from krl_runtime import BackendError, Preprocessing

# gevent, which the client is built on, warns of what Python deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

PIXELS = np.random.default_rng(3).integers(0, 256, (3, 3, 12, 10), dtype=np.uint8)
LOGITS = TinyNet.random(Preprocessing(12, 10), 4).logits(PIXELS)


@pytest.fixture
def http():
    return pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed (extra dev)")


@pytest.fixture
def client(http, server):
    with http.InferenceServerClient(server.netloc) as client:
        yield client


def given(http, *, binary: bool, pixels: np.ndarray = PIXELS):
    tensor = http.InferInput("pixels", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels, binary_data=binary)
    return [tensor]


def test_health_and_metadata(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("tiny", "1")
    assert not client.is_model_ready("other")
    assert client.get_server_metadata()["extensions"][:2] == ["binary_tensor_data", "classification"]
    assert client.get_model_metadata("tiny")["inputs"][0]["shape"] == [-1, 3, 12, 10]


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_infer(http, client, binary_in, binary_out):
    outputs = None if binary_out is None else [http.InferRequestedOutput("logits", binary_data=binary_out)]
    result = client.infer("tiny", given(http, binary=binary_in), outputs=outputs, request_id="a7")
    assert result.get_response()["id"] == "a7"
    logits = result.as_numpy("logits")
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, LOGITS, atol=1e-4)


@pytest.mark.parametrize("binary", [True, False])
def test_classes(http, client, binary):
    wanted = [http.InferRequestedOutput("logits", binary_data=binary, class_count=2)]
    classes = client.infer("tiny", given(http, binary=True), outputs=wanted).as_numpy("logits")
    assert classes.shape == (3, 2)
    for row, logits in zip(classes, LOGITS, strict=True):
        for text, index in zip(row, np.argsort(-logits)[:2], strict=True):
            value, number, label = (text.decode() if isinstance(text, bytes) else text).split(":")
            assert float(value) == pytest.approx(logits[index], abs=1e-4)
            assert (int(number), label) == (index, LABELS[index])


def test_errors_arrive_with_their_message(http, client):
    from tritonclient.utils import InferenceServerException

    with pytest.raises(InferenceServerException, match="no model 'other'") as caught:
        client.infer("other", given(http, binary=True))
    assert caught.value.status() == "404"
    with pytest.raises(InferenceServerException, match=r"accepted: uint8 of shape \[batch, 3, 12, 10\]"):
        client.infer("tiny", given(http, binary=True, pixels=PIXELS[:, :, :4]))


def test_many_at_once(http, server):
    with http.InferenceServerClient(server.netloc, concurrency=8) as client:
        waiting = [
            client.async_infer("tiny", given(http, binary=True, pixels=PIXELS[index % 3 : index % 3 + 1]))
            for index in range(60)
        ]
        for index, request in enumerate(waiting):
            np.testing.assert_allclose(request.get_result().as_numpy("logits")[0], LOGITS[index % 3], atol=1e-4)


@pytest.mark.parametrize(("max_batch", "expected"), [(1, 16), (4, 4), (99, 16)])
def test_configuration(http, start, max_batch, expected):
    with http.InferenceServerClient(start(max_batch=max_batch).netloc) as client:
        for version in ("", "1"):
            found = client.get_model_config("tiny", version)
            assert found == {
                "name": "tiny",
                "platform": "onnxruntime_onnx",
                "backend": "onnxruntime",
                "version_policy": {"latest": {"num_versions": 1}},
                "max_batch_size": expected,
                "input": [{"name": "pixels", "data_type": "TYPE_UINT8", "dims": [3, 12, 10]}],
                "output": [{"name": "logits", "data_type": "TYPE_FP32", "dims": [4]}],
            }


@pytest.mark.parametrize("max_batch", [1, 8])
def test_statistics(http, start, max_batch):
    server = start(max_batch=max_batch, max_delay_seconds=0.01)
    tensor = http.InferInput("pixels", list(PIXELS.shape), "UINT8")
    tensor.set_data_from_numpy(PIXELS)
    with http.InferenceServerClient(server.netloc) as client:
        for _ in range(2):
            client.infer("tiny", [tensor])
        assert server.ask("POST", "/classify", b"abc").status == 400
        for found in (
            client.get_inference_statistics(),
            client.get_inference_statistics("tiny"),
            client.get_inference_statistics("tiny", "1"),
        ):
            (stats,) = found["model_stats"]
            assert (stats["name"], stats["version"]) == ("tiny", "1")
            assert (stats["inference_count"], stats["execution_count"]) == (6, 2)
            assert stats["last_inference"] > 1.5e12
            counts = {name: duration["count"] for name, duration in stats["inference_stats"].items()}
            assert counts == {"success": 2, "fail": 1, "queue": 3, "compute_input": 2, "compute_infer": 2}
            assert all(duration["ns"] > 0 for duration in stats["inference_stats"].values())


def test_repository(http, client, server, monkeypatch):
    assert client.get_model_repository_index() == [{"name": "tiny", "version": "1", "state": "READY", "reason": ""}]

    def broken(inputs: dict) -> dict:
        raise BackendError("the device is lost")

    monkeypatch.setattr(server.model.backend.backend, "run", broken)
    tensor = http.InferInput("pixels", list(PIXELS.shape), "UINT8")
    tensor.set_data_from_numpy(PIXELS)
    with pytest.raises(Exception, match="the device is lost"):
        client.infer("tiny", [tensor])
    (state,) = client.get_model_repository_index()
    assert (state["state"], state["reason"]) == ("UNAVAILABLE", "the device is lost")


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests(http, client, algorithm):
    tensor = http.InferInput("pixels", list(PIXELS.shape), "UINT8")
    for binary in (True, False):
        tensor.set_data_from_numpy(PIXELS, binary_data=binary)
        found = client.infer("tiny", [tensor], request_compression_algorithm=algorithm)
        np.testing.assert_allclose(found.as_numpy("logits"), LOGITS, atol=1e-4)


def test_other_models_have_no_description(http, client):
    for ask in (client.get_model_config, client.get_inference_statistics):
        with pytest.raises(Exception, match="no model 'other'"):
            ask("other")
