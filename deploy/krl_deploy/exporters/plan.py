"""The task-specific part of an export; ``krl_deploy.exporters.export`` does the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx

from krl_deploy.data.arrays import apart
from krl_deploy.graph.quantized import Unquantized
from krl_runtime.bundle.heads import Head
from krl_runtime.errors import DataError
from krl_runtime.images.preprocessing import Preprocessing

if TYPE_CHECKING:
    from torch import nn

    from krl_train.run import Run

__all__ = ["ExportPlan", "no_real_images"]


@dataclass(frozen=True)
class ExportPlan:
    """A network that is to be exported, with its graph and inputs.

    Attributes:
        network: In eval mode; its ``backbone`` has the weights of the run.
        model: The FP32 ONNX graph.
        inputs: Real inputs by name ``[N, ...]``.
        output: Name of the output; of several heads that of the first.
        preprocessing: Preprocessing of the manifest.
        macs: Multiply-accumulates of one input.
        settings: Settings of the manifest.
        further: Inputs of another size, if the graph takes any.
        trained: Float graph and ranges of a network that was trained as its INT8 graph.
        evidence: Measurements.
        heads: Further heads, whose outputs follow.
    """

    network: nn.Module
    model: onnx.ModelProto
    inputs: Mapping[str, npt.NDArray[Any]]
    output: str
    preprocessing: Preprocessing
    macs: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    further: Mapping[str, npt.NDArray[np.uint8]] | None = None
    trained: Unquantized | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    heads: Sequence[Head] = ()

    def apart(self, outputs: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float32]]:
        """Return the output of each head by its name, of outputs that are side by side."""
        further = {head.output: len(head.labels) for head in self.heads}
        widths = [outputs.shape[1] - sum(further.values()), *further.values()]
        return dict(zip((self.output, *further), apart(outputs, widths), strict=True))


def no_real_images(run: Run, error: Exception) -> DataError:
    """Return the error of a run whose own images cannot be read, without other images."""
    return DataError(
        f"parity and golden inputs need real images, and those of run {run.path} cannot be read ({error}); "
        "give some with --data FOLDER"
    )
