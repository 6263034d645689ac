"""Integer weights: one scale for each output channel, chosen well, and the bias that makes up for their rounding.

No training and no gradients: only the weights and the means of the activations matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from onnx import NodeProto

from krl_deploy.graph.edit import GraphEditor, attribute
from krl_deploy.graph.placement import Weighted
from krl_runtime.int8 import LARGEST_WEIGHT, LEAST_FP16_SCALE

__all__ = [
    "Rounding",
    "bias_of",
    "bias_shift",
    "dequantized_constant",
    "quantize_weight",
]

_SHRINKS = np.linspace(0.5, 1.0, 51)[::-1]
_HALF = np.finfo(np.float16)


@dataclass(frozen=True)
class Rounding:
    """The rounding of weights to integers.

    Attributes:
        optimal_scales: Choose scales by the smallest mean squared error of a channel's weights, and not by its largest
            weight.
        means: Channel means ``[C]`` on real inputs, by the name of a weighted operator's input. With them the bias
            corrects the shift of the output's mean that rounding the weights causes.
        fp16: Scales are FP16 numbers where FP16 has one that is close enough; see ``LEAST_FP16_SCALE``.
        scales: Given scales by the weight's name, one or one for each channel.
    """

    optimal_scales: bool = False
    means: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    fp16: bool = False
    scales: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)

    def scale(self, value: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Return float32 scales as they will stand in the graph."""
        scale = np.asarray(value, np.float32)
        if not self.fp16 or scale.min() < LEAST_FP16_SCALE or scale.max() > _HALF.max:
            return scale
        # Below the normal numbers steps are so wide that rounding down would cut values off.
        small = np.ceil(scale / _HALF.smallest_subnormal) * _HALF.smallest_subnormal
        return np.where(scale < _HALF.tiny, small, scale).astype(np.float16).astype(np.float32)


def quantize_weight(
    weight: npt.NDArray[np.float32],
    axis: int,
    least: npt.NDArray[np.float64] | float = 0.0,
    rounding: Rounding | None = None,
    name: str = "",
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Quantize a weight to int8, symmetrically, with one scale for each channel.

    Args:
        weight: Any shape, float32.
        axis: Axis of the channels.
        least: Smallest acceptable scale, or one for each channel.
        rounding: How the scales are chosen; left out: from the largest weight.
        name: Of the weight, by which it may have scales already.

    Returns:
        The values, in -127 to 127, rounded half to even, and the scales ``[channels]``.
    """
    rounding = rounding or Rounding()
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    largest = np.abs(rows).max(axis=1).astype(np.float64) / LARGEST_WEIGHT
    if name in rounding.scales:
        chosen = np.broadcast_to(rounding.scales[name].astype(np.float64), largest.shape)
    else:
        chosen = largest * _best_shrink(rows, largest) if rounding.optimal_scales else largest
    scale = np.maximum(chosen, least)
    # A scale must be positive and, with float32, not so small that its reciprocal overflows.
    scale = rounding.scale(np.where(scale < np.finfo(np.float32).tiny, 1.0, scale))
    values = np.clip(np.rint(rows / scale[:, None]), -LARGEST_WEIGHT, LARGEST_WEIGHT).astype(np.int8)
    moved = [weight.shape[axis], *(size for i, size in enumerate(weight.shape) if i != axis)]
    return np.ascontiguousarray(np.moveaxis(values.reshape(moved), 0, axis)), scale


def _best_shrink(rows: npt.NDArray[np.float32], scale: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return for each row the factor of its scale that gives the smallest squared error."""
    best = np.ones(len(rows))
    error = np.full(len(rows), np.inf)
    safe = np.where(scale < np.finfo(np.float32).tiny, 1.0, scale).astype(np.float32)
    for shrink in _SHRINKS:
        step = (safe * np.float32(shrink))[:, None]
        tried = np.square(rows - step * np.clip(np.rint(rows / step), -LARGEST_WEIGHT, LARGEST_WEIGHT)).sum(axis=1)
        better = tried < error
        best[better], error[better] = shrink, tried[better]
    return best


def bias_shift(
    graph: GraphEditor,
    weighted: Weighted,
    values: npt.NDArray[np.int8],
    scale: npt.NDArray[np.float32],
    means: Mapping[str, npt.NDArray[np.float32]],
) -> npt.NDArray[np.float32] | None:
    """Return the correction of a bias that keeps the output's mean after rounding the weights.

    It is ``sum((W − Ŵ) · E[x])`` over the inputs of each output channel, with a measured mean. The method is that of
    Nagel et al., 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction". A weight that meets
    padding at some outputs counts only for the others. The mean counts as equal at all positions of a plane.

    Args:
        graph: The graph, before the operator is rewritten.
        weighted: A convolution, or a ``Gemm``.
        values: Its integer weights.
        scale: Their scales.
        means: As in ``Rounding``.

    Returns:
        float32 ``[channels]``; ``None`` if the mean is not known or the operator takes no bias.
    """
    node, weight = weighted.node, graph.constant(weighted.node.input[1])
    mean = means.get(node.input[0])
    if mean is None or weight is None or node.op_type not in ("Conv", "Gemm"):
        return None
    shape = [-1 if i == weighted.axis else 1 for i in range(weight.ndim)]
    error = weight.astype(np.float64) - values * scale.astype(np.float64).reshape(shape)
    if node.op_type == "Gemm":
        return np.asarray(np.moveaxis(error, weighted.axis, 0) @ mean, np.float32)
    covered = error * _coverage(node, graph.shape(node.input[0]) or (), weight.shape[2:])
    each = covered.reshape(*error.shape[:2], -1).sum(axis=2)
    groups = attribute(node, "group", 1)
    inputs = np.repeat(mean.reshape(groups, -1), len(each) // groups, axis=0)
    return np.asarray((each * inputs).sum(axis=1), np.float32)


def _coverage(node: NodeProto, shape: Sequence[int | str], kernel: Sequence[int]) -> npt.NDArray[np.float64]:
    """Return for each position of a kernel the share of the outputs at which it does not meet padding."""
    rank = len(kernel)
    pads = attribute(node, "pads", [0] * 2 * rank)
    strides, dilations = (attribute(node, name, [1] * rank) for name in ("strides", "dilations"))
    shares = np.ones(tuple(kernel))
    if attribute(node, "auto_pad", b"NOTSET") != b"NOTSET":
        return shares
    for axis, (size, taps) in enumerate(zip(shape[2:], kernel, strict=True)):
        if not isinstance(size, int):
            continue
        reach = dilations[axis] * np.arange(taps)
        outputs = (size + pads[axis] + pads[axis + rank] - reach[-1] - 1) // strides[axis] + 1
        positions = np.arange(outputs)[:, None] * strides[axis] + reach - pads[axis]
        share = ((positions >= 0) & (positions < size)).mean(axis=0)
        shares *= share.reshape([-1 if i == axis else 1 for i in range(rank)])
    return shares


def dequantized_constant(
    graph: GraphEditor, name: str, values: npt.NDArray[np.signedinteger], scale: npt.NDArray[np.float32], axis: int
) -> str:
    """Add integer values, their scales and the node that turns them into floats; return the float tensor's name."""
    stored = graph.add_constant(f"{name}_int{values.dtype.itemsize * 8}", values)
    scales = graph.add_constant(f"{name}_scale", scale)
    zeros = graph.add_constant(f"{name}_zero_point", np.zeros(scale.shape, values.dtype))
    return graph.add("DequantizeLinear", [stored, scales, zeros], f"{name}_dequantized", axis=axis)


def bias_of(graph: GraphEditor, weighted: Weighted) -> npt.NDArray[np.float32] | None:
    """Return the constant bias of a weighted operator, one number for each output; ``None`` if it has none.

    Args:
        graph: The graph.
        weighted: An operator whose bias is not odd; see ``why_bias_is_odd``.
    """
    node = weighted.node
    bias = graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if bias is None:
        return None
    channels = (graph.shape(node.input[1]) or ())[weighted.axis]
    return np.broadcast_to(bias.reshape(-1), (int(channels),))
