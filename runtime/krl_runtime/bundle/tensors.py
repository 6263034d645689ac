"""Checks of arrays against a graph's tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from krl_runtime.errors import BackendError

if TYPE_CHECKING:
    import numpy.typing as npt

    from . import TensorSpec

__all__ = ["check_inputs"]


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


def _fits(given: Sequence[int], accepted: Sequence[int | str]) -> bool:
    return len(given) == len(accepted) and all(
        size == dimension if isinstance(dimension, int) else size >= 1
        for size, dimension in zip(given, accepted, strict=True)
    )
