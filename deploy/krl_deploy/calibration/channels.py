"""Statistics of single channels of activations on real inputs: their means and largest magnitudes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from krl_deploy.data.arrays import Inputs, batches, feed, length
from krl_deploy.graph.edit import GraphEditor
from krl_deploy.graph.files import to_bytes
from krl_deploy.graph.operators import NEVER_NEGATIVE
from krl_runtime.backends.onnxruntime import open_session

from .collect import with_outputs

__all__ = ["Channels", "measure_channels"]

_BATCH = 2  # all activations of a batch are held at once; two images bound that and still share a run's overhead


@dataclass(frozen=True)
class Channels:
    """One activation.

    Attributes:
        mean: Mean of each channel over images and positions, ``[C]``.
        largest: Largest magnitude of each channel, ``[C]``.
    """

    mean: npt.NDArray[np.float32]
    largest: npt.NDArray[np.float32]


def measure_channels(model: onnx.ModelProto, tensors: Sequence[str], inputs: Inputs) -> dict[str, Channels]:
    """Measure activations channel by channel.

    Args:
        model: A float32 model.
        tensors: Names of float32 tensors; those that have neither 2 nor 4 dimensions are left out.
        inputs: Inputs of the model ``[N, ...]``.
    """
    graph = GraphEditor(model)
    ranks = {name: len(graph.shape(name) or ()) for name in tensors}
    found = [name for name in tensors if ranks[name] in (2, 4)]
    if not found:
        return {}
    outputs = [
        output
        for name in found
        for output in ([name, name] if ranks[name] == 2 else [f"{name}::mean", f"{name}::largest"])
    ]
    planes = [name for name in found if ranks[name] == 4]
    session = open_session(_with_pooling(graph, model, planes, outputs), cuda=False)
    sums: list[Any] = [0.0] * len(found)
    most: list[Any] = [0.0] * len(found)
    for batch in batches(inputs, session.get_inputs()[0].shape[0], _BATCH):
        values = [value.reshape(value.shape[:2]) for value in session.run(outputs, feed(session, batch))]
        sums = [old + new.sum(axis=0, dtype=np.float64) for old, new in zip(sums, values[::2], strict=True)]
        most = [np.maximum(old, np.abs(new).max(axis=0)) for old, new in zip(most, values[1::2], strict=True)]
    return {
        name: Channels((total / length(inputs)).astype(np.float32), np.asarray(high, np.float32))
        for name, total, high in zip(found, sums, most, strict=True)
    }


def _with_pooling(graph: GraphEditor, model: onnx.ModelProto, planes: Sequence[str], outputs: Sequence[str]) -> bytes:
    """Return the model with the mean and the largest magnitude of each plane of these tensors.

    Pooling over whole planes is the same in every opset, as reductions along axes are not.
    """
    extended = with_outputs(model, outputs)
    for name in planes:
        # In ONNX Runtime's layout for convolutions there is pooling but no Abs, which takes as long as they do.
        magnitude = name if _never_negative(graph, name) else f"{name}::magnitude"
        if magnitude != name:
            extended.graph.node.append(helper.make_node("Abs", [name], [magnitude]))
        for op, source, target in (
            ("GlobalAveragePool", name, f"{name}::mean"),
            ("GlobalMaxPool", magnitude, f"{name}::largest"),
        ):
            extended.graph.node.append(helper.make_node(op, [source], [target]))
    return to_bytes(extended)


def _never_negative(graph: GraphEditor, tensor: str) -> bool:
    """Return whether the operator that makes a tensor gives no negative values."""
    node = graph.producers().get(tensor)
    if node is None or node.op_type != "Clip":
        return node is not None and node.op_type in NEVER_NEGATIVE
    low = graph.constant(node.input[1]) if len(node.input) > 1 else None
    return low is not None and bool(np.all(low >= 0))
