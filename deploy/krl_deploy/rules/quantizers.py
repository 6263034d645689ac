"""Rules of each ``QuantizeLinear`` and ``DequantizeLinear`` by itself: symmetric, int8, constant positive scales."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import NodeProto, TensorProto

from krl_deploy.graph.edit import attribute
from krl_deploy.graph.operators import QDQ
from krl_runtime.int8 import LEAST_FP16_SCALE

from .findings import Finding, Rule
from .view import View, type_name

__all__ = ["check_quantizers"]


_INTEGERS = ("INT8", "INT4", "FLOAT8E4M3FN", "FLOAT4E2M1")
_HEADER = "NVIDIA/TensorRT: NvInfer.h, IQuantizeLayer"
_PARSER = "onnx/onnx-tensorrt: onnxOpImporters.cpp of 10.1"
_TRIED = "NVIDIA's parser, TensorRT-RTX 1.7.1"
_GUIDE = "NVIDIA's developer guide: explicit quantization"
_AGAIN = "quantize the float model again, symmetrically: krl-deploy quantize"

_CONSTANT = Rule("error", "qdq/constant", _AGAIN, _HEADER)
_SCALE = Rule("error", "qdq/scale", "calibrate again; give a tensor that is always 0 the scale 1", _HEADER)
_SMALL = Rule(
    "warning",
    "qdq/scale",
    f"keep the operator and its pairs in FP32, as krl-deploy quantize does below {LEAST_FP16_SCALE:.1e}",
    "IEEE 754: binary16 has steps of 6e-8 there",
)
_SYMMETRIC = Rule("error", "qdq/symmetric", _AGAIN, _HEADER)
_SIGNED = Rule(
    "error", "qdq/int8", "use the Q/DQ model that krl-deploy quantize writes for TensorRT (model.int8.onnx)", _PARSER
)
_UNSAID = Rule("error", "qdq/int8", "add a zero point of int8 zeros", f"{_PARSER}; ONNX: QuantizeLinear")
_COUNT = Rule("error", "qdq/scale-count", _AGAIN, f"ONNX: DequantizeLinear; {_TRIED}")
_CHANNELS = Rule("error", "qdq/per-channel-activation", "give the activation one scale", _HEADER)
_PAIRED = Rule("error", "qdq/pair", "let DequantizeLinear follow QuantizeLinear at once", _GUIDE)
_RESCALED = Rule("warning", "qdq/pair", "give both the same scale", _GUIDE)


def check_quantizers(view: View) -> Iterator[Finding]:
    """Yield the findings of quantizers and dequantizers, each by itself and as Q/DQ pairs."""
    for node in view.nodes:
        if node.op_type in QDQ:
            yield from _scale(view, node)
            yield from _counts(view, node)
            yield from _zero_point(view, node)
            yield from _partner(view, node)


def _scale(view: View, node: NodeProto) -> Iterator[Finding]:
    values = view.numbers(node.input[1])
    if values is None:
        if not view.rooted(node.input[1]):
            yield _CONSTANT.at(node.name, node.op_type, "its scale is not a constant")
        return
    if not values.size or not (values > 0).all():
        yield _SCALE.at(node.name, node.op_type, "a scale is not positive")
    elif not np.isfinite(values).all():
        yield _SCALE.at(node.name, node.op_type, "a scale is infinite")
    elif view.dtype(node.input[1]) == TensorProto.FLOAT16 and values.min() < LEAST_FP16_SCALE:
        yield _SMALL.at(node.name, node.op_type, f"an FP16 scale is {values.min():.1e}, where FP16 has few digits")
    if values.size > 1 and node.op_type == "QuantizeLinear" and not view.rooted(node.input[0]):
        yield _CHANNELS.at(
            node.name, node.op_type, "scales for each channel are taken for weights only, this is an activation"
        )


def _counts(view: View, node: NodeProto) -> Iterator[Finding]:
    """Yield a finding if there are not as many scales as channels, or not as many zero points as scales."""
    scale, shape = view.numbers(node.input[1]), view.graph.shape(node.input[0])
    zero = view.numbers(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if scale is None or attribute(node, "block_size", 0):
        return
    if zero is not None and zero.size != scale.size:
        yield _COUNT.at(node.name, node.op_type, f"it has {scale.size} scales and {zero.size} zero points")
    if scale.size <= 1 or shape is None:
        return
    axis = int(attribute(node, "axis", 1))
    if not -len(shape) <= axis < len(shape):
        yield _COUNT.at(node.name, node.op_type, f"its axis is {axis}; its input has {len(shape)} axes")
    elif scale.ndim > 1:  # blocks, along the axis alone
        fits = scale.ndim == len(shape) and all(
            isinstance(size, str) or other == axis % len(shape) or size == scale.shape[other]
            for other, size in enumerate(shape)
        )
        if not fits:
            why = f"its scales have the shape {list(scale.shape)}, its input {list(shape)}"
            yield _COUNT.at(node.name, node.op_type, why)
    elif isinstance(shape[axis], int) and shape[axis] != scale.size:
        yield _COUNT.at(node.name, node.op_type, f"it has {scale.size} scales for {shape[axis]} values of axis {axis}")


def _zero_point(view: View, node: NodeProto) -> Iterator[Finding]:
    given = len(node.input) > 2 and node.input[2] != ""
    quantizes = node.op_type == "QuantizeLinear"
    stored = node.output[0] if quantizes else node.input[0]
    # ONNX does not know the types of other domains' quantizers; ONNX Runtime's have that of the zero point, or uint8.
    other = 0 if node.domain in ("", "ai.onnx") else TensorProto.UINT8
    dtype = view.dtype(stored) or (view.dtype(node.input[2]) if given else other)
    name = type_name(dtype) if dtype else ""
    if quantizes and not given and name == "UINT8":
        yield _UNSAID.at(
            node.name, node.op_type, "without a zero point its values are uint8 by ONNX, and int8 for TensorRT"
        )
    elif name == "UINT8":
        why = "its values are uint8, which is the graph for ONNX Runtime's CPU provider; TensorRT takes int8"
        yield _SIGNED.at(node.name, node.op_type, why)
    elif name and name not in _INTEGERS and not _is_bias(view, node):
        yield _SIGNED.at(node.name, node.op_type, f"its values are {name}, which TensorRT does not quantize to")
    if not given:
        return
    zero = view.numbers(node.input[2])
    if zero is None:
        if not view.rooted(node.input[2]):
            yield _CONSTANT.at(node.name, node.op_type, "its zero point is not a constant")
    elif np.any(zero):
        yield _SYMMETRIC.at(node.name, node.op_type, "its zero point is not 0; TensorRT's quantization is symmetric")


def _is_bias(view: View, node: NodeProto) -> bool:
    """Return whether a dequantizer makes a bias; a rule of placement covers that."""
    readers = view.consumers[node.output[0]]
    return bool(readers) and all(node.output[0] in list(reader.input)[2:3] for reader in readers)


def _partner(view: View, node: NodeProto) -> Iterator[Finding]:
    if node.op_type == "QuantizeLinear":
        if node.output[0] in view.graph.outputs:
            yield _PAIRED.at(node.name, node.op_type, "the graph gives out its integers")
        return
    pair = view.pair(node.output[0], through=False)
    if pair is None or pair.quantize is None:
        return
    mine, other = view.numbers(node.input[1]), view.numbers(pair.quantize.input[1])
    if mine is not None and other is not None and not np.array_equal(mine, other):
        yield _RESCALED.at(node.name, node.op_type, "its scale is not that of the QuantizeLinear before it")
