"""Calibrating a bundle's model: real pictures in, ranges and what else the emitters need out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from krl_runtime.bundle import Bundle
from krl_runtime.errors import BundleError
from krl_runtime.pictures import Picture, decode
from krl_runtime.pictures import identity as identity_of

from .calibration.channels import Channels, measure_channels
from .calibration.checkpoint import Checkpoint
from .calibration.collect import collect
from .calibration.lint import check_batches, check_channels, check_classes, check_pictures
from .calibration.record import Calibration, Equalise, Identity, Method
from .config import QuantizeConfig
from .forms import tensors_to_calibrate
from .graph.edit import GraphEditor
from .graph.equalise import equalisable, equalise, factors, is_uneven
from .graph.half import float_tensors
from .graph.placement import weighted_nodes

__all__ = ["calibrate", "measure_tensors"]

_SAMPLE = 64
_ALONE = 8
_ONE = np.ones(1, np.float32)


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
        pictures=identity_of(pixels, [picture.label for picture in used]),
        count=len(used),
        method=f"{config.method} {config.percentile:g}" if config.method == "percentile" else config.method,
        equalise=config.equalise,
    )
    if config.reuse_calibration:
        return _reuse(bundle, now)
    check_pictures(pixels)
    check_classes([picture.label for picture in used], manifest.labels)
    checkpoint = Checkpoint(_unfinished(bundle.path), now, resume=config.resume)
    made = measure_tensors(
        model,
        pixels,
        now,
        method=config.method,
        share=config.percentile,
        equalising=config.equalise,
        checkpoint=checkpoint,
    )
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


def measure_tensors(
    model: onnx.ModelProto,
    pixels: npt.NDArray[np.uint8],
    identity: Identity,
    *,
    method: Method = "minmax",
    share: float = 99.999,
    equalising: Equalise = "auto",
    checkpoint: Checkpoint | None = None,
) -> Calibration:
    """Look at single channels on a sample of the pictures, equalise, and take the ranges over all of them.

    Args:
        model: A clean float32 model.
        pixels: The pictures, uint8 ``[N, C, H, W]``.
        identity: What the calibration depends on.
        method: See ``Method``.
        share: For ``"percentile"``, the percentage of values that a range holds.
        equalising: See ``Equalise``.
        checkpoint: Where to keep what was counted so far, and from where to go on.

    Raises:
        ModelError: The model cannot be quantised, or takes values that are not finite numbers.
    """
    sample = pixels[:: -(-len(pixels) // _SAMPLE)]
    read = list(dict.fromkeys(item.node.input[0] for item in weighted_nodes(GraphEditor(model))))
    channels = measure_channels(model, read, sample)
    check_channels({name: item.largest for name, item in channels.items()}, len(sample))
    chosen = _factors(model, channels, equalising)
    equal = equalise(model, chosen) if chosen else model
    extremes = collect(equal, float_tensors(equal), sample)
    if not model.graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_value"):
        few = sample[:_ALONE]
        check_batches(*(collect(equal, read, few, size=size) for size in (1, len(few))))
    needed = tensors_to_calibrate(equal)
    ranges = collect(equal, needed, pixels, method=method, share=share, checkpoint=checkpoint)
    means = {name: tuple((item.mean / chosen.get(name, _ONE)).tolist()) for name, item in channels.items()}
    return Calibration(identity, ranges, extremes, means, {name: tuple(v.tolist()) for name, v in chosen.items()})


def _factors(
    model: onnx.ModelProto, channels: Mapping[str, Channels], equalising: Equalise
) -> dict[str, npt.NDArray[np.float32]]:
    """Return by what the channels are divided of each activation that is to be equalised."""
    between = [] if equalising == "none" else equalisable(model)
    largest = {name: channels[name].largest for name in between}
    return factors(model, {name: each for name, each in largest.items() if equalising == "all" or is_uneven(each)})
