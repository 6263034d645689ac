"""The optimization profile of an engine: the batches, and the heights and widths of images, that it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from krl_runtime.backends.tensorrt.calls import check
from krl_runtime.backends.tensorrt.interface import SIDES
from krl_runtime.errors import UsageError

from .options import BuildOptions, Range

if TYPE_CHECKING:
    import tensorrt as trt

__all__ = ["add_profile", "fixed_side"]

_IMAGE_RANK = 4  # [batch, channels, height, width]


def add_profile(
    builder: trt.Builder, network: trt.INetworkDefinition, config: trt.IBuilderConfig, options: BuildOptions
) -> None:
    """Set the sizes of the engine; a graph with fixed sizes takes only these.

    Raises:
        UsageError: A size that was asked for is not the graph's fixed one, or one that is open was not given.
    """
    profile = check(builder.create_optimization_profile(), "no optimization profile can be made")
    inputs = [check(network.get_input(i), "an input is missing") for i in range(network.num_inputs)]
    dynamic = False
    sides = set()
    for tensor in inputs:
        shape = tuple(tensor.shape)
        ranges = [_range(tensor.name, shape, axis, options) for axis in range(len(shape))]
        if -1 in shape:
            dynamic = True
            low, best, high = zip(*ranges, strict=True)
            profile.set_shape(tensor.name, low, best, high)
        sides |= {SIDES[axis] for axis, size in enumerate(shape) if size == -1 and axis in SIDES}
    for name in SIDES.values():
        if getattr(options, name) is not None and name not in sides:
            raise fixed_side(name)
    if dynamic:
        check(bool(profile), "TensorRT finds the optimization profile incomplete")
        check(config.add_optimization_profile(profile) >= 0, "TensorRT refuses the optimization profile")


def fixed_side(name: str) -> UsageError:
    """Return the error of a height or width that was given for a graph which has a fixed one."""
    return UsageError(f"--{name} is for graphs that take images of any {name}; this one is fixed; leave it out")


def _range(name: str, shape: tuple[int, ...], axis: int, options: BuildOptions) -> Range:
    """Return the smallest, best and largest size of an axis."""
    size = shape[axis]
    if axis == 0 and size != -1 and options.profile != (size, size, size):
        asked = ",".join(map(str, options.profile))
        raise UsageError(
            f"input {name!r} has a fixed batch of {size}, --profile is {asked}; accepted: "
            f"--profile {size},{size},{size}, or export the model with a dynamic batch"
        )
    if size != -1:
        return size, size, size
    if axis == 0:
        return options.profile
    side = SIDES.get(axis) if len(shape) == _IMAGE_RANK else None
    if side is None:
        raise UsageError(
            f"input {name!r} has shape {list(shape)}; accepted: a batch, and height and width of images, that vary"
        )
    given: Range | None = getattr(options, side)
    if given is None:
        raise UsageError(f"--{side} is missing: input {name!r} takes images of any {side}; give --{side} MIN,OPT,MAX")
    return given
