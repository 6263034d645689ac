"""Exporting a classifier, also one that was trained as its INT8 graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from krl_deploy.config import ExportConfig
from krl_deploy.data.arrays import Inputs, length
from krl_deploy.evaluation.comparison import outputs_of
from krl_deploy.graph import LOGITS, SOURCE_LOGITS
from krl_deploy.graph.files import to_bytes
from krl_deploy.graph.quantized import Unquantized, is_qdq_model, read_quantized
from krl_deploy.graph.session import open_cpu
from krl_deploy.precision.emit_tensorrt import to_tensorrt
from krl_deploy.precision.variants import came_in_float
from krl_runtime.bundle.further_inputs import INPUTS, FurtherInput
from krl_runtime.bundle.heads import HEADS, Head
from krl_runtime.bundle.output_kind import OUTPUT_KIND, OutputKind, same
from krl_runtime.errors import CheckFailedError

from .conversion import to_onnx
from .parity import torch_outputs
from .plan import ExportPlan
from .real_inputs import real_inputs

if TYPE_CHECKING:
    from torch import nn

    from krl_train.run import Run

__all__ = ["plan_classifier"]

# Of the logits' spread: differences from the order of sums in INT8 stay below; those of a missing scale do not.
_OF_SPREAD = 0.05


def plan_classifier(config: ExportConfig, run: Run) -> ExportPlan:
    """Convert a classifier, and read real inputs; see ``krl_deploy.exporters.export``."""
    from krl_train.models import count_macs

    preprocessing = run.record.preprocessing
    network, heads = _heads(run)
    further = run.record.model.further(preprocessing)
    inputs = real_inputs(config, run)
    model = to_onnx(network, preprocessing.shape, config.opset, LOGITS, [head.output for head in heads], inputs=further)
    trained, evidence = None, {}
    if is_qdq_model(model):
        trained = read_quantized(model)
        model = trained.model
        expected = torch_outputs(network, inputs)
        evidence["trained_int8"] = _check_int8(trained, expected, inputs, run.record.output_kind)
    return ExportPlan(
        network,
        model,
        inputs,
        LOGITS,
        preprocessing,
        count_macs(network, preprocessing.shape),
        _settings(run, heads, further),
        trained=trained,
        evidence=evidence,
        heads=heads,
    )


def _heads(run: Run) -> tuple[nn.Module, tuple[Head, ...]]:
    """Return the network with the outputs of all of its heads, and those after the first."""
    from krl_train.models import BothHeads, TwoHeads

    network = run.network()
    if not isinstance(network, TwoHeads):
        return network, ()
    return BothHeads(network).eval(), (Head("source", SOURCE_LOGITS, run.record.source_labels),)


def _settings(run: Run, heads: Sequence[Head], further: Sequence[FurtherInput]) -> dict[str, Any]:
    """Return the settings of the bundle: the kind of outputs that are no logits, further heads, further inputs."""
    return {
        **({OUTPUT_KIND: run.record.output_kind} if run.record.multi_label else {}),
        **({HEADS: [head.to_dict() for head in heads]} if heads else {}),
        **({INPUTS: [each.to_dict() for each in further]} if further else {}),
    }


def _check_int8(
    trained: Unquantized, expected: npt.NDArray[np.float32], inputs: Inputs, kind: OutputKind
) -> dict[str, Any]:
    """Compare the INT8 graph of the trained ranges with torch's outputs from training.

    A sum in another order can round to the next integer, and some of these differences reach the logits. So a mean
    error of a twentieth of the logits' spread is accepted.
    """
    ranges = dict(trained.ranges)
    int8 = to_tensorrt(trained.model, ranges, keep=came_in_float(trained.model, ranges))
    rounded = {node.input[0] for node in int8.model.graph.node if node.op_type == "QuantizeLinear"}
    logits = outputs_of(open_cpu(to_bytes(int8.model)), inputs)
    error = float(np.sqrt(np.square(logits - expected).mean()) / max(float(expected.std()), 1e-12))
    if rounded != ranges.keys() or error > _OF_SPREAD:
        raise CheckFailedError(
            f"the INT8 graph does not compute what was trained: its logits are off by {error:.1%} of their spread; "
            f"accepted: {_OF_SPREAD:.0%}; it rounds {len(rounded)} activations, the run has scales for {len(ranges)}; "
            "nothing was written. Export the float student (OUT/float, or the run given as --student)"
        )
    return {
        "max_abs_error": float(np.abs(logits - expected).max()),
        "relative_error": error,
        "agreement": float(same(kind, logits, expected).mean()),
        "activations": len(ranges),
        "inputs": length(inputs),
    }
