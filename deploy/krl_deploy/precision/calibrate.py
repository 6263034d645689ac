"""Calibration of a bundle's model: from real images to the ranges and means for the emitters."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from krl_deploy.calibration.channels import Channels, measure_channels
from krl_deploy.calibration.checkpoint import Checkpoint
from krl_deploy.calibration.collect import collect, collect_int8
from krl_deploy.calibration.lint import check_batches, check_channels
from krl_deploy.calibration.record import Calibration, Identity, Int8Ranges
from krl_deploy.config import Equalize, Method, QuantizeConfig
from krl_deploy.data.arrays import Inputs, length, rows
from krl_deploy.evaluation import Task
from krl_deploy.graph.edit import GraphEditor
from krl_deploy.graph.placement import weighted_nodes
from krl_runtime.bundle import Bundle
from krl_runtime.errors import BundleError

from .emit_fp16 import float_tensors
from .equalization import equalizable, equalize, is_uneven
from .equalization import factors as factors_for
from .variants import tensors_to_calibrate

__all__ = ["calibrate", "measure_tensors"]

_log = logging.getLogger("krl")

_SAMPLE = 64  # images for means and largest magnitudes of channels; bounds the time, chosen
_ALONE = 4  # images run one by one and together: one that differs is enough to find batch statistics
_ONE = np.ones(1, np.float32)


def calibrate(config: QuantizeConfig, bundle: Bundle, model: onnx.ModelProto, task: Task) -> Calibration:
    """Calibrate on a task's inputs, or reuse the bundle's calibration of the same inputs.

    Ranges that came with the model are taken as they are, unless ``recalibrate`` says otherwise. The calibration keeps
    them in any case.

    Args:
        config: The options.
        bundle: The bundle; it is not changed.
        model: Its FP32 model.
        task: Gives the calibration data.

    Raises:
        CheckFailedError: ``reuse_calibration`` found another calibration.
        DataError: The images cannot be used, or are not real ones.
        ModelError: The model cannot be quantized.
        BundleError: ``reuse_calibration`` found none.
    """
    manifest = bundle.manifest
    tensors_to_calibrate(model)  # a model that cannot be quantized is refused before images are decoded
    graph_sha256 = manifest.files[bundle.reference.file].sha256
    kept = _brought(bundle, graph_sha256)
    if config.recalibrate and kept is None:
        _log.warning("--recalibrate changes nothing: no ranges came with the model of %s", bundle.path)
    brought = None if config.recalibrate else kept
    method = f"{config.method} {config.percentile:g}" if config.method == "percentile" else config.method
    data = task.calibration_data
    now = Identity(
        graph_sha256=graph_sha256,
        preprocessing=manifest.preprocessing.to_dict(),
        images=data.identity,
        count=length(data.inputs),
        method=f"given, else {method}" if brought else method,
        equalize="none" if brought else config.equalize,
        source=data.source,
    )
    if config.reuse_calibration:
        return _reuse(bundle, now)
    checkpoint = Checkpoint(_unfinished(bundle.path), now, resume=config.resume)
    made = measure_tensors(
        model,
        data.inputs,
        now,
        method=config.method,
        share=config.percentile,
        equalizing=now.equalize,
        checkpoint=checkpoint,
        brought=brought,
    )
    checkpoint.remove()
    if kept and config.recalibrate:
        made = replace(made, given=kept.given, weight_scales=kept.weight_scales, recalibrated=True)
    return made


def _brought(bundle: Bundle, graph_sha256: str) -> Calibration | None:
    """Return the calibration with the ranges that the model came with; ``None`` if it had none."""
    if bundle.manifest.calibration is None:
        return None
    kept = Calibration.from_bytes(bundle.read(bundle.manifest.calibration))
    return kept if kept.given and kept.identity.graph_sha256 == graph_sha256 else None


def _reuse(bundle: Bundle, now: Identity) -> Calibration:
    if bundle.manifest.calibration is None:
        raise BundleError(f"bundle {bundle.path} has no calibration; run it without --reuse-calibration")
    kept = Calibration.from_bytes(bundle.read(bundle.manifest.calibration))
    kept.check(now)
    return kept


def _unfinished(bundle: Path) -> Path:
    return bundle.with_name(f"{bundle.name}.calibration.npz")


def measure_tensors(
    model: onnx.ModelProto,
    inputs: Inputs,
    identity: Identity,
    *,
    method: Method = "minmax",
    share: float = 99.999,
    equalizing: Equalize = "auto",
    checkpoint: Checkpoint | None = None,
    brought: Calibration | None = None,
) -> Calibration:
    """Measure channels on a sample of the inputs, equalize, and measure the ranges on all inputs.

    Args:
        model: A clean float32 model.
        inputs: Inputs of the model ``[N, ...]``: images, or latents.
        identity: Identity of the calibration.
        method: See ``Method``.
        share: For ``"percentile"``, the percentage of values that a range holds.
        equalizing: See ``Equalize``.
        checkpoint: File to save the counts in, and to continue from.
        brought: Calibration with the ranges that the model came with. These are not measured again.

    Raises:
        ModelError: The model cannot be quantized, or takes values that are not finite numbers.
    """
    sample = rows(inputs, slice(None, None, -(-length(inputs) // _SAMPLE)))
    read = list(dict.fromkeys(item.node.input[0] for item in weighted_nodes(GraphEditor(model))))
    channels = measure_channels(model, read, sample)
    check_channels({name: item.largest for name, item in channels.items()}, length(sample))
    chosen = _factors(model, channels, equalizing)
    equal = equalize(model, chosen) if chosen else model
    extremes = collect(equal, float_tensors(equal), rows(sample, slice(None, None, 2)))  # reads every tensor: costly
    if not model.graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_value"):
        few = rows(sample, slice(_ALONE))
        check_batches(*(collect(equal, read, few, size=size) for size in (1, length(few))))
    needed = tensors_to_calibrate(equal)
    given, scales = (brought.given, brought.weight_scales) if brought else ({}, {})
    missing = [name for name in needed if name not in given]
    ranges = Int8Ranges({}, {})
    if missing:
        ranges = collect_int8(equal, missing, inputs, method=method, share=share, checkpoint=checkpoint)
    kept = {name: _without_unused_half(given[name], extremes.get(name)) for name in given}
    ranges = Int8Ranges({**ranges.tensorrt, **kept}, {**ranges.cpu, **kept})
    means = {name: tuple((item.mean / chosen.get(name, _ONE)).tolist()) for name, item in channels.items()}
    factors = {name: tuple(values.tolist()) for name, values in chosen.items()}
    return Calibration(identity, ranges, extremes, means, factors, given, scales)


def _without_unused_half(given: tuple[float, float], measured: tuple[float, float] | None) -> tuple[float, float]:
    """Return a range without its negative half if no value is negative, so that unsigned integers have more levels."""
    return (0.0, given[1]) if measured is not None and measured[0] >= 0 and given[1] == -given[0] else given


def _factors(
    model: onnx.ModelProto, channels: Mapping[str, Channels], equalizing: Equalize
) -> dict[str, npt.NDArray[np.float32]]:
    """Return the divisors of the channels of each activation to equalize."""
    between = [] if equalizing == "none" else equalizable(model)
    largest = {name: channels[name].largest for name in between}
    return factors_for(model, {name: each for name, each in largest.items() if equalizing == "all" or is_uneven(each)})
