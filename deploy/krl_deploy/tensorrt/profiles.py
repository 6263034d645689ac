"""The optimization profiles of an engine: the batches, and the heights and widths of images, that it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from krl_runtime.backends.tensorrt.calls import check
from krl_runtime.backends.tensorrt.interface import SIDES
from krl_runtime.errors import UsageError

from .options import BuildOptions, Range

if TYPE_CHECKING:
    import tensorrt as trt

__all__ = ["add_profiles", "fixed_side"]

_IMAGE_RANK = 4  # [batch, channels, height, width]


def add_profiles(
    builder: trt.Builder, network: trt.INetworkDefinition, config: trt.IBuilderConfig, options: BuildOptions
) -> None:
    """Set the sizes of the engine; a graph with fixed sizes takes only these.

    Raises:
        UsageError: A size that was asked for is not the graph's fixed one, or one that is open was not given.
    """
    inputs = [check(network.get_input(i), "an input is missing") for i in range(network.num_inputs)]
    shapes = {tensor.name: tuple(tensor.shape) for tensor in inputs}
    open_axes = {axis for shape in shapes.values() for axis, size in enumerate(shape) if size == -1}
    for axis, name in SIDES.items():
        if getattr(options, name) is not None and axis not in open_axes:
            raise fixed_side(name)
    for batches in options.profiles:
        ranges = {
            name: [_range(name, shape, axis, batches, options) for axis in range(len(shape))]
            for name, shape in shapes.items()
        }
        if open_axes:
            _add(builder, config, {name: ranges[name] for name, shape in shapes.items() if -1 in shape})


def _add(builder: trt.Builder, config: trt.IBuilderConfig, ranges: Mapping[str, Sequence[Range]]) -> None:
    """Add one profile with the sizes of each axis of the inputs that are not fixed."""
    profile = check(builder.create_optimization_profile(), "no optimization profile can be made")
    for name, sizes in ranges.items():
        low, best, high = zip(*sizes, strict=True)
        profile.set_shape(name, low, best, high)
    check(bool(profile), "TensorRT finds the optimization profile incomplete")
    check(config.add_optimization_profile(profile) >= 0, "TensorRT refuses the optimization profile")


def fixed_side(name: str) -> UsageError:
    """Return the error of a height or width that was given for a graph which has a fixed one."""
    return UsageError(f"--{name} is for graphs that take images of any {name}; this one is fixed; leave it out")


def _range(name: str, shape: tuple[int, ...], axis: int, batches: Range, options: BuildOptions) -> Range:
    """Return the smallest, best and largest size of an axis."""
    size = shape[axis]
    if axis == 0 and size != -1 and batches != (size, size, size):
        asked = ",".join(map(str, batches))
        raise UsageError(
            f"input {name!r} has a fixed batch of {size}, --profile is {asked}; accepted: "
            f"--profile {size},{size},{size}, or export the model with a dynamic batch"
        )
    if size != -1:
        return size, size, size
    if axis == 0:
        return batches
    side = SIDES.get(axis) if len(shape) == _IMAGE_RANK else None
    if side is None:
        raise UsageError(
            f"input {name!r} has shape {list(shape)}; accepted: a batch, and height and width of images, that vary"
        )
    given: Range | None = getattr(options, side)
    if given is None:
        raise UsageError(f"--{side} is missing: input {name!r} takes images of any {side}; give --{side} MIN,OPT,MAX")
    return given
