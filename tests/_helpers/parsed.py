"""Layers of a network as NVIDIA's parser made it, as plain values that a test can compare and edit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from krl_deploy.tensorrt.builder import parse
from krl_deploy.tensorrt.network import layers
from krl_runtime.backends.tensorrt.calls import tensorrt_logger
from krl_runtime.backends.tensorrt.library import Library

# The bindings return every layer as an ILayer; assigning the class of its kind gives access to its attributes.
_CLASSES = {
    "CONSTANT": "IConstantLayer",
    "CONVOLUTION": "IConvolutionLayer",
    "DECONVOLUTION": "IDeconvolutionLayer",
    "DEQUANTIZE": "IDequantizeLayer",
    "QUANTIZE": "IQuantizeLayer",
}
_ORIGIN = re.compile(r"\[ONNX Layer: (.+?)\]")
_TYPES = {"float32": "FLOAT", "float16": "HALF"}


@dataclass(frozen=True)
class Tensor:
    """A tensor of the network; an input that is left out has no name."""

    name: str = ""
    dtype: str = ""


@dataclass(frozen=True)
class Layer:
    """A layer of the network.

    Attributes:
        kind: As in ``trt.LayerType``: ``"CONVOLUTION"``.
        name: Its name.
        node: The ONNX node that it was made of; empty for one that the parser added.
        inputs: Its inputs, in order.
        outputs: Its outputs, in order.
        kernel: Type of the kernel that is stored in a convolution; empty if there is none.
        bias: Type of the bias that is stored in a convolution; empty if there is none.
        values: Content of a constant.
        axis: Axis of the scales of a pair.
    """

    kind: str
    name: str
    node: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    kernel: str = ""
    bias: str = ""
    values: np.ndarray | None = None
    axis: int | None = None


def read_layers(onnx: bytes, library: Library) -> list[Layer]:
    """Return the layers that the parser makes of an ONNX file; an error of krl's if it refuses the file."""
    builder = library.module.Builder(tensorrt_logger(library))
    network = parse(onnx, builder, library)
    return [_read(layer, library.module) for layer in layers(network)]


def _read(layer: Any, trt: Any) -> Layer:
    kind = layer.type.name
    if kind in _CLASSES:
        layer.__class__ = getattr(trt, _CLASSES[kind])
    origin = _ORIGIN.search(layer.metadata)
    convolution = kind in ("CONVOLUTION", "DECONVOLUTION")
    return Layer(
        kind,
        layer.name,
        origin[1] if origin else "",
        tuple(_tensor(layer.get_input(index)) for index in range(layer.num_inputs)),
        tuple(_tensor(layer.get_output(index)) for index in range(layer.num_outputs)),
        kernel=_stored(layer.kernel) if convolution else "",
        bias=_stored(layer.bias) if convolution else "",
        values=np.array(layer.weights) if kind == "CONSTANT" else None,  # a copy: the network is gone soon
        axis=layer.axis if kind in ("QUANTIZE", "DEQUANTIZE") else None,
    )


def _tensor(tensor: Any) -> Tensor:
    return Tensor() if tensor is None else Tensor(tensor.name, tensor.dtype.name)


def _stored(weights: np.ndarray) -> str:
    return _TYPES.get(str(weights.dtype), str(weights.dtype)) if weights.size else ""
