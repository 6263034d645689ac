"""The command ``krl-runtime bench``: latency, throughput and memory of a loaded model."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krl_runtime.errors import UsageError
from krl_runtime.pipelines.generator import Generator
from krl_runtime.pipelines.image import ImagePipeline
from krl_runtime.processor import cpu_count

from .arguments import PROG, add_command, add_model_options, load_model, natural, positive, where
from .commandline import next_command, print_json
from .tables import table

if TYPE_CHECKING:
    from krl_runtime.device.layers import LayerTimes

__all__ = ["add_bench"]

_SHOWN = 25  # layers in the table for people; --json has all


def add_bench(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, "bench", _bench, "measure latency, throughput and memory on this device")
    parser.add_argument(
        "bundles", type=Path, nargs="+", metavar="NAME.krl", help="the bundle, a folder; several with --profile"
    )
    parser.add_argument(
        "--profile",
        type=Path,
        metavar="FILE",
        help="latency profile of this device, to which the results of every variant that runs here are added",
    )
    parser.add_argument("--image", type=Path, metavar="FILE", help="image to measure with (default: a golden input)")
    parser.add_argument("--batch", type=positive, default=1, metavar="N", help="images for one run (default: 1)")
    parser.add_argument("--warmup", type=natural, default=10, metavar="N", help="uncounted iterations (default: 10)")
    parser.add_argument("--iterations", type=positive, default=100, metavar="N", help="iterations (default: 100)")
    parser.add_argument(
        "--layers", action="store_true", help="the time of each layer, by the profiler of TensorRT or ONNX Runtime"
    )
    add_model_options(parser)


def _bench(arguments: argparse.Namespace) -> None:
    if arguments.profile is not None:
        if arguments.layers:
            raise UsageError("--layers is for one bundle, and --profile has no layers; give one of them")
        _record(arguments)
        return
    if len(arguments.bundles) > 1:
        raise UsageError(f"{len(arguments.bundles)} bundles were given; accepted: one, or several with --profile FILE")
    (arguments.bundle,) = arguments.bundles
    _bench_one(arguments)


def _record(arguments: argparse.Namespace) -> None:
    """Add the results of all bundles to a profile."""
    from krl_runtime.device.recording import record

    result = record(
        arguments.bundles,
        arguments.profile,
        image=arguments.image.read_bytes() if arguments.image else None,
        variant=arguments.variant,
        backend=arguments.backend,
        require=arguments.require,
        batch=arguments.batch,
        warmup=arguments.warmup,
        iterations=arguments.iterations,
        threads=arguments.threads,
        device=arguments.device,
        trust=arguments.trust,
    )
    if arguments.json:
        print_json(result.to_dict())
        return
    rows = [
        (
            entry["bundle"],
            entry["variant"],
            entry["backend"],
            *(f"{entry['latency_ms'][name]:.3f}" for name in ("p50", "p95")),
            f"{entry['pipeline_ms']['p50']:.3f}",
        )
        for entry in result.entries
    ]
    print(table(("bundle", "variant", "backend", "network p50 ms", "p95", "pipeline p50"), rows))
    print(f"\nadded to {result.profile}, the profile of {result.machine}")


def _bench_one(arguments: argparse.Namespace) -> None:
    from time import perf_counter

    from krl_runtime.device.bench import bench, golden_image

    begin = perf_counter()
    model = load_model(arguments, None)
    load_ms = (perf_counter() - begin) * 1e3
    with model:
        generates = isinstance(model, Generator)
        if generates and arguments.image:
            raise UsageError(f"bundle {arguments.bundle} makes images and takes none; leave --image out")
        if generates:
            image, name = b"", "golden latents"
        elif arguments.image:
            image, name = arguments.image.read_bytes(), str(arguments.image)
        else:
            image, name = golden_image(model.bundle), "the first golden input as a JPEG of 640x480"
        counts = {"batch": arguments.batch, "warmup": arguments.warmup, "iterations": arguments.iterations}
        result = {
            **where(model),
            "threads": arguments.threads,
            "cpus": cpu_count(),
            "image": name,
            "load_ms": load_ms,
            **bench(model, image, **counts).to_dict(),
        }
        layers = _layers(model, arguments) if arguments.layers else None
    if arguments.json:
        print_json(result if layers is None else {**result, "layers": layers.to_dict()})
    else:
        print(_bench_text(result) + ("" if layers is None else f"\n\n{_layers_text(layers)}"))
    if isinstance(model, ImagePipeline):
        next_command(f"{PROG} serve {arguments.bundle}")


def _layers(model: Any, arguments: argparse.Namespace) -> LayerTimes:
    from krl_runtime.device.layers import layer_times

    counts = {"batch": arguments.batch, "iterations": arguments.iterations, "threads": arguments.threads}
    return layer_times(model.backend, model.bundle, **counts)


def _layers_text(found: LayerTimes) -> str:
    rows = [(item.name, item.operator, f"{item.ms:.3f}", f"{item.share:.1%}") for item in found.layers[:_SHOWN]]
    rest = found.layers[_SHOWN:]
    if rest:
        rows.append((f"{len(rest)} more", "", f"{sum(item.ms for item in rest):.3f}", ""))
    return (
        f"{table(('layer', 'operator', 'ms', 'share'), rows)}\n\n{len(found.layers)} layers take {found.sum_ms:.3f} "
        f"ms, medians of {found.runs} runs; without the profiler the network takes {found.network_ms:.3f} ms"
    )


def _bench_text(result: Mapping[str, Any]) -> str:
    times = {"whole": result["latency_ms"], **result["stages_ms"]}
    rows = [(name, *(f"{value:.3f}" for value in summary.values())) for name, summary in times.items()]
    memory = result["peak_memory_mib"]
    lines = [
        table(("milliseconds", *result["latency_ms"]), rows),
        "",
        f"image:       {result['image']}, {result['batch']} in a run, {result['iterations']} runs",
        f"throughput:  {result['throughput_per_s']:.1f} images/s",
        f"cold start:  {result['load_ms']:.0f} ms to load, {result['first_result_ms']:.1f} ms to the first result",
        f"peak memory: {'not known here' if memory is None else f'{memory:.0f} MiB'}",
    ]
    if result["board"]:
        from krl_runtime.device.bench import board_rows

        lines += ["", table(("board", "before", "after"), board_rows(result["board"]))]
    return "\n".join(lines)
