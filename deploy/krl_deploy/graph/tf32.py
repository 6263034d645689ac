"""TF32 in simulation: factors of products rounded to its 10 bits of the mantissa, sums in FP32, as on tensor cores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto

from .edit import GraphEditor
from .operators import WEIGHTED

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["round_to_tf32", "to_tf32"]

_PRODUCTS = WEIGHTED | {"Einsum"}
_SPLIT = np.float32(2**13 + 1)  # FP32 has 24 bits of the significand, TF32 has 11: Veltkamp's constant drops 13


def round_to_tf32(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return FP32 numbers rounded to the nearest of TF32, by Veltkamp's splitting (Dekker, Numerische Mathematik 18).

    Numbers above 4e34 overflow on the way and become NaN.

    Example:
        >>> round_to_tf32(np.float32([1 + 2**-10, 1 + 2**-12]))
        array([1.0009766, 1.       ], dtype=float32)
    """
    with np.errstate(over="ignore", invalid="ignore"):
        large: npt.NDArray[np.float32] = values * _SPLIT
        rounded: npt.NDArray[np.float32] = large - (large - values)
    return rounded


def to_tf32(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return an FP32 model whose convolutions and matrix products have factors rounded to TF32.

    Args:
        model: A float32 model; it is not changed.

    Raises:
        ModelError: The graph has control flow or local functions.
    """
    graph = GraphEditor(model)
    split = graph.add_constant("tf32_split", np.asarray(_SPLIT))
    rounded: dict[str, str] = {}
    for node in list(graph.nodes):
        if node.op_type not in _PRODUCTS:
            continue
        for index, name in enumerate(node.input[:2]):
            if graph.dtype(name) == TensorProto.FLOAT:
                rounded[name] = rounded.get(name) or _round(graph, name, split)
                node.input[index] = rounded[name]
    return graph.close()


def _round(graph: GraphEditor, name: str, split: str) -> str:
    constant: npt.NDArray[Any] | None = graph.constant(name)
    if constant is not None:
        return graph.add_constant(f"{name}_tf32", round_to_tf32(constant))
    large = graph.add("Mul", [name, split], f"{name}_large")
    rest = graph.add("Sub", [large, name], f"{name}_rest")
    return graph.add("Sub", [large, rest], f"{name}_tf32")
