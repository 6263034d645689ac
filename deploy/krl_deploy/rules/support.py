"""Rules of operators: what TensorRT's parser takes at all, in which opset, and with which restrictions."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx
from onnx import NodeProto, TensorProto

from krl_deploy.graph.edit import attribute
from krl_deploy.graph.files import nodes_of, opset_of
from krl_deploy.graph.operators import PLUGINS, STANDARD_INTEGER

from .findings import Finding, Rule, Severity
from .operators import (
    CHANGELOG,
    OPERATORS_MD,
    OPSETS,
    REDUCTIONS,
    RTX_LACKS,
    SINCE,
    TYPES,
    UNSUPPORTED,
    Version,
    source_of,
)
from .targets import Target
from .view import View, type_name

__all__ = ["check_operators", "check_opset", "check_restrictions", "check_stored"]

_OLDEST_OPSET = 9  # the oldest that TensorRT's parser documents (docs/operators.md of onnx-tensorrt)
_BROADCASTS = 7  # the first opset that broadcasts without an attribute

_SOURCES = f"{OPERATORS_MD}; {CHANGELOG}; onnxOpCheckers.cpp"
_FLOOR = "round_prefer_floor"
_BROADCASTING = frozenset(
    ["Add", "And", "Div", "Equal", "Greater", "Less", "Max", "Mean", "Min", "Mul", "Or", "Pow", "Sub", "Sum", "Xor"]
)
_QUANTIZE = "quantize the float model with QuantizeLinear and DequantizeLinear: krl-deploy quantize"
_REPLACE = "write it with other operators before exporting, or give TensorRT a plugin of that name"
_OPSET = "export the model again in an opset of that range; krl-deploy export writes 20"

_LARGEST_WINDOW = 15  # NvInfer.h, ILRNLayer: the window size must be odd and in the range of 1 to 15
_OTHERWISE = "write it otherwise before exporting"
_ATTENTION_AXES = "its Q, K and V have to have 4 axes by NVIDIA's documents; TensorRT-RTX 1.7.1 takes 3"

_PLUGIN = Rule(
    "note",
    "operators/plugin",
    "build it with trtexec, or end the graph before it: krl compares engines with ONNX Runtime",
    "NVIDIA/TensorRT: plugin/README.md",
)
_NO_PLUGIN = Rule(
    "error",
    "operators/plugin",
    "end the graph before it, and do that part outside",
    "TensorRT-RTX 1.7.1 comes without the plugins of TensorRT",
)
_PLUGIN_WHY = (
    "it is a plugin that TensorRT brings along (some versions have fewer); ONNX Runtime has none of that name",
    "it is a plugin of TensorRT, which TensorRT-RTX has not",
)


def check_opset(model: onnx.ModelProto, target: Target) -> Iterator[Finding]:
    """Yield a finding if the opset is not documented for this TensorRT."""
    opset = opset_of(model)
    documented = [entry for entry in OPSETS if entry[0] <= target.tensorrt]
    _, newest, source = documented[-1]
    later = [entry for entry in OPSETS if entry[0] > target.tensorrt]
    if opset < _OLDEST_OPSET:
        why = f"opset is {opset}; {_OLDEST_OPSET} to {newest} are documented; TensorRT-RTX 1.7.1 takes older ones"
        yield Rule("warning", "operators/opset", _OPSET, source).at("", "", why)
    elif opset > newest and (not later or opset > later[0][1]):
        why = f"opset is {opset}; TensorRT takes {_OLDEST_OPSET} to {newest}"
        if target.rtx:  # which looks at operators alone
            why = f"opset is {opset}; {_OLDEST_OPSET} to {newest} are documented; TensorRT-RTX 1.7.1 takes newer ones"
        yield Rule("warning" if target.rtx else "error", "operators/opset", _OPSET, source).at("", "", why)
    elif opset > newest and later:
        since = ".".join(map(str, later[0][0]))
        why = (
            f"opset is {opset}; {newest} is documented, {later[0][1]} from TensorRT {since} on, between them nothing is"
        )
        yield Rule("warning", "operators/opset", _OPSET, source).at("", "", why)


def check_operators(model: onnx.ModelProto, target: Target) -> Iterator[Finding]:
    """Yield a finding for each node whose operator this TensorRT does not take, or is not known to take."""
    for node in nodes_of(model.graph):
        kind, name = node.op_type, node.name or next((output for output in node.output if output), "")
        if kind in PLUGINS:
            yield (_NO_PLUGIN if target.rtx else _PLUGIN).at(name, kind, _PLUGIN_WHY[target.rtx])
        elif node.domain not in ("", "ai.onnx"):
            yield _foreign(name, node)
        elif kind in STANDARD_INTEGER:
            rule = Rule("error", "operators/integer", _QUANTIZE, OPERATORS_MD)
            yield rule.at(name, kind, "integer operators are not taken")
        elif kind in UNSUPPORTED:
            why = "TensorRT has no such operator"
            yield Rule("error", "operators/supported", _REPLACE, OPERATORS_MD).at(name, kind, why)
        elif target.rtx and kind in RTX_LACKS:
            rule = Rule("error", "operators/supported", _REPLACE, "NVIDIA's parser and builder, TensorRT-RTX 1.7.1")
            yield rule.at(name, kind, "TensorRT-RTX has no plugin for it")
        elif kind in SINCE and target.tensorrt < SINCE[kind][0]:
            why = f"TensorRT takes it from version {'.'.join(map(str, SINCE[kind][0]))} on"
            yield Rule("error", "operators/supported", _REPLACE, source_of(kind)).at(name, kind, why)
        elif kind not in SINCE and kind not in TYPES:
            why = "the table of TensorRT's parser does not list it, so it is not known whether it is taken"
            yield Rule("warning", "operators/supported", _REPLACE, OPERATORS_MD).at(name, kind, why)


def _foreign(name: str, node: NodeProto) -> Finding:
    known = node.op_type in TYPES
    rule = Rule(
        "warning" if known else "error",
        "operators/domain",
        "export the model with standard operators alone, or give TensorRT a plugin of that name",
        "onnx/onnx-tensorrt: ModelImporter.cpp of 10.1 looks importers up by the operator's name alone",
    )
    why = (
        f"it is {node.domain}'s, and TensorRT's parser takes it for the standard operator of that name"
        if known
        else f"it is {node.domain}'s; without a plugin of that name TensorRT's parser refuses it"
    )
    return rule.at(name, node.op_type, why)


def check_restrictions(view: View, target: Target) -> Iterator[Finding]:
    """Yield a finding for each node that uses its operator in a way that this TensorRT does not take."""
    for node in view.nodes:
        check = _RESTRICTIONS.get(node.op_type)
        found = [] if check is None or node.domain not in ("", "ai.onnx") else list(check(view, node, target))
        if node.op_type in _CONSTANT_INPUTS:
            found += _not_constant(view, node, target.tensorrt)
        if node.op_type in _SHAPES_FROM and target.rtx:
            found += _not_known(view, node)
        if view.opset < _BROADCASTS and _needs_broadcast(view, node):
            found.append(
                f"it broadcasts as in opsets before {_BROADCASTS}, which is not supported, even for equal shapes"
            )
        for why in found:
            severity: Severity = "warning" if target.rtx and why == _ATTENTION_AXES else "error"
            yield Rule(severity, "operators/restriction", _OTHERWISE, _SOURCES).at(node.name, node.op_type, why)


def check_stored(data: bytes) -> Iterator[Finding]:
    """Yield a finding for each sparse constant of an ONNX file; ``read_model`` writes them with their zeros."""
    if b"sparse_value" in data:
        for node in nodes_of(onnx.load_model_from_string(data).graph):
            if node.op_type == "Constant" and any(item.HasField("sparse_tensor") for item in node.attribute):
                rule = Rule("error", "operators/restriction", _OTHERWISE, _SOURCES)
                yield rule.at(node.name or node.output[0], node.op_type, "its sparse_value is not supported")


_CONSTANT_INPUTS: dict[str, tuple[int, Version | None]] = {
    "OneHot": (1, None),
    "Pad": (3, (10, 4)),
    "CumSum": (1, None),
    "Squeeze": (1, (10, 7)),
    "Unsqueeze": (1, (10, 7)),
    **dict.fromkeys(REDUCTIONS, (1, None)),
}
"""Inputs that have to be constants, and from which version on they have not."""


def _not_constant(view: View, node: NodeProto, version: Version) -> Iterator[str]:
    index, until = _CONSTANT_INPUTS[node.op_type]
    given = len(node.input) > index and node.input[index]
    if given and not view.rooted(node.input[index]) and (until is None or version < until):
        yield f"its input number {index + 1} has to be a constant" + (
            f" before TensorRT {'.'.join(map(str, until))}" if until else ""
        )


_SHAPES_FROM: dict[str, range] = {
    "Range": range(3),
    "Resize": range(1, 3),
    "Squeeze": range(1, 2),
    "Unsqueeze": range(1, 2),
    "Upsample": range(1, 2),
}
"""Inputs that shapes are computed from. TensorRT-RTX 1.7.1 takes whole numbers of an input for all but axes."""
_AXES_FROM = ("Squeeze", "Unsqueeze")


def _not_known(view: View, node: NodeProto) -> Iterator[str]:
    """Yield inputs that decide shapes, and depend on values that are not known before the engine runs."""
    for index in _SHAPES_FROM[node.op_type]:
        name = node.input[index] if len(node.input) > index else ""
        real = view.dtype(name) in (TensorProto.FLOAT, TensorProto.DOUBLE) if name else False
        if name and (real or node.op_type in _AXES_FROM) and view.given(name):
            yield f"its input number {index + 1} decides a shape, and depends on the values of an input"


def _needs_broadcast(view: View, node: NodeProto) -> bool:
    """Return whether NVIDIA's parser broadcasts the inputs of a node."""
    if node.op_type in ("Gemm", "PRelu"):
        result = view.graph.shape(node.output[0] if node.op_type == "Gemm" else node.input[0]) or ()
        return len(view.graph.shape(node.input[-1]) or ()) != len(result)
    return node.op_type in _BROADCASTING and len(node.input) > 1


def _pool(view: View, node: NodeProto, _: Target) -> Iterator[str]:
    rank = len(view.graph.shape(node.input[0]) or ())
    if rank and rank not in (3, 4, 5):
        yield f"its input has {rank} axes; 1D, 2D and 3D pooling alone is taken"
    if any(step != 1 for step in attribute(node, "dilations", [])):
        yield "its dilations are not all 1"
    if len(node.output) > 1 and node.output[1]:
        yield "its second output, the indices, is not supported"


def _resize(view: View, node: NodeProto, _: Target) -> Iterator[str]:
    def text(name: str, default: str) -> str:
        value = attribute(node, name, default)
        return value.decode(errors="replace") if isinstance(value, bytes) else str(value)

    accepted: dict[str, tuple[str, set[str]]] = {
        "mode": ("nearest", {"nearest", "linear", "cubic"}),
        "nearest_mode": ("round_prefer_floor", {"floor", "ceil", "round_prefer_floor", "round_prefer_ceil"}),
        "keep_aspect_ratio_policy": ("stretch", {"stretch"}),
        "coordinate_transformation_mode": (
            "half_pixel",
            {"half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners"},
        ),
    }
    for name, (default, values) in accepted.items():
        if text(name, default) not in values:
            yield f"its {name} is {text(name, default)}; accepted: {', '.join(sorted(values))}"
    nearest = text("nearest_mode", "round_prefer_floor")
    if text("coordinate_transformation_mode", "half_pixel") == "tf_half_pixel_for_nn" and nearest != _FLOOR:
        yield f"its nearest_mode is {nearest}; accepted with tf_half_pixel_for_nn: {_FLOOR}"
    if attribute(node, "antialias", 0):
        yield "antialiasing is not supported"


def _batch_norm(view: View, node: NodeProto, _: Target) -> Iterator[str]:
    # TensorRT reads neither of the older attributes, and computes as if they had their other value.
    if attribute(node, "training_mode", 0) or (view.opset < _BROADCASTS and not attribute(node, "is_test", 0)):
        yield "it is in training mode"
    elif view.opset < _OLDEST_OPSET and not attribute(node, "spatial", 1):
        yield "it normalizes each value by itself (spatial is 0), TensorRT normalizes channels"
    elif any(node.output[1:]):
        yield "its first output alone is supported"


def _convolution(view: View, node: NodeProto, _: Target) -> Iterator[str]:
    rank = len(view.graph.shape(node.input[0]) or ())
    if rank and rank not in (3, 4, 5):
        yield f"its input has {rank} axes; 1D, 2D and 3D convolution alone is taken"


def _einsum(view: View, node: NodeProto, _: Target) -> Iterator[str]:
    equation = attribute(node, "equation", b"").decode(errors="replace")
    wrong = sorted(set(equation) - set("abcdefghijklmnopqrstuvwxyz->., "))
    if wrong:
        yield f"its equation has {' '.join(wrong)}; accepted: small letters"


def _norm_order(view: View, node: NodeProto, target: Target) -> Iterator[str]:
    if attribute(node, "p", 2) not in (1, 2):
        yield f"its p is {attribute(node, 'p', 2)}; accepted: 1, 2"
    if node.op_type == "LpPool":
        yield from _pool(view, node, target)


def _recurrent(view: View, node: NodeProto, _: Target) -> Iterator[str]:
    if attribute(node, "input_forget", 0):
        yield "its input_forget is not supported"
    activations = attribute(node, "activations", [])
    half = len(activations) // 2
    if attribute(node, "direction", b"forward") == b"bidirectional" and activations[:half] != activations[half:]:
        yield "its activations differ between the directions"


def _random(view: View, node: NodeProto, _: Target) -> Iterator[str]:
    dtype = attribute(node, "dtype", TensorProto.FLOAT)
    if dtype not in (TensorProto.FLOAT, TensorProto.FLOAT16):
        yield f"its dtype is {type_name(dtype)}; accepted: FLOAT, FLOAT16"


def _sequence(view: View, node: NodeProto, _: Target) -> Iterator[str]:
    if attribute(node, "batch_axis", 1) == attribute(node, "time_axis", 0):
        yield "its batch_axis is its time_axis"


def _constant(view: View, node: NodeProto, _: Target) -> Iterator[str]:
    given = {item.name for item in node.attribute} & {"value_string", "value_strings"}
    if given:
        yield f"its {', '.join(sorted(given))} is not supported"


def _layer_norm(view: View, node: NodeProto, _: Target) -> Iterator[str]:
    if any(node.output[1:]):
        yield "its outputs Mean and InvStdDev are not supported"


def _dropout(view: View, node: NodeProto, _: Target) -> Iterator[str]:
    training = view.numbers(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(1)
    if training is None or np.any(training) or not attribute(node, "is_test", 1):  # is_test: before opset 7
        yield "it is in training mode"


def _grid_sample(view: View, node: NodeProto, target: Target) -> Iterator[str]:
    rank = len(view.graph.shape(node.input[0]) or ())
    if rank and rank != 4 and target.tensorrt < (11, 2):
        yield f"its input has {rank} axes; before TensorRT 11.2 it has to have 4"


def _scatter_nd(view: View, node: NodeProto, _: Target) -> Iterator[str]:
    if attribute(node, "reduction", b"none") != b"none":
        yield "its reduction is not supported"


def _mod(view: View, node: NodeProto, _: Target) -> Iterator[str]:
    dtype = view.dtype(node.input[0])
    if not attribute(node, "fmod", 0) and dtype not in (0, TensorProto.INT32, TensorProto.INT64):
        yield f"its fmod is 0, which is taken for INT32 and INT64 alone, and its inputs are {type_name(dtype)}"


def _range(view: View, node: NodeProto, _: Target) -> Iterator[str]:
    dtype = view.dtype(node.input[0])
    if dtype not in (0, TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64):
        yield f"its inputs are {type_name(dtype)}; accepted: FLOAT, INT32, INT64"


def _lrn(view: View, node: NodeProto, _: Target) -> Iterator[str]:
    size = int(attribute(node, "size", 1))
    if size not in range(1, _LARGEST_WINDOW + 1, 2):
        yield f"its size is {size}; accepted: an odd number up to {_LARGEST_WINDOW}"


def _pad_mode(view: View, node: NodeProto, _: Target) -> Iterator[str]:
    mode = attribute(node, "mode", b"constant").decode(errors="replace")
    if mode not in ("constant", "edge", "reflect", "wrap"):
        yield f"its mode is {mode}; accepted: constant, edge, reflect, wrap"


def _stft(view: View, node: NodeProto, _: Target) -> Iterator[str]:
    for index, name in enumerate(("frame_step", "window", "frame_length"), 1):
        if len(node.input) > index and node.input[index] and not view.rooted(node.input[index]):
            yield f"its {name} has to be a constant"


def _tensor_scatter(view: View, node: NodeProto, _: Target) -> Iterator[str]:
    mode = attribute(node, "mode", b"linear").decode(errors="replace")
    if mode != "linear":
        yield f"its mode is {mode}; accepted: linear"
    rank = len(view.graph.shape(node.input[0]) or ())
    if rank not in (0, 4):
        yield f"its past_cache has {rank} axes; it has to have 4"


def _scatter_elements(view: View, node: NodeProto, target: Target) -> Iterator[str]:
    if target.rtx and attribute(node, "reduction", b"none") != b"none":
        yield "its reduction needs a plugin that TensorRT-RTX comes without"


def _top_k(view: View, node: NodeProto, _: Target) -> Iterator[str]:
    count = view.numbers(node.input[1]) if len(node.input) > 1 else np.asarray(attribute(node, "k", 0))
    if count is not None and np.any(count >= 3840):
        yield "its K is not below 3840"


def _attention(view: View, node: NodeProto, _: Target) -> Iterator[str]:
    ranks = [len(view.graph.shape(name) or ()) for name in node.input[:3]]
    if any(rank not in (0, 4) for rank in ranks):
        yield _ATTENTION_AXES
    if any(node.input[4:7]):
        yield "its inputs past_key, past_value and nonpad_kv_seqlen are not supported"
    if any(node.output[1:]):
        yield "its first output alone is supported"
    if attribute(node, "softcap", 0.0) or attribute(node, "qk_matmul_output_mode", 0):
        yield "its softcap and qk_matmul_output_mode are not supported"


_RESTRICTIONS: dict[str, Callable[[View, NodeProto, Target], Iterator[str]]] = {
    "Attention": _attention,
    "AveragePool": _pool,
    "BatchNormalization": _batch_norm,
    "Constant": _constant,
    "Conv": _convolution,
    "ConvTranspose": _convolution,
    "Dropout": _dropout,
    "Einsum": _einsum,
    "GRU": _recurrent,
    "GridSample": _grid_sample,
    "LRN": _lrn,
    "LSTM": _recurrent,
    "LayerNormalization": _layer_norm,
    "LpNormalization": _norm_order,
    "LpPool": _norm_order,
    "MaxPool": _pool,
    "Mod": _mod,
    "Pad": _pad_mode,
    "RNN": _recurrent,
    "RandomNormal": _random,
    "RandomNormalLike": _random,
    "RandomUniform": _random,
    "RandomUniformLike": _random,
    "Range": _range,
    "Resize": _resize,
    "ReverseSequence": _sequence,
    "STFT": _stft,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "TensorScatter": _tensor_scatter,
    "TopK": _top_k,
}
