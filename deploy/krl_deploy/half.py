"""``krl-deploy half``: an FP16 variant, measured before it is kept."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from krl_runtime.bundle import Bundle, Variant
from krl_runtime.errors import CheckFailedError, ModelError

from .calibration.collect import collect
from .config import HalfConfig
from .data import choose, open_data, with_label_indices
from .graph.files import read_model, to_bytes
from .graph.half import Half, float_tensors, round_as_half, to_half
from .report import Row, score_table
from .verify import Score, against_golden, compare, decoded, machine, open_cpu

__all__ = ["half"]

_log = logging.getLogger("krl")

_Batch = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]

_FILE = "model.fp16.onnx"
_LEAST_TOLERANCE = 0.01
_SLACK = (
    "four times the largest logit error on the golden inputs, at least 1 % of their largest logit; their agreement "
    "less one of them"
)
_MEASURED = (
    "fp16: the file on ONNX Runtime's CPU provider, which computes it in FP32; fp16.rounded: every FP16 tensor rounded "
    "to FP16 as a device stores it"
)


def half(config: HalfConfig) -> tuple[dict[str, Any], str]:
    """Type the model for FP16, look for overflow on real inputs, measure, and add the variant to the bundle.

    Returns:
        What was measured as plain JSON types, and the same as a table.

    Raises:
        CheckFailedError: FP16 gives numbers that are not finite where FP32 does not.
        DataError: The pictures cannot be used.
        ModelError: No node of the model can compute in FP16.
        BundleError: The bundle is damaged, or has no golden inputs.
    """
    bundle = Bundle.open(config.bundle)
    manifest = bundle.manifest
    golden = bundle.golden()
    pixels, expected = (golden[spec[0].name] for spec in (manifest.inputs, manifest.outputs))
    batches = _batches(config, bundle, pixels)
    path = bundle.file(manifest.variants["fp32"].file)
    model = read_model(path)
    seen = np.concatenate([pixels, *(batch for batch, _ in batches)])
    typed = to_half(model, collect(model, float_tensors(model), seen))
    if typed.kept:
        _log.warning("%d nodes stay in FP32: %s", len(typed.kept), "; ".join(sorted(set(typed.kept.values()))[:5]))
    files = {"fp32": path.read_bytes(), "fp16": to_bytes(typed.model)}
    rounded = to_bytes(round_as_half(model, typed.nodes))
    sessions = {name: open_cpu(data) for name, data in [*files.items(), ("fp16.rounded", rounded)]}
    try:
        count, scores = compare(sessions, batches)
        error, agreement = against_golden([sessions["fp16"], sessions["fp16.rounded"]], pixels, expected)
    except ModelError as failure:
        raise CheckFailedError(
            f"in FP16 {failure}; the bundle is unchanged; give more pictures with --data"
        ) from failure
    measured_on = {"data": config.data.name if config.data else "golden inputs", "count": count}
    evidence = {"pictures": measured_on, **_evidence(typed, scores, files)}
    tolerance = max(4 * error, _LEAST_TOLERANCE * float(np.abs(expected).max()))
    variant = Variant("fp16", _FILE, None, tolerance, max(0.0, agreement - 1 / len(expected)))
    bundle.update(
        {_FILE: files["fp16"]},
        variants={**manifest.variants, "fp16": variant},
        evidence={**manifest.evidence, "fp16": evidence},
    )
    rows = [Row(name, len(files[name.partition(".")[0]]), score) for name, score in scores.items()]
    return {"bundle": str(bundle.path), **evidence}, score_table(rows)


def _evidence(typed: Half, scores: Mapping[str, Score], files: Mapping[str, bytes]) -> dict[str, Any]:
    return {
        "scores": {name: asdict(score) for name, score in scores.items()},
        "measured": _MEASURED,
        "fp16_operators": len(typed.nodes),
        "kept_fp32": dict(typed.kept),
        "file_bytes": {name: len(data) for name, data in files.items()},
        "machine": machine(),
        "selftest_slack": _SLACK,
    }


def _batches(config: HalfConfig, bundle: Bundle, pixels: npt.NDArray[np.uint8]) -> list[_Batch]:
    """Return pictures and labels: those of ``--data``, or the golden inputs."""
    if config.data is None:
        return [(pixels, np.full(len(pixels), -1))]
    folder = open_data(config.data, on_bad=config.on_bad_image)
    chosen = choose(folder, "val", config.val_limit, val_fraction=config.val_fraction)
    pictures = with_label_indices(chosen, folder, bundle.manifest.labels)
    return list(decoded(pictures, bundle.manifest.preprocessing, on_bad=config.on_bad_image))
