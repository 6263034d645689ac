"""A server of an embedding network: embeddings, search in an index, and the Open Inference Protocol."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import krl_runtime
from _helpers.embeddings import SIZE, write_embedder, write_folder
from krl_runtime import Index, UsageError, load
from krl_runtime.serve import serve
from krl_runtime.serve.app import make_app
from krl_runtime.serve.config import ServeConfig

from .conftest import Running, running


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_embedder(tmp_path / "embedder" / "tiny.krl").path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def start(path: Path, folder: Path) -> Iterator[Any]:
    with ExitStack() as stack:

        def begin(*, indexed: bool = False, **limits: Any) -> Running:
            model = stack.enter_context(load(path, threads=1))
            index = krl_runtime.index(model, folder, overwrite=True) if indexed else None
            return stack.enter_context(running(model, index=index, **limits))

        yield begin


@pytest.mark.parametrize("max_batch", [1, 8])
def test_an_image_becomes_its_embedding(start, folder: Path, max_batch: int):
    server = start(max_batch=max_batch)
    image = folder / "red" / "2.png"
    answer = server.ask("POST", "/embed", image.read_bytes())
    assert answer.status == 200
    values = answer.json()
    np.testing.assert_allclose(values["vector"], server.model(image).vector, atol=1e-6)
    assert (values["model"], values["backend"], values["variant"]) == ("tiny", "onnxruntime-cpu", "fp32")
    assert set(values["time_ms"]) == {"queue", "preprocess", "inference", "whole"}
    for route in ("/classify", "/search"):
        assert server.ask("POST", route, image.read_bytes()).status == 404
    assert server.ask("POST", "/embed", b"none").status == 400
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    part = b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\n' + image.read_bytes() + b"\r\n--x--"
    assert server.ask("POST", "/embed", image.read_bytes(), form).status == 400
    assert server.ask("POST", "/embed", part, form).status == 200
    assert server.metric("krl_requests_total", endpoint="embed", status="200") == 2


@pytest.mark.parametrize("max_batch", [1, 8])
def test_search_in_the_index(start, folder: Path, max_batch: int):
    server = start(indexed=True, max_batch=max_batch)
    image = folder / "green" / "3.png"
    values = server.ask("POST", "/search?top_k=2", image.read_bytes()).json()
    assert (values["label"], values["known"], len(values["neighbors"])) == ("green", True, 2)
    assert values["neighbors"][0] == {
        "name": "green/3.png",
        "label": "green",
        "similarity": pytest.approx(1, abs=1e-6),
    }
    assert len(server.ask("POST", "/search", image.read_bytes()).json()["neighbors"]) == 5
    assert server.ask("POST", "/search?top_k=0", image.read_bytes()).status == 400
    health = server.ask("GET", "/v2/health").json()
    assert health["index"]["index"] is None
    assert (health["task"], health["index"]["count"], health["index"]["search"]) == ("embedding", 12, "exact")
    assert server.ask("POST", "/embed", image.read_bytes()).status == 200


def test_the_open_inference_protocol(start, folder: Path):
    server = start()
    metadata = server.ask("GET", "/v2/models/tiny").json()
    assert metadata["outputs"] == [{"name": "embeddings", "datatype": "FP32", "shape": [-1, SIZE]}]
    pixels = server.model.preprocessing(folder / "blue" / "0.png")[None]
    item = {"name": "pixels", "datatype": "UINT8", "shape": list(pixels.shape), "data": pixels.ravel().tolist()}
    answer = server.ask("POST", "/v2/models/tiny/infer", json.dumps({"inputs": [item]}))
    (output,) = answer.json()["outputs"]
    np.testing.assert_allclose(output["data"], server.model.embed(pixels)[0], atol=1e-6)
    wanted = [{"name": "embeddings", "parameters": {"classification": 2}}]
    answer = server.ask("POST", "/v2/models/tiny/infer", json.dumps({"inputs": [item], "outputs": wanted}))
    assert answer.status == 400
    assert answer.json()["error"] == "output 'embeddings' has no labels; leave classification out"


def test_a_classifier_takes_no_index(bundle, path: Path, folder: Path):
    with load(bundle.path) as classifier:
        index = krl_runtime.index(path, folder)
        assert isinstance(index, Index)
        with pytest.raises(UsageError, match="searches in no index"):
            serve(classifier, ServeConfig(), index=index)
        assert make_app(classifier, ServeConfig()).state.service.close(1)


def test_an_index_of_another_model_is_refused(path: Path, folder: Path, tmp_path: Path, capsys):
    from krl_runtime.cli import main

    other = write_embedder(tmp_path / "other.krl", seed=4).path
    made = krl_runtime.index(other, folder)
    assert main(["serve", str(path), "--index", str(made.path), "--port", "0"]) == 2
    assert "was made with another model (other)" in capsys.readouterr().err
