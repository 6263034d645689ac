"""Running a network over pictures and keeping the ranges of its tensors, in memory that does not grow with either."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from krl_deploy.graph.files import to_bytes
from krl_runtime.backends.onnxruntime import open_session
from krl_runtime.commandline import progress
from krl_runtime.errors import ModelError

from .histogram import Histogram
from .record import Method

__all__ = ["batches", "collect"]

_VALUES_IN_BATCH = 1 << 19
_BYTES_OF_TENSORS = 64 << 20


def collect(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    pixels: npt.NDArray[np.uint8],
    *,
    method: Method = "minmax",
    share: float = 99.999,
) -> dict[str, tuple[float, float]]:
    """Return the range of each tensor over pictures.

    Args:
        model: A float32 model with one input of pixels.
        tensors: Names of float32 tensors of its graph.
        pixels: The pictures, uint8 ``[N, C, H, W]``.
        method: See ``Method``.
        share: For ``"percentile"``, the percentage of values that the range holds.

    Raises:
        ModelError: A tensor takes values that are not finite numbers.
    """
    if method == "minmax":
        return _extremes(model, tensors, pixels)
    histograms = {name: Histogram() for name in tensors}
    session = open_session(to_bytes(_with_outputs(model, tensors)), cuda=False)
    input_ = session.get_inputs()[0]
    first = session.run(list(tensors), {input_.name: pixels[:1]})
    size = max(1, min(32, _BYTES_OF_TENSORS // max(1, sum(value.nbytes for value in first))))
    for batch in progress(list(batches(pixels, input_.shape[0], size)), "calibrating"):
        for name, value in zip(tensors, session.run(list(tensors), {input_.name: batch}), strict=True):
            try:
                histograms[name].add(value)
            except ModelError as error:
                raise ModelError(f"tensor {name}: {error} on a calibration picture; the model is broken") from error
    return {name: histogram.percentile(share) for name, histogram in histograms.items()}


def batches(pixels: npt.NDArray[Any], fixed: int | str | None, size: int) -> Iterator[npt.NDArray[Any]]:
    """Yield batches of pictures.

    Args:
        pixels: The pictures ``[N, C, H, W]``.
        fixed: First dimension of the graph's input, a number if it is fixed.
        size: Pictures in a batch where it is not fixed.
    """
    step = fixed if isinstance(fixed, int) else size
    for start in range(0, len(pixels), step):
        yield pixels[start : start + step]


def _extremes(
    model: onnx.ModelProto, tensors: Sequence[str], pixels: npt.NDArray[np.uint8]
) -> dict[str, tuple[float, float]]:
    """Let the graph itself reduce each tensor to its smallest and largest value."""
    extended = _with_outputs(model, [])
    names = []
    for tensor in tensors:
        for op in ("ReduceMin", "ReduceMax"):
            names.append(f"{tensor}::{op}")
            extended.graph.node.append(helper.make_node(op, [tensor], [names[-1]], keepdims=0))
            extended.graph.output.append(helper.make_tensor_value_info(names[-1], TensorProto.FLOAT, []))
    session = open_session(to_bytes(extended), cuda=False)
    input_ = session.get_inputs()[0]
    low = np.full(len(tensors), np.inf)
    high = np.full(len(tensors), -np.inf)
    size = max(1, min(32, _VALUES_IN_BATCH // pixels[0].size))
    for batch in progress(list(batches(pixels, input_.shape[0], size)), "calibrating"):
        values: Any = np.array(session.run(names, {input_.name: batch}), np.float64)
        bad = [tensors[int(index) // 2] for index in np.flatnonzero(~np.isfinite(values))]
        if bad:
            raise ModelError(
                f"tensor {bad[0]}: values are not finite numbers on a calibration picture; the model is broken"
            )
        low, high = np.minimum(low, values[::2]), np.maximum(high, values[1::2])
    return {name: (float(a), float(b)) for name, a, b in zip(tensors, low, high, strict=True)}


def _with_outputs(model: onnx.ModelProto, tensors: Iterable[str]) -> onnx.ModelProto:
    extended = onnx.ModelProto()
    extended.CopyFrom(model)
    present = {value.name for value in extended.graph.output}
    for name in tensors:
        if name not in present:
            extended.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return extended
