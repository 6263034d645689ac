"""Classical descriptors of an image, computed by scikit-image: gradients, local patterns, colors.

They are computed from what the network sees, the ``uint8`` image after preprocessing, by the same code in training and
on a device.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeAlias

import numpy as np

from krl_runtime.errors import DataError, UsageError, accepted, require

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["DESCRIPTORS", "ColorHistogram", "Descriptor", "DescriptorInput", "Hog", "Lbp"]

_MOST_WIDTH = 100_000  # numbers of one image: HOG with the smallest cells of a 224x224 image
_CELLS = 8  # a side, of an image's shorter side: 1764 numbers in all
_LEAST_CELL = 4  # pixels; a smaller cell has too few gradients for 9 orientations
# All descriptors are between 0 and 1. What hardly varies in training is not enlarged more than thousandfold, which
# FP16 still holds.
_LEAST_STD = 1e-3
_DIGITS = 7  # of a mean and a deviation in the settings; a float32 has no more


@dataclass(frozen=True)
class Hog:
    """Histogram of oriented gradients, see ``skimage.feature.hog``.

    Attributes:
        orientations: Directions in a histogram, 1 to 64.
        cell: Side of a cell in pixels.
        block: Side in cells of the blocks that are normalized together.
    """

    orientations: int = 9
    cell: int = 8
    block: int = 2
    name: ClassVar[str] = "hog"

    def width(self, shape: Sequence[int]) -> int:
        """Return the count of numbers for images of a shape ``[C, H, W]``; 0 if they are too small."""
        rows, columns = (max(0, side // self.cell - self.block + 1) for side in shape[1:])
        return rows * columns * self.block**2 * self.orientations

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        """Return the descriptor ``[width]`` of an image ``[C, H, W]``."""
        return np.asarray(
            _skimage().hog(
                pixels.transpose(1, 2, 0),
                orientations=self.orientations,
                pixels_per_cell=(self.cell, self.cell),
                cells_per_block=(self.block, self.block),
                channel_axis=-1,
            )
        )


@dataclass(frozen=True)
class Lbp:
    """Histogram of uniform local binary patterns, see ``skimage.feature.local_binary_pattern``.

    Attributes:
        points: Neighbors that each pixel is compared with, 4 to 64.
        radius: Their distance in pixels, above 0.
    """

    points: int = 8
    radius: float = 1.0
    name: ClassVar[str] = "lbp"

    def width(self, shape: Sequence[int]) -> int:
        """Return the count of numbers for images of a shape ``[C, H, W]``."""
        return self.points + 2

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        """Return the descriptor ``[width]`` of an image ``[C, H, W]``."""
        # As Pillow makes gray of colors, ITU-R 601, so that a pattern is of brightness.
        gray = pixels[0] if len(pixels) == 1 else (np.tensordot([299, 587, 114], pixels.astype(np.int64), 1) // 1000)
        patterns = _skimage().local_binary_pattern(gray.astype(np.uint8), self.points, self.radius, method="uniform")
        counts: npt.NDArray[np.int64] = np.bincount(patterns.astype(np.int64).ravel(), minlength=self.points + 2)
        return np.asarray(counts / counts.sum())


@dataclass(frozen=True)
class ColorHistogram:
    """Share of the pixels in each range of each color.

    Attributes:
        bins: Ranges of equal size of each channel, 2 to 256.
    """

    bins: int = 8
    name: ClassVar[str] = "color-histogram"

    def width(self, shape: Sequence[int]) -> int:
        """Return the count of numbers for images of a shape ``[C, H, W]``."""
        return shape[0] * self.bins

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        """Return the descriptor ``[width]`` of an image ``[C, H, W]``."""
        ranges = pixels.reshape(len(pixels), -1).astype(np.int64) * self.bins // 256
        return np.concatenate([np.bincount(each, minlength=self.bins) for each in ranges]) / ranges.shape[1]


Descriptor: TypeAlias = "Hog | Lbp | ColorHistogram"

_KINDS: Mapping[str, type[Hog] | type[Lbp] | type[ColorHistogram]] = {
    kind.name: kind for kind in (Hog, Lbp, ColorHistogram)
}
DESCRIPTORS: Final = tuple(_KINDS)
"""Names of the descriptors."""

_RANGES: Mapping[str, tuple[float, float]] = {
    "orientations": (1, 64),
    "cell": (2, 4096),
    "block": (1, 16),
    "points": (4, 64),
    "radius": (0.5, 64),
    "bins": (2, 256),
}
"""Smallest and largest value of each setting."""


@dataclass(frozen=True)
class DescriptorInput:
    """A classifier's input of standardized descriptors: float32 ``[batch, width]``.

    Attributes:
        descriptors: What is computed, in the order of its numbers.
        mean: Of each number over the training images.
        std: Standard deviation of each number, positive.
        input: Name of the graph's input.
    """

    descriptors: tuple[Descriptor, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input: str = "descriptors"
    kind: ClassVar[str] = "descriptors"
    names: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        """Keep the statistics as arrays too, for each call."""
        arrays = (np.array(self.mean, np.float64), np.array(self.std, np.float64))
        object.__setattr__(self, "_statistics", arrays)

    @property
    def width(self) -> int:
        """Length of the vector."""
        return len(self.mean)

    @property
    def shape(self) -> tuple[int]:
        """Shape of one sample's array."""
        return (self.width,)

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Compute the standardized descriptors of one image.

        Args:
            pixels: What ``Preprocessing`` returns: uint8 ``[channels, height, width]``.

        Returns:
            float32 ``[width]``.

        Raises:
            MissingExtraError: scikit-image is not installed, and a descriptor needs it.
        """
        mean, std = self._statistics  # type: ignore[attr-defined]
        return ((_raw(self.descriptors, pixels) - mean) / std).astype(np.float32)  # type: ignore[no-any-return]

    def require(self) -> None:
        """Import the library that the descriptors need, so that a missing one is known before the first image.

        Raises:
            MissingExtraError: It is not installed.
        """
        if any(not isinstance(each, ColorHistogram) for each in self.descriptors):
            _skimage()

    @classmethod
    def fit(cls, images: Iterable[npt.NDArray[np.uint8]], names: Sequence[str]) -> DescriptorInput:
        """Take from training images what the standardization needs.

        Args:
            images: uint8 ``[channels, height, width]`` each, all of one size. The size of HOG's cells depends on it.
            names: Of the descriptors, each once; see ``DESCRIPTORS``.

        Raises:
            UsageError: A name is not known or given twice, or the images are too small.
            DataError: There are no images.
            MissingExtraError: scikit-image is not installed, and a descriptor needs it.
        """
        descriptors: tuple[Descriptor, ...] = ()
        total = squares = np.zeros(0)
        count = 0
        for pixels in images:
            descriptors = descriptors or chosen(names, pixels.shape)
            values = _raw(descriptors, pixels)
            count, total, squares = count + 1, (total if count else 0) + values, (squares if count else 0) + values**2
        if not count:
            raise DataError("there are no training images to compute descriptors of")
        mean = total / count
        std = np.sqrt(np.maximum(squares / count - mean**2, _LEAST_STD**2))
        return cls(descriptors, tuple(np.round(mean, _DIGITS).tolist()), tuple(np.round(std, _DIGITS).tolist()))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, as settings have them."""
        return {
            "kind": self.kind,
            "input": self.input,
            "descriptors": [{"name": each.name, **asdict(each)} for each in self.descriptors],
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], shape: Sequence[int]) -> DescriptorInput:
        """Build from plain JSON types.

        Args:
            values: As ``to_dict`` returns them.
            shape: Of the images, ``[channels, height, width]``.

        Raises:
            ValueError: A key is missing or unknown, or a value is not accepted.
        """
        given = values.get("descriptors")
        if set(values) != {"kind", "input", "descriptors", "mean", "std"} or not isinstance(given, list) or not given:
            raise ValueError(f"descriptors have {sorted(values)}; accepted: kind, input, descriptors, mean and std")
        descriptors = tuple(map(_descriptor, given))
        width = _width(descriptors, shape)
        mean, std = (_numbers(name, values[name], width) for name in ("mean", "std"))
        if min(std) <= 0:
            raise ValueError("the std of a descriptor is not positive")
        return cls(descriptors, mean, std, values["input"])


def chosen(names: Sequence[str], shape: Sequence[int]) -> tuple[Descriptor, ...]:
    """Return descriptors by name, with the settings that suit images of a size.

    Args:
        names: Of the descriptors, each once.
        shape: Of the images, ``[channels, height, width]``.

    Raises:
        UsageError: A name is not known or given twice, or the images are too small.
    """
    if not names or len(set(names)) < len(names):
        raise UsageError(f"the descriptors are {list(names)}; accepted: {', '.join(DESCRIPTORS)}, each once")
    for name in names:
        if name not in _KINDS:
            raise UsageError(f"descriptor {name!r} is not known{accepted(name, DESCRIPTORS)}")
    cell = max(_LEAST_CELL, min(shape[1:]) // _CELLS)
    found = tuple(Hog(cell=cell) if name == Hog.name else _KINDS[name]() for name in names)
    try:
        _width(found, shape)
    except ValueError as error:
        raise UsageError(f"{error}; use larger images, or other descriptors") from error
    return found


def _raw(descriptors: Sequence[Descriptor], pixels: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    return np.concatenate([descriptor(pixels) for descriptor in descriptors])


def _width(descriptors: Sequence[Descriptor], shape: Sequence[int]) -> int:
    """Return the count of all numbers."""
    widths = {descriptor.name: descriptor.width(shape) for descriptor in descriptors}
    if min(widths.values()) < 1 or sum(widths.values()) > _MOST_WIDTH or len(widths) < len(descriptors):
        raise ValueError(
            f"the descriptors of an image of {shape[1]}x{shape[2]} have {widths} numbers; accepted: each descriptor "
            f"once, 1 number or more, {_MOST_WIDTH} in all"
        )
    return sum(widths.values())


def _descriptor(values: Any) -> Descriptor:
    """Return a descriptor from plain JSON types."""
    kind = _KINDS.get(str(values.get("name"))) if isinstance(values, Mapping) else None
    if kind is None:
        raise ValueError(f"a descriptor is {values!r}; accepted: an object with a name: {', '.join(DESCRIPTORS)}")
    settings = {key: value for key, value in values.items() if key != "name"}
    if set(settings) != {each.name for each in fields(kind)}:
        raise ValueError(f"{kind.name} has {sorted(settings)}; accepted: {[each.name for each in fields(kind)]}")
    for key, value in settings.items():
        least, most = _RANGES[key]
        whole = type(value) is int or (key == "radius" and type(value) is float)
        if not whole or not least <= value <= most:
            raise ValueError(f"{kind.name}: {key} is {value!r}; accepted: {least:g} to {most:g}")
    return kind(**settings)


def _numbers(name: str, values: Any, width: int) -> tuple[float, ...]:
    right = isinstance(values, list) and len(values) == width
    if not right or not all(type(each) in (int, float) and abs(each) < float("inf") for each in values):
        raise ValueError(f"{name} of the descriptors is not a list of {width} finite numbers")
    return tuple(map(float, values))


def _skimage() -> Any:
    return require("skimage.feature", extra="features", purpose="computing hog or lbp")
