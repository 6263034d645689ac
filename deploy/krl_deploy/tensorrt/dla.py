"""Types of a DLA core: FP16, or INT8 where the whole graph is quantized. It has no FP32.

By NVIDIA's developer guide ("Working with DLA") and the release notes of TensorRT 11.4.1. Not measured: no engine was
built for a DLA core yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx

from krl_deploy.graph.operators import MOVES_ACROSS_QDQ, QDQ
from krl_deploy.graph.placement import weighted_depths
from krl_deploy.rules.view import View
from krl_runtime.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["check_dla"]

_SHOWN = 5  # names in a message; the rest is counted


def check_dla(model: onnx.ModelProto, core: int) -> None:
    """Check that a DLA core can compute at least the weighted operators of a model.

    Args:
        model: As ``read_model`` returns it.
        core: Number of the core, for the message.

    Raises:
        UsageError: All of them are in FP32, or the model is quantized in part; the message names the operators.
        ModelError: The graph has control flow or local functions.
    """
    view = View(model)
    if not any(node.op_type in QDQ for node in view.nodes):
        if view.weighted and not any(view.is_half(item.node) for item in view.weighted):
            raise UsageError(
                f"--dla-core is {core}, but this model is in FP32, which the DLA does not have: all of it would run on "
                "the GPU; give --precision fp16, made with krl-deploy fp16"
            )
        return
    floating = _floating(view)
    if floating:
        raise UsageError(
            f"--dla-core is {core}, but this model is quantized in part, and the DLA takes INT8 only if the whole "
            f"graph is: {_listed(floating)} in floating point. Give --precision fp16; or an ONNX file with pairs at "
            "every tensor, as Model-Optimizer writes for the DLA"
        )


def _floating(view: View) -> list[str]:
    """Return the operators behind the first weighted one whose inputs or outputs are not quantized."""
    depths = weighted_depths(view.graph)
    found = []
    for node in view.nodes:
        data = [name for name in node.input if name and not view.rooted(name)]
        if node.op_type in QDQ or node.op_type in MOVES_ACROSS_QDQ or not data:
            continue
        if not depths[node.output[0]]:  # before it stands the normalization of pixels, which runs on the GPU
            continue
        wrong_input = any(view.pair(name) is None for name in data)
        readers = [reader for name in node.output for reader in view.consumers[name]]
        wrong_output = any(reader.op_type not in QDQ for reader in readers)
        if wrong_input or wrong_output:
            found.append(f"{node.name} ({node.op_type})")
    return found


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more are" if more > 0 else " is" if len(names) == 1 else " are")
