"""Q/DQ files of any task: taken apart into a float model and ranges, which are judged beside the file as it was."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import onnx

from krl_deploy.config import ImportConfig
from krl_deploy.evaluation.task import judged
from krl_deploy.graph import RESTORED
from krl_deploy.graph.image_input import Signature
from krl_deploy.graph.operators import INTEGER, KEEPS_INTEGERS
from krl_deploy.graph.quantized import Unquantized, is_qdq_model, read_quantized
from krl_runtime.cli.options import option_name
from krl_runtime.errors import CheckFailedError, UsageError
from krl_runtime.evaluation.float_model import judge_float_images, judge_float_predictions
from krl_runtime.evaluation.gate import Verdict
from krl_runtime.evaluation.limits import LEAST_AGREEMENT, LEAST_PSNR, MAX_DROP_DB, MAX_DROP_POINTS
from krl_runtime.evaluation.predictions import PredictionScore

__all__ = ["FILE", "FLOAT", "in_bundle", "judge_float_model", "taken_apart"]

_log = logging.getLogger("krl")

FLOAT, FILE = "fp32", "quantized_file"
"""Names of the scores of the float model and of the file as it was, in this order."""


def taken_apart(config: ImportConfig, model: onnx.ModelProto) -> Unquantized | None:
    """Return the float model and the ranges of a Q/DQ file; ``None`` for other files, which stay as they are.

    Raises:
        ModelError: The Q/DQ pairs cannot be removed; see ``read_quantized``.
        UsageError: An option is for Q/DQ files, and this is none.
    """
    if is_qdq_model(model):
        return read_quantized(model)
    given = {"max_drop": config.max_drop is not None, "accept_unmeasured": config.accept_unmeasured}
    for name in (name for name, present in given.items() if present):
        raise UsageError(
            f"{option_name(name)} is for files with Q/DQ pairs (QuantizeLinear, DequantizeLinear), and {config.model} "
            "is not such a file; leave it out"
        )
    integer = sorted(INTEGER & {node.op_type for node in model.graph.node})
    if integer:
        _log.warning(
            "the model computes on integers (%s), so it is imported unchanged. ONNX Runtime's CPU provider runs it, "
            "and TensorRT refuses it; krl cannot convert it. For a GPU start from the float model",
            ", ".join(integer),
        )
    return None


def in_bundle(brought: Unquantized, taken: Signature, model: onnx.ModelProto) -> tuple[Unquantized, str]:
    """Return the ranges by the names that the tensors have in the bundle's graph, and a description of the change.

    Args:
        brought: Float model and ranges of the file.
        taken: The file's input and output.
        model: The bundle's graph.
    """
    made = {name for node in model.graph.node for name in node.output}
    normalized = [
        node.output[0] for node in model.graph.node if any(name.startswith("pixels_offset") for name in node.input)
    ]
    renamed = {name: _moved(model, normalized) for name in _moved(brought.model, [taken.input]) if name not in made}
    if taken.output not in made:
        renamed[taken.output] = [value.name for value in model.graph.output if value.name == RESTORED]
    named = {new: limits for name, limits in brought.ranges.items() for new in renamed.get(name) or [name]}
    named.update({name: limits for name, limits in brought.ranges.items() if name in made})
    ranges = {name: limits for name, limits in named.items() if name in made}
    missing = len(named) - len(ranges)
    if missing:
        _log.warning("%d ranges of the file are of tensors that the bundle's graph does not have", missing)
    change = f"quantized to INT8: taken apart into its float model and {len(ranges)} ranges"
    return Unquantized(model, ranges, brought.weight_scales), change


def _moved(model: onnx.ModelProto, tensors: list[str]) -> list[str]:
    """Return tensors, and those that only have values of them, in another layout."""
    found = list(tensors)
    for node in model.graph.node:
        if node.op_type in KEEPS_INTEGERS - {"Concat"} and node.input[0] in found:
            found += node.output
    return found


def judge_float_model(
    config: ImportConfig, brought: Unquantized, count: int, scores: Mapping[str, Any]
) -> dict[str, Any]:
    """Judge a float model beside the Q/DQ file that it was read from, and log how the file was imported.

    Args:
        config: The options.
        brought: The float model and the ranges.
        count: Number of images.
        scores: ``FLOAT`` and ``FILE``, in this order: ``PredictionScore`` or ``ImageScore``.

    Returns:
        The evidence for the bundle, by name.

    Raises:
        CheckFailedError: The float model is worse than the file, or another one as far as images without truth tell.
    """
    reference, file = scores[FLOAT], scores[FILE]
    accepted: dict[str, Any] = {"max_drop": config.max_drop, "accept_unmeasured": config.accept_unmeasured}
    if isinstance(file, PredictionScore):
        verdict = judge_float_predictions(file, reference, count, **accepted)
        shown, poor = _beside(file, reference), _is_poor(file, MAX_DROP_POINTS, file.agreement, LEAST_AGREEMENT)
    else:
        verdict = judge_float_images(file, count, **accepted)
        shown, poor = _images_beside(file, reference), _is_poor(file, MAX_DROP_DB, file.psnr_to_fp32, LEAST_PSNR)
    _refuse(verdict, shown, count)
    advice = "" if verdict.judged else f" ({'; '.join(verdict.doubts)})"
    _log.warning(
        "the file is quantized, and could run slowly on a CPU. The bundle has its float model and the ranges of its %d "
        "quantized activations. On %d images %s%s. To write INT8 for TensorRT and for the CPU from these ranges, run: "
        "krl-deploy quantize %s --data %s",
        len(brought.ranges),
        count,
        shown,
        advice,
        config.out,
        config.data,
    )
    if poor:
        _log.warning("the file's own ranges cost accuracy; krl-deploy quantize --recalibrate measures new ones")
    found = {"count": count, "ranges": len(brought.ranges), "poor_ranges": poor}
    return {FILE: {**found, "scores": {name: score.to_dict() for name, score in scores.items()}, **judged(verdict)}}


def _refuse(verdict: Verdict, shown: str, count: int) -> None:
    """Raise ``CheckFailedError`` if the float model does not pass."""
    if verdict.passes:
        return
    measured = any(name.startswith("max_drop") for name in verdict.limits)
    way = "give --max-drop to accept it" if measured else "give images whose truth is known, or --accept-unmeasured"
    raise CheckFailedError(
        f"the bundle is not written: {verdict.reason} (on {count} images {shown}). Start from the float model that the "
        f"file was made from, or {way}"
    )


def _is_poor(file: Any, most: float, alike: float, least: Mapping[str, float]) -> bool:
    """Return whether a file is clearly worse than its float model, or without truth unlike it."""
    if file.drop is None:
        return bool(alike < least["int8"])
    return bool(file.drop - (file.drop_error or 0.0) > most)


def _beside(file: PredictionScore, reference: PredictionScore) -> str:
    """Return the scores of a classifier's file and of its float model for people."""
    both = f"they agree on {file.agreement:.1%}, with an SNR of the logits of {file.snr_db:.1f} dB"
    if file.quality is None or reference.quality is None:
        return f"without labels {both}"
    return (
        f"the file's own INT8 has a {file.METRIC_NAME} of {file.quality:.1%}, its float model "
        f"{reference.quality:.1%} (a difference of "
        f"{-(file.drop or 0.0):+.2f} ± {file.drop_error or 0.0:.2f} points); {both}"
    )


def _images_beside(file: Any, reference: Any) -> str:
    """Return the scores of an image network's file and of its float model for people."""
    both = f"their images have a PSNR of {file.psnr_to_fp32:.1f} dB to each other"
    if file.psnr is None:
        return f"without true images {both}"
    return (
        f"the file's own INT8 has a PSNR of {file.psnr:.2f} dB, its float model {reference.psnr:.2f} (a difference of "
        f"{-(file.drop or 0.0):+.3f} ± {file.drop_error or 0.0:.3f} dB); {both}"
    )
