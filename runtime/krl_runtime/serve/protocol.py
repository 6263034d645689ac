"""Messages of the Open Inference Protocol (version 2) over HTTP, with the extensions that Triton's clients use.

The protocol: https://github.com/kserve/open-inference-protocol (``inference_rest.md``). The extensions are Triton's
"binary tensor data" (arrays as bytes behind the JSON part) and "classification" (best classes as text).
"""

from __future__ import annotations

import json
import math
import reprlib
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from krl_runtime.errors import ModelError, UsageError

if TYPE_CHECKING:
    import numpy.typing as npt

    from krl_runtime.bundle import TensorSpec

__all__ = ["DATATYPES", "EXTENSIONS", "HEADER", "InferRequest", "RequestedOutput", "describe", "parse", "render"]

HEADER = "Inference-Header-Content-Length"
"""HTTP header: length in bytes of the JSON part, where bytes of tensors follow it."""

EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics")
"""The supported extensions, under Triton's names."""

DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
}
"""The protocol's names of numpy's dtypes."""

_MOST_DIMENSIONS = 8  # an image batch has 4; NumPy ends at 32 or 64
# Lists, objects and strings of the JSON part. Each takes some 60 bytes of memory for 3 of text. Numbers take at most 9
# times their text, and the body is bounded. 2^18 rows of nested data are enough for 800 color images of 100 rows.
_MOST_PARTS = 2**18
# Values of a request in messages: a few numbers and letters of each.
_values = reprlib.Repr()
_values.maxlist = _values.maxdict = _MOST_DIMENSIONS
_values.maxstring = _values.maxother = 80  # letters: a name and its begin fit


@dataclass(frozen=True)
class RequestedOutput:
    """One output that a client asks for.

    Attributes:
        name: Its name.
        binary: Whether it is sent as bytes behind the JSON part.
        classes: If above 0, so many best classes are sent as text ``"value:index:label"`` instead of the numbers.
    """

    name: str
    binary: bool = False
    classes: int = 0


@dataclass(frozen=True)
class InferRequest:
    """A request: its own id (``None`` if it gave none), the input arrays by name, the outputs it wants."""

    id: str | None
    inputs: Mapping[str, npt.NDArray[Any]]
    outputs: tuple[RequestedOutput, ...]


def parse(
    body: bytes,
    header_length: int | None,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    labeled: Collection[str] = (),
) -> InferRequest:
    """Read the body of an inference request.

    Args:
        body: The whole body.
        header_length: Length of its JSON part, if bytes of tensors follow.
        inputs: The model's inputs.
        outputs: The model's outputs.
        labeled: Those that have class names.

    Returns:
        The request; its arrays have the dtypes of ``inputs``, but any shape.

    Raises:
        UsageError: The body is not such a request; or it names tensors, types or shapes that the model does not have.
    """
    length = len(body) if header_length is None else header_length
    if not 0 < length <= len(body):
        raise UsageError(f"{HEADER} is {length}; accepted: 1 to {len(body)}, the length of the body")
    values = _read_json(body[:length])
    given = _member(_accept(values, dict, "the request"), "inputs", list, "the request")
    known = {spec.name: spec for spec in inputs}
    arrays: dict[str, npt.NDArray[Any]] = {}
    binary = memoryview(body)[length:]
    for item in given:
        name = _member(_accept(item, dict, "an input"), "name", str, "an input")
        if name not in known or name in arrays:
            what = "is given twice" if name in arrays else "is not known"
            raise UsageError(f"input {_values.repr(name)} {what}; the model's inputs: {', '.join(known)}")
        arrays[name], binary = _array(item, known[name], binary)
    if len(binary):
        raise UsageError(f"{len(binary)} bytes follow the tensors; say each input's binary_data_size")
    identity = values.get("id")
    return InferRequest(
        None if identity is None else _accept(identity, str, "id"),
        arrays,
        _requested(values, [spec.name for spec in outputs], labeled),
    )


def _read_json(text: bytes) -> Any:
    parts = text.count(b"[") + text.count(b"{") + text.count(b'"') // 2
    if parts > _MOST_PARTS:
        raise UsageError(
            f"the request has {parts} lists, objects and strings; accepted: {_MOST_PARTS}; "
            "send data as one flat list, or as binary tensors"
        )
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the request is not valid JSON: {error}") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON; send it as a binary tensor")


def _array(item: Mapping[str, Any], spec: TensorSpec, binary: memoryview) -> tuple[npt.NDArray[Any], memoryview]:
    """Return one input, and the bytes that are left for the following ones."""
    name = f"input {spec.name!r}"
    datatype, shape = item.get("datatype"), _member(item, "shape", list, name)
    if datatype != DATATYPES[spec.dtype]:
        raise UsageError(f"{name} has datatype {_values.repr(datatype)}; accepted: {DATATYPES[spec.dtype]}")
    if len(shape) > _MOST_DIMENSIONS:
        raise UsageError(f"{name} has a shape of {len(shape)} dimensions; accepted: at most {_MOST_DIMENSIONS}")
    if not all(type(size) is int and 0 < size < 2**31 for size in shape):
        raise UsageError(f"{name} has shape {_values.repr(shape)}; accepted: whole numbers above 0")
    count = math.prod(shape)
    parameters = _accept(item.get("parameters", {}), dict, f"{name}: parameters")
    if "shared_memory_region" in parameters:
        raise UsageError(f"{name} is in shared memory, which is not supported; send it in the body")
    size = parameters.get("binary_data_size")
    if size is None:
        return _from_json(item.get("data"), spec.dtype, name, count).reshape(shape), binary
    dtype = np.dtype(spec.dtype).newbyteorder("<")
    if type(size) is not int or size != count * dtype.itemsize or size > len(binary):
        raise UsageError(
            f"{name} has binary_data_size {_values.repr(size)}, its shape {shape} needs {count * dtype.itemsize}, and "
            f"{len(binary)} bytes are there"
        )
    array = np.frombuffer(binary[:size], dtype).astype(spec.dtype, copy=False)
    return array.reshape(shape), binary[size:]


def _from_json(data: Any, dtype: str, name: str, count: int) -> npt.NDArray[Any]:
    """Turn a JSON list, nested or flat, into a flat array; refuse whatever would change its value.

    Types are checked before numpy sees them: it would pad each string to the longest, and make objects of the rest.
    """
    numbers = _flat(_accept(data, list, f"{name}: data"), name)
    if len(numbers) != count:
        raise UsageError(f"{name} has {len(numbers)} numbers in data; its shape needs {count}")
    kind = np.dtype(dtype).kind
    accepted: dict[str, set[type]] = {"b": {bool}, "f": {int, float}}
    if not set(map(type, numbers)) <= accepted.get(kind, {int}):
        raise UsageError(f"{name}: data is not a list of numbers of type {DATATYPES[dtype]}")
    if kind in "iu":
        limits, low, high = np.iinfo(dtype), min(numbers), max(numbers)
        if low < limits.min or high > limits.max:
            shown = f"{_values.repr(low)} to {_values.repr(high)}"
            raise UsageError(f"{name}: data has values from {shown}; {DATATYPES[dtype]} cannot hold them")
    try:
        with np.errstate(over="ignore"):
            array = np.array(numbers, dtype)
    except OverflowError:
        array = np.array([np.inf])
    if kind == "f" and not np.isfinite(array).all():
        raise UsageError(f"{name}: data has values that are too large; {DATATYPES[dtype]} cannot hold them")
    return array


def _flat(data: list[Any], name: str) -> list[Any]:
    """Return the numbers of a nested list in row-major order; the rows of each level are of one length."""
    for _ in range(_MOST_DIMENSIONS - 1):
        if list not in set(map(type, data)):
            break
        if set(map(type, data)) != {list} or len(set(map(len, data))) != 1:
            raise UsageError(f"{name}: data is not a list of numbers in which all rows are of one length")
        data = list(chain.from_iterable(data))
    return data


def _requested(
    values: Mapping[str, Any], known: Sequence[str], labeled: Collection[str]
) -> tuple[RequestedOutput, ...]:
    parameters = _accept(values.get("parameters", {}), dict, "parameters")
    default = _accept(parameters.get("binary_data_output", False), bool, "binary_data_output")
    items = _accept(values.get("outputs", []), list, "outputs")
    requested: dict[str, RequestedOutput] = {}
    for item in items:
        name = _member(_accept(item, dict, "an output"), "name", str, "an output")
        if name not in known or name in requested:
            what = "is asked for twice" if name in requested else "is not known"
            raise UsageError(f"output {_values.repr(name)} {what}; the model's outputs: {', '.join(known)}")
        options = _accept(item.get("parameters", {}), dict, f"output {name!r}: parameters")
        if "shared_memory_region" in options:
            raise UsageError(f"output {name!r} is wanted in shared memory, which is not supported")
        classes = options.get("classification", 0)
        if type(classes) is not int or classes < 0:
            raise UsageError(f"output {name!r}: classification is {_values.repr(classes)}; accepted: 0 or more")
        if classes and name not in labeled:
            accepted = (
                f"classification is for {', '.join(map(repr, labeled))}" if labeled else "leave classification out"
            )
            raise UsageError(f"output {name!r} has no labels; {accepted}")
        binary = _accept(options.get("binary_data", default), bool, f"output {name!r}: binary_data")
        requested[name] = RequestedOutput(name, binary, classes)
    return tuple(requested.values()) or tuple(RequestedOutput(name, default) for name in known)


def _member(values: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    return _accept(values.get(key), kind, f"{where}: {key}")


def _accept(value: Any, kind: type, what: str) -> Any:
    if not isinstance(value, kind):
        names = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
        given = "missing" if value is None else f"of type {type(value).__name__}"
        raise UsageError(f"{what} is {given}; accepted: {names[kind]}")
    return value


def render(
    request: InferRequest,
    outputs: Mapping[str, npt.NDArray[Any]],
    *,
    model: str,
    labels: Mapping[str, Sequence[str]],
    parameters: Mapping[str, Any],
) -> tuple[bytes, int | None]:
    """Return the body of a response.

    Args:
        request: The request.
        outputs: The model's outputs by name.
        model: Its name.
        labels: Class names of each output that has some, by its name.
        parameters: Further facts of the response.

    Returns:
        The body, and the length of its JSON part if bytes of tensors follow.

    Raises:
        ModelError: An output that is wanted as JSON has numbers that are not finite, which JSON cannot hold.
    """
    described, parts = [], []
    for wanted in request.outputs:
        array = outputs[wanted.name]
        if wanted.classes:
            array = _best(array, wanted.classes, labels[wanted.name])
        item: dict[str, Any] = {
            "name": wanted.name,
            "datatype": DATATYPES.get(array.dtype.name, "BYTES"),
            "shape": list(array.shape),
        }
        if wanted.binary:
            parts.append(_bytes(array))
            item["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            item["data"] = array.ravel().tolist()
        described.append(item)
    values = {"model_name": model, "model_version": "1", "outputs": described, "parameters": dict(parameters)}
    if request.id is not None:
        values["id"] = request.id
    try:
        header = json.dumps(values, allow_nan=False).encode()
    except ValueError as error:
        raise ModelError("the network's outputs have numbers that are not finite; JSON cannot hold them") from error
    return b"".join((header, *parts)), len(header) if parts else None


def _best(array: npt.NDArray[Any], classes: int, labels: Sequence[str]) -> npt.NDArray[Any]:
    """Return the best classes of each row ``[N, min(classes, number of labels)]`` as text, as Triton writes it."""
    order = np.argsort(-array, axis=-1, kind="stable")[:, :classes]
    rows = [
        [f"{row[index]:f}:{index}:{labels[index]}" for index in best] for row, best in zip(array, order, strict=True)
    ]
    return np.array(rows, dtype=object)


def _bytes(array: npt.NDArray[Any]) -> bytes:
    if array.dtype != object:
        return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    encoded = [str(text).encode() for text in array.flat]
    return b"".join(struct.pack("<I", len(text)) + text for text in encoded)


def describe(specs: Sequence[TensorSpec]) -> list[dict[str, Any]]:
    """Return inputs or outputs as the protocol's metadata has them: -1 where a dimension is not fixed."""
    return [
        {
            "name": spec.name,
            "datatype": DATATYPES[spec.dtype],
            "shape": [size if isinstance(size, int) else -1 for size in spec.shape],
        }
        for spec in specs
    ]
