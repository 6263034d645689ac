"""Where a classifier looks, without torch: a patch hides each part of an image in turn, and the score falls or not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from krl_runtime.bundle.output_kind import scores_of
from krl_runtime.bundle.tensors import stacked
from krl_runtime.errors import UsageError
from krl_runtime.images.heat import overlay
from krl_runtime.pipelines.raster import Raster

if TYPE_CHECKING:
    import numpy.typing as npt

    from krl_runtime.bundle.tensors import Arrays
    from krl_runtime.pipelines.classifier import Classification, Classifier

__all__ = ["Occlusion", "explain"]

_PARTS: Final = 7  # patches in a row of an image: 32 of 224 pixels, as Zeiler and Fergus (2014) hid them
_BATCH: Final = 16  # images in one run: what further ones gain on a processor is little
_MOST: Final = 10_000  # places of the patch: minutes for one image on a small device


@dataclass(frozen=True)
class Occlusion:
    """The effect of hiding parts of an image on the prediction.

    Attributes:
        prediction: Of the whole image.
        patch: Side of the hidden square in pixels of the network's input.
        drops: By how much the score of the predicted class falls with the patch at each place, ``[rows, columns]``
            of float64, -1 to 1.
        heat: The mean of the drops of all patches that hide a pixel, ``[height, width]`` of float64.
        pixels: The image as the network sees it, uint8 ``[height, width, channels]``.
    """

    prediction: Classification
    patch: int
    drops: npt.NDArray[np.float64] = field(repr=False, compare=False)
    heat: npt.NDArray[np.float64] = field(repr=False, compare=False)
    pixels: npt.NDArray[np.uint8] = field(repr=False, compare=False)

    @property
    def overlay(self) -> Raster:
        """The image in gray, with colors where hiding it lowers the score."""
        return Raster(overlay(self.pixels, self.heat))


def explain(model: Classifier, source: Any, *, patch: int | None = None, stride: int | None = None) -> Occlusion:
    """Hide each part of an image in turn, and measure by how much the score of the predicted class falls.

    The patch has the mean color of the training images. All sides of the image are reached.

    Args:
        model: A loaded classifier.
        source: One image, as the model takes it; a sample of a model with further inputs keeps those as they are.
        patch: Side of the patch in pixels of the network's input; a seventh of the shorter side by default.
        stride: Pixels between two places of it; half of its side by default.

    Returns:
        The prediction, and the drops.

    Raises:
        ImageError: The image cannot be used.
        UsageError: Patch or stride is less than 1, larger than the image, or gives more than 10,000 places.
    """
    given = model.prepare(source)
    image = np.asarray(next(iter(given.values())) if isinstance(given, dict) else given)
    height, width = image.shape[1:]
    side = max(1, min(height, width) // _PARTS) if patch is None else patch
    step = max(1, side // 2) if stride is None else stride
    if not 1 <= side <= min(height, width) or step < 1:
        raise UsageError(f"patch {side}, stride {step}: accepted: 1 to {min(height, width)} pixels, and 1 or more")
    rows, columns = ([*range(0, length - side, step), length - side] for length in (height, width))
    if len(rows) * len(columns) > _MOST:
        raise UsageError(f"stride {step} gives {len(rows) * len(columns)} places; accepted: {_MOST}; take a larger one")
    prediction = model.interpret_outputs(model.run(stacked([given])), top_k=1)[0]
    color = np.round(255 * np.array(model.preprocessing.mean)).astype(np.uint8).reshape(-1, 1, 1)
    places = [(row, column) for row in rows for column in columns]
    scores: list[float] = []
    size = min(_BATCH, model.bundle.batch_limit)
    for start in range(0, len(places), size):
        hidden = [_hide(given, image, place, side, color) for place in places[start : start + size]]
        outputs = model.logits(stacked(hidden))
        scores += scores_of(model.output_kind, outputs)[:, prediction.index].tolist()
    drops = (prediction.score - np.array(scores)).reshape(len(rows), len(columns))
    total, covered = np.zeros((2, height, width))
    for (row, column), drop in zip(places, drops.flat, strict=True):
        total[row : row + side, column : column + side] += drop
        covered[row : row + side, column : column + side] += 1
    heat = total / np.maximum(covered, 1)
    return Occlusion(prediction, side, drops, heat, np.ascontiguousarray(image.transpose(1, 2, 0)))


def _hide(
    given: Arrays, image: npt.NDArray[Any], place: tuple[int, int], side: int, color: npt.NDArray[np.uint8]
) -> Arrays:
    """Return the prepared inputs with a patch over the image, which is the first of them."""
    hidden = image.copy()
    hidden[:, place[0] : place[0] + side, place[1] : place[1] + side] = color
    return {**given, next(iter(given)): hidden} if isinstance(given, dict) else hidden
