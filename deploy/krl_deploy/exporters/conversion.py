"""From a torch module to a checked ONNX graph."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from inspect import signature
from typing import TYPE_CHECKING, Any

import onnx

from krl_deploy.graph import LOGITS, PIXELS
from krl_deploy.graph.cleanup import clean
from krl_runtime.bundle import TensorSpec
from krl_runtime.bundle.further_inputs import FurtherInput, tensor_spec
from krl_runtime.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from krl_train.run import Run

__all__ = ["EXPORT_BATCH", "PARITY_INPUTS", "convert", "source_of", "to_onnx"]

EXPORT_BATCH = 2
"""Inputs of the traced example: of one, exporters take the batch for a constant."""

PARITY_INPUTS = 32
"""Inputs at least on which the graph is compared with torch: two batches of the golden ones."""


def source_of(run: Run) -> dict[str, Any]:
    """Return where the bundle comes from; no path of this machine is in it.

    The record of the network makes it again; that of a generator has no arguments, which may have vectors of words.
    """
    record = run.record
    model = asdict(record.model)
    if record.task == "generation":
        del model["arguments"]
    return {
        "kind": "run",
        "model": model,
        "weights_sha256": record.weights_sha256,
        "command": record.command,
        "metrics": {name: value for name, value in record.metrics.items() if isinstance(value, int | float)},
        "parent_sha256": _parent(record.parent or {}),
        "trained_with": dict(record.versions),
        "exported_with": _versions(),
    }


def _parent(parent: Mapping[str, Any]) -> str | None:
    """Return the hash of the run that a run comes from: its first teacher, else the one that it started from."""
    named = [*parent.get("teachers", ()), *([parent["start"]] if "start" in parent else []), parent]
    return next((str(each["weights_sha256"]) for each in named if each.get("weights_sha256")), None)


def _versions() -> dict[str, str]:
    import onnxruntime
    import torch

    return {"torch": str(torch.__version__), "onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}


def to_onnx(
    network: nn.Module,
    shape: tuple[int, int, int],
    opset: int,
    output: str = LOGITS,
    further: Sequence[str] = (),
    *,
    inputs: Sequence[FurtherInput] = (),
) -> onnx.ModelProto:
    """Export a network that takes pixels.

    Args:
        network: In eval mode; maps uint8 ``[N, *shape]`` to logits ``[N, classes]`` or embeddings ``[N, D]``, or to the
            logits of several heads.
        shape: Channels, height and width of one input.
        opset: Requested version of the ONNX operators; the result may have another one.
        output: Name of the output.
        further: Names of the outputs of further heads.
        inputs: Further inputs of the network, after the pixels.

    Returns:
        The clean graph, from ``pixels``, uint8 ``[batch, *shape]``, and the further inputs, to the output, float32
        ``[batch, classes]``, and to those of further heads.

    Raises:
        ModelError: torch cannot export the network.
    """
    import torch

    specs = [TensorSpec(PIXELS, "uint8", ("batch", *shape)), *map(tensor_spec, inputs)]
    examples = {
        spec.name: torch.zeros((EXPORT_BATCH, *map(int, spec.shape[1:])), dtype=getattr(torch, spec.dtype))
        for spec in specs
    }
    open_batch = {0: torch.export.Dim("batch")}
    return convert(network, examples, output, [open_batch] * len(specs), opset, further)


def convert(
    network: nn.Module,
    examples: Mapping[str, Tensor],
    output: str,
    dynamic: Sequence[Mapping[int, Any]],
    opset: int,
    further: Sequence[str] = (),
) -> onnx.ModelProto:
    """Export a network with any inputs.

    Args:
        network: In eval mode.
        examples: For each input its name and values, in the order of the network's arguments.
        output: Name of its output.
        dynamic: For each input the dimensions that are left open.
        opset: See ``to_onnx``.
        further: Names of further outputs.

    Raises:
        ModelError: torch cannot export the network.
    """
    import torch

    pixels, *beside = (dict(dimensions) for dimensions in dynamic)
    several = any(each.kind is each.VAR_POSITIONAL for each in signature(network.forward).parameters.values())
    with _quiet():
        try:
            program = torch.onnx.export(
                network,
                tuple(examples.values()),
                dynamo=True,
                opset_version=opset,
                input_names=list(examples),
                output_names=[output, *further],
                dynamic_shapes=(pixels, tuple(beside)) if several else (pixels, *beside),
                external_data=False,
                verbose=False,
            )
        except Exception as error:  # torch's exporter raises any error of its passes
            reason = str(error).strip().partition("\n")[0]
            raise ModelError(f"torch cannot export the network: {type(error).__name__}: {reason}") from error
    assert program is not None  # noqa: S101  the dynamo exporter returns its program
    return clean(program.model_proto)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the messages of torch's exporter; its errors are raised."""
    noisy = logging.getLogger("torch.onnx")
    level = noisy.level
    noisy.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        noisy.setLevel(level)
