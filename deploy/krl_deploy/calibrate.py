"""Calibrating a bundle's model: real pictures in, ranges and what else the emitters need out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from krl_runtime.bundle import Bundle
from krl_runtime.errors import BundleError
from krl_runtime.pictures import Picture, decode, identity

from .calibration.channels import measure_channels
from .calibration.checkpoint import Checkpoint
from .calibration.collect import collect
from .calibration.lint import check_batches, check_channels, check_classes, check_pictures
from .calibration.record import Calibration, Identity
from .config import QuantizeConfig
from .forms import tensors_to_calibrate
from .graph.edit import GraphEditor
from .graph.equalise import equalisable, equalise, factors
from .graph.half import float_tensors
from .graph.placement import weighted_nodes

__all__ = ["calibrate"]

_SAMPLE = 128
_ALONE = 8


def calibrate(
    config: QuantizeConfig, bundle: Bundle, model: onnx.ModelProto, pictures: Sequence[Picture]
) -> Calibration:
    """Calibrate on pictures, or take what the bundle has if it is true of these pictures.

    Args:
        config: The options.
        bundle: The bundle; it is not changed.
        model: Its FP32 model.
        pictures: With the indices of the model's labels, -1 where they are not known.

    Raises:
        CheckFailedError: ``reuse_calibration`` found another calibration.
        DataError: The pictures cannot be used, or are not real ones.
        ModelError: The model cannot be quantised.
        BundleError: ``reuse_calibration`` found none.
    """
    manifest = bundle.manifest
    tensors_to_calibrate(model)  # a model that cannot be quantised is refused before pictures are decoded
    pixels, used = decode(pictures, manifest.preprocessing, on_bad=config.on_bad_image)
    now = Identity(
        graph_sha256=manifest.files[manifest.variants["fp32"].file].sha256,
        preprocessing=manifest.preprocessing.to_dict(),
        pictures=identity(pixels, [picture.label for picture in used]),
        count=len(used),
        method=f"{config.method} {config.percentile:g}" if config.method == "percentile" else config.method,
        equalise=config.equalise,
    )
    if config.reuse_calibration:
        return _reuse(bundle, now)
    check_pictures(pixels)
    check_classes([picture.label for picture in used], manifest.labels)
    checkpoint = Checkpoint(_unfinished(bundle.path), now, resume=config.resume)
    made = _measure(config, model, pixels, now, checkpoint)
    checkpoint.remove()
    return made


def _reuse(bundle: Bundle, now: Identity) -> Calibration:
    if bundle.manifest.calibration is None:
        raise BundleError(f"bundle {bundle.path} has no calibration; run it without --reuse-calibration")
    kept = Calibration.from_bytes(bundle.file(bundle.manifest.calibration).read_bytes())
    kept.check(now)
    return kept


def _unfinished(bundle: Path) -> Path:
    return bundle.with_name(f"{bundle.name}.calibration.npz")


def _measure(
    config: QuantizeConfig,
    model: onnx.ModelProto,
    pixels: npt.NDArray[np.uint8],
    now: Identity,
    checkpoint: Checkpoint,
) -> Calibration:
    """Look at single channels on a sample, equalise, and take the ranges over all pictures."""
    sample = pixels[:: -(-len(pixels) // _SAMPLE)]
    between = equalisable(model) if config.equalise else []
    chosen = factors(model, {name: item.largest for name, item in measure_channels(model, between, sample).items()})
    equal = equalise(model, chosen)
    read = list(dict.fromkeys(item.node.input[0] for item in weighted_nodes(GraphEditor(equal))))
    channels = measure_channels(equal, read, sample)
    check_channels({name: item.largest for name, item in channels.items()}, len(sample))
    extremes = collect(equal, float_tensors(equal), sample)
    if not model.graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_value"):
        few = sample[:_ALONE]
        check_batches(*(collect(equal, read, few, size=size) for size in (1, len(few))))
    needed = tensors_to_calibrate(equal)
    ranges = collect(equal, needed, pixels, method=config.method, share=config.percentile, checkpoint=checkpoint)
    means = {name: tuple(item.mean.tolist()) for name, item in channels.items()}
    return Calibration(now, ranges, extremes, means, {name: tuple(v.tolist()) for name, v in chosen.items()})
