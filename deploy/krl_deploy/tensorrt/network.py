"""The network that NVIDIA's parser made of an ONNX file: its layers, and the type that each computes in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from krl_runtime.backends.tensorrt.calls import check

if TYPE_CHECKING:
    import tensorrt as trt

__all__ = ["described", "layer_types", "layers"]


def layers(network: trt.INetworkDefinition) -> Iterator[trt.ILayer]:
    """Yield the layers of a network."""
    for index in range(network.num_layers):
        yield check(network.get_layer(index), "a layer is missing")


def layer_types(network: trt.INetworkDefinition) -> dict[str, int]:
    """Return the number of layers by kind and type of their first output, as ``{"CONVOLUTION HALF": 20}``."""
    kinds = Counter(f"{layer.type.name} {layer.get_output_type(0).name}" for layer in layers(network))
    return dict(sorted(kinds.items()))


def described(network: trt.INetworkDefinition) -> list[dict[str, Any]]:
    """Return kind, name, type of the first output and origin of each layer, and whether its inputs are dequantized."""
    quantized = {
        output.name: layer.type.name == "DEQUANTIZE"
        for layer in layers(network)
        if (output := layer.get_output(0)) is not None
    }
    found = []
    for layer in layers(network):
        inputs = [tensor.name for index in range(layer.num_inputs) if (tensor := layer.get_input(index)) is not None]
        found.append(
            {
                "kind": layer.type.name,
                "name": layer.name,
                "type": layer.get_output_type(0).name,
                "metadata": layer.metadata,
                "int8": bool(inputs) and all(quantized.get(name, False) for name in inputs[:2]),
            }
        )
    return found
