"""A third-party restorer as it was given: run by ONNX Runtime alone, to compare what becomes of it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx

from krl_deploy.config import ImportConfig
from krl_deploy.graph.bounds import check_bounds
from krl_deploy.graph.files import to_bytes
from krl_deploy.graph.image_input import TO_NCHW, Layout, Signature, any_signature
from krl_deploy.graph.number_types import has_other_floats, widened
from krl_deploy.graph.session import open_cpu
from krl_deploy.graph.sides import taken_sides
from krl_runtime.errors import BackendError, KrlError, ModelError
from krl_runtime.images.preprocessing import Preprocessing
from krl_runtime.images.sides import Sides

from .original import as_taken, in_float32, in_steps, normalization

__all__ = ["RestorerFile", "open_restorer"]

_log = logging.getLogger("krl")

_TRIALS: Final = range(64, 129)  # pixels a side of the first run: one of them is a multiple of any number up to 64


@dataclass(frozen=True)
class RestorerFile:
    """A file with one input and one output.

    Attributes:
        model: The file.
        taken: Its input.
        mean: Mean of the normalization outside of it, in units of 0 to 1 and in RGB.
        std: Standard deviation likewise.
    """

    model: onnx.ModelProto
    taken: Signature
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def channels(self) -> int:
        """Return the number of channels."""
        return len(self.mean)

    @property
    def is_open(self) -> bool:
        """Return whether height and width are open."""
        return not any(isinstance(side, int) for side in self.taken.shape[2:])

    def preprocessing(self, height: int, width: int) -> Preprocessing:
        """Return the preprocessing from pixels of a size to its input."""
        return Preprocessing(height, width, self.channels, mean=self.mean, std=self.std)

    def inputs(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        """Return pixels ``[N, C, H, W]`` as the file takes them."""
        return as_taken(self.taken, self.preprocessing(*pixels.shape[2:]), pixels)

    def images(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return its images ``[N, C, H, W]`` in RGB, in its own range.

        Args:
            pixels: uint8 ``[N, C, H, W]``.

        Raises:
            ModelError: A tensor would be too large, or the output is no image.
            BackendError: ONNX Runtime cannot run it.
        """
        values, fixed = self.inputs(pixels), self.taken.shape[0]
        step = fixed if isinstance(fixed, int) else 1
        check_bounds(self.model, {self.taken.input: (step, *values.shape[1:])})
        made = np.concatenate(list(in_steps(self.session, values, step)))[: len(pixels)].astype(np.float32)
        if self.layout_of(made.shape) == "NHWC":
            made = made.transpose(TO_NCHW)
        made = made.reshape(len(pixels), self.channels, *made.shape[-2:])
        return made[:, ::-1] if self.taken.order == "bgr" else made

    def layout_of(self, shape: tuple[int, ...]) -> Layout:
        """Return the layout of an output.

        Raises:
            ModelError: It is no image with the channels of the input.
        """
        if len(shape) == 4 and shape[1] == self.channels:
            return "NCHW"
        if len(shape) == 4 and shape[3] == self.channels:
            return "NHWC"
        if len(shape) == 3 and self.channels == 1:
            return "NHW"
        raise ModelError(
            f"the model's output {self.taken.output} has shape {list(shape)}; accepted: images with the channels of "
            f"the input, {self.channels}: [batch, channels, height, width], [batch, height, width, channels] or, if it "
            "is one channel, [batch, height, width]; give another output with --output"
        )

    @cached_property
    def layout(self) -> Layout:
        """Return the layout of the output."""
        return self.layout_of(self._trial[1])

    @property
    def scale(self) -> int:
        """Return how many times as large a side of the output is.

        Raises:
            ModelError: It is not a whole number of times as large.
        """
        (height, width), shape = self._trial
        rows, columns = shape[1:3] if self.layout == "NHWC" else shape[-2:]
        if rows % height or rows // height < 1 or columns != rows // height * width:
            raise ModelError(
                f"the model makes {rows}x{columns} pixels of {height}x{width}; accepted: a whole number of times as "
                "many, the same for height and width"
            )
        return rows // height

    def sides(self, scale: int) -> Sides:
        """Return the heights and widths that a file of open size takes.

        Raises:
            ModelError: It makes no images of the right size.
        """

        def runs(height: int, width: int) -> bool:
            try:
                made = self.images(np.zeros((1, self.channels, height, width), np.uint8))
            except (BackendError, ModelError):
                return False
            return made.shape[2:] == (height * scale, width * scale)

        if not self.is_open:
            return Sides()
        found = taken_sides(runs)
        if found is None:
            (height, width), shape = self._trial
            raise ModelError(
                f"the model does not make images {scale} times as large of all images whose sides are multiples of one "
                f"number up to 64: of {height}x{width} pixels it makes {list(shape)}; check --scale"
            )
        return found

    @cached_property
    def _trial(self) -> tuple[tuple[int, int], tuple[int, ...]]:
        """Return a height and width that it takes, and the shape of the output for them."""
        failures: list[KrlError] = []
        for side in _TRIALS:
            height, width = (size if isinstance(size, int) else side for size in self.taken.shape[2:])
            values = self.inputs(np.zeros((1, self.channels, height, width), np.uint8))
            step = self.taken.shape[0] if isinstance(self.taken.shape[0], int) else 1
            try:
                return (height, width), next(in_steps(self.session, values, step)).shape
            except BackendError as error:
                failures.append(error)
            if (height, width) == self.taken.shape[2:]:
                break
        raise ModelError(f"the model does not run on an image of {height}x{width} pixels: {failures[0]}")

    @cached_property
    def session(self) -> Any:
        """Return a session of ONNX Runtime.

        Raises:
            BackendError: It cannot open the file.
        """
        return open_cpu(to_bytes(self.model))


def open_restorer(config: ImportConfig, model: onnx.ModelProto) -> RestorerFile:
    """Return a file with one output, ready to run; in float32 if ONNX Runtime cannot run its own number types.

    Raises:
        ModelError: It does not take images.
        UsageError: Mean, std or order do not fit it.
        BackendError: ONNX Runtime cannot open it.
    """
    taken = any_signature(model, order=config.channel_order)
    if taken.layout == "flat":
        raise ModelError(
            f"the model's input {taken.input} is flat; accepted for restoration: [batch, channels, height, width], "
            "[batch, height, width, channels] or [batch, height, width]"
        )
    file = RestorerFile(model, taken, *normalization(config, taken))
    try:
        _ = file.session  # opens it
    except BackendError as error:
        if not has_other_floats(model):
            raise
        _log.warning("ONNX Runtime cannot run the file in its own number types, so float32 stands for them: %s", error)
        return replace(file, model=widened(model), taken=in_float32(taken))
    return file
