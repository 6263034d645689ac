"""The network that NVIDIA's parser made of an ONNX file: its layers, and the type that each computes in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from krl_runtime.backends.tensorrt.calls import check

if TYPE_CHECKING:
    import tensorrt as trt

__all__ = ["layer_types", "layers"]


def layers(network: trt.INetworkDefinition) -> Iterator[trt.ILayer]:
    """Yield the layers of a network."""
    for index in range(network.num_layers):
        yield check(network.get_layer(index), "a layer is missing")


def layer_types(network: trt.INetworkDefinition) -> dict[str, int]:
    """Return the number of layers by kind and type of their first output, as ``{"CONVOLUTION HALF": 20}``."""
    kinds = Counter(f"{layer.type.name} {layer.get_output_type(0).name}" for layer in layers(network))
    return dict(sorted(kinds.items()))
