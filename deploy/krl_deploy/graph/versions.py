"""Versions that the oldest supported ONNX Runtime reads: newer files are rewritten downward where nothing changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import onnx
from onnx import FunctionProto, NodeProto, TensorProto, helper

from krl_runtime.errors import ModelError

from .edit import GraphEditor
from .files import NEWEST_IR, inline_functions, opset_of

__all__ = ["NEWEST_OPSET", "expanded", "lowered"]

NEWEST_OPSET: Final = 21
"""The newest that ONNX Runtime 1.20 reads, the oldest in pyproject.toml."""

_DOMAIN: Final = "krl.expanded"


def lowered(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str], list[str]]:
    """Return a model in an opset that every supported ONNX Runtime reads, if its operators are in it.

    Args:
        model: As ``read_model`` returns it, without control flow.

    Returns:
        The model, a list of the changes, and the reasons that kept it as it is.
    """
    opset = opset_of(model)
    if opset <= NEWEST_OPSET:
        return model, [], []
    try:
        result = expanded(model, lambda node: _schema(node, NEWEST_OPSET) is None)
    except ModelError:
        result = model
    graph = GraphEditor(result)
    reasons = sorted({reason for node in graph.nodes for reason in _reasons(graph, node, opset)})
    if reasons:
        return model, [], reasons
    for node in graph.nodes:
        _drop_defaults(node, opset)
    result = graph.close()
    for item in result.opset_import:
        if item.domain in ("", "ai.onnx"):
            item.version = NEWEST_OPSET
    result.ir_version = min(result.ir_version, NEWEST_IR)
    try:
        onnx.checker.check_model(result)
    except onnx.checker.ValidationError as error:
        return model, [], [str(error).partition("\n")[0]]
    return result, [f"opset {opset} was lowered to {NEWEST_OPSET}"], []


def _schema(node: NodeProto, opset: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return None


def _reasons(graph: GraphEditor, node: NodeProto, opset: int) -> list[str]:
    """Return why a node does not mean the same in the older opset."""
    if node.domain not in ("", "ai.onnx"):
        return []
    old, new = _schema(node, NEWEST_OPSET), _schema(node, opset)
    if old is None or new is None:
        return [f"{node.op_type}, which opset {NEWEST_OPSET} has not"]
    if old.since_version == new.since_version:
        return []
    extra = [item.name for item in node.attribute if item.name not in old.attributes and not _is_default(item, new)]
    if extra:
        return [f"{node.op_type} with {', '.join(extra)}"]
    if len(node.input) > old.max_input or len(node.output) > old.max_output:
        return [f"{node.op_type} with {len(node.input)} inputs and {len(node.output)} outputs"]
    types = {item.type_param_str: item.allowed_type_strs for item in old.type_constraints}
    formal = [*zip(node.input, _formal(old.inputs, len(node.input)), strict=False)]
    formal += zip(node.output, _formal(old.outputs, len(node.output)), strict=False)
    for name, kind in formal:
        dtype = graph.dtype(name) if name else 0
        if dtype and f"tensor({TensorProto.DataType.Name(dtype).lower()})" not in types.get(kind, [kind]):
            return [f"{node.op_type} of {TensorProto.DataType.Name(dtype).lower()}"]
    return []


def _formal(parameters: Sequence[onnx.defs.OpSchema.FormalParameter], count: int) -> list[str]:
    """Return the types of so many parameters, the last of which may stand for several."""
    return [parameters[min(index, len(parameters) - 1)].type_str for index in range(count)] if parameters else []


def _is_default(item: onnx.AttributeProto, schema: onnx.defs.OpSchema) -> bool:
    given = schema.attributes.get(item.name)
    if given is None or given.required or not given.default_value.name:
        return False
    return bool(helper.get_attribute_value(item) == helper.get_attribute_value(given.default_value))


def _drop_defaults(node: NodeProto, opset: int) -> None:
    """Remove the attributes that the older opset has not; each has its default."""
    old, new = _schema(node, NEWEST_OPSET), _schema(node, opset)
    if node.domain not in ("", "ai.onnx") or old is None or new is None:
        return
    kept = [item for item in node.attribute if item.name in old.attributes]
    del node.attribute[:]
    node.attribute.extend(kept)


def expanded(model: onnx.ModelProto, chosen: Callable[[NodeProto], bool]) -> onnx.ModelProto:
    """Return the model with the functions that ONNX defines in place of standard operators.

    Args:
        model: Without control flow and local functions.
        chosen: Whether a node is to be replaced; one that ONNX defines no function for stays.

    Raises:
        ModelError: A function cannot be inlined.
    """
    opset, graph = opset_of(model), GraphEditor(model)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for number, node in enumerate(result.graph.node):
        if node.domain not in ("", "ai.onnx") or not chosen(node):
            continue
        body = _body(graph, node, opset)
        if body is None:
            continue
        del body.output[len(node.output) :]  # those that are left out are not defined in it
        body.name, body.domain = f"{node.op_type}_{number}", _DOMAIN
        result.functions.append(body)
        node.op_type, node.domain = body.name, _DOMAIN
    if not result.functions:
        return result
    result.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    return inline_functions(result)


def _body(graph: GraphEditor, node: NodeProto, opset: int) -> FunctionProto | None:
    """Return the function that defines an operator, for the types that a node has."""
    schema: Any = _schema(node, opset)  # onnx's types lack its functions
    if schema is None:
        return None
    if schema.has_function:
        body = FunctionProto()
        body.CopyFrom(schema.function_body)
        return body
    if not schema.has_context_dependent_function:
        return None
    types = []
    for name in node.input:
        shape = graph.shape(name) if name else None
        types.append(helper.make_tensor_type_proto(graph.dtype(name) if name else 0, shape).SerializeToString())
    try:
        made = schema.get_context_dependent_function(node.SerializeToString(), types)
    except RuntimeError:
        return None
    return FunctionProto.FromString(made) if made else None
