"""The bundle of a third-party restorer, loaded as a device does it, against the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from krl_deploy.config import OutputRange
from krl_deploy.evaluation.restoration import patch_of
from krl_deploy.graph.image_output import RANGES
from krl_runtime.errors import CheckFailedError
from krl_runtime.images.luma import to_uint8
from krl_runtime.images.sides import padded
from krl_runtime.pipelines import Restorer
from krl_runtime.pipelines.restorer import longest_part

from .restorer_file import RestorerFile

__all__ = ["in_levels_of", "verify_restorer"]

_LEVEL = 1.0  # of 255: images are rounded, and a rounding error may move a value to the next level
_NARROW = 24  # pixels of the narrow side of images that are restored in parts: quick


def in_levels_of(unit: OutputRange, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return images of a range in levels of 0 to 255, neither rounded nor clipped."""
    low, high = RANGES[unit]
    return np.asarray((images - np.float32(low)) * np.float32(255 / (high - low)))


def verify_restorer(
    file: RestorerFile,
    unit: OutputRange,
    planes: Sequence[npt.NDArray[np.uint8]],
    tolerance: float,
    pipeline: Restorer,
) -> None:
    """Compare images of the loaded bundle with the file's, of several sizes.

    A file of one size is run on two corners of a larger image, and compared where these do not see beyond, or where
    they are the parts that a bundle of one size runs on.

    Args:
        file: The file.
        unit: Range of its output.
        planes: Real images, uint8 ``[C, H, W]``.
        tolerance: Accepted difference in levels of 255; a level at least.
        pipeline: The bundle.

    Raises:
        CheckFailedError: They differ.
    """
    accepted, rng = max(_LEVEL, tolerance + _LEVEL / 2), np.random.default_rng(1)
    for number, (height, width) in enumerate(_sizes(file, pipeline)):
        pixels = patch_of(planes[number % len(planes)], height, width, rng)
        made = _restored(pipeline, pixels)
        for rows, columns in _windows(file, height, width):
            part = pixels[:, rows, columns]
            taken = padded(part, *map(pipeline.sides.fit, part.shape[1:])) if file.is_open else part
            wanted = in_levels_of(unit, file.images(np.ascontiguousarray(taken[None])))[0]
            difference = _difference(pipeline, made, to_uint8(wanted), rows, columns)
            if not difference <= accepted:
                raise CheckFailedError(
                    f"an image of {height}x{width} pixels (height x width) differs from the file's by {difference:.3g} "
                    f"of 255; accepted: {accepted:.3g}"
                )


def _sizes(file: RestorerFile, pipeline: Restorer) -> Iterator[tuple[int, int]]:
    """Yield heights and widths of images: the file's own, smaller and larger ones, and those that run in parts."""
    spec, sides = pipeline.preprocessing, pipeline.sides
    fixed = [side if isinstance(side, int) else None for side in file.taken.shape[2:]]
    height, width = (own or side for own, side in zip(fixed, (spec.height, spec.width), strict=True))
    yield height, width
    if _is_fixed(pipeline):
        yield height + 1, width + 1  # two parts a side, however much they overlap
        return
    if pipeline.overlap is not None or file.is_open:
        yield height + height // 2 + 1, width + 3
    if not file.is_open:
        return
    yield sides.fit(1), sides.fit(1)
    yield max(1, height // 2 + 1), max(1, width - 5)
    if pipeline.overlap is not None:
        yield sides.fit(_NARROW), longest_part(pipeline.overlap) + 1
        yield longest_part(pipeline.overlap) + 1, sides.fit(_NARROW)


def _is_fixed(pipeline: Restorer) -> bool:
    """Return whether the bundle's graph has one height and width."""
    return all(isinstance(side, int) for side in pipeline.bundle.manifest.inputs[0].shape[2:])


def _windows(file: RestorerFile, height: int, width: int) -> list[tuple[slice, slice]]:
    """Return the parts of an image that the file is run on: all of it, or two corners of the file's own size."""
    sides = [
        own if isinstance(own, int) else side for own, side in zip(file.taken.shape[2:], (height, width), strict=True)
    ]
    first = slice(0, sides[0]), slice(0, sides[1])
    last = slice(height - sides[0], height), slice(width - sides[1], width)
    return [first] if first == last else [first, last]


def _restored(pipeline: Restorer, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return pixels ``[C, H, W]`` as the bundle restores them, rounded."""
    if pipeline.color == "y":  # the pipeline takes the luma of images, and resizes their chroma
        return to_uint8(pipeline.restore_planes(pixels))
    (made,) = pipeline([pixels.transpose(1, 2, 0) if len(pixels) > 1 else pixels[0]])
    return np.asarray(made.pixels.transpose(2, 0, 1))


def _difference(
    pipeline: Restorer, made: npt.NDArray[np.uint8], wanted: npt.NDArray[np.uint8], rows: slice, columns: slice
) -> float:
    """Return the largest difference in a part of an image, without what depends on pixels beyond the part."""
    scale, overlap, fixed = pipeline.scale, pipeline.overlap or 0, _is_fixed(pipeline)
    height, width = made.shape[1] // scale, made.shape[2] // scale
    # The first part of a bundle of one size keeps all but the overlap, and the last part only what is left.
    top, left = (
        (side.stop - 2 * side.start - overlap if fixed else overlap) * (side.start > 0) for side in (rows, columns)
    )
    bottom, right = (side.stop - overlap * (side.stop < whole) for side, whole in ((rows, height), (columns, width)))
    kept = slice((rows.start + top) * scale, bottom * scale), slice((columns.start + left) * scale, right * scale)
    inner = tuple(
        slice(side.start - part.start * scale, side.stop - part.start * scale)
        for side, part in zip(kept, (rows, columns), strict=True)
    )
    both = made[:, kept[0], kept[1]], wanted[:, inner[0], inner[1]]
    return float(np.abs(both[0].astype(np.float64) - both[1]).max(initial=0.0))
