"""Inputs of graphs: the array of a single input, or arrays by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Inputs", "batches", "feed", "length", "rows", "total"]

Inputs: TypeAlias = npt.NDArray[Any] | Mapping[str, npt.NDArray[Any]]
"""The one input of a graph ``[N, ...]``, or all of its inputs by name, each with the same ``N``."""


def length(inputs: Inputs) -> int:
    """Return the number of inputs.

    Example:
        >>> length({"latent": np.zeros((3, 8)), "condition": np.zeros((3, 1))})
        3
    """
    return len(inputs if isinstance(inputs, np.ndarray) else next(iter(inputs.values())))


def rows(inputs: Inputs, part: slice) -> Inputs:
    """Return a part of the inputs."""
    return inputs[part] if isinstance(inputs, np.ndarray) else {name: array[part] for name, array in inputs.items()}


def total(inputs: Inputs) -> int:
    """Return the number of values in all inputs."""
    return inputs.size if isinstance(inputs, np.ndarray) else sum(array.size for array in inputs.values())


def feed(session: Any, inputs: Inputs) -> dict[str, npt.NDArray[Any]]:
    """Return the feed of a session of ONNX Runtime."""
    return {session.get_inputs()[0].name: inputs} if isinstance(inputs, np.ndarray) else dict(inputs)


def batches(inputs: Inputs, fixed: int | str | None, size: int) -> Iterator[Inputs]:
    """Yield batches.

    Args:
        inputs: The inputs to divide.
        fixed: First dimension of the graph's inputs, a number if it is fixed.
        size: Inputs in a batch if the graph's batch is open.

    Example:
        >>> [length(part) for part in batches(np.zeros((5, 3)), "batch", 2)]
        [2, 2, 1]
    """
    step = fixed if isinstance(fixed, int) else size
    for start in range(0, length(inputs), step):
        yield rows(inputs, slice(start, start + step))
