"""The INT8 graphs of a model from one calibration: TensorRT's, ONNX Runtime's for the CPU, and one for evaluation."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import onnx

from krl_deploy.calibration.record import Calibration
from krl_deploy.graph.edit import GraphEditor
from krl_deploy.graph.files import opset_of, to_bytes
from krl_deploy.graph.image_input import raise_opset
from krl_deploy.graph.placement import Ranges, weighted_nodes, why_float_on_tensorrt
from krl_deploy.graph.session import open_cpu
from krl_runtime.errors import ModelError

from .emit_cpu import to_cpu
from .emit_fp16 import OPSET_OF_FP16_SCALES, round_to_fp16, to_fp16
from .emit_tensorrt import Quantized, to_tensorrt
from .equalization import equalize
from .weights import Rounding

__all__ = ["Emitter", "Int8Graphs", "came_in_float", "tensors_to_calibrate"]

_log = logging.getLogger("krl")

_CAME_IN_FLOAT = "the model came with this operator in floating point"


class _Asked(dict[str, tuple[float, float]]):
    """Ranges of every tensor, which record the names that were read."""

    def __missing__(self, name: str) -> tuple[float, float]:
        self[name] = (0.0, 1.0)
        return self[name]


def tensors_to_calibrate(model: onnx.ModelProto) -> list[str]:
    """Return the tensors whose ranges the two emitters need, found by running the emitters.

    Raises:
        ModelError: The model cannot be quantized.
    """
    asked = _Asked()
    graphs = to_tensorrt(model, asked), to_cpu(model, asked)
    if not asked:
        reasons = sorted({why for graph in graphs for why in graph.kept_float.values()})
        raise ModelError(f"no operator of the model can be in INT8: {'; '.join(reasons)}")
    # If a plan keeps the operator before it in floating point, each one quantizes its input itself.
    never = set(graphs[0].kept_float) & set(graphs[1].kept_float)
    reads = [item.node.input[0] for item in weighted_nodes(GraphEditor(model)) if item.node.name not in never]
    return list(dict.fromkeys([*asked, *reads]))


@dataclass(frozen=True)
class Int8Graphs:
    """Both INT8 graphs of a model.

    Attributes:
        tensorrt: TensorRT's graph, before FP16 is written around INT8.
        cpu: The CPU's graph.
        files: ONNX files: ``"fp32"``, ``"int8"``, ``"int8.cpu"``, and where ``"int8"`` has FP16 around INT8,
            ``"int8.fp32"``, which has FP32 there.
        simulated: TensorRT's graph with FP32 tensors, rounded to FP16 as in the file. It computes what a device
            computes. ONNX Runtime's CPU provider runs it three times as fast as the file itself.
        fp32_around: Reasons by operator, for each operator of TensorRT's graph that cannot compute in FP16.
    """

    tensorrt: Quantized
    cpu: Quantized
    files: Mapping[str, bytes]
    simulated: bytes
    fp32_around: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def sessions(self) -> dict[str, Any]:
        """Sessions that evaluate the files; that of ``"int8"`` is simulated."""
        return {name: open_cpu(self.simulated if name == "int8" else data) for name, data in self.files.items()}


class Emitter:
    """Writes the INT8 graphs of one model.

    Args:
        fp32: The FP32 file.
        calibration: Ranges of its tensors.
        fp16: Write FP16 around TensorRT's INT8.
        optimal_scales: See ``Rounding``.
        bias_correction: Use the means of the calibration; see ``Rounding``. A model that came with ranges keeps its
            biases, which fit its rounded weights.
        image: Whether the output is an image; see ``to_cpu``.
    """

    def __init__(
        self,
        fp32: bytes,
        calibration: Calibration,
        *,
        fp16: bool,
        optimal_scales: bool,
        bias_correction: bool,
        image: bool = False,
    ) -> None:
        self.fp32, self.image = fp32, image
        self.calibration = calibration
        factors = {name: np.asarray(values, np.float32) for name, values in calibration.factors.items()}
        model = onnx.load_model_from_string(fp32)
        self.model = equalize(model, factors) if factors else model
        self.fp16 = fp16 and self._raise_opset()
        given = calibration.keeps_given
        correct = bias_correction and not given
        means = {name: np.asarray(values, np.float32) for name, values in calibration.means.items()}
        brought = calibration.weight_scales if given else {}
        scales = {name: np.asarray(values, np.float32) for name, values in brought.items()}
        self.rounding = Rounding(optimal_scales, means if correct else {}, scales=scales)
        self.came_in_float = came_in_float(self.model, calibration.given) if given else {}

    def _raise_opset(self) -> bool:
        """Raise the model to the opset that FP16 scales need; return whether that worked."""
        if opset_of(self.model) >= OPSET_OF_FP16_SCALES:
            return True
        try:
            self.model = raise_opset(self.model, OPSET_OF_FP16_SCALES)
        except ModelError as error:
            _log.warning(
                "INT8 has FP32 around it: FP16 scales need opset %d, and ONNX cannot raise the model to it: %s",
                OPSET_OF_FP16_SCALES,
                error,
            )
            return False
        return True

    def emit(self, keep: Mapping[str, str] | None = None) -> Int8Graphs:
        """Write both graphs.

        Args:
            keep: Names of operators that stay in floating point, each with the reason.
        """
        tensorrt = self.tensorrt(keep)
        cpu = self.cpu(keep)
        exact = to_bytes(tensorrt.model)
        own = to_bytes(cpu.model)
        if not self.fp16:
            return Int8Graphs(tensorrt, cpu, {"fp32": self.fp32, "int8": exact, "int8.cpu": own}, exact)
        converted = to_fp16(tensorrt.model, self.calibration.extremes, around_int8=True)
        simulated = to_bytes(round_to_fp16(tensorrt.model, converted.nodes))
        half = to_bytes(converted.model)
        files = {"fp32": self.fp32, "int8": half, "int8.fp32": exact, "int8.cpu": own}
        return Int8Graphs(tensorrt, cpu, files, simulated, converted.kept)

    def tensorrt(self, keep: Mapping[str, str] | None = None) -> Quantized:
        """Write TensorRT's graph with FP32 around INT8, with the scales of the file."""
        rounding = replace(self.rounding, fp16=self.fp16)
        # The extremes are of all tensors, to find dead channels.
        ranges = {**self.calibration.extremes, **self.calibration.ranges.tensorrt}
        return to_tensorrt(self.model, ranges, rounding=rounding, keep={**self.came_in_float, **(keep or {})})

    def cpu(self, keep: Mapping[str, str] | None = None, *, alone: bool = False) -> Quantized:
        """Write the graph for ONNX Runtime's CPU provider; see ``to_cpu``."""
        kept = {**self.came_in_float, **(keep or {})}
        ranges = self.calibration.ranges.cpu
        return to_cpu(self.model, ranges, rounding=self.rounding, keep=kept, alone=alone, image=self.image)


def came_in_float(model: onnx.ModelProto, given: Ranges) -> dict[str, str]:
    """Return the floating-point operators of a model that was quantized elsewhere, each with the reason."""
    graph = GraphEditor(model)
    wide = [item.node for item in weighted_nodes(graph) if why_float_on_tensorrt(graph, item) is None]
    return {node.name: _CAME_IN_FLOAT for node in wide if node.input[0] not in given}
