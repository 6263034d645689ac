"""The range of a third-party generator's values: by its graph, by the user, and by what it makes."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from krl_deploy.config import OutputRange
from krl_deploy.graph.image_output import RANGES, is_range
from krl_runtime.errors import UsageError

__all__ = ["output_range", "warn_of_wrapping"]

_log = logging.getLogger("krl")

_FAR = 0.25  # of the width of a range, beyond it: a judgment; networks without limits overshoot by less
_FEW = 0.01  # of the values may be far outside where the graph sets limits of its own
_MANY = 0.25  # of the values may be where it sets none: a network that is hardly trained scatters more
_DARK = 2.0  # of 255: images of 0 to 1 and of -1 to 1, and a little more, are black in 0 to 255
_NEARLY = 0.01  # below 0: images of 0 to 1 that were rounded or resized
_USED = (0.1, 0.9)  # images of 0 to 1 have darker and brighter pixels; a network that is not trained makes gray alone


def output_range(
    model: onnx.ModelProto,
    limits: tuple[float, float] | None,
    values: npt.NDArray[Any],
    stated: OutputRange | None,
    *,
    whole: bool,
) -> OutputRange:
    """Return the range of a generator's values.

    Args:
        model: The generator, for messages.
        limits: Least and largest value by its graph; see ``limits_of``.
        values: Images that it made, in its own range.
        stated: Range that the user gave; left out, it is read.
        whole: Whether the file makes whole numbers of uint8.

    Raises:
        UsageError: It cannot be read, or the values refute it.
    """
    seen = f"its values are {values.min():.4g} to {values.max():.4g} on {len(values)} latents"
    read: OutputRange | None = "0-255" if whole else is_range(limits)
    if stated is None and read is None:
        ends = "sets no limits" if limits is None else f"has the limits {limits[0]:.4g} and {limits[1]:.4g}"
        raise UsageError(
            f"the range of the model's images cannot be read: the end of its graph, {_last(model)}, {ends}, and {seen}"
            "; give --output-range: symmetric (black is -1, and white 1), 0-1 or 0-255"
        )
    unit = stated or read
    assert unit is not None  # noqa: S101  for the type checker
    reason = _refuted(unit, values, read, stated=stated is not None)
    if reason:
        said = f"--output-range is {unit}" if stated else f"the end of the graph makes {unit} images"
        others = ", ".join(each for each in RANGES if each != unit)
        again = "" if stated else f", or {unit} if that is right"
        raise UsageError(f"{said}, but {seen}: {reason}; give --output-range {others}{again}")
    return unit


def _refuted(unit: OutputRange, values: npt.NDArray[Any], read: OutputRange | None, *, stated: bool) -> str:
    """Return why values cannot be of a range; nothing if they can."""
    low, high = RANGES[unit]
    beyond = _FAR * (high - low)
    share = float(((values < low - beyond) | (values > high + beyond)).mean())
    limited = read is not None and read != unit
    if share > (_FEW if limited else _MANY):
        return f"{share:.0%} of them are far outside of {low:g} to {high:g}"
    if share > _FEW:
        _log.warning(
            "%.0f %% of the values are far outside of %g to %g; the runtime clips them", share * 100, low, high
        )
    if unit == "0-255" and np.abs(values).max() <= _DARK:
        return "all images would be black"
    used = values.min() <= _USED[0] and values.max() >= _USED[1]
    if unit == "symmetric" and values.min() >= -_NEARLY and (read == "0-1" or (used and not (stated and read == unit))):
        return "no pixel would be darker than gray"
    return ""


def _last(model: onnx.ModelProto) -> str:
    """Return the node that makes the output, for people."""
    output = model.graph.output[0].name
    return next((f"{node.op_type} {node.name}" for node in model.graph.node if output in node.output), output)


def warn_of_wrapping(limits: tuple[float, float] | None) -> None:
    """Log that values before a cast to uint8 are not limited to what it holds, if they are not.

    Args:
        limits: Least and largest value by the graph; see ``limits_of``.
    """
    if limits is None or limits[0] < -1 or limits[1] > 256:
        _log.warning(
            "nothing limits the values before they become uint8: those outside of 0 to 255 begin anew in the file, and "
            "are clipped in the bundle; export the model with a Clip"
        )
