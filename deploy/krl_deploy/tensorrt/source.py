"""The ONNX file that an engine is built from, and what can be said of it before TensorRT has seen it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krl_runtime._files import sha256_bytes
from krl_runtime.bundle import TensorSpec
from krl_runtime.errors import ModelError

if TYPE_CHECKING:
    import numpy.typing as npt
    import onnx

__all__ = ["Source", "read_source"]

_OPSETS = (9, 25)
"""NVIDIA's ONNX opset guide for TensorRT 11.x; onnx-tensorrt's operators.md gives 9 to 20 for TensorRT 10.0."""

_INTEGER_OPERATORS = frozenset({"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"})


@dataclass(frozen=True)
class Source:
    """An ONNX file that TensorRT can be given.

    Attributes:
        path: Where it lies.
        data: Its bytes; all weights are in it.
        sha256: Their hash.
        inputs: The graph's inputs; a dynamic batch is ``"batch"``.
    """

    path: Path
    data: bytes
    sha256: str
    inputs: tuple[TensorSpec, ...]


def read_source(path: Path) -> Source:
    """Read an ONNX file and check what TensorRT asks of it that can be checked here.

    Checked: opset, one dynamic dimension at most (the batch), no integer operators, and that ``QuantizeLinear`` and
    ``DequantizeLinear`` are symmetric, int8, with constant positive scales, for each channel only on weights.
    Whether TensorRT has every operator is not checked: its parser knows.

    Raises:
        ModelError: The file is not a model, or TensorRT would refuse it; the message names each node.
    """
    from krl_deploy.graph.files import opset_of, read_model

    model = read_model(path)
    inputs = tuple(_spec(value) for value in model.graph.input)
    found = [*_check_inputs(inputs), *_check_nodes(model)]
    if not _OPSETS[0] <= opset_of(model) <= _OPSETS[1]:
        found.append(f"opset is {opset_of(model)}; TensorRT takes {_OPSETS[0]} to {_OPSETS[1]}")
    if found:
        shown = "".join(f"\n  {item}" for item in found[:20])
        raise ModelError(f"TensorRT would refuse {path}:{shown}")
    data = path.read_bytes()
    return Source(path, data, sha256_bytes(data), inputs)


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    from onnx import helper

    tensor = value.type.tensor_type
    shape = tuple(
        dim.dim_value if dim.HasField("dim_value") else ("batch" if axis == 0 else dim.dim_param or "?")
        for axis, dim in enumerate(tensor.shape.dim)
    )
    return TensorSpec(value.name, helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, shape)


def _check_inputs(inputs: tuple[TensorSpec, ...]) -> Iterator[str]:
    for spec in inputs:
        if not spec.shape or any(isinstance(size, str) for size in spec.shape[1:]):
            shape = ", ".join(map(str, spec.shape))
            yield f"input {spec.name!r} has shape [{shape}]; accepted: a batch first, which may vary, the rest fixed"
    if len({spec.shape[0] for spec in inputs if spec.shape}) > 1:
        yield "the inputs have different batches: " + ", ".join(f"{s.name} {s.shape[0]}" for s in inputs if s.shape)


def _check_nodes(model: onnx.ModelProto) -> Iterator[str]:
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    for node in model.graph.node:
        where = f"node {node.name or node.output[0]!r} ({node.op_type})"
        if node.op_type in _INTEGER_OPERATORS:
            yield f"{where}: integer operators are not taken; quantise with QuantizeLinear and DequantizeLinear"
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            arrays = [numpy_helper.to_array(constants[name]) if name in constants else None for name in node.input]
            for fault in _check_quantiser(node.op_type, arrays, [bool(name) for name in node.input]):
                yield f"{where}: {fault}"


def _check_quantiser(kind: str, arrays: list[npt.NDArray[Any] | None], given: list[bool]) -> Iterator[str]:
    """Yield what is wrong with a quantiser, given those of its inputs that are constant."""
    source, scale, zero = [*arrays, None][:3]
    if scale is None:
        yield "its scale is not a constant"
        return
    if not (scale > 0).all():
        yield "a scale is not positive"
    if scale.size > 1 and source is None and kind == "QuantizeLinear":
        yield "scales for each channel are taken for weights only, this is an activation"
    if zero is None:
        if len(given) < 3 or not given[2]:
            yield from () if kind == "DequantizeLinear" else ("without a zero point its values are uint8, not int8",)
        else:
            yield "its zero point is not a constant"
    elif zero.dtype.name == "uint8":
        yield "its values are uint8, which is the form for ONNX Runtime's CPU provider; TensorRT takes int8"
    elif zero.any():
        yield "its zero point is not 0; TensorRT's quantisation is symmetric"
