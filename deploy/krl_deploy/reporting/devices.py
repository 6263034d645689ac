"""Evidence of devices: engines, tuning, latency profiles and benchmarks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from krl_runtime.backends.tuning import TuningError, read_tuning, tuning_file
from krl_runtime.bundle import Bundle
from krl_runtime.bundle.names import MANIFEST
from krl_runtime.bundle.sidecar import read_engines

from .blocks import Block, Section, Table
from .gather import Document, Material
from .words import machine_of, megabytes, milliseconds, number

__all__ = ["devices_section"]


def devices_section(bundle: Bundle, found: Material) -> Section:
    """Return the measurements of devices: engines, tuning, profiles and benchmarks of a bundle."""
    name = bundle.path.name
    engines, tuned, profiled = (list(part(bundle, found)) for part in (_engines, _tuning, _profiles))
    benches = [block for item in found.about(bundle, "bench") for block in found.attempt(item, _bench, bundle)]
    for blocks, what, command in (
        (engines, f"an engine of {name} for a GPU, built there", f"krl-deploy build-engine {name}"),
        (tuned, f"the fastest way to run {name} here", f"krl-runtime tune {name}"),
        (profiled, f"{name} in a device's latency profile", f"krl-runtime bench {name} --profile DEVICE.json"),
        (benches, f"latency of the whole pipeline of {name}", f"krl-runtime bench {name} --json > bench.json"),
    ):
        if not blocks:
            found.notes.missing(what, command)
    boards = bundle.path.with_name(f"{name}.boards")
    if not boards.is_dir():
        found.notes.missing(f"evidence of {name} on a board", f"krl-deploy on BOARD evaluate {name} DATA")
    return Section(f"{name} on devices", [*engines, *tuned, *profiled, *benches])


def _engines(bundle: Bundle, found: Material) -> Iterator[Block]:
    evidence: dict[str, Any] = {**bundle.manifest.evidence.get("engines", {}), **read_engines(bundle.path).evidence}
    rows = []
    for key, engine in bundle.engines.items():
        known = evidence.get(key) or {}
        parity = known.get("parity") or {}
        checked = f"golden outputs within {parity['max_abs_error']:.3g}" if "max_abs_error" in parity else ""
        version = f"{engine.library} {engine.version}"
        sizes = ", ".join("–".join(map(str, sizes)) for sizes in engine.profiles)
        outcome = checked or str(known.get("not_run") or "not measured")
        size = megabytes(bundle.engine_entry(key).size)
        rows.append((key, engine.variant, version, engine.gpu or "any RTX GPU", sizes, size, outcome))
        what = f"engine {key} of {bundle.path.name}"
        found.notes.measured(
            what, f"krl-deploy build-engine {bundle.path.name}", engine.gpu or version, bundle.path / MANIFEST
        )
    if rows:
        columns = ("engine", "variant", "library", "GPU", "batches", "MiB", "checked")
        yield Table("Engines", columns, rows, f"krl-deploy build-engine {bundle.path.name}")


def _tuning(bundle: Bundle, found: Material) -> Iterator[Block]:
    try:
        tuning = read_tuning(bundle)
    except TuningError as error:
        found.notes.skipped.append((str(tuning_file(bundle)), str(error)))
        return
    if tuning is None:
        return
    where = machine_of(tuning.device, tuning.libraries)
    command = f"krl-runtime tune {bundle.path.name}"
    found.notes.measured(f"the fastest way to run {bundle.path.name}", command, where, tuning_file(bundle))
    rows = [
        (
            f"{item.variant} on {item.kind}",
            number(item.threads),
            milliseconds(item.milliseconds),
            number(item.max_abs_error),
            item.cause or "accepted",
        )
        for item in tuning.measurements
    ]
    columns = ("way to run it", "threads", "ms for one input", "largest error", "verdict")
    yield Table(f"Tuning on {where}", columns, rows, command)


def _profiles(bundle: Bundle, found: Material) -> Iterator[Block]:
    hashes = {entry.sha256 for entry in bundle.manifest.files.values()}
    for path, profile in found.profiles:
        rows = [
            (
                f"{entry.variant} on {entry.backend}",
                number(entry.batch),
                milliseconds(entry.latency_ms["p50"]),
                milliseconds(entry.latency_ms["p95"]),
                milliseconds(entry.pipeline_ms["p50"]),
                megabytes(entry.file_bytes),
                number(entry.iterations),
            )
            for entry in profile.entries
            if entry.sha256 in hashes
        ]
        if not rows:
            continue
        where = machine_of(profile.machine)
        command = f"krl-runtime bench {bundle.path.name} --profile {path.name}"
        found.notes.measured(f"latency profile of {bundle.path.name}", command, where, path)
        columns = ("variant", "batch", "network p50, ms", "network p95, ms", "pipeline p50, ms", "MiB", "runs")
        yield Table(f"Latency on {where}", columns, rows, command)


def _bench(item: Document, bundle: Bundle, found: Material) -> Iterator[Block]:
    values = item.values
    where = f"{values['variant']} on {values['backend']}, {values['cpus']} CPUs"
    command = f"krl-runtime bench {bundle.path.name}"
    found.notes.measured(f"latency of the whole pipeline of {bundle.path.name}", command, where, item.path)
    times = {"whole": values["latency_ms"], **values["stages_ms"]}
    names = list(values["latency_ms"])
    rows = [(stage, *(milliseconds(summary[name]) for name in names)) for stage, summary in times.items()]
    throughput = f"{values['throughput_per_s']:.1f} images/s"
    caption = f"Pipeline: {where}, {values['batch']} in a run, {values['iterations']} runs, {throughput}"
    yield Table(caption, ("milliseconds", *names), rows, command)
