"""Accuracy against latency and size, of every network and variant that was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from krl_runtime.bundle import Bundle
from krl_runtime.bundle.names import MANIFEST

from .blocks import Block, Plot, Section, Table, Text
from .gather import Document, Material, RunFile
from .plots import scatter
from .words import machine_of, megabytes, milliseconds, points, share

__all__ = ["tradeoffs_section"]

_METRICS: Mapping[str, tuple[str, str]] = {
    "top1": ("top-1", "%"),
    "map": ("mAP", "%"),
    "recall_at_1": ("recall@1", "%"),
    "fid": ("FID", ""),
    "psnr": ("PSNR", "dB"),
    "psnr_to_fp32": ("PSNR to FP32", "dB"),
    "snr_db": ("SNR to FP32", "dB"),
}
"""Metrics of accuracy, by the keys of results, with title and unit; the first one that a result has counts. More is
better of those that have a unit, and less of others."""

_EQUAL_DB = 99.0  # dB: from here on two outputs are equal, and the 200 dB of equal ones would hide all others


@dataclass(frozen=True)
class _Measured:
    """One network or variant as it was measured.

    Attributes:
        model: Name of the bundle or run.
        name: Name of the variant, and of its backend.
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"``.
        metric: Key of the metric; empty if none was measured.
        value: Its value, a share or dB.
        error: Its standard error; ``None`` if it is not known.
        drop: Against FP32; ``None`` if it is not known.
        unit: Of the drop.
        latency_ms: Of one call with one input; ``None`` if it was not measured.
        size: Bytes of the file.
        where: Data and machine.
    """

    model: str
    name: str
    precision: str
    metric: str
    value: float | None
    error: float | None
    drop: float | None
    unit: str
    latency_ms: float | None
    size: int | None
    where: str


def tradeoffs_section(found: Material) -> Section:
    """Return plots of accuracy against latency and size, and one table of all points."""
    bundles = [*found.relatives, *found.bundles]
    measured = [
        item
        for bundle in bundles
        for item in found.guarded(partial(_of_bundle, bundle, found), bundle.path / MANIFEST, "evidence")
    ]
    bundled, tasks = ({each(bundle) for bundle in bundles} for each in (_weights, _task))
    runs = [run for run in found.runs if (run.sha256 not in bundled and run.values.get("task") in tasks) or not tasks]
    measured += [item for run in runs for item in found.guarded(partial(_of_run, run, found), run.path, "a run")]
    if not measured:
        return Section("Accuracy, latency and size", [])
    blocks: list[Block] = [plot for plot in (_plot(measured, "latency"), _plot(measured, "size")) if plot is not None]
    text = "Models that no other one beats are on the dotted line. Compare latencies of one machine alone."
    return Section("Accuracy, latency and size", [Text(text), *blocks, _table(measured)])


def _of_bundle(bundle: Bundle, found: Material) -> Iterator[_Measured]:
    """Yield the rows of evaluations on devices; without any, what the bundle says of itself."""
    own = [item for item in found.documents if item.kind == "evaluate" and item.subject == bundle.path.name]
    current = [item for item in own if item.values.get("manifest") == bundle.manifest.digest]
    for item in own:
        if item not in current:
            reason = f"it was measured of another state of {bundle.path.name}; run krl-runtime evaluate again"
            found.notes.skipped.append((str(item.path), reason))
    for item in current:
        yield from found.attempt(item, _of_evaluation, bundle)
    if not current:
        argument = "" if bundle.manifest.task == "generation" else " DATA"
        found.notes.missing(
            f"accuracy and latency of {bundle.path.name} on a device",
            f"krl-runtime evaluate {bundle.path.name}{argument}",
        )
        yield from _of_manifest(bundle, found)


def _of_evaluation(item: Document, bundle: Bundle, found: Material) -> Iterator[_Measured]:
    values = item.values
    where = ", ".join(filter(None, (item.board, machine_of(values["device"]))))
    found.notes.measured(
        f"accuracy, latency and size of {bundle.path.name} on {values['data']}",
        f"krl-runtime evaluate {bundle.path.name}",
        ", ".join(filter(None, (item.board, machine_of(values["device"], values["libraries"])))),
        item.path,
    )
    for row in values["rows"]:
        if row["state"] != "measured":
            continue
        metrics = row["metrics"]
        metric, data = _metric(metrics), f"{metrics.get('count', '')} images of {values['data']}"
        if not metric and row["variant"] == "fp32":
            metrics, data = _of_weights(bundle, found)
            metric = _metric(metrics)
        is_reference = f"{row['variant']} on {row['kind']}" == values["reference"]
        yield _Measured(
            model=bundle.stem,
            name=f"{row['variant']} {row['kind']}{f' {item.board}' if item.board else ''}",
            precision=bundle.manifest.variants[row["variant"]].precision,
            metric=metric,
            value=metrics.get(metric),
            error=metrics.get(f"{metric}_standard_error"),
            drop=None if is_reference else metrics.get("drop"),
            unit=values["unit"],
            latency_ms=row["latency_ms"],
            size=row["size_bytes"],
            where=f"{data}; {where}".removeprefix(" images of "),
        )


def _metric(metrics: Mapping[str, Any]) -> str:
    return next((name for name in _METRICS if isinstance(metrics.get(name), int | float)), "")


def _of_manifest(bundle: Bundle, found: Material) -> Iterator[_Measured]:
    """Yield the measurements of export, fp16 and quantize, on the machine that made the bundle."""
    manifest, evidence = bundle.manifest, bundle.manifest.evidence
    seen: set[str] = set()
    for key in ("int8", "fp16"):
        part = evidence.get(key)
        if not isinstance(part, Mapping):
            continue
        where = f"{part['images']['count']} images of {part['images']['data']}; {machine_of(part.get('machine') or {})}"
        for name, scores in part["scores"].items():
            if name in seen or f"model.{name}.onnx" not in manifest.files:
                continue
            seen.add(name)
            metric = _metric(scores)
            value = scores.get(metric)
            yield _Measured(
                model=bundle.stem,
                name=name,
                precision=name.partition(".")[0],
                metric=metric,
                value=value,
                error=None,
                drop=None if name == "fp32" else scores.get("drop"),
                unit="points" if metric in ("top1", "map", "recall_at_1") else "dB",
                latency_ms=(part.get("latency_ms") or {}).get(name),
                size=(part.get("file_bytes") or {}).get(name),
                where=where,
            )
    if not seen:
        metrics, where = _of_weights(bundle, found)
        metric = _metric(metrics)
        size = manifest.files[bundle.reference.file].size
        error = metrics.get(f"{metric}_standard_error")
        name = bundle.reference.precision
        value = metrics.get(metric)
        yield _Measured(bundle.stem, name, name, metric, value, error, None, "", None, size, where)


def _weights(bundle: Bundle) -> str:
    return str(bundle.manifest.source.get("weights_sha256"))


def _task(bundle: Bundle) -> str:
    return bundle.manifest.task


def _of_weights(bundle: Bundle, found: Material) -> tuple[Mapping[str, Any], str]:
    """Return the figures of a bundle's weights in torch, and where they are from."""
    run = next((run for run in found.runs if run.sha256 and run.sha256 == _weights(bundle)), None)
    if run is None:
        return bundle.manifest.source.get("metrics") or {}, "the training's own evaluation, in torch"
    return _figures(run, found)


def _figures(run: RunFile, found: Material) -> tuple[Mapping[str, Any], str]:
    """Return the figures of a run: of ``krl-train evaluate --json``, else of its training; and where they are from."""
    evaluated = [item for item in found.documents if item.kind == "krl-train evaluate" and run.is_named(item.subject)]
    for item in evaluated[-1:]:
        command = f"krl-train evaluate {run.path.name}"
        found.notes.measured(f"quality of {run.path.name}", command, f"{item.values['data']}, in torch", item.path)
        return item.values, f"{item.values['data']}, in torch"
    return run.values.get("metrics") or {}, "the training's own evaluation, in torch"


def _of_run(run: RunFile, found: Material) -> Iterator[_Measured]:
    """Yield the figures of a run that no bundle here has; its latency is not known."""
    metrics, where = _figures(run, found)
    metric = _metric(metrics)
    if metric:
        weights = run.path / "model.safetensors"
        size = weights.stat().st_size if weights.is_file() else None
        error = metrics.get(f"{metric}_standard_error")
        yield _Measured(run.path.name, "run", "fp32", metric, metrics[metric], error, None, "", None, size, where)


def _plot(measured: list[_Measured], against: str) -> Plot | None:
    """Return one of the two plots, of the metric that most points have; nothing with fewer than two points."""
    chosen = _common(measured)
    title, unit = _METRICS.get(chosen, ("", ""))
    groups: dict[str, list[dict[str, Any]]] = {item.model: [] for item in measured}
    for item in measured:
        across = item.latency_ms if against == "latency" else None if item.size is None else item.size / 2**20
        value = item.value
        if item.metric != chosen or value is None or across is None or (unit == "dB" and value > _EQUAL_DB):
            continue
        text = f"{item.model} {item.name}: {_value(item)}, {milliseconds(item.latency_ms)} ms, "
        groups[item.model].append(
            {
                "x": across,
                "y": 100 * value if unit == "%" else value,
                "error": item.error,
                "precision": item.precision,
                "name": item.name,
                "text": f"{text}{megabytes(item.size)} MiB",
            }
        )
    if not chosen or sum(map(len, groups.values())) < 2:
        return None
    axis = "latency, ms for one input (log)" if against == "latency" else "size of the file, MiB (log)"
    label = (
        f"{title} against {against} of {sum(map(len, groups.values()))} networks; circles are FP32, squares FP16, "
        "diamonds INT8; the table below has the numbers"
    )
    return scatter(label, groups, axis, f"{title}, {unit}" if unit else title, more_is_better=bool(unit))


def _common(measured: list[_Measured]) -> str:
    names = [item.metric for item in measured if item.metric]
    return max(names, key=names.count, default="")


def _value(item: _Measured) -> str:
    if item.value is None or not item.metric:
        return ""
    title, unit = _METRICS[item.metric]
    if unit == "%":
        return f"{title} {share(item.value, item.error)}"
    if not unit:
        return f"{title} {item.value:.3g}"
    return f"{title} {item.value:.2f} dB" if item.value <= _EQUAL_DB else f"{title}: equal"


def _table(measured: list[_Measured]) -> Table:
    rows = [
        (
            item.model,
            item.name,
            _value(item),
            points(item.drop, unit=item.unit),
            milliseconds(item.latency_ms),
            megabytes(item.size),
            item.where,
        )
        for item in measured
    ]
    columns = ("model", "variant", "accuracy", "drop to FP32", "latency, ms", "size, MiB", "measured on")
    return Table("Every network and variant that was measured", columns, rows)
