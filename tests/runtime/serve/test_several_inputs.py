from __future__ import annotations

import io
import json
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pytest
from PIL import Image

from _helpers.bundles import write_bundle
from _helpers.fused import INPUTS, arrays, expected, logits, samples, write_fused

PAGE = Path(__file__).parents[3] / "runtime" / "krl_runtime" / "serve" / "page.html"


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def form(parts: dict[str, bytes]) -> tuple[bytes, dict[str, str]]:
    body = b"".join(
        f'--xyz\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + content + b"\r\n"
        for name, content in parts.items()
    )
    return body + b"--xyz--\r\n", {"Content-Type": "multipart/form-data; boundary=xyz"}


def parts_of(sample: dict) -> dict[str, bytes]:
    return {
        name: png(value) if isinstance(value, np.ndarray) else str(value).encode() for name, value in sample.items()
    }


@pytest.fixture
def fused(tmp_path: Path, start):
    return lambda **limits: start(write_fused(tmp_path / "fused.krl").path, **limits)


@pytest.mark.parametrize("limits", [{}, {"max_batch": 4, "max_delay_seconds": 0.01}])
def test_forms_and_tensors_get_the_same_answers(fused, limits: dict):
    server = fused(**limits)
    given = samples(3)
    for sample in given:
        answer = server.ask("POST", "/classify?top_k=4", *form(parts_of(sample)))
        assert answer.status == 200, answer.body
        assert answer.json()["index"] == int(expected(sample).argmax())
    inputs = arrays(given)
    request = {
        "inputs": [
            {
                "name": name,
                "datatype": "UINT8" if array.dtype == np.uint8 else "FP32",
                "shape": list(array.shape),
                "data": array.ravel().tolist(),
            }
            for name, array in inputs.items()
        ]
    }
    answer = server.ask("POST", "/v2/models/fused/infer", json.dumps(request))
    assert answer.status == 200, answer.body
    (output,) = answer.json()["outputs"]
    np.testing.assert_allclose(np.reshape(output["data"], output["shape"]), logits(inputs), atol=1e-4)
    del request["inputs"][1]
    answer = server.ask("POST", "/v2/models/fused/infer", json.dumps(request))
    assert (answer.status, answer.json()["error"][:30]) == (400, "input 'attributes' is missing;")


def test_values_may_stand_in_the_address(fused):
    server, (sample,) = fused(), samples(1)
    query = urlencode({"color": sample["color"], "size": sample["size"]})
    parts = {name: content for name, content in parts_of(sample).items() if name in ("image", "right")}
    answer = server.ask("POST", f"/classify?{query}", *form(parts))
    assert answer.status == 200, answer.body
    assert answer.json()["index"] == int(expected(sample).argmax())


def test_a_model_of_images_alone_takes_forms_too(tmp_path: Path, start):
    server = start(write_bundle(tmp_path / "plain.krl").path)
    (sample,) = samples(1)
    body, headers = form({"image": png(sample["image"])})
    plain = server.ask("POST", "/classify", png(sample["image"])).json()
    posted = server.ask("POST", "/classify", body, headers).json()
    assert plain["top"] == posted["top"]
    body, headers = form({"image": png(sample["image"]), "color": b"red"})
    answer = server.ask("POST", "/classify", body, headers)
    assert answer.status == 400
    assert "no input 'color'" in answer.json()["error"]


@pytest.mark.parametrize(
    ("changes", "query", "message"),
    [
        ({"size": b"9"}, "", "input 'size': '9' is out of range; accepted: 1 to 3, as in training"),
        ({"color": b"green"}, "", "input 'color': 'green' is not known; accepted: blue, red"),
        ({"color": b"\xff"}, "", "is not known"),
        ({"color": None}, "", "a sample has no 'color', which the model needs"),
        ({"right": None}, "", "a sample has no 'right'"),
        ({"right": None}, "?right=/etc/hostname", "'right' is an image; send it as a file of a form"),
        ({"image": None}, "?image=/etc/hostname", "'image' is an image"),
        ({"right": b"/etc/hostname"}, "", "input 'right': image of 13 bytes is not an image"),
        ({}, "?color=red", "'color' is given twice"),
        ({}, "?tint=red", "no input 'tint'; accepted: image, color, size, right"),
    ],
)
def test_bad_samples_are_answered_with_what_is_accepted(fused, changes: dict, query: str, message: str):
    parts = {**parts_of(samples(1)[0]), **changes}
    body, headers = form({name: content for name, content in parts.items() if content is not None})
    answer = fused().ask("POST", f"/classify{query}", body, headers)
    assert answer.status == 400
    assert message in answer.json()["error"]


def test_a_bare_image_is_refused_with_what_is_missing(fused):
    server = fused()
    answer = server.ask("POST", "/classify", png(samples(1)[0]["image"]))
    assert answer.status == 400
    assert "no 'color', 'size', 'right'" in answer.json()["error"]


def test_the_pixels_of_each_image_are_bounded(fused):
    parts = {**parts_of(samples(1)[0]), "right": png(np.zeros((40, 40, 3), np.uint8))}
    answer = fused(max_pixels=1000).ask("POST", "/classify", *form(parts))
    assert answer.status == 413
    assert "40x40 pixels" in answer.json()["error"]


def test_metadata_has_all_inputs(fused):
    server = fused()
    found = server.ask("GET", "/v2/models/fused").json()["inputs"]
    assert [each["name"] for each in found] == ["pixels", *(each.input for each in INPUTS)]
    assert found[1] == {"name": "attributes", "datatype": "FP32", "shape": [-1, 3]}
    assert server.ask("GET", "/v2/health").json()["further_inputs"] == ["color", "size", "right"]
    assert "further_inputs" in PAGE.read_text("utf-8")
