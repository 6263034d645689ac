"""The one place that stops a variant which does not pass the gate, and that sets the limits of one that does."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from krl_deploy.data.arrays import apart
from krl_runtime.bundle import Manifest
from krl_runtime.errors import CheckFailedError
from krl_runtime.evaluation.gate import Verdict
from krl_runtime.evaluation.golden import Likeness, content_of, golden_limits, likeness

__all__ = ["enforce", "limits_of"]

_log = logging.getLogger("krl")


def enforce(verdict: Verdict, name: str, count: int, shown: str, advice: str = "") -> None:
    """Log that a variant was judged on too little, if the user accepted that.

    Args:
        verdict: Of the gate.
        name: Name of the precision, as ``"FP16"``.
        count: Number of inputs that were judged.
        shown: The table of scores.
        advice: Further things to do about a variant that fails, as a sentence.

    Raises:
        CheckFailedError: The variant does not pass; the message has the reasons and the table.
    """
    if not verdict.passes:
        doubtful = "Give other images with --data, or --accept-unmeasured." if verdict.doubts else ""
        raise CheckFailedError(
            f"{name} is not kept, judged on {count} images: {verdict.reason}; the bundle is unchanged. "
            f"{' '.join(filter(None, (advice, doubtful)))}\n{shown}"
        )
    if not verdict.judged:
        _log.warning("%s was accepted with --accept-unmeasured: %s", name, "; ".join(verdict.doubts))


def limits_of(
    precision: str,
    manifest: Manifest,
    outputs: Sequence[npt.NDArray[Any]],
    golden: Mapping[str, npt.NDArray[Any]],
    verdict: Verdict,
    advice: str = "Calibrate on images like those that the model was trained on",
) -> dict[str, Any]:
    """Return the limits of a variant that passed the gate on the golden inputs, as fields of ``Variant``.

    Args:
        precision: ``"fp16"`` or ``"int8"``.
        manifest: The bundle's manifest.
        outputs: Output of each of its files for the golden inputs, ``[N, ...]``; of several heads side by side.
        golden: Golden inputs and outputs.
        verdict: Of the gate.
        advice: The thing to do about a variant that is outside of them.

    Raises:
        CheckFailedError: The variant is outside of them: it has lost inputs that the bundle was exported with.
    """
    widths = [golden[spec.name].shape[-1] for spec in manifest.outputs]
    names = [spec.name for spec in manifest.outputs]
    each = [likeness(manifest, dict(zip(names, apart(values, widths), strict=True)), golden) for values in outputs]
    error = float(np.max([item.error for item in each]))
    measured = Likeness(each[0].count, each[0].largest, error, float(np.min([item.alike for item in each])))
    limits, fault = golden_limits(precision, measured, verdict.limits, content=content_of(manifest))
    if fault:
        raise CheckFailedError(
            f"{precision.upper()} is not kept: on the {measured.count} golden inputs of the bundle, {fault}; the "
            f"bundle is unchanged. {advice}"
        )
    return limits
