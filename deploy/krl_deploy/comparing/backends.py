"""Running an ONNX file, whole or a part of it, on a backend by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import numpy.typing as npt
import onnx
from onnx import helper

from krl_deploy.graph.edit import infer
from krl_deploy.graph.files import to_bytes
from krl_deploy.tensorrt.builder import build_plan
from krl_deploy.tensorrt.options import BuildOptions
from krl_runtime.backends.cuda import current_gpu
from krl_runtime.backends.onnxruntime import open_session
from krl_runtime.backends.tensorrt.backend import TensorRTBackend
from krl_runtime.backends.tensorrt.library import library_of
from krl_runtime.errors import BackendError, require

from .config import ComparedBackend

__all__ = ["Runner", "of_shapes", "open_part"]

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
    if backend == "openvino":
        return _open_openvino(data, threads)
    return _open_onnxruntime(data, threads) if backend == "cpu" else _open_tensorrt(data, backend)


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


def _open_tensorrt(data: bytes, backend: Literal["tensorrt", "tensorrt-rtx"]) -> Runner:
    """Open a file as an engine, which is built when the shapes of its inputs are known.

    All tensors that are compared are outputs of the engine, so that it hands them over as they are in the network.
    TensorRT does not fuse over them: an error that only a fusion makes is not seen here.
    """
    library = library_of(backend)
    gpu = current_gpu()
    plans: dict[tuple[tuple[str, tuple[int, ...]], ...], bytes] = {}

    def run(inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        shapes = tuple(sorted((name, array.shape) for name, array in inputs.items()))
        if shapes not in plans:
            batch = _batch(shapes)
            plans[shapes] = build_plan(
                of_shapes(data, dict(shapes)), BuildOptions(profiles=((batch, batch, batch),)), library, gpu=gpu
            ).plan
        engine = TensorRTBackend(library, plans[shapes], label="of a part")
        try:
            return engine.run(inputs)
        finally:
            engine.close()  # many parts are open at once, and memory of the GPU is for one of them

    return run


def _batch(shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> int:
    """Return the first dimension of all inputs of a part."""
    sizes = {shape[0] for _, shape in shapes}
    if len(sizes) != 1:
        listed = ", ".join(f"{name} {list(shape)}" for name, shape in shapes)
        raise BackendError(f"a part of the model has inputs of several batches, which no engine takes: {listed}")
    return sizes.pop()


def of_shapes(data: bytes, shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """Return an ONNX file whose inputs have fixed shapes, so that its engine needs no optimization profile."""
    model = onnx.load_model_from_string(data)
    for value in model.graph.input:
        dtype = value.type.tensor_type.elem_type
        value.CopyFrom(helper.make_tensor_value_info(value.name, dtype, shapes[value.name]))
    return to_bytes(infer(model))
