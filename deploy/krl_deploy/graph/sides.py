"""Heights and widths that a graph of open size takes, found by running it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import onnx

from krl_runtime.images.sides import Sides

from .files import to_bytes
from .session import open_cpu

__all__ = ["restorer_sides", "taken_sides"]

_LARGEST = 64  # pixels: networks halve an image up to six times, and pad by fewer than that
_IN_A_ROW = 3  # lengths that must run one after another: one alone may be a multiple of another number


def taken_sides(runs: Callable[[int, int], bool]) -> Sides | None:
    """Return the smallest height and width that a graph takes, and the number that they are multiples of.

    Args:
        runs: Whether the graph makes an image of the right size of one of a height and width.

    Returns:
        The lengths, for the smallest multiple that is found; ``None`` if there is none up to 64 pixels.

    Example:
        >>> taken_sides(lambda height, width: height % 4 == width % 4 == 0 and height > 6)
        Sides(smallest=8, multiple=4)
        >>> taken_sides(lambda height, width: height == width == 16) is None
        True
    """
    square = cache(lambda side: bool(runs(side, side)))
    for multiple in range(1, _LARGEST + 1):
        lengths = _lengths(multiple, square)
        first = next(lengths, None)
        if first is None:
            continue
        following = [first + number * multiple for number in range(1, _IN_A_ROW)]
        # Sides that differ: a graph may compute one from the other.
        if all(map(square, following)) and runs(first, following[-1]) and runs(following[-1], first):
            return Sides(first, multiple)
    return None


def _lengths(multiple: int, runs: Callable[[int], bool]) -> Iterator[int]:
    """Yield the multiples up to ``_LARGEST`` that run."""
    return (length for length in range(multiple, _LARGEST + 1, multiple) if runs(length))


def restorer_sides(model: onnx.ModelProto, scale: int) -> Sides | None:
    """Return the heights and widths that a bundle's graph takes, from ``pixels`` to ``scale`` times as many a side."""
    session: Any = open_cpu(to_bytes(model))
    (given,) = session.get_inputs()

    def runs(height: int, width: int) -> bool:
        try:
            (made,) = session.run(None, {given.name: np.zeros((1, given.shape[1], height, width), np.uint8)})
        except Exception:  # ONNX Runtime's own types share no base class but this one
            return False
        return bool(made.shape[2:] == (height * scale, width * scale))

    return taken_sides(runs)
