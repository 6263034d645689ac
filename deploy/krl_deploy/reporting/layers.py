"""The cost of each layer: precision, sensitivity, numeric gap and time, from the results of several commands."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from krl_runtime.bundle import Bundle
from krl_runtime.bundle.names import MANIFEST
from krl_runtime.errors import KrlError

from .blocks import Block, Plot, Section, Table, Text
from .gather import Document, Material
from .plots import bars
from .words import number

__all__ = ["layers_section"]

_PLANS = ("plan.json", "plan.fp16.json")
_MOST_BARS = 60  # layers of a plot: more have no readable names, and the table below has all
_MOST_ROWS = 600  # layers of a table: enough for the deepest networks that krl trains, and bounded for third-party ones
_HIGHEST_DB = 100.0  # in a plot: above it nothing is to be seen, and equal values have 200


def layers_section(bundle: Bundle, found: Material) -> Section:
    """Return the precision, sensitivity, numeric gap and time of each layer of a bundle, as far as they are known."""
    name = bundle.path.name
    blocks: list[Block] = []
    for kind, show, what, command in (
        ("compare", _gaps, "numeric gap of each layer", f"krl-deploy compare {name} --layers --json > compare.json"),
        (
            "bench",
            _times,
            "time of each layer",
            f"krl-runtime bench {name} --backend cpu --layers --json > layers.json",
        ),
        (
            "inspect-engine",
            _engines,
            "layers of the engine or of the parsed network",
            f"krl-deploy inspect-engine {name} --layers --json > engine.json",
        ),
    ):
        shown = [block for item in _documents(bundle, found, kind) for block in found.attempt(item, show, bundle)]
        blocks += shown
        if not shown:
            found.notes.missing(f"{what} of {name}", command.format(name))
    sensitivities = list(_sensitivities(bundle, found))
    if not sensitivities:
        data = "" if bundle.manifest.task == "generation" else " --data DATA"
        command = f"krl-deploy quantize {name} --mixed-precision{data}"
        found.notes.missing(f"sensitivity of each layer of {name} to INT8", command)
    blocks = [*sensitivities, *blocks]
    return Section(f"Layers of {name}", blocks)


def _documents(bundle: Bundle, found: Material, kind: str) -> Iterator[Document]:
    """Yield results with layers; those that are older than the bundle's manifest are noted."""
    changed = (bundle.path / MANIFEST).stat().st_mtime
    for item in found.about(bundle, kind):
        if item.path.stat().st_mtime < changed:
            command = item.kind
            found.notes.skipped.append(
                (str(item.path), f"{bundle.path.name} was changed after it was written; run {command} again")
            )
        else:
            yield item


def _gaps(item: Document, bundle: Bundle, found: Material) -> Iterator[Block]:
    """Yield the differences of layers between two variants."""
    values = item.values
    layers = values.get("layers") or []
    if not layers:
        return
    a, b = (f"{values[side]['file']} on {values[side]['backend']}" for side in ("a", "b"))
    images = f"{values['images']['count']} images of {values['images']['data']}"
    command = f"krl-deploy compare {bundle.path.name} --layers"
    found.notes.measured(f"numeric gap of the layers of {bundle.path.name}", command, images, item.path)
    wrong = values.get("wrong") or []
    verdict = f"wrong by themselves: {', '.join(wrong)}" if wrong else "no layer is wrong by itself"
    yield Text(f"Gap of {b} to {a} on {images}: {verdict}; required: {values['min_snr_db']:g} dB.")
    if len(layers) <= _MOST_BARS:
        yield _gap_plot(layers, a, b)
    rows = [
        (
            layer["name"],
            layer["operator"],
            *(layer["precision"][side] for side in ("a", "b")),
            f"{layer['snr_db']:.1f}",
            f"{layer['alone']['snr_db']:.1f}",
            number(float(layer["max_error"])),
            layer["status"] or "right",
        )
        for layer in layers[:_MOST_ROWS]
    ]
    columns = ("layer", "operator", f"in {a}", f"in {b}", "SNR, dB", "alone, dB", "largest error", "verdict")
    yield Table(f"Numeric gap of each layer, {b} to {a}", columns, rows, command, folded=True)


def _gap_plot(layers: list[Mapping[str, Any]], a: str, b: str) -> Plot:
    series = {
        "in its place": [min(layer["snr_db"], _HIGHEST_DB) for layer in layers],
        "alone, on the reference's values": [min(layer["alone"]["snr_db"], _HIGHEST_DB) for layer in layers],
    }
    lowest = min(layers, key=lambda layer: layer["alone"]["snr_db"])
    label = f"SNR of each of {len(layers)} layers of {b} to {a}; {lowest['name']} has the lowest by itself"
    return bars(label, [layer["name"] for layer in layers], series, "SNR, dB; more is better", log=False)


def _times(item: Document, bundle: Bundle, found: Material) -> Iterator[Block]:
    """Yield the times of layers."""
    values = item.values
    measured = values.get("layers") or {}
    layers = measured.get("layers") or []
    if not layers:
        return
    where = f"{values['variant']} on {values['backend']}, {values['cpus']} CPUs, batch {values['batch']}"
    command = f"krl-runtime bench {bundle.path.name} --layers"
    found.notes.measured(f"time of the layers of {bundle.path.name}", command, where, item.path)
    total = f"{measured['sum_ms']:.3f} ms in {len(layers)} layers, medians of {measured['runs']} runs"
    yield Text(
        f"Time of the layers of {where}: {total}; without the profiler the network takes "
        f"{measured['network_ms']:.3f} ms."
    )
    shown = layers[:_MOST_BARS]
    label = f"time of the {len(shown)} slowest layers of {where}; {shown[0]['name']} takes {shown[0]['ms']:.3f} ms"
    series = {"ms": [layer["ms"] for layer in shown]}
    yield bars(label, [layer["name"] for layer in shown], series, "milliseconds", log=False)
    rows = [
        (layer["name"], layer["operator"], f"{layer['ms']:.4f}", f"{layer['share']:.1%}")
        for layer in layers[:_MOST_ROWS]
    ]
    yield Table(f"Time of each layer, {where}", ("layer", "operator", "ms", "share"), rows, command, folded=True)


def _engines(item: Document, bundle: Bundle, found: Material) -> Iterator[Block]:
    """Yield the layers of engines, or of the networks that they are built from."""
    for key, engine in item.values["engines"].items():
        layers = engine.get("list")
        if not layers:
            continue
        command = f"krl-deploy inspect-engine {bundle.path.name} --layers"
        found.notes.measured(f"layers of {key} of {bundle.path.name}", command, engine["source"], item.path)
        rows = [
            (
                layer["name"],
                layer["kind"],
                layer["precision"],
                layer["output"],
                number(layer["weights"] or None),
                number(layer["macs"]),
                "reformat" if layer["reformat"] else "",
            )
            for layer in layers[:_MOST_ROWS]
        ]
        columns = ("layer", "kind", "precision", "output", "weights", "MACs for one input", "note")
        yield Table(f"{key}: {engine['source']}", columns, rows, command, folded=True)


def _sensitivities(bundle: Bundle, found: Material) -> Iterator[Block]:
    """Yield the sensitivities that plans of mixed precision were made from."""
    for name in _PLANS:
        if name not in bundle.manifest.files:
            continue
        try:
            layers = json.loads(bundle.read(name))["layers"]
            blocks = list(_sensitivity(layers, name, bundle))
        except (KrlError, KeyError, TypeError, ValueError, RecursionError) as error:
            found.notes.skipped.append((f"{bundle.path.name}/{name}", f"it is not a plan of krl: {error}"))
            continue
        command = _plan_command(name, bundle)
        found.notes.measured(
            f"sensitivity of the layers of {bundle.path.name}", command, "see calibration", bundle.path / name
        )
        yield from blocks


def _plan_command(name: str, bundle: Bundle) -> str:
    verb = "fp16" if "fp16" in name else "quantize"
    return f"krl-deploy {verb} {bundle.path.name} --mixed-precision"


def _sensitivity(layers: list[Mapping[str, Any]], name: str, bundle: Bundle) -> Iterator[Block]:
    precision = "FP16" if "fp16" in name else "INT8"
    files = [key for key in layers[0] if key not in ("name", "op", "group", "sensitivity")]
    groups = {layer["group"]: layer for layer in reversed(layers)}  # the first layer of each group
    ranked = [layer for layer in groups.values() if layer["sensitivity"] is not None]
    ranked.sort(key=lambda layer: -layer["sensitivity"])
    shown = [layer for layer in ranked if layer["sensitivity"] > 0][:_MOST_BARS]
    if shown:
        label = (
            f"error of the outputs with one layer in {precision}, for {len(shown)} layers; {shown[0]['name']} has most"
        )
        series = {"error": [layer["sensitivity"] for layer in shown]}
        title = "error of the outputs, in their standard deviations"
        yield bars(label, [layer["name"] for layer in shown], series, title, log=True)
    rows = [
        (layer["name"], layer["op"], number(layer["sensitivity"]), *(layer[file] for file in files))
        for layer in layers[:_MOST_ROWS]
    ]
    columns = ("layer", "operator", f"error in {precision} alone", *(f"precision in {file}" for file in files))
    title = f"Sensitivity of each layer to {precision}, and its precision"
    yield Table(title, columns, rows, _plan_command(name, bundle), folded=bool(shown))
