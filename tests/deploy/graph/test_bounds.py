"""Sizes that a file of few bytes asks for: derived before anything is computed, within 3 GiB of memory."""

from __future__ import annotations

import resource
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from _helpers.graphs import constants, graph, node, ops, run
from krl_deploy.cli import main
from krl_deploy.graph import bounds, cleanup
from krl_deploy.graph.bounds import check_bounds
from krl_deploy.graph.cleanup import clean
from krl_deploy.graph.files import read_model
from krl_runtime.errors import ModelError

SIDE = 60000
LARGE = np.int64([SIDE, SIDE])
EMPTY = np.float32([])

# Nodes that make the tensor "huge" of constants, and these constants.
BOMBS = {
    "ConstantOfShape": ([node("ConstantOfShape", ["n"], "huge")], {"n": LARGE}),
    "Expand": ([node("Expand", ["one", "n"], "huge")], {"one": np.float32([[1]]), "n": LARGE}),
    "Tile": ([node("Tile", ["one", "n"], "huge")], {"one": np.float32([[1]]), "n": LARGE}),
    "Range": (
        [node("Range", ["from", "to", "by"], "huge")],
        {"from": np.float32(0), "to": np.float32(4e9), "by": np.float32(1)},
    ),
    "Resize": (
        [node("Resize", ["one", "", "", "n"], "huge")],
        {"one": np.ones((1, 1, 1, 1), np.float32), "n": np.int64([1, 1, SIDE, SIDE])},
    ),
    "Pad": ([node("Pad", ["one", "n"], "huge")], {"one": np.float32([[1]]), "n": np.int64([0, 0, SIDE, SIDE])}),
    "Gather": (
        [node("ConstantOfShape", ["n"], "indices", value=helper.make_tensor("v", TensorProto.INT64, [1], [0])),
         node("Gather", ["rows", "indices"], "huge")],
        {"n": np.int64([SIDE]), "rows": np.ones((2, SIDE), np.float32)},
    ),
    "Add": (
        [node("ConstantOfShape", ["n"], "row"), node("Transpose", ["row"], "column", perm=[1, 0]),
         node("Add", ["row", "column"], "huge")],
        {"n": np.int64([1, SIDE])},
    ),
    "OneHot": (
        [node("ConstantOfShape", ["n"], "indices"), node("OneHot", ["indices", "depth", "pair"], "huge")],
        {"n": np.int64([SIDE]), "depth": np.int64([SIDE]), "pair": np.float32([0, 1])},
    ),
    "EyeLike": ([node("ConstantOfShape", ["n"], "zeros"), node("EyeLike", ["zeros"], "huge")], {"n": LARGE}),
    "RandomNormal": ([node("RandomNormal", [], "huge", shape=LARGE.tolist())], {}),
    "MatMul": (
        [node("ConstantOfShape", ["n"], "row"), node("ConstantOfShape", ["m"], "column"),
         node("MatMul", ["column", "row"], "huge")],
        {"n": np.int64([1, SIDE]), "m": np.int64([SIDE, 1])},
    ),
    "many": (
        [*(node("ConstantOfShape", ["n"], f"part{number}") for number in range(9)),
         node("Sum", [f"part{number}" for number in range(9)], "huge")],
        {"n": np.int64([6000, 6000])},
    ),
}  # fmt: skip


def bomb(name):
    """A small classifier that adds one number of a constant that the file makes of few."""
    nodes, values = BOMBS[name]
    nodes = [
        node("GlobalAveragePool", ["x"], "g"),
        node("Flatten", ["g"], "f"),
        *nodes,
        node("ReduceMax", ["huge"], "most", keepdims=0),
        node("Add", ["f", "most"], "y"),
    ]
    model = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(np.asarray(array), key) for key, array in values.items()],
    )
    return helper.make_model(model, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def limited(*arguments):
    """Run krl-deploy with 3 GiB of address space; return its exit code and its last line."""
    limit = 3 << 30
    done = subprocess.run(
        [sys.executable, "-m", "krl_deploy", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr.strip()


@pytest.mark.parametrize("name", BOMBS)
def test_constants_are_bounded_before_they_are_made(name, tmp_path):
    path = tmp_path / "bomb.onnx"
    path.write_bytes(bomb(name).SerializeToString())
    assert path.stat().st_size < 2**20
    start = time.monotonic()
    tensor = "part7" if name == "many" else "huge|zeros"
    with pytest.raises(ModelError, match=rf"bomb.onnx: the model's \w+ n_\w+ makes the tensor ({tensor}) .*accepted: "):
        read_model(path)
    assert time.monotonic() - start < 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Resize", "Gather", "many"])
def test_commands_refuse_them_within_their_memory(name, tmp_path, digits):
    path = tmp_path / "bomb.onnx"
    path.write_bytes(bomb(name).SerializeToString())
    for command in (
        ("check", path, "--target", "onnxruntime-cpu"),
        ("import", path, "-o", tmp_path / "b.krl", "--data", digits, "--labels", "a", "b", "c"),
    ):
        code, said = limited(*command)
        assert code == 2
        assert "makes the tensor" in said


def grown(nodes, values, shape=("n", 3, "h", "w")):
    return graph(nodes, {"x": list(shape)}, {"y": None}, values, opset=18)


# What becomes of an image, from the shape of which the file computes the size.
GROWING = {
    "Tile": ([node("Tile", ["x", "n"], "y")], {"n": np.int64([1, 1, 5000, 5000])}),
    "Pad": ([node("Pad", ["x", "n"], "y")], {"n": np.int64([0, 0, SIDE, SIDE, 0, 0, 0, 0])}),
    "Resize": ([node("Resize", ["x", "", "s"], "y")], {"s": np.float32([1, 1, 3000, 3000])}),
    "Shape": (
        [node("Shape", ["x"], "s"), node("Mul", ["s", "k"], "m"), node("ConstantOfShape", ["m"], "y")],
        {"k": np.int64([1, 1, 4000, 4000])},
    ),
    "division": (  # which ONNX's own propagation of values does not follow
        [node("Shape", ["x"], "s", start=2), node("Cast", ["s"], "f", to=TensorProto.FLOAT), node("Exp", ["f"], "e"),
         node("Cast", ["e"], "i", to=TensorProto.INT64), node("ConstantOfShape", ["i"], "y")],
        {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GROWING)
def test_what_is_made_of_one_input_is_bounded(name):
    with pytest.raises(ModelError, match=r"makes the tensor y of \d+ bytes .*accepted: 4294967296 for one input"):
        check_bounds(grown(*GROWING[name]), {"x": (1, 3, 16, 16)})


def test_ordinary_sizes_are_taken():
    nodes = [node("Resize", ["x", "", "s"], "r"), node("Conv", ["r", "w"], "y", pads=[1] * 4)]
    values = {"s": np.float32([1, 1, 4, 4]), "w": np.ones((64, 3, 3, 3), np.float32)}
    check_bounds(grown(nodes, values), {"x": (1, 3, 540, 960)})  # to 4K


def test_graphs_in_control_flow_are_bounded_too():
    huge = helper.make_node("ConstantOfShape", ["n"], ["branch"], name="inner")
    inner = helper.make_graph([huge], "then", [], [helper.make_tensor_value_info("branch", TensorProto.FLOAT, None)])
    chosen = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    model = grown([chosen], {"n": LARGE, "c": np.bool_(True)})
    with pytest.raises(ModelError, match="ConstantOfShape inner makes the tensor branch of 14400000000 bytes"):
        check_bounds(model)


def test_constants_that_fit_are_computed_as_the_graph_computes_them():
    nodes = [
        node("Resize", ["small", "", "", "size"], "large", mode="cubic"),
        node("Softmax", ["large"], "soft", axis=-1),
        node("Conv", ["x", "w"], "c"),
        node("Mul", ["c", "soft"], "y"),
    ]
    values = {
        "small": np.random.default_rng(0).normal(size=(1, 2, 3, 3)).astype(np.float32),
        "size": np.int64([1, 2, 14, 14]),
        "w": np.random.default_rng(1).normal(size=(2, 3, 3, 3)).astype(np.float32),
    }
    model = grown(nodes, values, ("n", 3, 16, 16))
    cleaned = clean(model)
    x = np.random.default_rng(2).normal(size=(2, 3, 16, 16)).astype(np.float32)
    np.testing.assert_allclose(run(cleaned, x=x)[0], run(model, x=x)[0], atol=1e-5)
    assert ops(cleaned) == ["Conv", "Mul"]


def test_large_and_slow_constants_stay_computed(monkeypatch):
    square = np.ones((64, 64), np.float32)
    model = graph([node("MatMul", ["a", "b"], "w"), node("MatMul", ["x", "w"], "y")],
                  {"x": ["n", 64]}, {"y": None}, {"a": square, "b": square})  # fmt: skip
    assert ops(clean(model)) == ["MatMul"]
    assert (constants(clean(model))["w"] == 64).all()
    monkeypatch.setattr(bounds, "_MAX_PRODUCTS", 64**3 - 1)
    assert ops(clean(model)) == ["MatMul", "MatMul"]
    monkeypatch.undo()
    monkeypatch.setattr(cleanup, "_MAX_FOLDED_BYTES", 64 * 64 * 4 - 1)
    assert ops(clean(model)) == ["MatMul", "MatMul"]


@pytest.mark.parametrize("op", ["RandomNormalLike", "Bernoulli"])
def test_random_constants_are_not_made_once_and_for_all(op):
    model = graph([node(op, ["k"], "r"), node("Add", ["x", "r"], "y")],
                  {"x": [2]}, {"y": None}, {"k": np.float32([0.5, 0.5])})  # fmt: skip
    assert ops(clean(model)) == [op, "Add"]


def test_a_constant_that_cannot_be_computed_stays(tmp_path, capsys):
    """Rows beyond the last: ONNX Runtime says so when the model runs."""
    model = graph([node("Gather", ["k", "i"], "g"), node("Add", ["x", "g"], "y")],
                  {"x": [1]}, {"y": None}, {"k": np.float32([1, 2]), "i": np.int64([7])})  # fmt: skip
    assert ops(clean(model)) == ["Gather", "Add"]
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    assert main(["check", str(path), "--target", "onnxruntime-cpu"]) in (0, 1)
