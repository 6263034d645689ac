"""Running a network over images and keeping the ranges of its tensors, in memory that does not grow with either."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from krl_deploy.config import Method
from krl_deploy.data.arrays import Inputs, batches, feed, length, rows, total
from krl_deploy.graph.files import to_bytes
from krl_deploy.graph.infinities import Signs, intended_infinities
from krl_runtime.backends.onnxruntime import open_session
from krl_runtime.errors import ModelError
from krl_runtime.progress import progress_bar

from .checkpoint import Checkpoint
from .histogram import Histogram
from .record import Int8Ranges
from .sampling import add_samples, image_tensors, sample_of, tile, values_needed
from .threshold import entropy, mse, mse_uint8

__all__ = ["collect", "collect_int8", "with_outputs"]

_VALUES_IN_BATCH = 1 << 18  # of the input, 1 MiB as float32: small images run together, large ones one by one
# Of all read activations of a batch: bounds memory for every network and image size
_BYTES_OF_TENSORS = 64 << 20
_SECONDS_BETWEEN_SAVES = 5.0  # an interruption loses about this much work, at most
_REDUCTIONS = ("ReduceMin", "ReduceMax", "ReduceSum")  # ONNX Runtime's extremes overlook NaN; a sum does not


_Choice: TypeAlias = Callable[[Histogram], tuple[float, float]]


class _Reader(Protocol):
    """Statistics of the tensors; ``state`` and ``restore`` are for an interruption."""

    batch: int | str | None
    size: int

    def add(self, inputs: Inputs) -> None: ...

    def state(self) -> dict[str, npt.NDArray[Any]]: ...

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None: ...


def collect(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    inputs: Inputs,
    *,
    checkpoint: Checkpoint | None = None,
    size: int | None = None,
) -> dict[str, tuple[float, float]]:
    """Return the smallest and largest value of each tensor over images, or over other inputs of the model.

    Args:
        model: A float32 model.
        tensors: Names of float32 tensors of its graph.
        inputs: Inputs of the model ``[N, ...]``.
        checkpoint: File to save the extremes in, and to continue from.
        size: Images in a batch, where the graph leaves that open; left out: what memory allows.

    Raises:
        ModelError: A tensor takes values that are not finite numbers.
    """
    reader = _Extremes(model, tensors, inputs)
    _read(reader, inputs, checkpoint, size)
    return reader.ranges()


def collect_int8(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    inputs: Inputs,
    *,
    method: Method,
    share: float = 99.999,
    checkpoint: Checkpoint | None = None,
    size: int | None = None,
) -> Int8Ranges:
    """Return the range of each tensor for both INT8 graphs, from one pass over the inputs.

    An infinity that follows from one that the model stores is right, and does not count; see ``intended_infinities``.
    A tensor without other values has the range 0 to 0.

    Args:
        model: A float32 model.
        tensors: Names of float32 tensors of its graph.
        inputs: Inputs of the model ``[N, ...]``.
        method: See ``Method``.
        share: For ``"percentile"``, the percentage of values that the range holds.
        checkpoint: File to save the counts in, and to continue from.
        size: Images in a batch, where the graph leaves that open; left out: what memory allows.

    Raises:
        ModelError: A tensor takes values that are not finite numbers, for no reason that the model stores.
    """
    if method == "minmax":
        extremes = collect(model, tensors, inputs, checkpoint=checkpoint, size=size)
        return Int8Ranges(extremes, extremes)
    reader = _Histograms(model, tensors, inputs, share)
    _read(reader, inputs, checkpoint, size)
    choose: dict[Method, tuple[_Choice, _Choice]] = {
        "percentile": (lambda histogram: histogram.percentile(share),) * 2,
        "entropy": (entropy, entropy),
        "mse": (mse, mse_uint8),
    }
    return Int8Ranges(*(reader.ranges(choice) for choice in choose[method]))


def _read(reader: _Reader, inputs: Inputs, checkpoint: Checkpoint | None, size: int | None) -> None:
    kept = checkpoint.load() if checkpoint else None
    done = 0
    if kept is not None:
        done = int(kept["done"])
        reader.restore(kept)
    saved = time.monotonic()
    with progress_bar("calibrating", length(inputs), done) as advance:
        for batch in batches(rows(inputs, slice(done, None)), reader.batch, size or reader.size):
            reader.add(batch)
            done += length(batch)
            for _ in range(length(batch)):
                advance()
            if checkpoint and time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
                checkpoint.save({"done": np.asarray(done), **reader.state()})
                saved = time.monotonic()


class _Extremes:
    """The smallest and largest value of each tensor; the graph itself reduces them."""

    def __init__(self, model: onnx.ModelProto, tensors: Sequence[str], inputs: Inputs) -> None:
        self.tensors = list(tensors)
        self.names = [f"{tensor}::{op}" for tensor in tensors for op in _REDUCTIONS]
        self.session = open_session(_with_reductions(model, tensors), cuda=False)
        self.batch: int | str | None = self.session.get_inputs()[0].shape[0]
        self.size = max(1, min(32, _VALUES_IN_BATCH // total(rows(inputs, slice(1)))))
        self.low = np.full(len(tensors), np.inf)
        self.high = np.full(len(tensors), -np.inf)

    def add(self, inputs: Inputs) -> None:
        values: Any = np.array(self.session.run(self.names, feed(self.session, inputs)), np.float64)
        low, high, sums = values[0::3], values[1::3], values[2::3]
        # Ends the wrong way round are those of no value at all: intended infinities are left out.
        for index in np.flatnonzero(np.isnan(sums) | (low == -np.inf) | (high == np.inf)):
            raise _broken(self.tensors[index])
        self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        return {"low": self.low, "high": self.high}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        self.low, self.high = state["low"], state["high"]

    def ranges(self) -> dict[str, tuple[float, float]]:
        ends = zip(self.tensors, self.low, self.high, strict=True)
        return {name: (float(a), float(b)) if a <= b else (0.0, 0.0) for name, a, b in ends}


def _broken(tensor: str) -> ModelError:
    return ModelError(f"tensor {tensor}: values are not finite numbers on a calibration image; the model is broken")


def _with_reductions(model: onnx.ModelProto, tensors: Sequence[str]) -> bytes:
    extended = with_outputs(model, [])
    infinite = intended_infinities(model)
    for tensor in tensors:
        sources = _finite(extended.graph, tensor, infinite[tensor]) if tensor in infinite else (tensor, tensor, tensor)
        for op, source in zip(_REDUCTIONS, sources, strict=True):
            name = f"{tensor}::{op}"
            extended.graph.node.append(helper.make_node(op, [source], [name], keepdims=0))
            extended.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, []))
    return to_bytes(extended)


def _finite(graph: onnx.GraphProto, tensor: str, signs: Signs) -> tuple[str, str, str]:
    """Add tensors with the intended infinities replaced, so that they are no smallest, no largest and no sum."""
    found = f"{tensor}::is_infinite"
    above, below = int(np.inf in signs), int(-np.inf in signs)
    graph.node.append(helper.make_node("IsInf", [tensor], [found], detect_positive=above, detect_negative=below))
    names = []
    for op, value in zip(_REDUCTIONS, (np.inf, -np.inf, 0.0), strict=True):
        constant, masked = f"{tensor}::{op}::other", f"{tensor}::{op}::finite"
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), constant))
        graph.node.append(helper.make_node("Where", [found, constant, tensor], [masked]))
        names.append(masked)
    return names[0], names[1], names[2]


class _Histograms:
    """A histogram of each tensor; of a large one, of a sample of its values."""

    def __init__(self, model: onnx.ModelProto, tensors: Sequence[str], inputs: Inputs, share: float) -> None:
        self.histograms = {name: Histogram() for name in tensors}
        self.outputs = list(tensors)
        self.infinite = intended_infinities(model)
        self.session = open_session(to_bytes(with_outputs(model, tensors)), cuda=False)
        self.batch: int | str | None = self.session.get_inputs()[0].shape[0]
        first = self._run(next(batches(inputs, self.batch, 1)))
        self.size = max(1, min(32, _BYTES_OF_TENSORS // max(1, sum(value.nbytes for value in first))))
        shapes = {name: value.shape for name, value in zip(tensors, first, strict=True)}
        needed, images = values_needed(share), image_tensors(model) - self.infinite.keys()
        tiles = {
            name: (shape[1], *tile(shape, length(inputs), needed)) for name, shape in shapes.items() if name in images
        }
        tiles = {name: size for name, size in tiles.items() if size[1:] != (1, 1)}
        if tiles:
            del first, self.session  # before another one needs the same memory
            self.outputs = [sample_of(name) if name in tiles else name for name in tensors]
            extended = with_outputs(model, self.outputs)
            add_samples(extended, tiles)
            self.session = open_session(to_bytes(extended), cuda=False)

    def _run(self, inputs: Inputs) -> list[npt.NDArray[np.float32]]:
        values: list[npt.NDArray[np.float32]] = self.session.run(self.outputs, feed(self.session, inputs))
        return values

    def add(self, inputs: Inputs) -> None:
        for (name, histogram), value in zip(self.histograms.items(), self._run(inputs), strict=True):
            intended = [value == sign for sign in self.infinite.get(name, ())]
            kept = value[~np.logical_or.reduce(intended)] if intended else value
            try:
                if kept.size:
                    histogram.add(kept)
            except ModelError as error:
                raise _broken(name) from error

    def state(self) -> dict[str, npt.NDArray[Any]]:
        all_ = self.histograms.values()
        scalars = np.array([(item.limit, item.low, item.high) for item in all_])
        return {"scalars": scalars, "counts": np.stack([item.counts for item in all_])}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        for item, scalars, counts in zip(self.histograms.values(), state["scalars"], state["counts"], strict=True):
            item.limit, item.low, item.high = (float(value) for value in scalars)
            item.counts = counts.copy()

    def ranges(self, choose: _Choice) -> dict[str, tuple[float, float]]:
        return {name: choose(histogram) for name, histogram in self.histograms.items()}


def with_outputs(model: onnx.ModelProto, tensors: Iterable[str]) -> onnx.ModelProto:
    """Return a copy of a model that gives out these float32 tensors as well."""
    extended = onnx.ModelProto()
    extended.CopyFrom(model)
    present = {value.name for value in extended.graph.output}
    for name in dict.fromkeys(tensors):
        if name not in present:
            extended.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return extended
