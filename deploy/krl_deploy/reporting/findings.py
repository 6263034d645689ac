"""Findings of conversion and calibration: parity, the gate's verdict, layers in float, and those of check."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from krl_runtime.bundle import Bundle
from krl_runtime.bundle.names import MANIFEST

from .blocks import Block, Section, Table, Text
from .gather import Document, Material
from .words import machine_of, number

__all__ = ["findings_section"]

_MOST_FINDINGS = 60  # rows of a table, as krl-deploy check shows


def findings_section(bundle: Bundle, found: Material) -> Section:
    """Return the findings on a bundle."""
    name, evidence = bundle.path.name, bundle.manifest.evidence
    blocks: list[Block] = []
    for key, verb in (("fp32", "export"), ("fp16", "fp16"), ("int8", "quantize")):
        part = evidence.get(key)
        if isinstance(part, Mapping):
            command, images = f"krl-deploy {verb} {name}", part.get("images") or {}
            where = ", ".join(
                filter(None, (_counted(images), machine_of(part["machine"]) if part.get("machine") else "in torch"))
            )
            found.notes.measured(f"{_TITLES[key]} of {name}", command, where, bundle.path / MANIFEST)
            rows = [(title, text) for title, text in _facts(part) if text]
            blocks.append(Table(_TITLES[key], ("finding", "value"), rows, command))
            if key == "int8":
                blocks += _kept_float(part, command)
        elif key != "fp32":
            data = "" if bundle.manifest.task == "generation" else " --data DATA"
            found.notes.missing(f"{key.upper()} variant of {name}", f"krl-deploy {verb} {name}{data}")
    checks = [block for item in _checks(bundle, found) for block in found.attempt(item, _check, bundle)]
    if not checks:
        found.notes.missing(
            f"compatibility of {name} with a device",
            f"krl-deploy check {name} --target jetpack-6.2 --json > check.json",
        )
    return Section(f"Conversion and calibration of {name}", [*blocks, *checks])


_TITLES = {"fp32": "Export", "fp16": "FP16", "int8": "Calibration and INT8"}


def _facts(part: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the findings of one step in words, in the order in which a person asks for them."""
    parity, calibration = part.get("parity") or {}, part.get("calibration") or {}
    images, limits = part.get("images") or {}, part.get("limits") or {}
    if parity:
        yield "largest difference to torch", f"{parity['max_abs_error']:.3g} on {parity['inputs']} real inputs"
    if calibration:
        yield "calibrated on", f"{calibration['count']} {calibration['source']}"
        yield "ranges", f"{calibration['method']}, equalize {calibration['equalize']}"
        yield "equalized activations", number(part.get("equalized_activations"))
        yield "biases corrected", "yes" if part.get("bias_correction") else "no"
    if images:
        yield "judged on", _counted(images)
    if "judged" in part:
        yield "verdict of the gate", "accepted" if part["judged"] else "accepted without being judged"
    yield "doubts", "; ".join(part.get("doubts") or ())
    yield "limits", ", ".join(f"{name.replace('_', ' ')} {number(value)}" for name, value in limits.items())
    if part.get("speedup"):
        yield "speed on the CPU", f"INT8 runs at {part['speedup']:.2f} times FP32's speed"
    operators = part.get("operators") or {}
    for name, counts in operators.items():
        yield f"operators in {name}", ", ".join(f"{count} {precision}" for precision, count in counts.items())
    for name in ("parameters", "macs", "opset"):
        yield name.replace("macs", "multiply-accumulates"), number(part.get(name))
    yield "how it was measured", str(part.get("measured") or "")
    if part.get("machine"):
        yield "machine", machine_of(part["machine"])


def _counted(images: Mapping[str, Any]) -> str:
    return f"{images['count']} images of {images['data']}" if images else ""


def _kept_float(part: Mapping[str, Any], command: str) -> Iterator[Block]:
    """Yield which layers stayed in floating point, and why."""
    kept = part.get("kept_float") or {}
    rows = [(name, graph, str(reason)) for graph, layers in kept.items() for name, reason in layers.items()]
    if rows:
        yield Table("Layers that stayed in floating point", ("layer", "graph", "reason"), rows, command, folded=True)


def _checks(bundle: Bundle, found: Material) -> Iterator[Document]:
    names = {bundle.path.name, *bundle.manifest.files}
    return (item for item in found.documents if item.kind == "check" and item.subject in names)


def _check(item: Document, bundle: Bundle, found: Material) -> Iterator[Block]:
    """Yield the findings for one target."""
    values = item.values
    target = values["target"]["name"]
    command = f"krl-deploy check {item.subject} --target {target}"
    found.notes.measured(f"compatibility of {bundle.path.name} with {target}", command, "static rules", item.path)
    grouped = Counter(
        (each["severity"], each["rule"], file["variant"] or file["file"], each["why"], each["do"])
        for file in values["files"]
        for each in file["findings"]
    )
    order = ("error", "warning", "info")
    ranked = sorted(grouped, key=lambda key: (order.index(key[0]) if key[0] in order else len(order), key))
    rows = [(key[0], key[1], key[2], number(grouped[key]), key[3], key[4]) for key in ranked[:_MOST_FINDINGS]]
    counts = ", ".join(f"{count} {severity}" for severity, count in values["counts"].items() if count)
    caption = f"Findings for {target}: {counts or 'none'}"
    columns = ("severity", "rule", "variant", "nodes", "why", "what to do")
    yield Table(caption, columns, rows, command) if rows else Text(f"No findings for {target}, by {command}.")
