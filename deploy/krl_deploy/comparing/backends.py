"""Running an ONNX file, whole or a part of it, on a backend by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy.typing as npt

from krl_runtime.backends.onnxruntime import open_session
from krl_runtime.errors import BackendError, require

from .config import ComparedBackend

__all__ = ["Runner", "open_part"]

Runner: TypeAlias = "Callable[[Mapping[str, npt.NDArray[Any]]], Mapping[str, npt.NDArray[Any]]]"
"""A function from a graph's inputs by name to its outputs by name."""


def open_part(data: bytes, backend: ComparedBackend, threads: int | None = None) -> Runner:
    """Open an ONNX file.

    Args:
        data: The file.
        backend: The backend.
        threads: Threads for one call; ``None`` leaves it to the backend. Many parts that are open at once would each
            have a pool of threads, which takes longer to start than a layer to run.

    Raises:
        BackendError: The backend cannot run it.
        MissingExtraError: The backend is not installed.
    """
    return _open_openvino(data, threads) if backend == "openvino" else _open_onnxruntime(data, threads)


def _open_onnxruntime(data: bytes, threads: int | None) -> Runner:
    session = open_session(data, cuda=False, threads=threads)
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        try:
            return dict(zip(names, session.run(names, dict(inputs)), strict=True))
        except Exception as error:  # ONNX Runtime's own types share no base class but this one
            raise BackendError(f"ONNX Runtime failed: {' '.join(str(error).split())}") from error

    return run


def _open_openvino(data: bytes, threads: int | None) -> Runner:
    ov = require("openvino", extra="openvino", purpose="comparing with OpenVINO")
    settings = {"INFERENCE_PRECISION_HINT": "f32", **({"INFERENCE_NUM_THREADS": threads} if threads else {})}
    try:
        core = ov.Core()
        compiled = core.compile_model(core.read_model(data), "CPU", settings)
    except RuntimeError as error:  # OpenVINO raises nothing more special
        raise BackendError(f"OpenVINO cannot open a part of the model: {' '.join(str(error).split())}") from error
    names = [output.get_any_name() for output in compiled.outputs]

    def run(inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        try:
            results = compiled(dict(inputs))
        except RuntimeError as error:
            raise BackendError(f"OpenVINO failed: {' '.join(str(error).split())}") from error
        return {name: results[name] for name in names}

    return run
