"""The server of a classifier with two outputs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from _helpers.bundles import LABELS
from _helpers.two_heads import SOURCE, both, write_two_heads

pytestmark = pytest.mark.xdist_group("server")


@pytest.mark.parametrize("limits", [{}, {"max_batch": 4}])
def test_both_outputs_are_listed_answered_and_named(tmp_path: Path, start, images: list[Path], limits: dict) -> None:
    server = start(write_two_heads(tmp_path / "two.krl").path, **limits)
    described = server.ask("GET", "/v2/models/two").json()
    assert [(item["name"], item["shape"]) for item in described["outputs"]] == [
        ("logits", [-1, 4]),
        ("source_logits", [-1, 3]),
    ]
    configuration = server.ask("GET", "/v2/models/two/config").json()
    assert [item["name"] for item in configuration["output"]] == ["logits", "source_logits"]

    pixels = np.random.default_rng(3).integers(0, 256, (2, 3, 12, 10)).astype(np.uint8)
    question = {
        "inputs": [
            {"name": "pixels", "datatype": "UINT8", "shape": list(pixels.shape), "data": pixels.ravel().tolist()}
        ]
    }
    outputs = server.ask("POST", "/v2/models/two/infer", json.dumps(question)).json()["outputs"]
    for item, expected in zip(outputs, both(pixels), strict=True):
        assert np.reshape(item["data"], item["shape"]) == pytest.approx(expected, abs=1e-4)

    asked = [{"name": name, "parameters": {"classification": 1}} for name in ("source_logits", "logits")]
    named = server.ask("POST", "/v2/models/two/infer", json.dumps({**question, "outputs": asked})).json()["outputs"]
    for item, expected, labels in zip(named, both(pixels)[::-1], (SOURCE, LABELS), strict=True):
        assert [text.split(":")[2] for text in item["data"]] == [labels[row.argmax()] for row in expected]

    result = server.ask("POST", "/classify?top_k=2", images[0].read_bytes()).json()
    first, second = both(server.model.preprocessing(images[0])[None])
    assert result["label"] == LABELS[first.argmax()]
    assert result["others"]["source"]["label"] == SOURCE[second.argmax()]
    assert len(result["others"]["source"]["top"]) == 2
    assert "logits" not in result["others"]["source"]
