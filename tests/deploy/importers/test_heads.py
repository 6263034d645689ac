"""Heads that lose or fix the batch: the runtime's predictions for one image and several against the file's own."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from _helpers.graphs import node
from _helpers.third_party import LABELS, SIDE, body, brought, model_of, one_by_one, read_pixels
from krl_runtime import load
from krl_runtime.errors import ModelError, UsageError

CONSTANTS = {
    "flat": np.int64([-1]),
    "four": np.int64([4]),
    "row": np.int64([1, 4]),
    "column": np.int64([4, 1]),
    "sides": np.int64([2, 3]),
    "all": np.int64([0, 2, 3]),
    "zero": np.int64([0]),
    "ends": np.int64([2]),
    "features": np.int64([1, 16]),
    "bare": np.int64([16]),
}
OPEN, FIXED = ("N",), (1,)
HEADS = {
    "squeeze_without_axes": (OPEN, [node("Squeeze", ["z"], "out")]),
    "squeeze_without_axes_fixed": (FIXED, [node("Squeeze", ["z"], "out")]),
    "squeeze_of_the_batch": (FIXED, [node("Squeeze", ["z", "all"], "out")]),
    "flattened": (FIXED, [node("Reshape", ["z", "flat"], "out")]),
    "flattened_open": (OPEN, [node("Reshape", ["z", "flat"], "out")]),
    "one_dimension": (FIXED, [node("Reshape", ["z", "four"], "out")]),
    "one_row": (FIXED, [node("Reshape", ["z", "row"], "out")]),
    "one_row_open": (OPEN, [node("Reshape", ["z", "row"], "out")]),
    "value_ints": (
        FIXED,
        [helper.make_node("Constant", [], ["sh"], value_ints=[1, 4]), node("Reshape", ["z", "sh"], "out")],
    ),
    "gathered": (FIXED, [node("Flatten", ["z"], "f"), node("Gather", ["f", "first"], "out")]),
    "softmax_of_a_vector": (FIXED, [node("Squeeze", ["z"], "f"), node("Softmax", ["f"], "out", axis=0)]),
    "softmax_then_squeezed": (OPEN, [node("Softmax", ["z"], "s", axis=1), node("Squeeze", ["s"], "out")]),
    "not_an_activation": (
        FIXED,
        [node("Squeeze", ["z"], "f"), node("Tanh", ["f"], "t"), node("Mul", ["t", "ten"], "out")],
    ),
}


@pytest.mark.parametrize("head", HEADS)
def test_heads(head, tmp_path, colors):
    batch, tail = HEADS[head]
    nodes, weights = body()
    if head == "softmax_of_a_vector":
        weights["w2"] /= 3
    used = {name for item in tail for name in item.input}
    constants = {**CONSTANTS, "first": np.int64(0), "ten": np.float32(10)}
    values = {name: value for name, value in constants.items() if name in used}
    model = model_of([*nodes, *tail], {**weights, **values}, "out", shape=(*batch, 3, SIDE, SIDE))
    bundle, _ = brought(model, tmp_path, colors)
    files, pixels = read_pixels(colors)
    expected = one_by_one(model, (pixels / 255).astype(np.float32))
    assert bundle.manifest.inputs[0].shape[0] == "batch"
    assert len(set(expected.argmax(1))) > 1, "the images must have different predictions"
    with load(bundle.path, require="cpu", threads=1) as net:
        assert net(files[0]).index == expected[0].argmax()
        for count in (2, 16, len(files)):
            assert [each.index for each in net(files[:count])] == expected[:count].argmax(1).tolist()
        logits = np.stack([net(file).logits for file in files])
    powers = np.exp(logits - logits.max(1, keepdims=True)) if head.startswith("softmax") else logits
    made = powers / powers.sum(1, keepdims=True) if head.startswith("softmax") else powers
    np.testing.assert_allclose(made, expected, atol=1e-4)


INSIDE = {
    "squeeze_then_unsqueeze": [
        node("Squeeze", ["g"], "v"),
        node("MatMul", ["v", "w"], "m"),
        node("Unsqueeze", ["m", "zero"], "out"),
    ],
    "vector_times_matrix": [node("Reshape", ["g", "flat"], "v"), node("MatMul", ["v", "w"], "out")],
    "one_row_in_the_middle": [node("Reshape", ["g", "features"], "v"), node("Gemm", ["v", "w"], "out")],
}


@pytest.mark.parametrize("inside", INSIDE)
def test_a_batch_that_is_lost_on_the_way(inside, tmp_path, colors):
    nodes, weights = body()
    weights["w"] = weights.pop("w2").reshape(4, 16).T.copy()
    del weights["b2"]
    used = {name for item in INSIDE[inside] for name in item.input}
    values = {name: value for name, value in CONSTANTS.items() if name in used}
    model = model_of([*nodes[:-1], *INSIDE[inside]], {**weights, **values}, "out", shape=(1, 3, SIDE, SIDE))
    bundle, _ = brought(model, tmp_path, colors)
    files, pixels = read_pixels(colors)
    expected = one_by_one(model, (pixels / 255).astype(np.float32))
    with load(bundle.path, require="cpu", threads=1) as net:
        np.testing.assert_allclose([net(file).logits for file in files], expected, atol=1e-4)
        np.testing.assert_allclose([each.logits for each in net(files)], expected, atol=1e-4)


def test_windows_that_were_cut_with_a_fixed_number(tmp_path, colors):
    """Attention in windows, as Swin's: [1, 8, 8, 16] is cut to [4, 4, 4, 16] and back by fixed reshapes."""
    nodes, weights = body()
    cut, back = np.int64([1, 16, 2, 4, 2, 4]), np.int64([1, 2, 2, 16, 4, 4])
    nodes[2:2] = [
        node("Reshape", ["r", "cut"], "r1"),
        node("Transpose", ["r1"], "r2", perm=[0, 2, 4, 1, 3, 5]),
        node("Reshape", ["r2", "windows"], "r3"),
        node("ReduceMax", ["r3"], "m", axes=[2, 3]),
        node("Sub", ["r3", "m"], "r4"),
        node("Reshape", ["r4", "back"], "r5"),
        node("Transpose", ["r5"], "r6", perm=[0, 3, 1, 4, 2, 5]),
        node("Reshape", ["r6", "image_again"], "r7"),
    ]
    nodes[-2].input[0] = "r7"
    values = {"cut": cut, "windows": np.int64([4, 16, 4, 4]), "back": back, "image_again": np.int64([1, 16, 8, 8])}
    tail = node("Flatten", ["z"], "out")
    model = model_of([*nodes, tail], {**weights, **values}, "out", shape=(1, 3, SIDE, SIDE))
    opened_and_equal(model, tmp_path, colors)


def test_a_shape_that_is_computed_from_constants_and_sizes(tmp_path, colors):
    """As the older exporter of torch writes windows: the batch as a constant, and the number of windows computed."""
    nodes, weights = body()
    nodes[2:2] = [
        node("Shape", ["r"], "sizes"),
        node("Slice", ["sizes", "two", "three"], "side"),
        node("Div", ["side", "half"], "count"),
        node("Concat", ["one", "features", "count", "half", "side"], "target", axis=0),
        node("Reshape", ["r", "target"], "r1"),
        node("ReduceMax", ["r1"], "r2", axes=[3], keepdims=0),
    ]
    nodes[-2].input[0] = "r2"
    named = {"one": 1, "two": 2, "three": 3, "half": 4, "features": 16}
    values = {**weights, **{name: np.int64([value]) for name, value in named.items()}}
    model = model_of([*nodes, node("Flatten", ["z"], "out")], values, "out", shape=(1, 3, SIDE, SIDE))
    opened_and_equal(model, tmp_path, colors)


def test_a_token_that_is_joined_to_the_parts_of_one_image(tmp_path, colors):
    """As vision transformers have it: a constant [1, 16, 1, 1] beside the features of the image."""
    nodes, weights = body()
    nodes[2:3] = [
        node("GlobalMaxPool", ["r"], "m"),
        node("Concat", ["token", "m"], "j", axis=2),
        node("ReduceMean", ["j"], "g", axes=[2]),
    ]
    weights["token"] = np.linspace(-1, 1, 16, dtype=np.float32).reshape(1, 16, 1, 1)
    model = model_of([*nodes, node("Flatten", ["z"], "out")], weights, "out", shape=(1, 3, SIDE, SIDE))
    opened_and_equal(model, tmp_path, colors)


def test_a_view_that_is_written_as_a_gather(tmp_path, colors):
    """As torch's exporter writes ``as_strided``: all values in a row, and the indices 0, 1, 2 and so on."""
    nodes, weights = body()
    tail = [node("Reshape", ["z", "flat"], "v"), node("Gather", ["v", "all"], "out")]
    values = {**weights, "flat": np.int64([-1]), "all": np.arange(4).reshape(1, 4)}
    opened_and_equal(model_of([*nodes, *tail], values, "out", shape=(1, 3, SIDE, SIDE)), tmp_path, colors)
    weights["w"] = np.random.default_rng(3).normal(size=(16, 4)).astype(np.float32)
    inner = [node("Reshape", ["g", "flat"], "v"), node("Gather", ["v", "all"], "u"), node("Gemm", ["u", "w"], "out")]
    values = {**weights, "flat": np.int64([-1]), "all": np.arange(16).reshape(1, 16)}
    opened_and_equal(model_of([*nodes[:-1], *inner], values, "out", shape=(1, 3, SIDE, SIDE)), tmp_path, colors)


def opened_and_equal(model, tmp_path, colors):
    bundle, _ = brought(model, tmp_path, colors)
    files, pixels = read_pixels(colors)
    expected = one_by_one(model, (pixels / 255).astype(np.float32))
    assert bundle.manifest.inputs[0].shape[0] == "batch"
    with load(bundle.path, require="cpu", threads=1) as net:
        np.testing.assert_allclose([each.logits for each in net(files)], expected, atol=1e-4)


def test_an_image_is_no_row_of_classes(tmp_path, colors):
    model = model_of([node("Relu", ["image"], "out")], {}, "out")
    with pytest.raises(ModelError, match=r"output out has shape \[16, 3, 16, 16\] for 16 images; accepted: one row"):
        brought(model, tmp_path, colors)


def test_labels_fit_the_outputs_of_one_image(tmp_path, colors):
    nodes, weights = body(columns=5)
    model = model_of([*nodes, node("Squeeze", ["z"], "out")], weights, "out", shape=(1, 3, SIDE, SIDE))
    with pytest.raises(UsageError, match=r"4 labels were given .* but the model has 5 outputs"):
        brought(model, tmp_path, colors, labels=LABELS)


def test_indices_that_are_computed_from_an_open_batch(tmp_path, colors):
    """As torch writes a mean over the sides of channels-last maps: a flat view, and indices by the number of images."""
    nodes, weights = body()
    nodes[-1].input[0] = "view"
    viewed = [
        node("Shape", ["g"], "batch", start=0, end=1),
        node("Squeeze", ["batch"], "images"),
        node("Range", ["zero", "images", "step"], "first"),
        node("Mul", ["first", "channels"], "starts"),
        node("Unsqueeze", ["starts", "ends"], "rows"),
        node("Add", ["rows", "all"], "indices"),
        node("Reshape", ["g", "flat"], "line"),
        node("Gather", ["line", "indices"], "seen"),
        node("Unsqueeze", ["seen", "sides"], "view"),
    ]
    constants = {
        "zero": np.int64(0),
        "step": np.int64(1),
        "channels": np.int64(16),
        "ends": np.int64([1]),
        "all": np.arange(16)[None],
        "flat": np.int64([-1]),
        "sides": np.int64([2, 3]),
    }
    model = model_of([*nodes[:-1], *viewed, nodes[-1], node("Flatten", ["z"], "out")], {**weights, **constants}, "out")
    bundle, _ = brought(model, tmp_path, colors)
    files, pixels = read_pixels(colors)
    expected = one_by_one(model, (pixels / 255).astype(np.float32))
    with load(bundle.path, require="cpu", threads=1) as net:
        np.testing.assert_allclose([each.logits for each in net(files)], expected, atol=1e-4)
    assert bundle.manifest.inputs[0].shape[0] == "batch"
