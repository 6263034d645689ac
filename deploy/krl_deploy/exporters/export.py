"""``krl-deploy export``: from a run to a bundle with its FP32 graph. The only module here that knows torch."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from krl_deploy.bundles.reference import check_target, write_reference
from krl_deploy.config import ExportConfig
from krl_deploy.data.folders import choose_any, open_data
from krl_deploy.evaluation.comparison import outputs_of
from krl_deploy.graph.files import opset_of, to_bytes
from krl_deploy.graph.quantized import Unquantised, is_in_pairs, read_quantised
from krl_deploy.graph.session import open_cpu
from krl_deploy.precision.emit_tensorrt import to_tensorrt
from krl_deploy.precision.variants import came_in_float
from krl_runtime.errors import CheckFailedError, DataError, KrlError, ModelError, UsageError, require
from krl_runtime.images.folders import decode

from .conversion import EXPORT_BATCH, FEW, OF_ROUNDING, PARITY_INPUTS, source_of, to_onnx

if TYPE_CHECKING:
    from torch import nn

    from krl_train.run import Run

__all__ = ["export"]

_log = logging.getLogger("krl")

# Of the logits' spread: what the order of sums turns over in INT8 stays below; a missing scale does not.
_OF_SPREAD = 0.05


def export(config: ExportConfig) -> dict[str, Any]:
    """Export a run's network, check it against torch on real inputs, and write the bundle.

    Returns:
        What was made and measured, as plain JSON types.

    Raises:
        CheckFailedError: ONNX Runtime's logits differ from torch's by more than ``tolerance``, or those of the INT8
            form that a run was trained for by more than rounding explains.
        RunError: The run cannot be used.
        ModelError: The network cannot be exported.
        DataError: There are no real inputs.
        UsageError: ``tile`` does not fit the network.
        BundleError: ``out`` exists and is not to be replaced.
    """
    require("torch", extra="train", purpose="exporting a run")
    from krl_train.models import count_macs, count_parameters
    from krl_train.run import Run

    check_target(config.out, overwrite=config.overwrite)
    run = Run.open(config.run)
    if run.record.task != "classification":
        from .images import export_pictures

        return export_pictures(config, run)
    if config.tile is not None:
        raise UsageError("--tile is for restorers; a classifier's input has one size")
    network, record = run.network(), run.record
    pixels = _real_inputs(config, run)
    model = to_onnx(network, record.preprocessing.shape, config.opset)
    if opset_of(model) != config.opset:
        _log.warning("torch wrote opset %d instead of %d", opset_of(model), config.opset)
    trained = read_quantised(model) if is_in_pairs(model) else None
    data = to_bytes(trained.model if trained else model)
    with _unrounded(network):
        expected = _torch_logits(network, pixels)
        parity = _parity(data, network, pixels, expected, config.tolerance)
    evidence = {
        "parity": parity,
        **({"trained_int8": _trained_int8(trained, _torch_logits(network, pixels), pixels)} if trained else {}),
        "parameters": count_parameters(network.backbone),
        "macs": count_macs(network, record.preprocessing.shape),
        "file_bytes": len(data),
        "opset": opset_of(model),
    }
    bundle = write_reference(
        config.out,
        data,
        pixels[: config.golden],
        expected[: config.golden],
        name=record.model.name,
        preprocessing=record.preprocessing,
        labels=record.labels,
        evidence=evidence,
        source=source_of(run),
        overwrite=config.overwrite,
        brought=trained,
    )
    return {"bundle": str(bundle.path), "model": record.model.name, "labels": len(record.labels), **evidence}


def _real_inputs(config: ExportConfig, run: Run) -> npt.NDArray[np.uint8]:
    """Return decoded pictures ``[N, C, H, W]``: from ``--data``, else from what the run was trained on."""
    count = max(config.golden, PARITY_INPUTS)
    if config.data is not None:
        folder = open_data(config.data, on_bad=config.on_bad_image)
        return decode(choose_any(folder, count), run.record.preprocessing, on_bad=config.on_bad_image)[0]
    from krl_train.data import load_split

    try:
        pixels, _ = load_split(run.record, "val", count)
    except (KrlError, KeyError) as error:
        raise DataError(
            f"parity and golden inputs need real pictures, and those of run {run.path} cannot be read ({error}); "
            "give some with --data FOLDER"
        ) from error
    return pixels


def _torch_logits(network: nn.Module, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    import torch

    with torch.inference_mode():
        parts = [network(torch.from_numpy(pixels[start : start + 16])) for start in range(0, len(pixels), 16)]
    logits: npt.NDArray[Any] = torch.cat(parts).numpy()
    if not np.isfinite(logits).all():
        raise ModelError("the network answers real pictures with logits that are not finite numbers; train it again")
    return logits


def _parity(
    data: bytes,
    network: nn.Module,
    pixels: npt.NDArray[np.uint8],
    expected: npt.NDArray[np.float32],
    tolerance: float,
) -> dict[str, Any]:
    """Run the exported graph one by one and in a batch unlike the export's, and compare the logits with torch's."""
    session = open_cpu(data)
    several = np.resize(pixels, (max(len(pixels), EXPORT_BATCH + 1), *pixels.shape[1:]))
    logits = outputs_of(session, several, batch=len(several))[: len(pixels)]
    single = outputs_of(session, pixels[:FEW], batch=1)
    worst = float(max(np.abs(logits - expected).max(), np.abs(single - expected[:FEW]).max()))
    rounding = None if worst <= tolerance else _rounding(network, pixels, expected)
    if rounding is not None and not worst <= max(tolerance, OF_ROUNDING * rounding):
        raise CheckFailedError(
            f"the exported graph's logits differ from torch's by {worst:.3g} on {len(pixels)} real inputs, accepted "
            f"are {tolerance:g} (the largest logit is {np.abs(expected).max():.3g}, float32 rounds by {rounding:.2g}); "
            "nothing was written. Give a higher --tolerance if you can accept that"
        )
    return {
        "max_abs_error": worst,
        "inputs": len(pixels),
        "batches": [1, len(several)],
        "agreement": float((logits.argmax(1) == expected.argmax(1)).mean()),
        "tolerance": tolerance,
        "float32_rounding": rounding,
    }


@contextmanager
def _unrounded(network: nn.Module) -> Iterator[None]:
    """Let a network that was trained as its INT8 form computes give its float answers."""
    from krl_train.models import FakeQuantised

    backbone = network.get_submodule("backbone")
    if not isinstance(backbone, FakeQuantised):
        yield
        return
    with backbone.computing("float"):
        yield


def _trained_int8(
    trained: Unquantised, expected: npt.NDArray[np.float32], pixels: npt.NDArray[np.uint8]
) -> dict[str, Any]:
    """Compare the INT8 graph of the trained ranges with what torch computed in training.

    A sum that is added up in another order can round to the next integer, and some of these reach the logits: what is
    accepted is a mean error of a twentieth of how far the logits spread.
    """
    ranges = dict(trained.ranges)
    int8 = to_tensorrt(trained.model, ranges, keep=came_in_float(trained.model, ranges))
    rounded = {node.input[0] for node in int8.model.graph.node if node.op_type == "QuantizeLinear"}
    logits = outputs_of(open_cpu(to_bytes(int8.model)), pixels)
    error = float(np.sqrt(np.square(logits - expected).mean()) / max(float(expected.std()), 1e-12))
    if rounded != ranges.keys() or error > _OF_SPREAD:
        raise CheckFailedError(
            f"the INT8 graph does not compute what was trained: its logits are off by {error:.1%} of their spread, "
            f"accepted are {_OF_SPREAD:.0%}, and it rounds {len(rounded)} activations where the run has scales for "
            f"{len(ranges)}; nothing was written. Export the float student (OUT/float, or what --student was)"
        )
    return {
        "max_abs_error": float(np.abs(logits - expected).max()),
        "relative_error": error,
        "agreement": float((logits.argmax(1) == expected.argmax(1)).mean()),
        "activations": len(ranges),
        "inputs": len(pixels),
    }


def _rounding(network: nn.Module, pixels: npt.NDArray[np.uint8], expected: npt.NDArray[np.float32]) -> float:
    """Return how far torch's own float32 logits are from its float64 ones: some nets amplify rounding a lot."""
    exact = _torch_logits(copy.deepcopy(network).double(), pixels)
    return float(np.abs(exact - expected).max())
