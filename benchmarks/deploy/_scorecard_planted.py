"""Operators for ``scorecard.py``, used well or badly behind a convolution, as an edited or hand-written file may."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["PLANTED"]

_F, _H, _B, _D = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE
_I, _L, _S, _U = TensorProto.INT32, TensorProto.INT64, TensorProto.INT8, TensorProto.UINT8
_T = TensorProto.BOOL


def _make(
    op: str,
    constants: Mapping[str, Any] | None = None,
    *,
    cast: int = 0,
    outputs: tuple[str, ...] = ("y",),
    kinds: tuple[int, ...] = (_F,),
    opset: int = 20,
    batch: int | str = 1,
    twice: bool = False,
    domain: str = "",
    **attributes: Any,
) -> onnx.ModelProto:
    """Return x [batch, 4, 8, 8] → convolution → (cast) → the operator; the input's batch may be open.

    Args:
        op: The operator; its first input is what the convolution gives.
        constants: Its further inputs.
        cast: Type that its first input is cast to.
        outputs: Names of its outputs.
        kinds: Types of its outputs.
        opset: Version of the operators.
        batch: Size of the first axis, or its name.
        twice: Whether its second input is the first once more.
        domain: Domain of the operator.
        **attributes: Its attributes.
    """
    rng = np.random.default_rng(0)
    arrays = {name: np.asarray(value) for name, value in (constants or {}).items()}
    weights = {"w": rng.normal(size=(4, 4, 1, 1)).astype(np.float32), **arrays}
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv")]
    source = "c"
    if cast:
        nodes.append(helper.make_node("Cast", ["c"], ["casted"], name="cast", to=cast))
        source = "casted"
    given = [source, *([source] if twice else []), *arrays]
    nodes.append(helper.make_node(op, given, list(outputs), name="planted", domain=domain, **attributes))
    types = (*kinds, *kinds[-1:] * (len(outputs) - len(kinds)))
    graph = helper.make_graph(
        nodes,
        "planted",
        [helper.make_tensor_value_info("x", _F, [batch, 4, 8, 8])],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in zip(outputs, types, strict=True) if name],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    imports = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def _f(*shape: int) -> Any:
    return np.ones(shape, np.float32)


def _h(*shape: int) -> Any:
    return np.ones(shape, np.float16)


def _l(*values: int) -> Any:
    return np.int64(values)


def _i(*values: int) -> Any:
    return np.int32(values)


_Case = tuple[str, Mapping[str, Any] | None, Mapping[str, Any]]


def _of(kind: int, *operators: str, **more: Any) -> dict[str, _Case]:
    """Return operators that have one input, which is cast to a type."""
    name = TensorProto.DataType.Name(kind).lower()
    return {f"{op} of {name}": (op, None, {"cast": kind, "kinds": (kind,), **more}) for op in operators}


_W33, _NORM = _f(4, 4, 3, 3), {name: _f(4) for name in "sbmv"}
_SCALES = np.float32([1, 1, 2, 2])
_Q = {"s": np.float32(0.1), "z": np.int8(0)}

_CONVOLUTIONS: dict[str, _Case] = {
    "Conv": ("Conv", {"k": _W33}, {}),
    "Conv, strides 0": ("Conv", {"k": _W33}, {"strides": [0, 0]}),
    "Conv, dilations 0": ("Conv", {"k": _W33}, {"dilations": [0, 0]}),
    "Conv, too few pads": ("Conv", {"k": _W33}, {"pads": [1, 1]}),
    "Conv, negative pads": ("Conv", {"k": _W33}, {"pads": [-1, -1, -1, -1]}),
    "Conv, negative stride": ("Conv", {"k": _W33}, {"strides": [-1, 1]}),
    "Conv, kernel_shape of another weight": ("Conv", {"k": _W33}, {"kernel_shape": [5, 5]}),
    "Conv, kernel larger than its input": ("Conv", {"k": _f(4, 4, 9, 9)}, {}),
    "Conv, dilated beyond its input": ("Conv", {"k": _W33}, {"dilations": [4, 4]}),
    "Conv, weight of two axes": ("Conv", {"k": _f(4, 4)}, {}),
    "Conv, weight of three axes": ("Conv", {"k": _f(4, 4, 3)}, {}),
    "Conv, group 4": ("Conv", {"k": _f(4, 1, 3, 3)}, {"group": 4}),
    "Conv, group 3": ("Conv", {"k": _f(3, 1, 3, 3)}, {"group": 3}),
    "Conv, odd outputs in 2 groups": ("Conv", {"k": _f(5, 2, 3, 3)}, {"group": 2}),
    "Conv, FP16 weight": ("Conv", {"k": _h(4, 4, 3, 3)}, {}),
    "Conv, bias of two axes": ("Conv", {"k": _W33, "b": _f(4, 1)}, {}),
    "Conv, bias of one value": ("Conv", {"k": _W33, "b": _f(1)}, {}),
    "Conv, SAME_UPPER": ("Conv", {"k": _W33}, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "Conv, VALID with pads": ("Conv", {"k": _W33}, {"auto_pad": "VALID", "pads": [1, 1, 1, 1]}),
    "Conv, unknown auto_pad": ("Conv", {"k": _W33}, {"auto_pad": "SAME"}),
    "Conv in FP64": ("Conv", {"k": np.ones((4, 4, 3, 3))}, {"cast": _D, "kinds": (_D,)}),
    "Conv in int32": ("Conv", {"k": np.ones((4, 4, 3, 3), np.int32)}, {"cast": _I, "kinds": (_I,)}),
    "Conv in BF16": ("Conv", {"k": np.ones((4, 4, 3, 3), ml_dtypes.bfloat16)}, {"cast": _B, "kinds": (_B,)}),
    "ConvTranspose": ("ConvTranspose", {"k": _W33}, {"strides": [2, 2]}),
    "ConvTranspose, output_shape": ("ConvTranspose", {"k": _W33}, {"strides": [2, 2], "output_shape": [16, 16]}),
    "ConvTranspose, output_padding": ("ConvTranspose", {"k": _W33}, {"strides": [2, 2], "output_padding": [1, 1]}),
    "ConvTranspose, large output_padding": ("ConvTranspose", {"k": _W33}, {"output_padding": [3, 3]}),
    "ConvTranspose, dilations": ("ConvTranspose", {"k": _W33}, {"dilations": [2, 2]}),
    "ConvTranspose, wrong channels": ("ConvTranspose", {"k": _f(3, 4, 3, 3)}, {}),
    "ConvTranspose, short bias": ("ConvTranspose", {"k": _W33, "b": _f(2)}, {}),
    "ConvTranspose, pads beyond": ("ConvTranspose", {"k": _f(4, 4, 1, 1)}, {"pads": [4, 4, 4, 4]}),
    "DeformConv": ("DeformConv", {"k": _W33, "o": np.zeros((1, 18, 6, 6), np.float32)}, {"opset": 19}),
    "MatMul": ("MatMul", {"k": _f(8, 3)}, {}),
    "MatMul of a vector": ("MatMul", {"k": _f(8)}, {}),
    "MatMul of wrong sizes": ("MatMul", {"k": _f(7, 3)}, {}),
    "MatMul in int32": ("MatMul", {"k": np.ones((8, 3), np.int32)}, {"cast": _I, "kinds": (_I,)}),
    "MatMul in FP64": ("MatMul", {"k": np.ones((8, 3))}, {"cast": _D, "kinds": (_D,)}),
    "MatMul, batches that do not broadcast": ("MatMul", {"k": _f(1, 3, 8, 2)}, {}),
    "Gemm of four axes": ("Gemm", {"k": _f(8, 3)}, {}),
}

_POOLS: dict[str, _Case] = {
    "MaxPool, kernel larger than its input": ("MaxPool", None, {"kernel_shape": [9, 9]}),
    "MaxPool, strides 0": ("MaxPool", None, {"kernel_shape": [2, 2], "strides": [0, 0]}),
    "MaxPool, pads of the kernel": ("MaxPool", None, {"kernel_shape": [2, 2], "pads": [2, 2, 2, 2]}),
    "MaxPool, one kernel side": ("MaxPool", None, {"kernel_shape": [2]}),
    "MaxPool, kernel 0": ("MaxPool", None, {"kernel_shape": [0, 0]}),
    "MaxPool, int8": ("MaxPool", None, {"kernel_shape": [2, 2], "cast": _S, "kinds": (_S,)}),
    "MaxPool, uint8": ("MaxPool", None, {"kernel_shape": [2, 2], "cast": _U, "kinds": (_U,)}),
    "MaxPool, FP64": ("MaxPool", None, {"kernel_shape": [2, 2], "cast": _D, "kinds": (_D,)}),
    "MaxPool, indices": ("MaxPool", None, {"kernel_shape": [2, 2], "outputs": ("y", "i"), "kinds": (_F, _L)}),
    "MaxPool, column major": ("MaxPool", None, {"kernel_shape": [2, 2], "storage_order": 1}),
    "MaxPool, ceil_mode": ("MaxPool", None, {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    "AveragePool, dilations": ("AveragePool", None, {"kernel_shape": [2, 2], "dilations": [2, 2]}),
    "AveragePool, large kernel": ("AveragePool", None, {"kernel_shape": [8, 8]}),
    "AveragePool, huge kernel": ("AveragePool", None, {"kernel_shape": [12, 12]}),
    "LpPool, p 1": ("LpPool", None, {"kernel_shape": [2, 2], "p": 1}),
    "LpPool, p 4": ("LpPool", None, {"kernel_shape": [2, 2], "p": 4}),
    "GlobalLpPool": ("GlobalLpPool", None, {}),
    "GlobalLpPool, p 3": ("GlobalLpPool", None, {"p": 3}),
    "GlobalMaxPool": ("GlobalMaxPool", None, {}),
    "MaxUnpool": ("MaxUnpool", {"i": np.zeros((1, 4, 8, 8), np.int64)}, {"kernel_shape": [2, 2], "strides": [2, 2]}),
}

_NORMS: dict[str, _Case] = {
    "BatchNormalization": ("BatchNormalization", _NORM, {}),
    "BatchNormalization, 3 channels": ("BatchNormalization", {name: _f(3) for name in "sbmv"}, {}),
    "BatchNormalization, training": (
        "BatchNormalization",
        _NORM,
        {"training_mode": 1, "outputs": ("y", "a", "b"), "kinds": (_F,)},
    ),
    "BatchNormalization, FP16 statistics": ("BatchNormalization", {name: _h(4) for name in "sbmv"}, {}),
    "BatchNormalization, mixed": ("BatchNormalization", {"s": _h(4), "b": _h(4), "m": _f(4), "v": _f(4)}, {}),
    "InstanceNormalization": ("InstanceNormalization", {"s": _f(4), "b": _f(4)}, {}),
    "InstanceNormalization, 3 channels": ("InstanceNormalization", {"s": _f(3), "b": _f(3)}, {}),
    "GroupNormalization 21": (
        "GroupNormalization",
        {"s": _f(4), "b": _f(4)},
        {"num_groups": 2, "opset": 21},
    ),
    "GroupNormalization 18": ("GroupNormalization", {"s": _f(2), "b": _f(2)}, {"num_groups": 2, "opset": 18}),
    "GroupNormalization, 3 groups": ("GroupNormalization", {"s": _f(4), "b": _f(4)}, {"num_groups": 3, "opset": 21}),
    "LayerNormalization": ("LayerNormalization", {"s": _f(8)}, {}),
    "LayerNormalization, axis 1": ("LayerNormalization", {"s": _f(4, 8, 8)}, {"axis": 1}),
    "LayerNormalization, axis 5": ("LayerNormalization", {"s": _f(8)}, {"axis": 5}),
    "LayerNormalization, wrong scale": ("LayerNormalization", {"s": _f(7)}, {}),
    "LayerNormalization, FP16 scale": ("LayerNormalization", {"s": _h(8)}, {}),
    "LayerNormalization, stash FP64": ("LayerNormalization", {"s": _f(8)}, {"stash_type": 11}),
    "LayerNormalization, FP16": ("LayerNormalization", {"s": _h(8)}, {"cast": _H, "kinds": (_H,)}),
    "RMSNormalization": ("RMSNormalization", {"s": _f(8)}, {"opset": 23}),
    "RMSNormalization, wrong scale": ("RMSNormalization", {"s": _f(7)}, {"opset": 23}),
    "LRN": ("LRN", None, {"size": 3}),
    "LRN, even size": ("LRN", None, {"size": 4}),
    "LRN, size 1": ("LRN", None, {"size": 1}),
    "LpNormalization, axis 7": ("LpNormalization", None, {"axis": 7}),
    "LpNormalization, p 0": ("LpNormalization", None, {"p": 0}),
    "MeanVarianceNormalization, open batch": ("MeanVarianceNormalization", None, {"batch": "n"}),
    "Softmax, axis 4": ("Softmax", None, {"axis": 4}),
    "Softmax, opset 11, axis 2": ("Softmax", None, {"axis": 2, "opset": 11}),
    "Softmax, BF16": ("Softmax", None, {"cast": _B, "kinds": (_B,)}),
    "Softmax, FP64": ("Softmax", None, {"cast": _D, "kinds": (_D,)}),
    "Hardmax": ("Hardmax", None, {}),
    "Hardmax, opset 11": ("Hardmax", None, {"opset": 11}),
    "Dropout, seed": ("Dropout", {"r": np.float32(0.5)}, {"seed": 3}),
    "Dropout, ratio FP16": ("Dropout", {"r": np.float16(0.5)}, {}),
}

_SHAPES: dict[str, _Case] = {
    "Reshape": ("Reshape", {"s": _l(1, -1)}, {}),
    "Reshape, wrong volume": ("Reshape", {"s": _l(1, 5)}, {}),
    "Reshape, two unknown": ("Reshape", {"s": _l(-1, -1)}, {}),
    "Reshape, negative size": ("Reshape", {"s": _l(-2, 4)}, {}),
    "Reshape, zeros kept": ("Reshape", {"s": _l(0, 0, -1)}, {}),
    "Reshape, allowzero": ("Reshape", {"s": _l(0, 4)}, {"allowzero": 1}),
    "Reshape, int32 shape": ("Reshape", {"s": _i(1, -1)}, {}),
    "Reshape, nine axes": ("Reshape", {"s": _l(1, 1, 1, 1, 1, 1, 1, 1, 256)}, {}),
    "Reshape, eight axes": ("Reshape", {"s": _l(1, 1, 1, 1, 1, 1, 1, 256)}, {}),
    "Reshape, to a scalar": ("Reshape", {"s": np.zeros(0, np.int64)}, {}),
    "Flatten, axis 5": ("Flatten", None, {"axis": 5}),
    "Flatten, axis 0": ("Flatten", None, {"axis": 0}),
    "Transpose, three axes": ("Transpose", None, {"perm": [0, 1, 2]}),
    "Transpose, axis twice": ("Transpose", None, {"perm": [0, 1, 1, 2]}),
    "Transpose, axis 4": ("Transpose", None, {"perm": [0, 1, 2, 4]}),
    "Transpose, reversed": ("Transpose", None, {}),
    "Squeeze, axis of 4": ("Squeeze", {"a": _l(1)}, {}),
    "Squeeze, no axes": ("Squeeze", None, {}),
    "Squeeze, no axes, open batch": ("Squeeze", None, {"batch": "n"}),
    "Squeeze, axis 9": ("Squeeze", {"a": _l(9)}, {}),
    "Unsqueeze, axis twice": ("Unsqueeze", {"a": _l(0, 0)}, {}),
    "Unsqueeze, axis 7": ("Unsqueeze", {"a": _l(7)}, {}),
    "Unsqueeze to nine axes": ("Unsqueeze", {"a": _l(0, 1, 2, 3, 4)}, {}),
    "Expand": ("Expand", {"s": _l(3, 4, 8, 8)}, {}),
    "Expand of 4 to 5": ("Expand", {"s": _l(1, 5, 8, 8)}, {}),
    "Tile, three numbers": ("Tile", {"r": _l(1, 1, 2)}, {}),
    "Tile, zero": ("Tile", {"r": _l(1, 1, 1, 0)}, {}),
    "Concat, axis 4": ("Concat", {"o": _f(1, 4, 8, 8)}, {"axis": 4}),
    "Concat of other sides": ("Concat", {"o": _f(1, 4, 8, 7)}, {"axis": 1}),
    "Concat of other rank": ("Concat", {"o": _f(4, 8, 8)}, {"axis": 1}),
    "Concat, FP16": ("Concat", {"o": _h(1, 4, 8, 8)}, {"axis": 1}),
    "Split, sum 3": ("Split", {"s": _l(1, 2)}, {"axis": 1, "outputs": ("y", "z")}),
    "Split, uneven": ("Split", {"s": _l(1, 3)}, {"axis": 1, "outputs": ("y", "z")}),
    "Split, axis 5": ("Split", {"s": _l(2, 2)}, {"axis": 5, "outputs": ("y", "z")}),
    "Split, num_outputs 3": ("Split", None, {"axis": 1, "num_outputs": 3, "outputs": ("y", "z", "u")}),
    "Slice, step 0": ("Slice", {"b": _l(0), "e": _l(4), "a": _l(2), "t": _l(0)}, {}),
    "Slice, backward": ("Slice", {"b": _l(-1), "e": _l(-9), "a": _l(2), "t": _l(-1)}, {}),
    "Slice, empty": ("Slice", {"b": _l(5), "e": _l(2), "a": _l(2)}, {}),
    "Slice, axis 6": ("Slice", {"b": _l(0), "e": _l(2), "a": _l(6)}, {}),
    "Slice, axis twice": ("Slice", {"b": _l(0, 1), "e": _l(2, 3), "a": _l(2, 2)}, {}),
    "Gather, index beyond": ("Gather", {"i": _l(9)}, {"axis": 1}),
    "Gather, negative": ("Gather", {"i": _l(-1)}, {"axis": 1}),
    "Gather, axis 4": ("Gather", {"i": _l(0)}, {"axis": 4}),
    "Gather, float indices": ("Gather", {"i": np.float32([0])}, {"axis": 1}),
    "GatherElements, other rank": ("GatherElements", {"i": _l(0, 1)}, {"axis": 1}),
    "GatherND, batch_dims": ("GatherND", {"i": np.zeros((1, 4, 2), np.int64)}, {"batch_dims": 2}),
    "GatherND, too deep": ("GatherND", {"i": np.zeros((1, 6), np.int64)}, {}),
    "ScatterElements, add": (
        "ScatterElements",
        {"i": np.zeros((1, 4, 8, 8), np.int64), "u": _f(1, 4, 8, 8)},
        {"axis": 1, "reduction": "add"},
    ),
    "ScatterND": ("ScatterND", {"i": np.zeros((1, 1), np.int64), "u": _f(1, 4, 8, 8)}, {}),
    "ScatterND, max": ("ScatterND", {"i": np.zeros((1, 1), np.int64), "u": _f(1, 4, 8, 8)}, {"reduction": "max"}),
    "Pad, wrap": ("Pad", {"p": _l(0, 0, 1, 1, 0, 0, 1, 1)}, {"mode": "wrap"}),
    "Pad, edge": ("Pad", {"p": _l(0, 0, 1, 1, 0, 0, 1, 1)}, {"mode": "edge"}),
    "Pad, reflect too far": ("Pad", {"p": _l(0, 0, 9, 9, 0, 0, 9, 9)}, {"mode": "reflect"}),
    "Pad, three numbers": ("Pad", {"p": _l(1, 1, 1)}, {}),
    "Pad, negative": ("Pad", {"p": _l(0, 0, -1, -1, 0, 0, 0, 0)}, {}),
    "Pad, beyond nothing": ("Pad", {"p": _l(0, 0, -9, -9, 0, 0, 0, 0)}, {}),
    "Pad, unknown mode": ("Pad", {"p": _l(0, 0, 1, 1, 0, 0, 1, 1)}, {"mode": "symmetric"}),
    "DepthToSpace": ("DepthToSpace", None, {"blocksize": 2}),
    "DepthToSpace, 3": ("DepthToSpace", None, {"blocksize": 3}),
    "SpaceToDepth, 3": ("SpaceToDepth", None, {"blocksize": 3}),
    "DepthToSpace, unknown mode": ("DepthToSpace", None, {"blocksize": 2, "mode": "RCD"}),
    "Resize, three scales": ("Resize", {"r": _f(0), "s": np.float32([1, 2, 2])}, {}),
    "Resize, scale 0": ("Resize", {"r": _f(0), "s": np.float32([1, 1, 0, 2])}, {}),
    "Resize, negative scale": ("Resize", {"r": _f(0), "s": np.float32([1, 1, -1, 2])}, {}),
    "Resize of the channels": ("Resize", {"r": _f(0), "s": np.float32([1, 2, 2, 2])}, {"mode": "linear"}),
    "Resize, cubic, coefficient": ("Resize", {"r": _f(0), "s": _SCALES}, {"mode": "cubic", "cubic_coeff_a": -0.5}),
    "Resize, cubic, outside": ("Resize", {"r": _f(0), "s": _SCALES}, {"mode": "cubic", "exclude_outside": 1}),
    "Resize, linear, outside": ("Resize", {"r": _f(0), "s": _SCALES}, {"mode": "linear", "exclude_outside": 1}),
    "Resize, both": ("Resize", {"r": _f(0), "s": _SCALES, "z": _l(1, 4, 16, 16)}, {}),
    "Resize, axes": ("Resize", {"r": _f(0), "s": np.float32([2, 2])}, {"axes": [2, 3]}),
    "Resize, unknown mode": ("Resize", {"r": _f(0), "s": _SCALES}, {"mode": "area"}),
    "Resize, FP16": ("Resize", {"r": _h(0), "s": _SCALES}, {"cast": _H, "kinds": (_H,), "mode": "linear"}),
    "Resize, int32": ("Resize", {"r": _f(0), "s": _SCALES}, {"cast": _I, "kinds": (_I,)}),
    "Upsample 9": ("Upsample", {"s": _SCALES}, {"opset": 9}),
    "Upsample in opset 10": ("Upsample", {"s": _SCALES}, {"opset": 10}),
    "CenterCropPad": ("CenterCropPad", {"s": _l(4, 4)}, {"axes": [2, 3]}),
    "Col2Im": ("Col2Im", {"i": _l(8, 8), "b": _l(1, 1)}, {}),
}

_REDUCTIONS: dict[str, _Case] = {
    "ReduceMean, axes": ("ReduceMean", {"a": _l(2, 3)}, {}),
    "ReduceMean, axis 4": ("ReduceMean", {"a": _l(4)}, {}),
    "ReduceMean, axis twice": ("ReduceMean", {"a": _l(2, 2)}, {}),
    "ReduceMean, no axes": ("ReduceMean", None, {}),
    "ReduceMean, no axes, noop": ("ReduceMean", None, {"noop_with_empty_axes": 1}),
    "ReduceSum, empty axes, noop": ("ReduceSum", {"a": np.zeros(0, np.int64)}, {"noop_with_empty_axes": 1}),
    "ReduceMax, int32": ("ReduceMax", {"a": _l(1)}, {"cast": _I, "kinds": (_I,)}),
    "ReduceMax, bool": ("ReduceMax", {"a": _l(1)}, {"cast": _T, "kinds": (_T,)}),
    "ReduceMax, uint8": ("ReduceMax", {"a": _l(1)}, {"cast": _U, "kinds": (_U,)}),
    "ReduceMax, int8": ("ReduceMax", {"a": _l(1)}, {"cast": _S, "kinds": (_S,)}),
    "ReduceProd, FP64": ("ReduceProd", {"a": _l(1)}, {"cast": _D, "kinds": (_D,)}),
    "ReduceLogSum": ("ReduceLogSum", {"a": _l(1)}, {}),
    "ArgMax": ("ArgMax", None, {"axis": 1, "kinds": (_L,)}),
    "ArgMax, last": ("ArgMax", None, {"axis": 1, "select_last_index": 1, "kinds": (_L,)}),
    "ArgMax, axis 8": ("ArgMax", None, {"axis": 8, "kinds": (_L,)}),
    "ArgMin, int32": ("ArgMin", None, {"axis": 1, "cast": _I, "kinds": (_L,)}),
    "TopK": ("TopK", {"k": _l(3)}, {"outputs": ("y", "i"), "kinds": (_F, _L)}),
    "TopK, 9 of 8": ("TopK", {"k": _l(9)}, {"outputs": ("y", "i"), "kinds": (_F, _L)}),
    "TopK, 0": ("TopK", {"k": _l(0)}, {"outputs": ("y", "i"), "kinds": (_F, _L)}),
    "TopK, axis 1": ("TopK", {"k": _l(2)}, {"axis": 1, "outputs": ("y", "i"), "kinds": (_F, _L)}),
    "TopK, int32": ("TopK", {"k": _l(2)}, {"cast": _I, "outputs": ("y", "i"), "kinds": (_I, _L)}),
    "TopK, int64": ("TopK", {"k": _l(2)}, {"cast": _L, "outputs": ("y", "i"), "kinds": (_L, _L)}),
    "CumSum": ("CumSum", {"a": np.int64(2)}, {}),
    "CumSum, exclusive, reverse": ("CumSum", {"a": np.int64(2)}, {"exclusive": 1, "reverse": 1}),
    "CumSum, axis 4": ("CumSum", {"a": np.int64(4)}, {}),
    "CumSum, int32": ("CumSum", {"a": np.int64(2)}, {"cast": _I, "kinds": (_I,)}),
    "Einsum": ("Einsum", {"o": _f(8, 3)}, {"equation": "nchw,wd->nchd"}),
    "Einsum, ellipsis": ("Einsum", {"o": _f(8, 3)}, {"equation": "...w,wd->...d"}),
    "Einsum, diagonal": ("Einsum", None, {"equation": "nchh->nch"}),
    "Einsum, implicit": ("Einsum", {"o": _f(8, 3)}, {"equation": "nchw,wd"}),
    "Einsum, too few letters": ("Einsum", {"o": _f(8, 3)}, {"equation": "chw,wd->chd"}),
    "Einsum, sizes": ("Einsum", {"o": _f(7, 3)}, {"equation": "nchw,wd->nchd"}),
    "Einsum, FP64": ("Einsum", {"o": np.ones((8, 3))}, {"equation": "nchw,wd->nchd", "cast": _D, "kinds": (_D,)}),
    "Einsum, int32": (
        "Einsum",
        {"o": np.ones((8, 3), np.int32)},
        {"equation": "nchw,wd->nchd", "cast": _I, "kinds": (_I,)},
    ),
}

_ELEMENTS: dict[str, _Case] = {
    **_of(_I, "Abs", "Neg", "Sign", "Relu", "Identity"),
    **_of(_L, "Abs", "Neg", "Sign", "Relu"),
    **_of(_S, "Abs", "Neg", "Identity", "Flatten"),
    **_of(_U, "Abs", "Identity", "Flatten", "Transpose"),
    **_of(_D, "Abs", "Sqrt", "Sigmoid", "Relu", "Erf"),
    **_of(_B, "Abs", "Sqrt", "Sigmoid", "Gelu", "Erf"),
    **_of(_H, "Sin", "Mish", "Gelu", "Ceil"),
    **_of(_T, "Not", "Identity", "Flatten", "Transpose"),
    **_of(_F, "Add", "Mul", "Sub", "Div", "Pow", "Max", "Min", "Mean", twice=True),
    **_of(_I, "Add", "Div", "Max", "Pow", twice=True),
    **_of(_L, "Add", "Div", "Max", "Sum", twice=True),
    **_of(_S, "Add", "Max", twice=True),
    **_of(_U, "Add", "Div", "Max", twice=True),
    **_of(_T, "And", "Or", "Xor", "Equal", twice=True),
    **_of(_F, "And", "Less", "LessOrEqual", "Equal", twice=True, kinds=(_T,)),
    **_of(_H, "IsNaN", kinds=(_T,)),
    **{
        f"Add of FP32 and {name}": ("Add", {"o": np.ones((1, 4, 8, 8), kind)}, {})
        for name, kind in {"FP16": np.float16, "BF16": ml_dtypes.bfloat16, "int32": np.int32, "int8": np.int8}.items()
    },
    **{
        f"Cast to {TensorProto.DataType.Name(kind).lower()} at the output": (
            "Cast",
            None,
            {"to": kind, "kinds": (kind,)},
        )
        for kind in range(1, 24)
        if kind != TensorProto.STRING
    },
    "Add, sizes": ("Add", {"o": _f(1, 3, 8, 8)}, {}),
    "Add, broadcast": ("Add", {"o": _f(8)}, {}),
    "Pow, int exponent": ("Pow", {"o": np.int64(2)}, {}),
    "Pow, FP16 exponent": ("Pow", {"o": np.float16(2)}, {}),
    "Mod of floats": ("Mod", {"o": np.float32(2)}, {"fmod": 1}),
    "Mod of floats, no fmod": ("Mod", {"o": np.float32(2)}, {}),
    "Mod of int32": ("Mod", {"o": np.int32(2)}, {"cast": _I, "kinds": (_I,)}),
    "BitShift": ("BitShift", {"o": np.uint8(1)}, {"direction": "LEFT", "cast": _U, "kinds": (_U,)}),
    "BitwiseAnd": ("BitwiseAnd", {"o": np.int32(1)}, {"cast": _I, "kinds": (_I,)}),
    "Clip, no limits": ("Clip", None, {}),
    "Clip, crossed limits": ("Clip", {"a": np.float32(2), "b": np.float32(1)}, {}),
    "Clip, vector limits": ("Clip", {"a": _f(4), "b": _f(4)}, {}),
    "Clip of int32": ("Clip", {"a": np.int32(0), "b": np.int32(6)}, {"cast": _I, "kinds": (_I,)}),
    "Clip of int64": ("Clip", {"a": np.int64(0), "b": np.int64(6)}, {"cast": _L, "kinds": (_L,)}),
    "Clip of int8": ("Clip", {"a": np.int8(0), "b": np.int8(6)}, {"cast": _S, "kinds": (_S,)}),
    "Clip, int32 limits": ("Clip", {"a": np.int32(0), "b": np.int32(6)}, {}),
    "PRelu, scalar": ("PRelu", {"s": np.float32(0.1)}, {}),
    "PRelu, 4 behind": ("PRelu", {"s": _f(4)}, {}),
    "PRelu of channels": ("PRelu", {"s": _f(4, 1, 1)}, {}),
    "Shrink": ("Shrink", None, {"lambd": 0.1}),
    "Where": ("Where", {"a": _f(1), "b": _f(1)}, {"cast": _T}),
    "Where, float condition": ("Where", {"a": _f(1), "b": _f(1)}, {}),
    "Where, mixed": ("Where", {"a": _f(1), "b": _h(1)}, {"cast": _T}),
    "Where of int64": ("Where", {"a": _l(1), "b": _l(2)}, {"cast": _T, "kinds": (_L,)}),
    "OneHot": ("OneHot", {"d": np.int64(4), "v": np.float32([0, 1])}, {"cast": _L}),
    "OneHot of floats": ("OneHot", {"d": np.int64(4), "v": np.float32([0, 1])}, {}),
    "Range": ("Range", {"e": np.float32(3), "t": np.float32(1)}, {}),
    "EyeLike": ("EyeLike", None, {}),
    "NonZero": ("NonZero", None, {"kinds": (_L,)}),
    "Unique": ("Unique", None, {}),
    "Compress": ("Compress", {"k": np.array([True, False, True, True])}, {"axis": 1}),
    "Bernoulli": ("Bernoulli", None, {}),
    "RandomNormalLike": ("RandomNormalLike", None, {}),
    "RandomUniformLike, seed": ("RandomUniformLike", None, {"seed": 2.0}),
    "Det": ("Det", None, {}),
    "IsInf": ("IsInf", None, {"kinds": (_T,)}),
    "IsInf, positive": ("IsInf", None, {"detect_negative": 0, "kinds": (_T,)}),
    "Trilu": ("Trilu", None, {}),
    "Trilu, k": ("Trilu", {"k": np.int64(1)}, {"upper": 0}),
    "GridSample, reflection": ("GridSample", {"g": np.zeros((1, 4, 4, 2), np.float32)}, {"padding_mode": "reflection"}),
    "GridSample, wrong grid": ("GridSample", {"g": np.zeros((1, 4, 4, 3), np.float32)}, {"opset": 16}),
    "Size": ("Size", None, {"kinds": (_L,)}),
    "Shape, start": ("Shape", None, {"start": 1, "kinds": (_L,)}),
    "CastLike": ("CastLike", {"o": np.int32([0])}, {"kinds": (_I,)}),
    "Swish": ("Swish", None, {"opset": 24}),
    "Affine of another domain": ("Scale", None, {"domain": "my.company"}),
    "Relu of another domain": ("Relu", None, {"domain": "my.company"}),
    "Gelu of ONNX Runtime": ("Gelu", None, {"domain": "com.microsoft"}),
    "FusedMatMul of ONNX Runtime": ("FusedMatMul", {"k": _f(8, 3)}, {"domain": "com.microsoft"}),
    "BiasGelu of ONNX Runtime": ("BiasGelu", {"k": _f(8)}, {"domain": "com.microsoft"}),
}

_QUANTIZED: dict[str, _Case] = {
    "QuantizeLinear to int8": ("QuantizeLinear", _Q, {"kinds": (_S,)}),
    "QuantizeLinear to uint8": ("QuantizeLinear", {"s": np.float32(0.1), "z": np.uint8(0)}, {"kinds": (_U,)}),
    "QuantizeLinear to int16": (
        "QuantizeLinear",
        {"s": np.float32(0.1), "z": np.int16(0)},
        {"opset": 21, "kinds": (TensorProto.INT16,)},
    ),
    "QuantizeLinear, negative scale": ("QuantizeLinear", {"s": np.float32(-0.1), "z": np.int8(0)}, {"kinds": (_S,)}),
    "QuantizeLinear, zero point 3": ("QuantizeLinear", {"s": np.float32(0.1), "z": np.int8(3)}, {"kinds": (_S,)}),
    "QuantizeLinear, three scales": (
        "QuantizeLinear",
        {"s": _f(3), "z": np.zeros(3, np.int8)},
        {"axis": 1, "kinds": (_S,)},
    ),
    "QuantizeLinear, axis 6": (
        "QuantizeLinear",
        {"s": _f(4), "z": np.zeros(4, np.int8)},
        {"axis": 6, "kinds": (_S,)},
    ),
    "DequantizeLinear of int32": ("DequantizeLinear", {"s": np.float32(0.1)}, {"cast": _I}),
    "DequantizeLinear of floats": ("DequantizeLinear", {"s": np.float32(0.1)}, {}),
    "DequantizeLinear of int8": ("DequantizeLinear", _Q, {"cast": _S}),
    "DequantizeLinear of uint8": ("DequantizeLinear", {"s": np.float32(0.1), "z": np.uint8(128)}, {"cast": _U}),
    "DynamicQuantizeLinear": ("DynamicQuantizeLinear", None, {"outputs": ("y", "s", "z"), "kinds": (_U, _F, _U)}),
    "ConvInteger": ("ConvInteger", {"k": np.ones((4, 4, 1, 1), np.int8)}, {"cast": _S, "kinds": (_I,)}),
    "MatMulInteger": ("MatMulInteger", {"k": np.ones((8, 3), np.int8)}, {"cast": _S, "kinds": (_I,)}),
}

PLANTED: dict[str, Callable[[], onnx.ModelProto]] = {
    name: partial(_make, op, constants, **options)
    for cases in (_CONVOLUTIONS, _POOLS, _NORMS, _SHAPES, _REDUCTIONS, _ELEMENTS, _QUANTIZED)
    for name, (op, constants, options) in cases.items()
}
"""By name, what makes the graph."""
