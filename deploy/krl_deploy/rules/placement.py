"""Rules of the positions of Q/DQ pairs: both factors of a product, one input of a residual addition, no bias."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import NodeProto, TensorProto

from krl_deploy.graph.operators import WEIGHTED
from krl_deploy.graph.placement import Weighted, residual_inputs, why_float_on_tensorrt

from .findings import Finding, Rule
from .view import View, type_name, weight_axis

__all__ = ["check_placement"]

_GUIDE = "NVIDIA's developer guide: explicit quantization"
_MODELOPT = "NVIDIA/Model-Optimizer: modelopt/onnx/quantization"
_AGAIN = "quantize the float model again: krl-deploy quantize"

_BOTH = Rule("warning", "qdq/both-inputs", "quantize both factors of the product, or neither", _GUIDE)
_AXIS = Rule(
    "error",
    "qdq/weight-axis",
    "scale the output channels: axis 0 of Conv, 1 of ConvTranspose, the columns of a matrix product",
    f"NVIDIA/TensorRT: NvInfer.h, IQuantizeLayer; {_MODELOPT}",
)
_ONE_SCALE = Rule("note", "qdq/per-tensor-weight", "give each output channel a scale", _GUIDE)
_BIAS_INT32 = Rule(
    "error", "qdq/bias", "leave the bias in floating point", "onnx/onnx-tensorrt: docs/operators.md, DequantizeLinear"
)
_BIAS = Rule("warning", "qdq/bias", "leave the bias in floating point", f"{_MODELOPT}: QuantizeBias is off")
_RESIDUAL = Rule(
    "warning",
    "qdq/residual",
    "quantize the shortcut, and not the output of the convolution before the addition",
    f"{_GUIDE}; {_MODELOPT}",
)
_ACTIVATION = Rule(
    "warning", "qdq/fusion", "move the pair behind the activation, to the input of the next product", _GUIDE
)
_FLOATING = Rule("warning", "qdq/no-quantizer", "take the pair out", _MODELOPT)
_CONCAT = Rule(
    "warning", "qdq/concat", "give the inputs of the concatenation one scale", f"{_MODELOPT}: concat_elimination"
)
_OUTPUT = Rule("warning", "qdq/output", "take the pair out: the graph's output is read by no product", _MODELOPT)
_THIN = Rule("warning", "qdq/thin", "leave it in floating point", _MODELOPT)
_DRAG = Rule(
    "warning",
    "qdq/fp32-scale",
    "give its scales FP16 (opset 19 or later), unless its values are too large for FP16",
    "roboflow/rf-detr: quantize.py, measured on TensorRT 10.16 and 11.3",
)

_ACTIVATIONS = frozenset(
    {
        "BatchNormalization",
        "Clip",
        "Elu",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "PRelu",
        "Relu",
        "Selu",
        "Sigmoid",
        "Softplus",
        "Tanh",
    }
)
_NO_QUANTIZERS = frozenset(
    {
        "Erf",
        "Exp",
        "Gelu",
        "GroupNormalization",
        "InstanceNormalization",
        "LayerNormalization",
        "Log",
        "Pow",
        "ReduceL2",
        "ReduceMax",
        "ReduceMean",
        "ReduceSum",
        "RMSNormalization",
        "Sigmoid",
        "Softmax",
        "Sqrt",
        "Tanh",
    }
)


def check_placement(view: View) -> Iterator[Finding]:
    """Yield the findings of misplaced and missing Q/DQ pairs."""
    int8 = [weighted for weighted in view.weighted if view.is_int8(weighted.node)]
    half = view.has_type(TensorProto.FLOAT16)
    for weighted in int8:
        yield from _weight(view, weighted)
        thin = why_float_on_tensorrt(view.graph, weighted) if _has_known_shape(view, weighted) else None
        thin = None if weighted.node.op_type == "ConvTranspose" else thin  # a known bug, not thinness: see bugs
        if thin is not None:
            yield _THIN.at(weighted.node.name, weighted.node.op_type, thin)
        if half and any(_scale_type(view, name) == TensorProto.FLOAT for name in weighted.node.input[:2]):
            why = "its scales are FP32 in an FP16 graph, which makes it compute around FP32"
            yield _DRAG.at(weighted.node.name, weighted.node.op_type, why)
    for node in view.nodes:
        yield from _inputs(view, node)
        yield from _float_operator(view, node)
    yield from _residuals(view, int8)
    yield from _outputs(view)


def _has_known_shape(view: View, weighted: Weighted) -> bool:
    shape = view.graph.shape(weighted.node.input[1]) or ()
    fits = len(shape) >= 3 if weighted.node.op_type.startswith("Conv") else len(shape) == 2
    return weighted.axis >= 0 and fits and all(isinstance(size, int) for size in shape)


def _scale_type(view: View, tensor: str) -> int:
    pair = view.pair(tensor)
    return 0 if pair is None else view.dtype(pair.dequantize.input[1])


def _weight(view: View, weighted: Weighted) -> Iterator[Finding]:
    """Yield a finding if the scales of a weight do not count its output channels."""
    node = weighted.node
    pair = view.pair(node.input[1])
    scale = None if pair is None else view.constant(pair.dequantize.input[1])
    axis = weight_axis(view, node)
    channels = (view.graph.shape(node.input[1]) or ())[weighted.axis :][:1] if weighted.axis >= 0 else ()
    if scale is not None and scale.size == 1 and channels != (1,):
        yield _ONE_SCALE.at(node.name, node.op_type, "its weight has one scale for all channels")
    elif axis is not None and weighted.axis >= 0 and axis != weighted.axis:
        why = f"its weight has scales along axis {axis}; the output channels are axis {weighted.axis}"
        yield _AXIS.at(node.name, node.op_type, why)


def _inputs(view: View, node: NodeProto) -> Iterator[Finding]:
    """Yield findings of a product's factors and bias."""
    if node.op_type not in WEIGHTED or len(node.input) < 2:
        return
    first, second = (view.pair(name) is not None for name in node.input[:2])
    if first != second:
        names = ("activation", "weight") if view.rooted(node.input[1]) else ("first factor", "second factor")
        quantized, other = names if first else names[::-1]
        yield _BOTH.at(
            node.name, node.op_type, f"its {quantized} is quantized, its {other} is not: it computes in floating point"
        )
    bias = view.pair(node.input[2], through=False) if len(node.input) > 2 and node.input[2] else None
    if bias is not None:
        dtype = view.dtype(bias.dequantize.input[0])
        rule = _BIAS_INT32 if dtype == TensorProto.INT32 else _BIAS
        yield rule.at(node.name, node.op_type, f"its bias is quantized to {type_name(dtype)}")


def _float_operator(view: View, node: NodeProto) -> Iterator[Finding]:
    """Yield findings of operators that a pair does not serve."""
    direct = {name: pair for name in node.input if (pair := view.pair(name, through=False)) is not None}
    activations = {name: pair for name, pair in direct.items() if pair.quantize is not None}
    if node.op_type in _NO_QUANTIZERS and activations:
        yield _FLOATING.at(node.name, node.op_type, "its input is quantized, but it computes in floating point")
    elif node.op_type in _ACTIVATIONS:
        for pair in activations.values():
            before = view.producers.get(pair.source)
            if before is not None and before.op_type in WEIGHTED and view.is_int8(before):
                why = f"a pair stands between it and the {before.op_type} before it, which TensorRT fuses otherwise"
                yield _ACTIVATION.at(node.name, node.op_type, why)
    if node.op_type == "Concat":
        scales = [view.numbers(pair.dequantize.input[1]) for pair in activations.values()]
        if len({scale.tobytes() for scale in scales if scale is not None}) > 1:
            yield _CONCAT.at(node.name, node.op_type, "its quantized inputs have different scales")


def _residuals(view: View, int8: list[Weighted]) -> Iterator[Finding]:
    """Yield additions of a shortcut to a product in INT8 that TensorRT cannot fuse."""
    expected = {node.name: index for node, index in residual_inputs(view.graph, int8)}
    products = {weighted.node.output[0] for weighted in int8}
    for node in view.nodes:
        if node.op_type != "Add" or any(view.rooted(name) for name in node.input):
            continue
        pairs = [view.pair(name, through=False) for name in node.input]
        own = [pair is not None and pair.source in products and len(view.consumers[pair.source]) == 1 for pair in pairs]
        if node.name in expected and pairs[expected[node.name]] is None:
            yield _RESIDUAL.at(node.name, node.op_type, "its shortcut is not quantized")
        elif all(pairs) and any(own):
            yield _RESIDUAL.at(
                node.name, node.op_type, "both of its inputs are quantized; TensorRT fuses it with neither"
            )
        elif node.name not in expected and any(own):
            yield _RESIDUAL.at(
                node.name, node.op_type, "the convolution before it is quantized instead of the shortcut"
            )


def _outputs(view: View) -> Iterator[Finding]:
    for name in view.graph.outputs:
        pair = view.pair(name, through=False)
        if pair is not None:
            yield _OUTPUT.at(pair.dequantize.name, pair.dequantize.op_type, f"the graph's output {name} is quantized")
