"""2:4 sparsity: weights of which two in every four are 0 along the input channels, as NVIDIA's sparse kernels want."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from krl_deploy.graph.placement import Weighted
from krl_deploy.rules.view import View

if TYPE_CHECKING:
    import numpy.typing as npt
    import onnx

__all__ = ["has_2_of_4", "sparse_layers"]

_BLOCK, _MOST = 4, 2  # weights in a block, and those of them that may differ from 0


def sparse_layers(model: onnx.ModelProto) -> tuple[list[str], int]:
    """Return the names of the layers whose weights are 2:4 sparse, and the number of all layers with weights.

    Quantized weights count as they are stored.

    Raises:
        ModelError: The graph has control flow or local functions.
    """
    view = View(model)
    sparse = [item.node.name for item in view.weighted if _is_sparse(view, item)]
    return sparse, len(view.weighted)


def _is_sparse(view: View, item: Weighted) -> bool:
    pair = view.pair(item.node.input[1])
    weight = view.constant(item.node.input[1] if pair is None else pair.source)
    if weight is None or item.axis < 0 or weight.ndim < 2 or item.node.op_type == "ConvTranspose":
        return False
    return has_2_of_4(weight, 1 - item.axis)


def has_2_of_4(weight: npt.NDArray[Any], axis: int) -> bool:
    """Return whether every four weights in a row along an axis have two zeros or more.

    Args:
        weight: Of any shape.
        axis: The axis of the input channels; its size must be a multiple of 4, or the answer is no.

    Example:
        >>> has_2_of_4(np.array([[1, 0, 2, 0], [0, 0, 3, 4]]), axis=1)
        True
        >>> has_2_of_4(np.array([[1, 5, 2, 0]]), axis=1)
        False
    """
    size = weight.shape[axis]
    if size % _BLOCK or not size:
        return False
    blocks = np.moveaxis(weight, axis, -1).reshape(-1, _BLOCK)
    return bool((np.count_nonzero(blocks, axis=1) <= _MOST).all())
