"""What export and adopt have in common: the bundle with its FP32 reference and its golden inputs."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from krl_runtime.bundle import Bundle, Manifest, TensorSpec, Variant
from krl_runtime.errors import BundleError
from krl_runtime.preprocess import Preprocessing

from .graph import LOGITS, PIXELS

__all__ = ["check_target", "golden_file", "write_reference"]

_FP32, _GOLDEN = "model.fp32.onnx", "golden.npz"


def check_target(out: Path, *, overwrite: bool) -> None:
    """Refuse a bundle that exists, before any work is done.

    Raises:
        BundleError: It does, and is not to be replaced.
    """
    if out.exists() and not overwrite:
        raise BundleError(f"{out} exists already; give another name, or --overwrite to replace it")


def write_reference(
    out: Path,
    model: bytes,
    pixels: npt.NDArray[np.uint8],
    logits: npt.NDArray[np.float32],
    *,
    name: str,
    preprocessing: Preprocessing,
    labels: tuple[str, ...],
    evidence: Mapping[str, Any],
    source: Mapping[str, Any],
    overwrite: bool,
    batch: int | str = "batch",
) -> Bundle:
    """Write a classifier's bundle.

    Args:
        out: The bundle.
        model: The FP32 ONNX file.
        pixels: Golden inputs ``[N, C, H, W]``.
        logits: Their outputs ``[N, classes]``. A thousandth of the largest, and 0.001 at least, is tolerated in the
            self-test: devices add up in another order, or multiply in TF32.
        name: Of the model, for people.
        preprocessing: From a picture to an input.
        labels: Class names in the order of the logits.
        evidence: What was measured of the FP32 variant.
        source: Where the model comes from.
        overwrite: Whether an existing bundle is replaced.
        batch: The graph's batch size, or ``"batch"`` where it is open.

    Raises:
        BundleError: ``out`` exists and is not to be replaced.
    """
    manifest = Manifest(
        task="classification",
        name=name,
        inputs=(TensorSpec(PIXELS, "uint8", (batch, *preprocessing.shape)),),
        outputs=(TensorSpec(LOGITS, "float32", (batch, len(labels))),),
        preprocessing=preprocessing,
        labels=labels,
        variants={"fp32": Variant("fp32", _FP32, tolerance=1e-3 * max(1.0, float(np.abs(logits).max())))},
        default_variants={"cpu": "fp32"},
        golden=_GOLDEN,
        evidence={"fp32": dict(evidence)},
        source=dict(source),
    )
    return Bundle.create(out, manifest, {_FP32: model, _GOLDEN: golden_file(pixels, logits)}, replace=overwrite)


def golden_file(pixels: npt.NDArray[np.uint8], logits: npt.NDArray[np.float32]) -> bytes:
    """Return an npz file of real inputs and their outputs, the same bytes for the same arrays.

    Args:
        pixels: Inputs ``[N, C, H, W]``.
        logits: Their outputs ``[N, classes]``.
    """
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in ((PIXELS, pixels), (LOGITS, logits)):
            part = io.BytesIO()
            np.lib.format.write_array(part, np.ascontiguousarray(array), allow_pickle=False)
            # numpy's own savez stamps each entry with the time of day.
            entry = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            archive.writestr(entry, part.getvalue(), zipfile.ZIP_DEFLATED)
    return target.getvalue()
