"""Networks by name, and the wrapper that gives a network its own normalization."""

from __future__ import annotations

from .build import build_model, native_size
from .cifar import cifar_names
from .heads import BothHeads, TwoHeads
from .network import Network, count_macs, count_parameters, load_weights
from .published import published_classes, published_input
from .quantized import FakeQuantized
from .spec import SOURCE_CLASSES, ModelSpec, build_classifier

__all__ = [
    "SOURCE_CLASSES",
    "BothHeads",
    "FakeQuantized",
    "ModelSpec",
    "Network",
    "TwoHeads",
    "build_classifier",
    "build_model",
    "cifar_names",
    "count_macs",
    "count_parameters",
    "load_weights",
    "native_size",
    "published_classes",
    "published_input",
]
