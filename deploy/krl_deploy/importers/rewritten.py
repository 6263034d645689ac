"""The task-specific part of importing an ONNX file; ``krl_deploy.importers.import_onnx`` does the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from krl_deploy.graph.quantized import Unquantized
from krl_runtime.bundle import Bundle
from krl_runtime.images.preprocessing import Preprocessing

__all__ = ["Rewritten"]


@dataclass(frozen=True)
class Rewritten:
    """A third-party model that takes pixels or latents, with the same outputs as its file.

    Attributes:
        model: The FP32 graph.
        inputs: Golden inputs by name: uint8 ``[N, C, H, W]``, or latents float32 ``[N, size]``.
        outputs: The graph's outputs for them.
        preprocessing: Preprocessing of the manifest.
        changes: Changes to the file, for people.
        measure: From the bundle, which is not written yet, and a session of the graph to the measurements.
        settings: Settings of the manifest.
        labels: Class names in the order of the logits.
        brought: Ranges that the file came with.
        verify: Compares the loaded bundle with the file; raises ``CheckFailedError`` if they differ.
    """

    model: onnx.ModelProto
    inputs: Mapping[str, npt.NDArray[Any]]
    outputs: Mapping[str, npt.NDArray[np.float32]]
    preprocessing: Preprocessing
    changes: Sequence[str]
    measure: Callable[[Bundle, Any], Mapping[str, Any]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    brought: Unquantized | None = None
    verify: Callable[[Any], None] = lambda _: None
