"""Rules of attention, layer normalization and the layers around them, in INT8 and in FP16."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import NodeProto, TensorProto

from krl_deploy.graph.coupling import products_behind_gelu
from krl_deploy.graph.operators import MOVES_OR_CASTS, QDQ

from .findings import Finding, Rule
from .targets import Target
from .view import View

__all__ = ["attention_products", "check_attention"]

_SCORES = frozenset({"Add", "Div", "Mul", "Where", *MOVES_OR_CASTS})

_RFDETR = "roboflow/rf-detr #1453 and #1454, measured on TensorRT 10.16 and 11.3"

_MIXED = Rule(
    "warning",
    "qdq/attention",
    "quantize both products of the attention, or neither",
    f"{_RFDETR}; NVIDIA/Model-Optimizer",
)
_PROJECTION = "leave the output projection in FP16 where the attention is"
_MLP = "quantize the second product of the block as well, or neither"
_NORM = Rule(
    "warning",
    "fp16/layer-normalization",
    "export it as LayerNormalization (opset 17 or later), or keep it in FP32",
    "NVIDIA/TensorRT #2709, #2781, #3692, #4505",
)


def attention_products(view: View) -> Iterator[tuple[NodeProto | None, NodeProto]]:
    """Yield the two products of each attention: the scores (``None`` if not found), and their application.

    A fused ``Attention`` is both.
    """
    for node in view.nodes:
        if node.op_type == "Attention":
            yield node, node
        if node.op_type != "MatMul" or view.rooted(node.input[1]):
            continue
        maker = view.producers.get(view.skip(node.input[0], MOVES_OR_CASTS | QDQ))
        if maker is None or maker.op_type != "Softmax":
            continue
        scores = view.producers.get(view.skip(maker.input[0], _SCORES))
        yield (scores if scores is not None and scores.op_type == "MatMul" else None), node


def check_attention(view: View, target: Target) -> Iterator[Finding]:
    """Yield the findings in and around attention: errors, and patterns that gave wrong outputs before."""
    for scores, applied in attention_products(view):
        if scores is not None and scores is not applied and view.is_int8(scores) != view.is_int8(applied):
            yield _MIXED.at(applied.name, applied.op_type, "one product of the attention is in INT8, the other is not")
        if not view.is_int8(applied) and view.is_half(applied):
            yield from _projection(view, applied, target)
    yield from _mlp(view, target)
    yield from _norm(view)


def _projection(view: View, applied: NodeProto, target: Target) -> Iterator[Finding]:
    """Yield the INT8 projection that reads an FP16 attention."""
    severe = target.tensorrt[:1] == (11,)
    rule = Rule("error" if severe else "warning", "qdq/projection", _PROJECTION, _RFDETR)
    for weighted in view.weighted:
        node = weighted.node
        pair = view.pair(node.input[0])
        if pair is not None and view.is_int8(node) and view.skip(pair.source, MOVES_OR_CASTS) == applied.output[0]:
            yield rule.at(
                node.name, node.op_type, "it is in INT8 behind an FP16 attention: wrong values on TensorRT 11"
            )


def _mlp(view: View, target: Target) -> Iterator[Finding]:
    """Yield products in INT8 whose GELU feeds a product that is not."""
    severe = target.tensorrt[:2] in ((10, 16), (11, 3))
    rule = Rule("error" if severe else "warning", "qdq/mlp", _MLP, _RFDETR)
    for weighted in view.weighted:
        node = weighted.node
        if node.op_type not in ("MatMul", "Gemm") or not view.is_int8(node) or not view.is_half(node):
            continue
        for reader in products_behind_gelu(view.consumers, node):
            if not view.is_int8(reader):
                why = f"it is in INT8, and {reader.name} behind its GELU is in FP16: NaN on TensorRT 10.16 and 11.3"
                yield rule.at(node.name, node.op_type, why)


def _norm(view: View) -> Iterator[Finding]:
    """Yield variances that are computed in FP16 from single operators, whose squares overflow."""
    for node in view.nodes:
        if node.op_type != "ReduceMean" or view.dtype(node.output[0]) != TensorProto.FLOAT16:
            continue
        square = view.producers.get(node.input[0])
        if square is None or square.op_type not in ("Mul", "Pow"):
            continue
        if square.op_type == "Mul" and square.input[0] != square.input[1]:
            continue
        centered = view.producers.get(square.input[0])
        if centered is not None and centered.op_type == "Sub":
            yield _NORM.at(node.name, node.op_type, "a variance is computed in FP16 from single operators")
