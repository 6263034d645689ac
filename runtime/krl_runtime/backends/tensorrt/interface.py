"""Inputs and outputs of an engine, and the batches and image sizes that it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from krl_runtime.bundle import TensorSpec
from krl_runtime.errors import BackendError

from .calls import check
from .library import Library

if TYPE_CHECKING:
    import tensorrt as trt

    from krl_runtime.backends.base import ImageSizes

__all__ = ["SIDES", "Interface", "Profile", "Tensor", "read_interface", "split"]

_DTYPES = {
    "BOOL": np.bool_,
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT8": np.int8,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT8": np.uint8,
}
SIDES: Final = {2: "height", 3: "width"}
"""Axes of images ``[batch, channels, height, width]`` whose size may vary, by number."""


@dataclass(frozen=True)
class Tensor:
    """One input or output; ``shape`` is without the batch, and a side of any size is -1."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def spec(self) -> TensorSpec:
        """Return the tensor as a bundle describes it."""
        sides = (size if size >= 0 else SIDES.get(axis, f"axis {axis}") for axis, size in enumerate(self.shape, 1))
        return TensorSpec(self.name, self.dtype.name, ("batch", *sides))


@dataclass(frozen=True)
class Profile:
    """The smallest and the largest shape of each input of one optimization profile, with the batch."""

    low: Mapping[str, tuple[int, ...]]
    high: Mapping[str, tuple[int, ...]]

    @property
    def batches(self) -> tuple[int, int]:
        """Return the smallest and the largest batch that all inputs take."""
        return max(shape[0] for shape in self.low.values()), min(shape[0] for shape in self.high.values())


@dataclass(frozen=True)
class Interface:
    """Inputs, outputs and optimization profiles of an engine; one with fixed shapes has one profile of these."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    profiles: tuple[Profile, ...]

    @property
    def image_sizes(self) -> ImageSizes | None:
        """Return the heights and widths that every profile takes; ``None`` if sides are fixed."""
        first = self.inputs[0]
        if len(first.shape) != 3 or -1 not in first.shape:
            return None
        lows = [profile.low[first.name][2:] for profile in self.profiles]
        highs = [profile.high[first.name][2:] for profile in self.profiles]
        height, width = ((max(a[axis] for a in lows), min(b[axis] for b in highs)) for axis in range(2))
        return height, width

    def check_sides(self, profile: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Check all but the batch of inputs.

        Raises:
            BackendError: A side is not within the profile.
        """
        chosen = self.profiles[profile]
        for name, shape in shapes.items():
            low, high = chosen.low[name], chosen.high[name]
            for axis in range(1, len(shape)):
                if not low[axis] <= shape[axis] <= high[axis]:
                    side = SIDES.get(axis, f"axis {axis}")
                    raise BackendError(
                        f"input {name!r} has {side} {shape[axis]}, the engine takes {low[axis]} to {high[axis]}; build "
                        f"one with: krl-deploy build-engine --{side} MIN,OPT,MAX"
                    )


def read_interface(library: Library, engine: trt.ICudaEngine) -> Interface:
    """Read an engine's interface.

    Raises:
        BackendError: It has a type that numpy lacks, an open dimension besides batch and sides of images, or a tensor
            on the host.
    """
    if TYPE_CHECKING:
        import tensorrt as trt
    trt = library.module
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    sizes = set()
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        shape = tuple(engine.get_tensor_shape(name))
        dtype = engine.get_tensor_dtype(name).name
        check(dtype in _DTYPES, f"tensor {name!r} has type {dtype}; accepted: {', '.join(_DTYPES)}")
        check(engine.get_tensor_location(name) == trt.TensorLocation.DEVICE, f"tensor {name!r} lives on the host")
        is_image = len(shape) == 4 and shape[1] != -1
        check(
            bool(shape) and (is_image or -1 not in shape[1:]),
            f"tensor {name!r} has shape {list(shape)}; only the batch, and height and width of images, may vary",
        )
        sizes.add(shape[0])
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        (inputs if is_input else outputs).append(Tensor(name, np.dtype(_DTYPES[dtype]), shape[1:]))
    check(len(sizes) == 1 and bool(inputs), f"its tensors do not share one batch dimension: {sorted(sizes)}")
    return Interface(tuple(inputs), tuple(outputs), _profiles(engine, inputs, sizes.pop()))


def _profiles(engine: trt.ICudaEngine, inputs: Sequence[Tensor], batch: int) -> tuple[Profile, ...]:
    if batch != -1 and all(-1 not in tensor.shape for tensor in inputs):
        fixed = {tensor.name: (batch, *tensor.shape) for tensor in inputs}
        return (Profile(fixed, fixed),)
    profiles = []
    for index in range(engine.num_optimization_profiles):
        ranges = {tensor.name: engine.get_tensor_profile_shape(tensor.name, index) for tensor in inputs}
        low, high = ({name: tuple(shapes[end]) for name, shapes in ranges.items()} for end in (0, 2))
        profiles.append(Profile(low, high))
    return tuple(profiles)


def split(batch: int, batches: Sequence[tuple[int, int]]) -> tuple[int, list[int]]:
    """Return the optimization profile for a batch and the parts to run it in: one, unless it is too large.

    Args:
        batch: Number of inputs.
        batches: Smallest and largest batch of each profile.

    Raises:
        BackendError: No profile takes it; nothing is padded.
    """
    fitting = [(high, index) for index, (low, high) in enumerate(batches) if low <= batch <= high]
    if fitting:
        return min(fitting)[1], [batch]
    smaller = [(high, index) for index, (_, high) in enumerate(batches) if high < batch]
    if smaller:
        high, index = max(smaller)
        count = -(-batch // high)
        size, more = divmod(batch, count)
        if size >= batches[index][0]:
            return index, [size + 1] * more + [size] * (count - more)
    accepted = ", ".join(f"{low} to {high}" for low, high in batches)
    raise BackendError(
        f"a batch of {batch} does not fit the engine, which takes {accepted}, and nothing is padded; "
        "build one with: krl-deploy build-engine --profile MIN,OPT,MAX"
    )
