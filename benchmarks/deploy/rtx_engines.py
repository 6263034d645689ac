"""Engines that TensorRT-RTX builds of krl's graphs, without a GPU: built or refused, seconds, bytes, layers by type.

The networks have random weights, and every range is -1 to 1, which changes nothing about parser and builder. Graphs
are those that ``krl-deploy export``, ``fp16`` and ``quantize`` write. Needs ``krl[rtx]`` and ``krl[train]``.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from _peers import machine
from rich.console import Console
from rich.progress import Progress

from krl_deploy.exporters.conversion import to_onnx
from krl_deploy.exporters.generator import generator_graph, settings_of
from krl_deploy.exporters.restorer import restorer_graph
from krl_deploy.graph.files import to_bytes
from krl_deploy.precision.emit_fp16 import to_fp16
from krl_deploy.precision.emit_tensorrt import to_tensorrt
from krl_deploy.precision.weights import Rounding
from krl_deploy.tensorrt.builder import build_plan
from krl_deploy.tensorrt.options import BuildOptions
from krl_runtime.backends.tensorrt.library import Library, rtx_library
from krl_runtime.errors import KrlError
from krl_runtime.images.preprocessing import Preprocessing
from krl_runtime.pipelines.random_inputs import random_inputs
from krl_train.models import ModelSpec, Network, build_model, native_size
from krl_train.models.generators import build_generator, is_generator
from krl_train.models.restorers import build_restorer

SMALL = (
    "resnet8",
    "resnet20",
    "resnet32x4",
    "wrn-16-2",
    "dscnn-1",
    "lenet5",
    "cifar-mobilenetv2",
    "cifar-shufflenetv2",
)
LARGE = (
    *("resnet18", "resnet50", "mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0", "shufflenet_v2_x1_0"),
    *("convnext_tiny", "vit_b_16", "swin_t", "densenet121", "regnet_y_400mf"),
)
GENERATORS = ("mlp-256-256", "dcgan-64", "resgan-64", "dsgan-64", "subgan-64")
# Restorers with their factors: super-resolution doubles the size, the others keep it.
RESTORERS = {"espcn": 2, "fsrcnn": 2, "edsr-8-64": 2, "unet-32-4": 1, "style-32": 1}
PRECISIONS = ("fp32", "fp16", "int8", "int8, FP16 around")

CLASSES = 10
LATENT = 64
OPSET = 20
PIXELS = 32  # of networks for small images, and of generators
SIDES = (64, 256, 512)  # of restorers, which take images of any size: smallest, best and largest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    everything = [*SMALL, *LARGE, *GENERATORS, *RESTORERS]
    parser.add_argument("--models", nargs="+", default=everything, metavar="NAME")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="batch that the engines are built for")
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    arguments = parser.parse_args()
    logging.getLogger("krl").setLevel(logging.ERROR)  # the builder warns of each FP16 scale that it widens
    library = rtx_library()
    rows = []
    with bar(arguments.models) as advance:
        for name in arguments.models:
            for row in measure(name, arguments.batch, library):
                rows.append(row)
                if not arguments.json:
                    print(line(row), flush=True)
                advance(f"{name} {row['precision']}")
    if arguments.json:
        print(json.dumps({"machine": machine(), "library": library.title, "rows": rows}, indent=2))


@contextmanager
def bar(models: list[str]) -> Iterator[Any]:
    """Show on a terminal how many engines are done."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("engines", total=len(models) * len(PRECISIONS))
        yield lambda text: progress.update(task, advance=1, description=text)


def measure(name: str, batch: int, library: Library) -> Iterator[dict[str, Any]]:
    """Yield one row for each precision; what cannot be written or built has a row with the reason."""
    try:
        fp32 = graph_of(name)
    except KrlError as error:
        yield from ({"model": name, "precision": each, "refused": str(error)} for each in PRECISIONS)
        return
    sides = SIDES if name in RESTORERS else None
    options = BuildOptions(profile=(batch, batch, batch), height=sides, width=sides)
    for precision in PRECISIONS:
        row: dict[str, Any] = {"model": name, "precision": precision}
        try:
            data = to_bytes(emit(fp32, precision))
            built = build_plan(data, options, library)
        except KrlError as error:
            yield {**row, "refused": str(error)}
            continue
        sizes = {"onnx_bytes": len(data), "plan_bytes": len(built.plan)}
        yield {**row, "seconds": built.seconds, **sizes, "layers": built.layers, "layer_types": dict(built.layer_types)}


def graph_of(name: str) -> onnx.ModelProto:
    """Return the FP32 graph of a network with random weights, as ``krl-deploy export`` writes it."""
    torch.manual_seed(0)
    half = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    if is_generator(name):
        spec = Preprocessing(PIXELS, PIXELS, **half)
        generator = build_generator(ModelSpec(name, 0, 3, {"latent": LATENT}), spec).eval()
        return generator_graph(generator, random_inputs(settings_of(generator), 2, 0), OPSET)
    if name in RESTORERS:
        spec, scale = Preprocessing(64, 64, **half), RESTORERS[name]
        return restorer_graph(build_restorer(ModelSpec(name, 0, 3, {"scale": scale}), spec).eval(), spec, scale, OPSET)
    size = native_size(name) or PIXELS
    network = Network(build_model(name, CLASSES), Preprocessing(size, size)).eval()
    return to_onnx(network, (3, size, size), OPSET)


def emit(fp32: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """Return the graph of a precision, as krl writes it."""
    ranges: dict[str, tuple[float, float]] = defaultdict(lambda: (-1.0, 1.0))
    if precision == "fp32":
        return fp32
    if precision == "fp16":
        return to_fp16(fp32, {}).model
    if precision == "int8":
        return to_tensorrt(fp32, ranges).model
    return to_fp16(to_tensorrt(fp32, ranges, rounding=Rounding(fp16=True)).model, {}, around_int8=True).model


def line(row: Mapping[str, Any]) -> str:
    if "refused" in row:
        return f"{row['model']:20} {row['precision']:18} refused: {row['refused']}"
    kinds = Counter(row["layer_types"])
    shown = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if kind.split()[0] in _SHOWN)
    size = row["plan_bytes"] / 1e6
    return f"{row['model']:20} {row['precision']:18} {row['seconds']:6.2f} s  {size:7.2f} MB  {shown}"


_SHOWN = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "QUANTIZE", "DEQUANTIZE")


if __name__ == "__main__":
    main()
