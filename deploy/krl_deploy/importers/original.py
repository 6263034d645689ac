"""A third-party ONNX file as it was given: brought to an opset that krl knows, and run beside what becomes of it."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from krl_deploy.config import ImportConfig
from krl_deploy.evaluation.comparison import outputs_of
from krl_deploy.graph.bounds import check_bounds
from krl_deploy.graph.contrib import foreign_operators, to_standard
from krl_deploy.graph.files import opset_of, to_bytes
from krl_deploy.graph.image_input import Signature, raise_opset
from krl_deploy.graph.session import open_cpu
from krl_deploy.graph.versions import lowered
from krl_runtime.errors import ModelError
from krl_runtime.images.preprocessing import Preprocessing

__all__ = ["TOLERANCE", "in_known_opset", "input_unit", "original_outputs"]

_log = logging.getLogger("krl")

_LEAST_OPSET = 18  # the oldest that krl's passes know: from it on ReduceMean takes its axes as an input
TOLERANCE = 1e-3
"""Accepted difference of a bundle's outputs from the file's, times the largest output: rewriting changes the order of
sums, and nothing else."""


def input_unit(config: ImportConfig) -> float:
    """Return the value of white in the file's own range of pixels, which mean and std are given in."""
    return 255.0 if config.input_range == "0-255" else 1.0


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


def original_outputs(
    model: onnx.ModelProto,
    taken: Signature,
    preprocessing: Preprocessing,
    pixels: npt.NDArray[np.uint8],
    *,
    together: bool,
) -> npt.NDArray[np.float32]:
    """Return the outputs of the file on inputs that are normalized outside of it.

    Args:
        model: The file as it was given.
        taken: Its input.
        preprocessing: Mean and std of a float input.
        pixels: uint8 ``[N, C, H, W]``.
        together: Run all of them at once where the file takes any number; one by one otherwise.

    Returns:
        Its output, ``[N, …]``.

    Raises:
        ModelError: A tensor would be too large; see ``check_bounds``.
    """
    values: npt.NDArray[Any] = pixels
    if taken.dtype == TensorProto.FLOAT:
        mean, std = (np.reshape(part, (1, -1, 1, 1)) for part in (preprocessing.mean, preprocessing.std))
        values = ((pixels / 255 - mean) / std).astype(np.float32)
    step = taken.shape[0] if isinstance(taken.shape[0], int) else (len(values) if together else 1)
    check_bounds(model, {taken.input: (step if isinstance(taken.shape[0], int) else 1, *values.shape[1:])})
    padded = np.concatenate([values, np.repeat(values[-1:], -len(values) % step, axis=0)])
    return outputs_of(open_cpu(to_bytes(model)), padded, batch=step)[: len(values)]
