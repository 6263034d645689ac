"""Weights that an ONNX file keeps in other files beside it, as torch writes them by default since 2.9."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Final

import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper
from onnx.external_data_helper import uses_external_data

from krl_runtime.errors import ModelError

__all__ = ["external_tensors", "read_external", "size_of"]

_PACKED: Final = {"INT4": 2, "UINT4": 2, "FLOAT4E2M1": 2, "INT2": 4, "UINT2": 4}
"""Values that share a byte, of the types that ONNX packs."""


def external_tensors(model: onnx.ModelProto) -> list[TensorProto]:
    """Return the tensors of a model whose data are in other files, wherever they stand."""
    nodes = [node for function in model.functions for node in function.node]
    return [tensor for tensor in (*_of_graph(model.graph), *_of_nodes(nodes)) if uses_external_data(tensor)]


def read_external(model: onnx.ModelProto, path: Path, limit: int) -> None:
    """Read the data of a model's tensors from the files of its folder into the model.

    Args:
        model: The content of ``path``.
        path: The ONNX file.
        limit: Bytes that the file and its data may have together.

    Raises:
        ModelError: A file is missing, outside the folder, too short or not a file; an entry is wrong; or it is all too
            large. Nothing was read then.
    """
    parts = [(tensor, *_entry(tensor, path)) for tensor in external_tensors(model)]
    total = path.stat().st_size + sum(length for *_, length in parts)
    if total > limit:
        raise ModelError(f"model {path} has {total} bytes with its data in other files; at most {limit} are accepted")
    for tensor, file, offset, length in parts:
        with file.open("rb") as source:
            source.seek(offset)
            data = source.read(length)
        if len(data) != length:
            raise ModelError(f"model {path} has its tensor {tensor.name} in {file.name}, which was changed meanwhile")
        del tensor.external_data[:]
        tensor.ClearField("data_location")
        tensor.raw_data = data


def size_of(tensor: TensorProto) -> int | None:
    """Return the bytes of a tensor's data; ``None`` for text, whose size is not in its shape, and unknown types."""
    if tensor.data_type not in TensorProto.DataType.values():
        return None
    name = TensorProto.DataType.Name(tensor.data_type)
    if name in ("STRING", "UNDEFINED"):
        return None
    item: int = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    values: int = prod(tensor.dims)
    return -(-values * item // _PACKED.get(name, 1))


def _entry(tensor: TensorProto, path: Path) -> tuple[Path, int, int]:
    """Return the file, the first byte and the number of bytes of a tensor's data."""
    what = f"model {path} has its tensor {tensor.name} in another file"
    if tensor.data_type not in TensorProto.DataType.values() or any(size < 0 for size in tensor.dims):
        raise ModelError(f"{what}, with no known type or a negative size; the file is damaged")
    expected = size_of(tensor)
    entries = {item.key: item.value for item in tensor.external_data}
    location = entries.get("location", "")
    try:
        offset, length = (int(entries.get(key, 0)) for key in ("offset", "length"))
    except ValueError as error:
        raise ModelError(f"{what}, and an entry of it is wrong: {error}") from error
    if expected is None or offset < 0 or length not in (0, expected):
        raise ModelError(
            f"{what} at byte {offset}, with {length} bytes; its shape {list(tensor.dims)} needs {expected or 'text'}"
        )
    file = _inside(location, path, what)
    available = file.stat().st_size - offset
    if available < expected:
        raise ModelError(f"{what}, {location}, which has {max(0, available)} of its {expected} bytes")
    return file, offset, expected


def _inside(location: str, path: Path, what: str) -> Path:
    """Return the file of this name in a model's folder or below it."""
    folder = path.parent.resolve()
    try:
        file = (folder / location).resolve()
        inside = location != "" and not Path(location).is_absolute() and file.is_relative_to(folder)
        regular = inside and stat.S_ISREG(file.stat().st_mode)
    except FileNotFoundError as error:
        raise ModelError(f"{what}, {location}, which does not exist in {folder}; copy it there") from error
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
        raise ModelError(f"{what}, {location!r}, which cannot be read: {error}") from error
    if not inside:
        raise ModelError(f"{what}, {location!r}, which is outside the model's folder; only files in it are read")
    if not regular:
        raise ModelError(f"{what}, {location!r}, which is not a file")
    return file


def _of_graph(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: list[NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for item in node.attribute:
            yield from (*item.tensors, *([item.t] if item.HasField("t") else []))
            sparse = [*item.sparse_tensors, *([item.sparse_tensor] if item.HasField("sparse_tensor") else [])]
            yield from (part for tensor in sparse for part in (tensor.values, tensor.indices))
            for inner in (*item.graphs, *([item.g] if item.HasField("g") else [])):
                yield from _of_graph(inner)
