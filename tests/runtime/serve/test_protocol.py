from __future__ import annotations

import json
import struct
import tracemalloc

import numpy as np
import pytest

from krl_runtime import ModelError, UsageError
from krl_runtime.bundle import TensorSpec
from krl_runtime.serve import protocol

INPUTS = (TensorSpec("pixels", "uint8", ("batch", 2)), TensorSpec("scale", "float16", (1,)))
LABELS = {"logits": ("a", "b", "c")}
OUTPUTS = (TensorSpec("logits", "float32", ("batch", 3)),)


def pixels(**changes) -> dict:
    return {"name": "pixels", "datatype": "UINT8", "shape": [2, 2], "data": [1, 2, 3, 255], **changes}


def scale(value: object) -> dict:
    return {"name": "scale", "datatype": "FP16", "shape": [1], "data": [value]}


def parse(values: object, tail: bytes = b"", header: int | None = None) -> protocol.InferRequest:
    text = values if isinstance(values, bytes) else json.dumps(values).encode()
    length = header if header is not None else len(text) if tail else None
    return protocol.parse(text + tail, length, INPUTS, OUTPUTS, ("logits",))


def test_json():
    request = parse({"inputs": [pixels()]})
    assert request.id is None
    assert request.inputs["pixels"].dtype == np.uint8
    assert request.inputs["pixels"].tolist() == [[1, 2], [3, 255]]
    assert request.outputs == (protocol.RequestedOutput("logits"),)
    nested = parse({"inputs": [pixels(data=[[1, 2], [3, 255]])]})
    assert nested.inputs["pixels"].tolist() == [[1, 2], [3, 255]]


def test_binary_tensors_lie_one_behind_the_other():
    scale = {"name": "scale", "datatype": "FP16", "shape": [1], "parameters": {"binary_data_size": 2}}
    first = pixels(parameters={"binary_data_size": 4})
    del first["data"]
    request = parse({"inputs": [first, scale]}, bytes([9, 8, 7, 6]) + struct.pack("<e", 0.5))
    assert request.inputs["pixels"].tolist() == [[9, 8], [7, 6]]
    assert request.inputs["scale"].dtype == np.float16
    assert request.inputs["scale"].tolist() == [0.5]
    mixed = parse({"inputs": [pixels(), scale]}, struct.pack("<e", -2))
    assert (mixed.inputs["pixels"].tolist(), mixed.inputs["scale"].tolist()) == ([[1, 2], [3, 255]], [-2])


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, [("logits", False, 0)]),
        ({"parameters": {"binary_data_output": True}}, [("logits", True, 0)]),
        ({"outputs": [{"name": "logits"}], "parameters": {"binary_data_output": True}}, [("logits", True, 0)]),
        ({"outputs": [{"name": "logits", "parameters": {"binary_data": True}}]}, [("logits", True, 0)]),
        (
            {"outputs": [{"name": "logits", "parameters": {"binary_data": False, "classification": 2}}]},
            [("logits", False, 2)],
        ),
    ],
)
def test_outputs(more, expected):
    request = parse({"inputs": [pixels()], **more})
    assert [(item.name, item.binary, item.classes) for item in request.outputs] == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (b"{", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "the request is of type list; accepted: an object"),
        ({}, "inputs is missing; accepted: a list"),
        ({"inputs": [1]}, "an input is of type int"),
        ({"inputs": [{}]}, "an input: name is missing; accepted: a string"),
        ({"inputs": [pixels(name="x")]}, "input 'x' is not known; the model's inputs: pixels, scale"),
        ({"inputs": [pixels(), pixels()]}, "input 'pixels' is given twice"),
        ({"inputs": [pixels(datatype="FP32")]}, "datatype 'FP32'; accepted: UINT8"),
        ({"inputs": [pixels(shape=None)]}, "shape is missing"),
        ({"inputs": [pixels(shape=[2, -2])]}, "accepted: whole numbers above 0"),
        ({"inputs": [pixels(shape=[2, 2.0])]}, "accepted: whole numbers above 0"),
        ({"inputs": [pixels(shape=[True, 4])]}, "accepted: whole numbers above 0"),
        ({"inputs": [pixels(shape=[2**30] * 4)]}, "has 4 numbers in data; its shape needs"),
        ({"inputs": [pixels(data=None)]}, "data is missing; accepted: a list"),
        ({"inputs": [pixels(data=[1, 2, 3])]}, "has 3 numbers in data; its shape needs 4"),
        ({"inputs": [pixels(data=[1, 2, 3, 256])]}, "values from 1 to 256; UINT8 cannot hold them"),
        ({"inputs": [pixels(data=[1, 2, 3, -1])]}, "values from -1 to 3"),
        ({"inputs": [pixels(data=[1, 2, 3, 4.5])]}, "not a list of numbers of type UINT8"),
        ({"inputs": [pixels(data=[1, 2, 3, "4"])]}, "not a list of numbers of type UINT8"),
        ({"inputs": [pixels(data=[1, 2, 3, None])]}, "not a list of numbers of type UINT8"),
        ({"inputs": [pixels(data=[True, True, True, True])]}, "not a list of numbers of type UINT8"),
        ({"inputs": [pixels(data=[1, 2, 3, 10**300])]}, "UINT8 cannot hold them"),
        ({"inputs": [pixels(data=[[1], [2, 3, 4]])]}, "all rows are of one length"),
        ({"inputs": [pixels(parameters=[])]}, "parameters is of type list"),
        ({"inputs": [pixels(parameters={"shared_memory_region": "x"})]}, "shared memory, which is not supported"),
        ({"inputs": [pixels(parameters={"binary_data_size": 4})]}, "needs 4, and 0 bytes are there"),
        ({"inputs": [pixels(parameters={"binary_data_size": True})]}, "binary_data_size True"),
        ({"inputs": [], "id": 1}, "id is of type int; accepted: a string"),
        ({"inputs": [], "parameters": {"binary_data_output": 1}}, "binary_data_output is of type int"),
        ({"inputs": [], "outputs": [{"name": "x"}]}, "output 'x' is not known; the model's outputs: logits"),
        (
            {"inputs": [], "outputs": [{"name": "logits", "parameters": {"classification": -1}}]},
            "classification is -1; accepted: 0 or more",
        ),
        (
            {"inputs": [], "outputs": [{"name": "logits", "parameters": {"shared_memory_region": "x"}}]},
            "wanted in shared memory",
        ),
    ],
)
def test_refusals(values, message):
    with pytest.raises(UsageError, match=r".*") as caught:
        parse(values)
    assert message in str(caught.value)


LOGITS_OUTPUT = {"name": "logits"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"inputs": [pixels(data=["a" * 9000, "b", "c", "d"])]}, "not a list of numbers of type UINT8"),
        ({"inputs": [pixels(data=[["a", "b"], ["c", "d"]])]}, "not a list of numbers of type UINT8"),
        ({"inputs": [pixels(data=[1, {}, 3, 4])]}, "not a list of numbers of type UINT8"),
        ({"inputs": [pixels(data=[1, True, 3, 4])]}, "not a list of numbers of type UINT8"),
        ({"inputs": [pixels(data=[[1, 2], 3, 4])]}, "all rows are of one length"),
        ({"inputs": [pixels(data=[[1, 2], "ab"])]}, "all rows are of one length"),
        ({"inputs": [pixels(data=[[[1], [2]], [[3, 4], [5]]])]}, "all rows are of one length"),
        ({"inputs": [pixels(data=[1, 2, 3, 10**4000])]}, "UINT8 cannot hold them"),
        ({"inputs": [pixels(data=[1, 2, 3, -(10**30)])]}, "UINT8 cannot hold them"),
        (b'{"inputs": [{"name": "pixels", "data": [1%s]}]}' % (b"0" * 5000), "not valid JSON"),
        ({"inputs": [pixels(shape=[1] * 9, data=[1])]}, "has a shape of 9 dimensions; accepted: at most 8"),
        ({"inputs": [pixels(shape=[1] * 70, data=[1])]}, "has a shape of 70 dimensions"),
        ({"inputs": [pixels(shape=[1] * 100_000)]}, "has a shape of 100000 dimensions"),
        ({"inputs": [pixels(shape=[2**31 - 1] * 8)]}, "has 4 numbers in data; its shape needs"),
        ({"inputs": [pixels(shape=[10**4000])]}, "accepted: whole numbers above 0"),
        ({"inputs": [pixels(shape=[2**31 - 1] * 8, parameters={"binary_data_size": 4})]}, "and 0 bytes are there"),
        ({"inputs": [pixels()], "outputs": [LOGITS_OUTPUT, LOGITS_OUTPUT]}, "output 'logits' is asked for twice"),
        ({"inputs": [pixels()], "outputs": [LOGITS_OUTPUT] * 6000}, "output 'logits' is asked for twice"),
        (
            {"inputs": [pixels()], "outputs": [LOGITS_OUTPUT, {**LOGITS_OUTPUT, "parameters": {"binary_data": True}}]},
            "output 'logits' is asked for twice",
        ),
        ({"inputs": [scale(1e5)]}, "too large; FP16 cannot hold them"),
        ({"inputs": [scale(10**400)]}, "too large; FP16 cannot hold them"),
        ({"inputs": [scale(float("nan"))]}, "NaN is no number of JSON"),
        ({"inputs": [scale(float("-inf"))]}, "-Infinity is no number of JSON"),
        (b'{"inputs": [{"name": "scale", "datatype": "FP16", "shape": [1], "data": [1e999]}]}', "are too large"),
        ({"inputs": [scale(True)]}, "not a list of numbers of type FP16"),
        ({"inputs": [scale("1")]}, "not a list of numbers of type FP16"),
        ({"inputs": [], "more": [[]] * 300_000}, "lists, objects and strings; accepted: 262144"),
        ({"inputs": [], "more": [{}] * 300_000}, "lists, objects and strings; accepted: 262144"),
        ({"inputs": [], "more": ["ab"] * 300_000}, "lists, objects and strings; accepted: 262144"),
    ],
)
def test_costly_requests_are_refused_before_arrays_are_made(values, message):
    """What would cost much memory or change values; the messages themselves stay short."""
    with pytest.raises(UsageError, match=r".*") as caught:
        parse(values)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("changes"),
    [{"name": "x" * 10**6}, {"datatype": "x" * 10**6}, {"datatype": [9] * 10**5}, {"shape": ["x" * 10**6]}],
)
def test_messages_show_only_the_begin_of_long_values(changes):
    with pytest.raises(UsageError) as caught:
        parse({"inputs": [pixels(**changes)]})
    assert len(str(caught.value)) < 400


def test_memory_of_a_refused_request_is_a_few_times_its_size():
    text = json.dumps({"inputs": [pixels(data=["a" * 10_000] + ["b"] * 10_000)]}).encode()
    tracemalloc.start()
    try:
        with pytest.raises(UsageError):
            parse(text)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 30 * len(text)  # numpy would take 20,001 strings of 40,000 bytes


def test_an_id_may_be_any_string():
    request = parse(b'{"inputs": [], "id": "\\ud800 \xc3\xbc"}')
    body, _ = protocol.render(
        request, {"logits": LOGITS}, model="net", labels={"logits": ("a", "b", "c")}, parameters={}
    )
    assert json.loads(body)["id"] == "\ud800 ü"


def test_only_the_output_with_labels_has_classes():
    outputs = (*OUTPUTS, TensorSpec("features", "float32", ("batch", 7)))
    asked = {"inputs": [pixels()], "outputs": [{"name": "features", "parameters": {"classification": 2}}]}
    with pytest.raises(UsageError, match="output 'features' has no labels; classification is for 'logits'"):
        protocol.parse(json.dumps(asked).encode(), None, INPUTS, outputs, ("logits",))


def test_lengths_that_do_not_fit():
    with pytest.raises(UsageError, match="accepted: 1 to 14, the length of the body"):
        parse({"inputs": []}, header=15)
    with pytest.raises(UsageError, match="Inference-Header-Content-Length is 0"):
        parse({"inputs": []}, header=0)
    with pytest.raises(UsageError, match="3 bytes follow the tensors"):
        parse({"inputs": []}, b"abc")
    with pytest.raises(UsageError, match="has binary_data_size 3, its shape"):
        parse({"inputs": [pixels(parameters={"binary_data_size": 3})]}, b"abc")


LOGITS = np.array([[0.25, 3, -1], [5, 1.5, 5]], np.float32)


def render(request: protocol.InferRequest, logits: np.ndarray = LOGITS) -> tuple[dict, bytes]:
    body, length = protocol.render(
        request, {"logits": logits}, model="net", labels={"logits": ("a", "b", "ü:c")}, parameters={"backend": "x"}
    )
    return json.loads(body[:length]), b"" if length is None else body[length:]


def ask(**options) -> protocol.InferRequest:
    return protocol.InferRequest(None, {}, (protocol.RequestedOutput("logits", **options),))


def test_render_json():
    values, tail = render(ask())
    assert values == {
        "model_name": "net",
        "model_version": "1",
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [2, 3], "data": [0.25, 3, -1, 5, 1.5, 5]}],
        "parameters": {"backend": "x"},
    }
    assert tail == b""
    half, _ = render(ask(), LOGITS.astype(np.float16))
    assert half["outputs"][0]["datatype"] == "FP16"


def test_render_binary():
    values, tail = render(ask(binary=True))
    assert values["outputs"] == [
        {"name": "logits", "datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": 24}}
    ]
    assert tail == struct.pack("<6f", *LOGITS.ravel())


def test_render_classes():
    """The best first, as ``value:index:label``; of equals the first."""
    values, _ = render(ask(classes=2))
    assert values["outputs"] == [
        {
            "name": "logits",
            "datatype": "BYTES",
            "shape": [2, 2],
            "data": ["3.000000:1:b", "0.250000:0:a", "5.000000:0:a", "5.000000:2:ü:c"],
        }
    ]
    values, tail = render(ask(classes=9, binary=True))
    assert values["outputs"][0]["shape"] == [2, 3]
    (length,) = struct.unpack_from("<I", tail)
    assert tail[4 : 4 + length] == b"3.000000:1:b"
    assert tail.endswith("5.000000:2:ü:c".encode() + struct.pack("<I", 12) + b"1.500000:1:b")


def test_what_json_cannot_hold():
    with pytest.raises(ModelError, match="JSON cannot hold them"):
        render(ask(), np.array([[np.inf]], np.float32))


def test_every_dtype_has_the_size_that_its_name_says():
    for dtype, name in protocol.DATATYPES.items():
        digits = "".join(letter for letter in name if letter.isdigit())
        assert np.dtype(dtype).itemsize * 8 == int(digits or 8)
