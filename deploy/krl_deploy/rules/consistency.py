"""Rules of graphs that contradict themselves: types that one operator mixes, and sizes that do not fit each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

import onnx
from onnx import NodeProto, TensorProto

from krl_deploy.graph.operators import QDQ

from .findings import Finding, Rule
from .sizes import contradicting_sizes
from .view import View, type_name

__all__ = ["check_consistency"]

_PARSER = "NVIDIA's parser, TensorRT-RTX 1.7.1"

_MIXED = Rule(
    "error",
    "types/mixed",
    "cast its inputs to one type; krl-deploy fp16 and quantize write the casts, biases and scales that belong together",
    f"ONNX: the operator's type constraints; {_PARSER}",
)
_UNDEFINED = Rule(
    "error",
    "types/undefined",
    "cast its input to a type that ONNX defines the operator for",
    f"ONNX: the operator's type constraints; {_PARSER}",
)
_INFERRED = Rule(
    "error", "shapes/consistent", "export the model again: its sizes contradict each other", "ONNX's shape inference"
)
_SIZES = Rule("error", "shapes/sizes", "export the model again: its sizes contradict each other", f"ONNX; {_PARSER}")

_ALIKE: Final[dict[int, int]] = {TensorProto.DOUBLE: TensorProto.FLOAT}  # the parser turns every FP64 into FP32
_FIRST_ALONE: Final = frozenset({"Clip", "Pad"})  # the parser casts the limits of Clip and the value of Pad


def check_consistency(view: View) -> Iterator[Finding]:
    """Yield the findings of nodes whose inputs contradict each other."""
    for node in view.nodes:
        if node.domain in ("", "ai.onnx"):
            yield from _types(view, node)
            for why in contradicting_sizes(view, node):
                yield _SIZES.at(node.name, node.op_type, why)
    for name, op, why in view.graph.contradictions():
        yield _INFERRED.at(name, op, why)


def _types(view: View, node: NodeProto) -> Iterator[Finding]:
    """Yield a finding if inputs that must have one type have several, or one that the operator is not defined for.

    Quantizers have rules of their own: the parser takes some that ONNX does not allow.
    """
    if node.op_type in QDQ:
        return
    groups: dict[str, list[tuple[str, int]]] = defaultdict(list)
    try:
        schema = onnx.defs.get_schema(node.op_type, view.opset, "")
    except onnx.defs.SchemaError:  # an operator of a later opset; another rule reports it
        return
    allowed = {item.type_param_str: item.allowed_type_strs for item in schema.type_constraints}
    for index, name in enumerate(node.input[:1] if node.op_type in _FIRST_ALONE else node.input):
        formal = schema.inputs[min(index, len(schema.inputs) - 1)] if schema.inputs else None
        dtype = view.dtype(name) if name else 0
        if formal is not None and dtype and formal.type_str in allowed and formal.is_homogeneous:
            groups[formal.type_str].append((name, _ALIKE.get(dtype, dtype)))
    for variable, members in groups.items():
        kinds = {dtype for _, dtype in members}
        if len(kinds) > 1:
            shown = ", ".join(f"{name} {type_name(dtype)}" for name, dtype in members)
            yield _MIXED.at(node.name, node.op_type, f"its inputs have to have one type: {shown}")
        elif _undefined(kinds.pop(), allowed[variable]):
            shown = type_name(members[0][1])
            yield _UNDEFINED.at(node.name, node.op_type, f"ONNX does not define it for {shown}")


def _undefined(dtype: int, allowed: Sequence[str]) -> bool:
    """Return whether a type is not allowed. BF16 counts as FP16, which older opsets have without it."""
    if dtype == TensorProto.BFLOAT16:
        dtype = TensorProto.FLOAT16
    return dtype in TensorProto.DataType.values() and f"tensor({type_name(dtype).lower()})" not in allowed
