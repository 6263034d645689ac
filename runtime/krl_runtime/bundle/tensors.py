"""Checks of arrays against a graph's tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from krl_runtime.errors import BackendError

if TYPE_CHECKING:
    import numpy.typing as npt

    from . import TensorSpec

__all__ = ["Arrays", "check_inputs", "rows_of", "stacked", "zeros"]

Arrays: TypeAlias = "npt.NDArray[Any] | Mapping[str, npt.NDArray[Any]]"
"""Inputs of a graph: pixels alone, or an array for each input by its name."""


def check_inputs(specs: Sequence[TensorSpec], inputs: Mapping[str, npt.NDArray[Any]]) -> None:
    """Check that inputs are those of a graph.

    Args:
        specs: The graph's inputs. A dimension with a name accepts any size from 1 on.
        inputs: The given inputs by name.

    Raises:
        BackendError: An input is missing, unknown, or has another dtype or shape. The message names it, the given and
            the accepted one.

    Example:
        >>> from krl_runtime.bundle import TensorSpec
        >>> specs = [TensorSpec("pixels", "uint8", ("batch", 3, 8, 8))]
        >>> check_inputs(specs, {"pixels": np.zeros((2, 3, 8, 8), np.uint8)})
        >>> check_inputs(specs, {"pixels": np.zeros((2, 1, 8, 8), np.uint8)})
        Traceback (most recent call last):
        krl_runtime.errors.BackendError: input 'pixels' has dtype uint8 and shape [2, 1, 8, 8]; accepted: uint8 of shape [batch, 3, 8, 8]
    """  # noqa: E501  a message is one line
    for spec in specs:
        array = inputs.get(spec.name)
        if array is None:
            raise BackendError(f"input {spec.name!r} is missing; given: {', '.join(map(str, inputs)) or 'nothing'}")
        if not isinstance(array, np.ndarray):
            raise BackendError(f"input {spec.name!r} is a {type(array).__name__}; accepted: a numpy array")
        if array.dtype != spec.dtype or not _fits(array.shape, spec.shape):
            raise BackendError(
                f"input {spec.name!r} has dtype {array.dtype} and shape {list(array.shape)}; accepted: {spec.dtype} "
                f"of shape [{', '.join(map(str, spec.shape))}]"
            )
    if len(inputs) > len(specs):
        known = [spec.name for spec in specs]
        unknown = [name for name in inputs if name not in known]
        raise BackendError(f"the graph has no input {unknown[0]!r}; it has: {', '.join(known)}")


def zeros(specs: Sequence[TensorSpec]) -> dict[str, npt.NDArray[Any]]:
    """Return a batch of one input of zeros by name, for a graph whose only open dimension is the batch."""
    return {spec.name: np.zeros((1, *map(int, spec.shape[1:])), spec.dtype) for spec in specs}


def stacked(samples: Sequence[Arrays]) -> Arrays:
    """Return one batch of several samples; that of one sample shares its memory."""
    first = samples[0]
    if isinstance(first, Mapping):
        return {name: stacked([sample[name] for sample in samples]) for name in first}  # type: ignore[misc]
    return first[None] if len(samples) == 1 else np.stack(samples)  # type: ignore[arg-type]


def rows_of(batch: Arrays) -> list[Arrays]:
    """Return the samples of a batch; the reverse of ``stacked``."""
    if not isinstance(batch, Mapping):
        return list(batch)
    count = len(next(iter(batch.values())))
    return [{name: array[row] for name, array in batch.items()} for row in range(count)]


def _fits(given: Sequence[int], accepted: Sequence[int | str]) -> bool:
    return len(given) == len(accepted) and all(
        size == dimension if isinstance(dimension, int) else size >= 1
        for size, dimension in zip(given, accepted, strict=True)
    )
