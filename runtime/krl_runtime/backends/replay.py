"""Replaying golden inputs on a running backend, and comparing the outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from krl_runtime.bundle import Bundle, Manifest, Variant
from krl_runtime.images.luma import mean_psnr

from .base import Backend, run_in_parts

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["compare", "makes_images", "replay"]


def compare(
    manifest: Manifest,
    variant: Variant,
    outputs: Mapping[str, npt.NDArray[Any]],
    golden: Mapping[str, npt.NDArray[Any]],
) -> tuple[float, float, str]:
    """Compare outputs with the golden ones.

    Args:
        manifest: Names the outputs; the first one has the top-1, or the images.
        variant: The variant, with its limits.
        outputs: Outputs for the golden inputs, ``[N, ...]`` each.
        golden: Torch's outputs for them.

    Returns:
        The largest absolute difference of any output. The share, 0 to 1, of inputs with the golden top-1, or the PSNR
        in dB of images. The reason why the outputs fail, empty if they pass.
    """
    for spec in manifest.outputs:
        made, wanted = outputs[spec.name].shape, golden[spec.name].shape
        if made != wanted:
            return math.inf, 0.0, f"{spec.name} has shape {list(made)}, the golden one {list(wanted)}"
    errors = [np.abs(outputs[spec.name].astype(np.float64) - golden[spec.name]).max() for spec in manifest.outputs]
    key = manifest.outputs[0].name
    error = float(np.max(errors))  # a NaN in any of them stays a NaN, and passes nothing
    causes = []
    if not error <= variant.tolerance:
        causes.append(f"the largest error {error:.3g} is above the tolerance {variant.tolerance:.3g}")
    if makes_images(manifest):
        alike = mean_psnr(outputs[key], golden[key])
        if variant.psnr is not None and not alike >= variant.psnr:
            causes.append(f"the PSNR to the golden images is {alike:.1f} dB, required: {variant.psnr:.1f}")
    else:
        alike = float(np.mean(outputs[key].argmax(-1) == golden[key].argmax(-1)))
        if not alike >= variant.agreement:
            causes.append(f"top-1 agrees on {alike:.1%} of the golden inputs, required: {variant.agreement:.1%}")
    return error, alike, "; ".join(causes)


def makes_images(manifest: Manifest) -> bool:
    """Return whether a bundle's outputs are images, and not logits."""
    return manifest.task != "classification"


def replay(bundle: Bundle, backend: Backend, golden: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Run all golden inputs in batches of a bounded size; return the outputs under their names."""
    inputs = {spec.name: golden[spec.name] for spec in bundle.manifest.inputs}
    outputs = run_in_parts(backend.run, inputs, bundle.batch_limit)
    return {spec.name: outputs[spec.name] for spec in bundle.manifest.outputs}
