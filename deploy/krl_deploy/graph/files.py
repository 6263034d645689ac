"""Reading ONNX files that may come from anywhere, and writing ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import NodeProto, TensorProto, helper

from krl_runtime.errors import ModelError

from .bounds import check_bounds
from .external import external_tensors, read_external
from .normal_form import make_dense, name_plugins, open_sizes, sort_nodes, type_outputs

__all__ = ["MAX_BYTES", "NEWEST_IR", "inline_functions", "nodes_of", "one_file", "opset_of", "read_model", "to_bytes"]

MAX_BYTES = 2**31 - 1
"""A protobuf message cannot be larger; models above it need external data, which bundles do not take."""
NEWEST_IR = 10
"""The newest IR version that ONNX Runtime 1.20 reads, the oldest in pyproject.toml. Newer ones only add types, and
operator sets that name the version that they need."""


def read_model(path: Path, *, beside: bool = False) -> onnx.ModelProto:
    """Read an ONNX file, and check it.

    Args:
        path: The file.
        beside: Whether its weights may be in other files of its folder; never for a file of a bundle, whose hash does
            not cover them.

    Returns:
        The model in one form: nodes are in order, initializers that old files list among the inputs are no longer
        inputs, local functions are inlined, sparse weights are dense, open sizes have no number, and the IR version is
        not newer than needed.

    Raises:
        ModelError: It is missing, too large, not valid ONNX, or keeps weights in other files that are not read. Or its
            local functions cannot be inlined.
    """
    model = _parsed(path)
    external = external_tensors(model)
    if external and not beside:
        raise ModelError(
            f"model {path} keeps {len(external)} weights in other files ({external[0].name} …); write it as one file "
            "first, for instance with onnx.save(onnx.load(FILE), NEW)"
        )
    read_external(model, path, MAX_BYTES)
    if not _is_sound(model):
        raise ModelError(f"model {path} is damaged: it has names that are not text, or weights of no known type")
    least = helper.find_min_ir_version_for(model.opset_import, ignore_unknown=True)
    model.ir_version = min(model.ir_version, max(least, NEWEST_IR))
    name_plugins(model)
    open_sizes(model)
    try:
        sort_nodes(model)
    except ModelError as error:
        raise ModelError(f"model {path} is not valid ONNX: {error}") from error
    type_outputs(model)
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise ModelError(f"model {path} is not valid ONNX: {_first_line(error)}") from error
    if model.functions:
        try:
            model = inline_functions(model)
        except ModelError as error:
            raise ModelError(f"model {path} {error}") from error
    try:
        make_dense(model)
        check_bounds(model)
    except ModelError as error:
        raise ModelError(f"model {path}: {error}") from error
    # Before IR version 4 initializers had to be inputs as well, and models of newer opsets need newer versions.
    model.ir_version = max(model.ir_version, least, 4)
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    return model


def one_file(path: Path) -> bytes | None:
    """Return an ONNX file with the weights in it that it keeps beside it; ``None`` if it keeps none there.

    Raises:
        ModelError: See ``read_model``.
    """
    model = _parsed(path)
    if not external_tensors(model):
        return None
    read_external(model, path, MAX_BYTES)
    return to_bytes(model)


def _parsed(path: Path) -> onnx.ModelProto:
    """Return the message in a file."""
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise ModelError(f"model {path} {what}; give an ONNX file")
    if path.stat().st_size > MAX_BYTES:
        raise ModelError(f"model {path} has {path.stat().st_size} bytes; at most {MAX_BYTES} are accepted")
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except Exception as error:  # protobuf's DecodeError; protobuf has no types
        raise ModelError(f"model {path} is not an ONNX file, or is damaged: {error}") from error
    if not model.graph.node:
        raise ModelError(f"model {path} is not an ONNX file, or its graph is empty")
    return model


def inline_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with its local functions inlined.

    Args:
        model: One that ONNX's checker took, so that each operator of a function's opset is that of the model's.

    Raises:
        ModelError: A function cannot be inlined: it has another version of a custom operator set, for instance.
    """
    import onnx_ir as ir  # here: few files have functions, and the import takes time
    from onnx_ir.passes.common import InlinePass, RemoveUnusedFunctionsPass, RemoveUnusedOpsetsPass

    aligned = onnx.ModelProto()
    aligned.CopyFrom(model)
    for function in aligned.functions:
        for item in function.opset_import:
            if item.domain in ("", "ai.onnx"):
                item.version = opset_of(model)
    unused = RemoveUnusedFunctionsPass()  # type: ignore[no-untyped-call]
    passes = ir.passes.Sequential(InlinePass(), unused, RemoveUnusedOpsetsPass())
    try:
        inlined = ir.to_proto(passes(ir.from_proto(aligned)).model)
        onnx.checker.check_model(inlined)
    except (ir.passes.InvariantError, onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"has local functions that cannot be inlined: {_first_line(error.__cause__ or error)}"
        ) from error
    return inlined


def nodes_of(graph: onnx.GraphProto) -> Iterator[NodeProto]:
    """Yield the nodes of a graph and of the graphs inside its control flow."""
    for node in graph.node:
        yield node
        for item in node.attribute:
            for inner in [*item.graphs, *([item.g] if item.HasField("g") else [])]:
                yield from nodes_of(inner)


def _is_sound(model: onnx.ModelProto) -> bool:
    """Return whether names are text and weights have a type, which protobuf does not look at when it reads."""
    graph = model.graph
    try:
        names = [name for node in nodes_of(graph) for name in (node.name, node.op_type, node.domain)]
        names += [name for node in nodes_of(graph) for name in (*node.input, *node.output)]
        names += [graph.name, *(item.name for item in (*graph.initializer, *graph.input, *graph.output))]
    except UnicodeDecodeError:
        return False
    types = TensorProto.DataType.values()
    return all(isinstance(name, str) for name in names) and all(item.data_type in types for item in graph.initializer)


def to_bytes(model: onnx.ModelProto) -> bytes:
    """Return the same bytes for the same model, on every machine.

    Raises:
        ModelError: The model is larger than a protobuf message can be.
    """
    try:
        data: bytes = model.SerializeToString(deterministic=True)
    except (ValueError, MemoryError) as error:
        raise ModelError(f"the model is larger than {MAX_BYTES} bytes and cannot be one ONNX file: {error}") from error
    if len(data) > MAX_BYTES:
        raise ModelError(f"the model has {len(data)} bytes; one ONNX file has at most {MAX_BYTES}")
    return data


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of the standard operators that a model was written with."""
    return next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 1)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
