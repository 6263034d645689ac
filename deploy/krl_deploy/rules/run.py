"""``krl-deploy check``: all rules over one file or the variants of a bundle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx

from krl_deploy.graph.files import nodes_of, read_model
from krl_deploy.graph.operators import QUANTIZED
from krl_runtime.bundle import Bundle
from krl_runtime.errors import ModelError, UsageError

from .attention import check_attention
from .bugs import check_known_bugs, unknown_without_gpu
from .consistency import check_consistency
from .findings import SEVERITIES, Finding, Rule, Verdict
from .onnxruntime_cpu import check_on_cpu
from .placement import check_placement
from .quantizers import check_quantizers
from .shapes import check_inputs, check_types, check_values
from .support import check_operators, check_opset, check_restrictions, check_stored
from .targets import Target
from .view import View

__all__ = ["CheckedFile", "check_file", "check_path", "findings_of", "in_order", "unknown"]

_NESTED = Rule(
    "warning",
    "operators/control-flow",
    "export the model without control flow; for torch, trace the code that runs",
    "krl looks at operators alone there, and its passes do not rewrite such graphs",
)


@dataclass(frozen=True)
class CheckedFile:
    """Results of a check for one file.

    Attributes:
        file: Path of the file.
        variant: The variant in a bundle; empty for a single file.
        quantized: Whether the model is quantized.
        findings: The findings, worst first.
        parser: The verdict of NVIDIA's parser; ``None`` if it was not asked.
    """

    file: Path
    variant: str
    quantized: bool
    findings: tuple[Finding, ...]
    parser: Verdict | None = None


def findings_of(model: onnx.ModelProto, target: Target) -> tuple[Finding, ...]:
    """Return the findings on a model for a target, worst first.

    Args:
        model: As ``read_model`` returns it.
        target: The target to check for.

    Raises:
        ModelError: The graph's shapes contradict each other.
    """
    nested = any(item.HasField("g") or item.graphs for node in model.graph.node for item in node.attribute)
    try:
        view = None if nested else View(model)
    except onnx.shape_inference.InferenceError as error:
        raise ModelError(f"the model's shapes contradict each other: {str(error).strip()}") from error
    found = list(_on_tensorrt(model, view, target) if target.tensorrt else check_on_cpu(model, view))
    return in_order(found)


def in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return findings worst first."""
    return tuple(sorted(findings, key=lambda finding: (SEVERITIES.index(finding.severity), finding.rule)))


def _on_tensorrt(model: onnx.ModelProto, view: View | None, target: Target) -> Iterator[Finding]:
    yield from check_opset(model, target)
    yield from check_operators(model, target)
    yield from check_values(model)
    if view is None:
        kinds = {node.op_type for node in model.graph.node if any(a.HasField("g") or a.graphs for a in node.attribute)}
        yield _NESTED.at(
            "", ", ".join(sorted(kinds)), "the graph has control flow, so that its nodes were not looked at closely"
        )
        return
    yield from check_inputs(view)
    yield from check_restrictions(view, target)
    yield from check_types(view, target)
    yield from check_consistency(view)
    yield from check_quantizers(view)
    yield from check_placement(view)
    yield from check_attention(view, target)
    yield from check_known_bugs(view, target)


def check_file(path: Path, target: Target, variant: str = "") -> CheckedFile:
    """Check one ONNX file.

    Raises:
        ModelError: It cannot be read as an ONNX model.
    """
    model = read_model(path, beside=not variant)
    quantized = any(node.op_type in QUANTIZED for node in nodes_of(model.graph))
    stored = check_stored(path.read_bytes()) if target.tensorrt else ()
    return CheckedFile(path, variant, quantized, in_order([*stored, *findings_of(model, target)]))


def check_path(path: Path, target: Target, precision: str | None = None) -> list[CheckedFile]:
    """Check an ONNX file, or a bundle's variants for this target.

    Args:
        path: ``MODEL.onnx`` or the bundle ``NAME.krl``.
        target: The target to check for.
        precision: The one variant of a bundle to check; all of them by default.

    Raises:
        UsageError: The bundle has no such variant, or a file was given a precision.
        BundleError: The bundle is damaged.
        ModelError: A file is not an ONNX model.
    """
    if not path.is_dir():
        if precision is not None:
            raise UsageError("--precision is for bundles; the types of an ONNX file stand in it")
        return [check_file(path, target)]
    bundle = Bundle.open(path)
    variants = bundle.manifest.variants
    if precision is not None and precision not in variants:
        raise UsageError(f"bundle {path} has no variant {precision}; it has: {', '.join(variants)}")
    chosen = [variants[precision]] if precision is not None else list(variants.values())
    files = {item.precision: item.file if target.tensorrt else item.cpu_file or item.file for item in chosen}
    return [check_file(bundle.file(file), target, name) for name, file in files.items()]


def unknown(checked: list[CheckedFile], target: Target) -> list[str]:
    """Return the questions about these files that only the device can settle."""
    built = all(item.parser is not None and item.parser.exact and item.parser.built for item in checked)
    return unknown_without_gpu(target, quantized=any(item.quantized for item in checked), built=built)
