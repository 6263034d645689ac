"""Inputs of graphs: the array of a single input, or arrays by name. Outputs: one array, also of several heads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from krl_runtime.bundle.tensors import Arrays
from krl_runtime.files import sha256_bytes

__all__ = ["Inputs", "apart", "batches", "feed", "identity_of", "joined", "length", "rows", "side_by_side", "total"]

Inputs: TypeAlias = Arrays
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


def joined(parts: Sequence[Inputs]) -> Inputs:
    """Return one batch of several."""
    first = parts[0]
    if isinstance(first, Mapping):
        return {name: np.concatenate([part[name] for part in parts]) for name in first}
    return np.concatenate(parts)  # type: ignore[arg-type]


def identity_of(inputs: Mapping[str, npt.NDArray[Any]]) -> str:
    """Return a hash of the names, shapes and values of inputs."""
    parts = (f"{name}:{array.shape}:".encode() + array.tobytes() for name, array in inputs.items())
    return sha256_bytes(b"".join(parts))


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


def side_by_side(outputs: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Return the outputs of all heads ``[N, classes]`` as one array ``[N, all classes]``; a single output as it is."""
    return outputs[0] if len(outputs) == 1 else np.concatenate(outputs, axis=1)


def apart(outputs: npt.NDArray[Any], widths: Sequence[int]) -> list[npt.NDArray[Any]]:
    """Return the outputs of each head, of outputs that are side by side; of a single head as they are.

    Args:
        outputs: ``[N, ...]``.
        widths: Number of classes of each head.

    Example:
        >>> [part.shape for part in apart(np.zeros((4, 5)), [2, 3])]
        [(4, 2), (4, 3)]
    """
    return [outputs] if len(widths) == 1 else np.split(outputs, np.cumsum(widths)[:-1].tolist(), axis=1)
