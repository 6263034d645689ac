"""A third-party ONNX file as it was given: brought to an opset that krl knows, and run beside what becomes of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from krl_deploy.config import ImportConfig
from krl_deploy.graph.cleanup import clean
from krl_deploy.graph.contrib import foreign_operators, to_standard
from krl_deploy.graph.files import opset_of, to_bytes
from krl_deploy.graph.image_input import Signature, arranged, raise_opset
from krl_deploy.graph.number_types import has_other_floats, widened
from krl_deploy.graph.session import open_cpu
from krl_deploy.graph.versions import lowered
from krl_runtime.errors import BackendError, ModelError, UsageError
from krl_runtime.images.preprocessing import Preprocessing

__all__ = [
    "TOLERANCE",
    "accepted_difference",
    "as_taken",
    "class_outputs",
    "class_runner",
    "float32_model",
    "in_float32",
    "in_known_opset",
    "in_steps",
    "input_unit",
    "normalization",
]

_log = logging.getLogger("krl")

_LEAST_OPSET = 18  # the oldest that krl's passes know: from it on ReduceMean takes its axes as an input
TOLERANCE = 1e-3
"""Accepted difference of a bundle's outputs from the file's, times the largest output: rewriting changes the order of
sums, and nothing else."""

TOLERANCE_OF_HALF = 2e-2
"""The same for a file that computes in FP16, which rounds each value by 5e-4 of it, in every layer."""


def input_unit(config: ImportConfig) -> float:
    """Return the value of white in the file's own range of pixels, which mean and std are given in."""
    return 255.0 if config.input_range == "0-255" else 1.0


def normalization(config: ImportConfig, taken: Signature) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std of the pixels that a file takes, in units of 0 to 1 and in RGB.

    Raises:
        UsageError: The file normalizes them itself.
    """
    if taken.dtype == TensorProto.UINT8 and (config.mean or config.std):
        raise UsageError("the model takes uint8 and normalizes it itself; leave --mean and --std out")
    channels, unit = int(taken.shape[1]), input_unit(config)
    mean = config.mean or (0.0,) * channels
    std = config.std or (1.0,) * channels
    if config.input_range == "symmetric":  # (2 u - 1 - mean) / std of a pixel u from 0 to 1
        mean, std = tuple((value + 1) / 2 for value in mean), tuple(value / 2 for value in std)
    if taken.order == "bgr":
        mean, std = mean[::-1], std[::-1]
    return tuple(value / unit for value in mean), tuple(value / unit for value in std)


def in_known_opset(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """Return the model in standard operators of opset 18 to 21, if it can be converted, and a list of the changes."""
    opset, changes = opset_of(model), list[str]()
    if opset < _LEAST_OPSET:
        try:
            model, changes = raise_opset(model, _LEAST_OPSET), [f"opset {opset} was raised to {_LEAST_OPSET}"]
        except ModelError as error:
            _log.warning("the model stays in opset %d, ONNX cannot raise it: %s", opset, error)
    model, standard = to_standard(model)
    model, older, reasons = lowered(model)
    if reasons:
        _log.warning(
            "the model stays in opset %d, which ONNX Runtime 1.20 does not read; older ones lack %s",
            opset,
            "; ".join(reasons),
        )
    foreign = foreign_operators(model)
    if foreign:
        _log.warning(
            "the model has operators of other domains, which ONNX Runtime runs and krl cannot convert: %s. FP16, INT8 "
            "and TensorRT need a file with standard operators alone",
            ", ".join(sorted(foreign)),
        )
    return model, [*changes, *standard, *older]


def float32_model(original: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """Return a clean float32 model in an opset that krl knows, and a list of the changes."""
    wide = has_other_floats(original)
    model, changes = in_known_opset(widened(original) if wide else original)
    return clean(model), ["all number types became float32", *changes] if wide else changes


def in_float32(taken: Signature) -> Signature:
    """Return the input of a file whose floats became float32."""
    return taken if taken.dtype == TensorProto.UINT8 else replace(taken, dtype=int(TensorProto.FLOAT))


def accepted_difference(model: onnx.ModelProto, expected: npt.NDArray[Any]) -> float:
    """Return the largest accepted difference of outputs that stand for a file's, or of their scores."""
    known = expected[np.isfinite(expected)]
    share = TOLERANCE_OF_HALF if has_other_floats(model) else TOLERANCE
    return share * max(1.0, float(np.abs(known).max(initial=0.0)))


def as_taken(taken: Signature, preprocessing: Preprocessing, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    """Return pixels uint8 ``[N, C, H, W]`` as a file takes them: normalized outside of it, and in its layout."""
    if taken.dtype == TensorProto.UINT8:
        return arranged(pixels, taken)
    mean, std = (np.reshape(part, (1, -1, 1, 1)) for part in (preprocessing.mean, preprocessing.std))
    return arranged((pixels / 255 - mean) / std, taken)


def class_outputs(
    model: onnx.ModelProto, taken: Signature, preprocessing: Preprocessing, pixels: npt.NDArray[np.uint8]
) -> npt.NDArray[np.float32]:
    """Return the outputs of a classifier's file for pixels; see ``class_runner``."""
    return class_runner(model, taken, preprocessing)(pixels)


def class_runner(
    model: onnx.ModelProto, taken: Signature, preprocessing: Preprocessing
) -> Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]:
    """Return a function from pixels uint8 ``[N, C, H, W]`` to the outputs of a classifier's file, ``[N, values]``.

    The shape of the file's own output does not matter. A file in number types that ONNX Runtime cannot run is run in
    float32. The function raises ``ModelError`` if the output of an image is no row of numbers, or is not a number, and
    ``BackendError`` if ONNX Runtime fails.

    Raises:
        BackendError: ONNX Runtime cannot open it.
    """
    try:
        session = open_cpu(to_bytes(model))
    except BackendError as error:
        if not has_other_floats(model):
            raise
        _log.warning("ONNX Runtime cannot run the file in its own number types, so float32 stands for them: %s", error)
        return class_runner(widened(model), in_float32(taken), preprocessing)
    fixed = taken.shape[0]

    def run(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        values = as_taken(taken, preprocessing, pixels)
        try:
            return _rows(session, values, fixed if isinstance(fixed, int) else len(values))
        except BackendError:
            if isinstance(fixed, int):
                raise
            return _rows(session, values, 1)  # its shapes are for one image, whatever its input says

    return run


def _rows(session: Any, values: npt.NDArray[Any], step: int) -> npt.NDArray[np.float32]:
    """Run a file in batches of ``step``; return its first output, ``[N, values]``."""
    parts = []
    for made in in_steps(session, values, step):
        row = made.shape[1:] if made.ndim and made.shape[0] == step else made.shape
        if made.size % step or sum(size != 1 for size in row) > 1:
            name = session.get_outputs()[0].name
            raise ModelError(
                f"the model's output {name} has shape {list(made.shape)} for {step} images; accepted: one row of "
                "numbers for each, [batch, classes]"
            )
        parts.append(made.reshape(step, -1))
    rows = np.concatenate(parts)[: len(values)].astype(np.float32)
    if np.isnan(rows).any():
        raise ModelError("the network's outputs are not numbers (NaN) for some images")
    return rows


def in_steps(session: Any, values: npt.NDArray[Any], step: int) -> Iterator[npt.NDArray[Any]]:
    """Yield a file's first output, as it is, for each batch of ``step`` inputs ``[N, …]``; the last one is filled up.

    Raises:
        BackendError: ONNX Runtime cannot run it.
    """
    padded = np.concatenate([values, np.repeat(values[-1:], -len(values) % step, axis=0)])
    for start in range(0, len(padded), step):
        try:
            made = session.run(None, {session.get_inputs()[0].name: padded[start : start + step]})[0]
        except Exception as error:  # ONNX Runtime's own types share no base class but this one
            raise BackendError(f"ONNX Runtime failed: {' '.join(str(error).split())}") from error
        yield np.asarray(made)
