"""The reader of ONNX files beside onnx's own: weights in other files at every place, unusual encodings, and sizes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from krl_runtime.bundle.onnx_check import MAX_MADE, check_onnx
from krl_runtime.bundle.onnx_file import OnnxFileError, read_graphs

OUTSIDE = "keeps weights in other files; save it with its weights inside"


def outside(name: str = "w") -> TensorProto:
    """Return a tensor whose values are in another file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="w.bin")
    return tensor


def model(*nodes: onnx.NodeProto, initializers: tuple[TensorProto, ...] = ()) -> ModelProto:
    graph = helper.make_graph(list(nodes), "g", [], [helper.make_empty_tensor_value_info("y")], list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def node(**attributes: object) -> onnx.NodeProto:
    made = helper.make_node("Constant", [], ["y"])
    made.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    return made


def in_graph(inner: onnx.NodeProto | TensorProto) -> GraphProto:
    """Return a graph that has a node or an initializer."""
    graph = GraphProto(name="inner")
    (graph.initializer if isinstance(inner, TensorProto) else graph.node).append(inner)
    return graph


def sparse(place: str) -> onnx.SparseTensorProto:
    inside = numpy_helper.from_array(np.zeros(1, np.float32), "inside")
    return onnx.SparseTensorProto(**{"values": inside, "indices": inside, place: outside()}, dims=[4])


def with_sparse(place: str) -> ModelProto:
    made = model()
    made.graph.sparse_initializer.append(sparse(place))
    return made


def with_training(part: str, inner: onnx.NodeProto | TensorProto) -> ModelProto:
    made = model()
    made.training_info.append(onnx.TrainingInfoProto(**{part: in_graph(inner)}))
    return made


def with_function(inner: onnx.NodeProto) -> ModelProto:
    made = model()
    made.functions.append(onnx.FunctionProto(name="f", node=[inner]))
    return made


def with_default() -> ModelProto:
    made = model()
    made.functions.append(onnx.FunctionProto(name="f", attribute_proto=[helper.make_attribute("value", outside())]))
    return made


PLACES: dict[str, Callable[[], ModelProto]] = {
    "initializer": lambda: model(initializers=(outside(),)),
    "values of a sparse initializer": lambda: with_sparse("values"),
    "indices of a sparse initializer": lambda: with_sparse("indices"),
    "Constant": lambda: model(node(value=outside())),
    "list of tensors": lambda: model(node(values=[outside()])),
    "sparse Constant": lambda: model(node(sparse_value=sparse("values"))),
    "initializer of a subgraph": lambda: model(node(body=in_graph(outside()))),
    "Constant of a subgraph's subgraph": lambda: model(node(body=in_graph(node(body=in_graph(node(value=outside())))))),
    "list of graphs": lambda: model(node(bodies=[in_graph(outside())])),
    "function": lambda: with_function(node(value=outside())),
    "subgraph of a function": lambda: with_function(node(body=in_graph(outside()))),
    "default of a function": with_default,
    "initialization for training": lambda: with_training("initialization", outside()),
    "algorithm of training": lambda: with_training("algorithm", node(value=outside())),
}


@pytest.mark.parametrize("place", PLACES)
def test_weights_in_other_files_are_found_at_every_place(place: str):
    with pytest.raises(OnnxFileError, match=OUTSIDE):
        check_onnx(PLACES[place]().SerializeToString())


def varint(value: int, least: int = 1) -> bytes:
    """Return a number of at least so many bytes, as all of protobuf's decoders read it."""
    out = b""
    while value > 127 or len(out) + 1 < least:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def message(number: int, content: bytes, least: int = 1) -> bytes:
    return varint(number << 3 | 2, least) + varint(len(content), least) + content


def unusual() -> dict[str, bytes]:
    """Encodings of models that onnx reads, with weights in another file."""
    tensor = outside()
    plain, whole = tensor.SerializeToString(), model().graph.SerializeToString()
    location = TensorProto(name="w", data_location=TensorProto.EXTERNAL).SerializeToString()
    entry = message(13, message(1, b"location", 3) + message(2, b"w.bin", 4), 2)
    head = varint(1 << 3) + varint(8)
    kind = varint(2 << 3) + varint(1)
    made = {
        "long lengths": message(7, message(5, entry + location, 3), 4),
        "long tags": message(7, varint(5 << 3 | 2, 5) + message(5, plain)[1:]),
        "the entry alone": message(7, message(5, entry)),
        "the location alone": message(7, message(5, location)),
        "an enumeration of 64 bits": message(7, message(5, varint(14 << 3) + varint(2**32 + 1))),
        "a negative enumeration": message(7, message(5, varint(14 << 3) + varint(2**64 - 1))),
        "two graphs": message(7, whole) + message(7, message(5, plain)),
        "one tensor in two parts": message(7, message(1, message(5, message(5, kind) + message(5, location)))),
        "unknown fields around it": message(
            7, message(99, b"x") + varint(98 << 3) + varint(5) + varint(97 << 3 | 5) + bytes(4) + message(5, plain)
        ),
        "unknown fields in it": message(7, message(5, varint(96 << 3 | 1) + bytes(8) + plain)),
        "the location set back": message(7, message(5, location + varint(14 << 3) + varint(0) + entry)),
    }
    return {name: head + data for name, data in made.items()}


@pytest.mark.parametrize("name", sorted(unusual()))
def test_however_it_is_encoded(name: str):
    data = unusual()[name]
    onnx.load_from_string(data)  # onnx's own decoder takes it
    with pytest.raises(OnnxFileError, match=OUTSIDE):
        check_onnx(data)


@pytest.mark.parametrize(
    "data",
    [
        b"\x3a", b"\x3a\x05ab", b"\x00\x00", b"\x0b", b"\x0c", b"\x0f", b"\x80" * 11, b"\x3d\0\0", b"\x39\0",
        b"\x3a\x02\x2a\x05", b"\xff\xff\xff\xff\xff\x01", b"\x08" + b"\xff" * 10 + b"\x01",
    ],
)  # fmt: skip
def test_what_is_no_protobuf_is_refused(data: bytes):
    with pytest.raises(OnnxFileError, match="cannot open the model: Protobuf parsing failed"):
        check_onnx(data)


def test_graphs_deep_in_graphs_and_many_parts_are_refused():
    inner = b""
    for _ in range(200):
        inner = message(1, message(5, message(6, inner)))
    with pytest.raises(OnnxFileError, match="graphs more than 64 deep"):
        check_onnx(message(7, inner))
    with pytest.raises(OnnxFileError, match="more than 2000000 parts"):
        check_onnx(b"\x08\0" * 2_000_001)


def test_a_real_network_is_read_as_onnx_reads_it():
    weights = numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(2, 3), "w")
    made = model(
        helper.make_node("Identity", ["w"], ["y"], name="n"),
        helper.make_node("If", ["c"], ["z"], then_branch=in_graph(node(value=weights)), else_branch=GraphProto()),
        initializers=(weights, numpy_helper.from_array(np.int64([-1, 2]), "shape")),
    )
    main, *others = read_graphs(made.SerializeToString())
    assert others == []
    assert [(item.operator, item.inputs, item.outputs) for item in main.nodes] == [
        (b"Identity", [b"w"], [b"y"]),
        (b"If", [b"c"], [b"z"]),
    ]
    assert [(item.name, item.dims, item.kind) for item in main.initializers] == [(b"w", [2, 3], 1), (b"shape", [2], 7)]
    assert [len(graph.nodes) for graph in main.nodes[1].attributes[b"then_branch"].graphs] == [1]


# Sizes


def ints(name: str, *values: int, form: str = "raw") -> TensorProto:
    if form == "raw":
        return numpy_helper.from_array(np.int64(values), name)
    if form == "int32":
        return TensorProto(name=name, data_type=TensorProto.INT32, dims=[len(values)], int32_data=values)
    return TensorProto(name=name, data_type=TensorProto.INT64, dims=[len(values)], int64_data=values)


def scalar(name: str, value: int) -> TensorProto:
    return numpy_helper.from_array(np.int64(value), name)


MANY = MAX_MADE // 4  # floats that take as many bytes as are accepted
BOMBS: dict[str, Callable[[int], ModelProto]] = {
    "ConstantOfShape": lambda n: model(
        helper.make_node("ConstantOfShape", ["s"], ["y"]), initializers=(ints("s", 4, n // 4),)
    ),
    "ConstantOfShape, int64_data": lambda n: model(
        helper.make_node("ConstantOfShape", ["s"], ["y"]), initializers=(ints("s", n, form="int64"),)
    ),
    "ConstantOfShape of doubles": lambda n: model(
        helper.make_node("ConstantOfShape", ["s"], ["y"], value=numpy_helper.from_array(np.zeros(1, np.float64))),
        initializers=(ints("s", n // 2),),
    ),
    "Constant, then ConstantOfShape": lambda n: model(
        helper.make_node("Constant", [], ["s"], value_ints=[n]), helper.make_node("ConstantOfShape", ["s"], ["y"])
    ),
    "a computed shape": lambda n: model(
        helper.make_node("Mul", ["a", "b"], ["s"]),
        helper.make_node("Concat", ["s", "one"], ["t"], axis=0),
        helper.make_node("ConstantOfShape", ["t"], ["y"]),
        initializers=(ints("a", n // 64), ints("b", 64), ints("one", 1)),
    ),
    "Expand": lambda n: model(
        helper.make_node("Expand", ["f", "s"], ["y"]),
        initializers=(numpy_helper.from_array(np.zeros((1, 1), np.float32), "f"), ints("s", 4, n // 4)),
    ),
    "Tile": lambda n: model(
        helper.make_node("Tile", ["f", "s"], ["y"]),
        initializers=(numpy_helper.from_array(np.zeros(2, np.float32), "f"), ints("s", n // 2)),
    ),
    "Range": lambda n: model(
        helper.make_node("Range", ["a", "b", "c"], ["y"]),
        initializers=(scalar("a", 0), scalar("b", n), scalar("c", 2)),
    ),
    "RandomNormal": lambda n: model(helper.make_node("RandomNormal", [], ["y"], shape=[n])),
    "Pad": lambda n: model(
        helper.make_node("Pad", ["f", "p"], ["y"]),
        initializers=(numpy_helper.from_array(np.zeros(2, np.float32), "f"), ints("p", 1, n - 3)),
    ),
    "broadcast": lambda n: model(
        helper.make_node("Add", ["a", "b"], ["y"]),
        initializers=(
            numpy_helper.from_array(np.zeros((n // 4096, 1), np.float32), "a"),
            numpy_helper.from_array(np.zeros(4096, np.float32), "b"),
        ),
    ),
    "outer product": lambda n: model(
        helper.make_node("MatMul", ["a", "b"], ["y"]),
        initializers=(
            numpy_helper.from_array(np.zeros((n // 4096, 1), np.float32), "a"),
            numpy_helper.from_array(np.zeros((1, 4096), np.float32), "b"),
        ),
    ),
    "in a branch": lambda n: model(
        helper.make_node(
            "If", ["c"], ["y"], then_branch=in_graph(helper.make_node("ConstantOfShape", ["s"], ["z"])),
            else_branch=GraphProto(),
        ),
        initializers=(ints("s", n),),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_constants_far_larger_than_the_file_are_refused(name: str):
    with pytest.raises(OnnxFileError, match=r"makes a constant of \["):
        check_onnx(BOMBS[name](2 * MANY).SerializeToString())
    check_onnx(BOMBS[name](MANY // 2).SerializeToString())  # half of what is accepted


def test_many_small_constants_count_together():
    nodes = [helper.make_node("ConstantOfShape", ["s"], [f"y{index}"]) for index in range(9)]
    check_onnx(model(*nodes[:7], initializers=(ints("s", MANY // 8),)).SerializeToString())
    with pytest.raises(OnnxFileError, match=r"ConstantOfShape makes a constant of \[2097152\]"):
        check_onnx(model(*nodes, initializers=(ints("s", MANY // 8),)).SerializeToString())


@pytest.mark.parametrize("values", [(-1, -(2**40)), (), (0, 0), (-(2**63), 2)])
@pytest.mark.parametrize("operator", ["ConstantOfShape", "Expand", "Tile", "Mul", "Reshape", "Squeeze", "Gather"])
def test_nodes_that_are_wrong_are_left_to_the_runtime(operator: str, values: tuple[int, ...]):
    wrong = helper.make_node(operator, ["s", "s"], ["y"])
    check_onnx(model(wrong, initializers=(ints("s", *values),)).SerializeToString())
    check_onnx(model(helper.make_node(operator, [], ["y"])).SerializeToString())
