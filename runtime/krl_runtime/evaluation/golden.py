"""Limits of a variant on the golden inputs, and the comparison with the golden outputs: what a device judges by.

The limits come from the gate, and have a floor. The error that was measured when a variant was made can make them
stricter, and never looser.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np

from krl_runtime.bundle import Manifest, Variant
from krl_runtime.bundle.output_kind import output_kind, same
from krl_runtime.images.luma import mean_psnr

from .limits import AGREEMENT_FLOOR, DISAGREEMENT_PER_POINT, LEAST_AGREEMENT, LEAST_PSNR, PSNR_FLOOR
from .retrieval import agreement

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = [
    "Content",
    "Likeness",
    "bf16_limits",
    "compare",
    "content_of",
    "device_limits",
    "golden_limits",
    "likeness",
    "makes_images",
]

_FALSE_ALARM: Final = 1e-3  # chance that golden inputs refuse a variant that the gate's limit accepts
_SLACK_DB: Final = 6.0  # twice the error: another device, and few golden images
_MAX_ERROR: Final[Mapping[str, float]] = {"fp16": 0.25, "bf16": 0.25, "int8": 1.0}
"""Largest error that any variant may have, as a share of the largest golden output: as large as the output itself for
INT8, whose largest error is that of an outlier; types with an exponent round each value by less than 1 %."""
_LEAST_ERROR: Final[Mapping[str, float]] = {"fp16": 0.01, "bf16": 0.05, "int8": 0.0}
"""Error that a variant may have in any case, as a share of the largest golden output: 20 times FP16's rounding of it
(2^-11), 13 times BF16's (2^-8)."""
_SLACK: Final[Mapping[str, int]] = {"fp16": 4, "bf16": 4, "int8": 2}
"""Times the largest error that was measured here, which another device may have. FP16 has errors close to 0."""
_SLACK_INPUTS: Final[Mapping[str, int]] = {"fp16": 1, "bf16": 1, "int8": 2}
"""Golden inputs whose prediction another device may change in addition."""


Content: TypeAlias = Literal["predictions", "embeddings", "images"]
"""Kinds of outputs of a bundle."""

_CONTENTS: Final[Mapping[str, Content]] = {"classification": "predictions", "embedding": "embeddings"}
"""By the task; every other one makes images."""
_AGREES: Final[Mapping[Content, str]] = {
    "predictions": "top-1 agrees on {:.1%} of the golden inputs",
    "embeddings": "{:.1%} of the embeddings are nearest to the golden one of their input",
}


@dataclass(frozen=True)
class Likeness:
    """How outputs compare with the golden ones.

    Attributes:
        count: Number of golden inputs.
        largest: Largest magnitude of a golden output.
        error: Largest absolute difference of any output.
        alike: Share, 0 to 1, of inputs with the golden prediction, or whose embedding is nearest to its golden one of
            all; or the PSNR in dB of images, the mean over them.
    """

    count: int
    largest: float
    error: float
    alike: float


def content_of(manifest: Manifest) -> Content:
    """Return the kind of a bundle's outputs."""
    return _CONTENTS.get(manifest.task, "images")


def makes_images(manifest: Manifest) -> bool:
    """Return whether a bundle's outputs are images, and neither logits nor embeddings."""
    return content_of(manifest) == "images"


def likeness(
    manifest: Manifest, outputs: Mapping[str, npt.NDArray[Any]], golden: Mapping[str, npt.NDArray[Any]]
) -> Likeness:
    """Return how outputs ``[N, ...]``, at least the first one, compare with the golden ones of the same shape.

    Of a classifier with several heads, the prediction of each counts: the least alike of them.
    """
    names = [spec.name for spec in manifest.outputs if spec.name in outputs]
    errors = [np.abs(outputs[name].astype(np.float64) - golden[name]).max() for name in names]
    content = content_of(manifest)
    if content == "images":
        alike = mean_psnr(outputs[names[0]], golden[names[0]])
    elif content == "embeddings":
        alike = float(agreement(outputs[names[0]], golden[names[0]]).mean())
    else:
        first = output_kind(manifest.settings)
        alike = min(
            float(same(first if name == names[0] else "logits", outputs[name], golden[name]).mean()) for name in names
        )
    # A NaN in any of them stays a NaN, and passes nothing.
    return Likeness(len(golden[names[0]]), _largest(manifest, golden), float(np.max(errors)), alike)


def _largest(manifest: Manifest, golden: Mapping[str, npt.NDArray[Any]]) -> float:
    """Return the largest magnitude of a golden output, of all of them."""
    return max(float(np.abs(golden[spec.name]).max()) for spec in manifest.outputs)


def golden_limits(
    precision: str, measured: Likeness, accepted: Mapping[str, float], *, content: Content
) -> tuple[dict[str, Any], str]:
    """Return the limits of a variant on golden inputs, as fields of ``Variant``.

    Args:
        precision: ``"fp16"``, ``"bf16"`` or ``"int8"``.
        measured: How the variant compares here, the worst of its files.
        accepted: Limits of the gate that it passed; see ``krl_runtime.evaluation.gate.Verdict``.
        content: What it makes.

    Returns:
        The limits, and why the variant itself is outside of them; empty if it is not.
    """
    most = _MAX_ERROR[precision] * measured.largest
    least = _LEAST_ERROR[precision] * measured.largest
    limits: dict[str, Any] = {"tolerance": min(most, max(_SLACK[precision] * measured.error, least))}
    if content == "images":
        # Where true images were judged, PSNR to FP32's was not; golden images are few, so they may have less.
        psnr = accepted.get("least_psnr_db", PSNR_FLOOR)
        floor = max(min(PSNR_FLOOR, psnr), psnr - _SLACK_DB)
        limits["psnr"] = max(floor, measured.alike - _SLACK_DB)
    else:
        least_agreement = 1 - DISAGREEMENT_PER_POINT * accepted.get("max_drop_points", 0.0) / 100
        share = max(AGREEMENT_FLOOR, min(LEAST_AGREEMENT[precision], least_agreement))
        floor = 1 - _most_misses(share, measured.count) / measured.count
        limits["agreement"] = max(AGREEMENT_FLOOR, floor, measured.alike - _SLACK_INPUTS[precision] / measured.count)
    variant = Variant(precision, "", **limits)
    return limits, _why_unlike(variant, measured, content)


def _most_misses(share: float, count: int) -> int:
    """Return how many of ``count`` inputs may differ if a share agrees: more have a chance below ``_FALSE_ALARM``."""
    chance, misses = share**count, 0
    total = chance
    while 1 - total > _FALSE_ALARM and misses < count:
        chance *= (count - misses) / (misses + 1) * (1 - share) / share
        misses += 1
        total += chance
    return misses


def device_limits(manifest: Manifest, variant: str, *, tf32: bool) -> Variant:
    """Return a variant with its limits on a device.

    Args:
        manifest: The bundle's manifest.
        variant: Name of the variant.
        tf32: Whether the device may multiply in TF32 what is in FP32. FP16 and INT8 have wider limits anyway.
    """
    own = manifest.variants[variant]
    wider = own.tf32 if tf32 else {}
    return replace(
        own,
        tolerance=max(own.tolerance, wider.get("tolerance", own.tolerance)),
        agreement=min(own.agreement, wider.get("agreement", own.agreement)),
        psnr=None if own.psnr is None else min(own.psnr, wider.get("psnr", own.psnr)),
    )


def bf16_limits(variant: Variant, golden: Mapping[str, npt.NDArray[Any]], manifest: Manifest) -> Variant:
    """Return a variant with the limits of BF16, which is no variant of a bundle: agreement, and no tolerance of FP32.

    Args:
        variant: The variant that is run in BF16; its own limits hold where they are wider.
        golden: Golden inputs and outputs.
        manifest: The bundle's manifest.
    """
    wanted = golden[manifest.outputs[0].name]
    content = content_of(manifest)
    images = content == "images"
    exact = Likeness(len(wanted), _largest(manifest, golden), 0.0, -math.inf)
    limits, _ = golden_limits("bf16", exact, {"least_psnr_db": LEAST_PSNR["bf16"]}, content=content)
    widest = _MAX_ERROR["bf16"] * exact.largest
    return replace(
        variant,
        tolerance=max(widest, variant.tolerance),
        agreement=variant.agreement if images else min(limits["agreement"], variant.agreement),
        psnr=min(limits["psnr"], variant.psnr or limits["psnr"]) if images else variant.psnr,
    )


def compare(
    manifest: Manifest,
    variant: Variant,
    outputs: Mapping[str, npt.NDArray[Any]],
    golden: Mapping[str, npt.NDArray[Any]],
) -> tuple[float, float, str]:
    """Compare outputs with the golden ones.

    Args:
        manifest: Names the outputs; the first one has the images, or each of them a top-1.
        variant: The variant, with its limits.
        outputs: Outputs for the golden inputs, ``[N, ...]`` each.
        golden: Torch's outputs for them.

    Returns:
        The largest absolute difference of any output. The share, 0 to 1, of inputs with the golden top-1 (the smallest
        of several heads) or with the golden embedding as the nearest, or the PSNR in dB of images. The reason why the
        outputs fail, empty if they pass.
    """
    for spec in manifest.outputs:
        made, wanted = outputs[spec.name].shape, golden[spec.name].shape
        if made != wanted:
            return math.inf, 0.0, f"{spec.name} has shape {list(made)}, the golden one {list(wanted)}"
    measured = likeness(manifest, outputs, golden)
    return measured.error, measured.alike, _why_unlike(variant, measured, content_of(manifest))


def _why_unlike(variant: Variant, measured: Likeness, content: Content) -> str:
    """Return why outputs are outside of a variant's limits; empty if they are not."""
    causes = []
    if not measured.error <= variant.tolerance:
        causes.append(f"the largest error {measured.error:.3g} is above the tolerance {variant.tolerance:.3g}")
    if content == "images" and variant.psnr is not None and not measured.alike >= variant.psnr:
        causes.append(f"the PSNR to the golden images is {measured.alike:.1f} dB, required: {variant.psnr:.1f}")
    if content != "images" and not measured.alike >= variant.agreement:
        causes.append(f"{_AGREES[content].format(measured.alike)}, required: {variant.agreement:.1%}")
    return "; ".join(causes)
