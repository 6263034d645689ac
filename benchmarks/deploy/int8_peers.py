"""INT8 of krl beside quantize_static of ONNX Runtime, NNCF on OpenVINO, and NVIDIA Model-Optimizer, in one run.

Give a bundle of a classifier or restorer that has not seen the judged images, and its data. Every row has the same FP32
graph, is calibrated on the same images, and is judged on the same others. The signal-to-noise ratio of the outputs
tells rows apart where top-1, with a standard error of half a point or more on 2000 images, does not.

The peers are no dependencies of krl: ``pip install nncf openvino "nvidia-modelopt[onnx]"``. What is not installed is
skipped with its reason. All of them need ONNX Runtime's version that Model-Optimizer pins.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
from _peers import PEERS, machine, model_optimizer, nncf_openvino, quantize_static

from krl_deploy.config import Method, QuantizeConfig
from krl_deploy.evaluation import EvaluationOptions, Task, task_of
from krl_deploy.evaluation.comparison import compare, interleaved_latency
from krl_deploy.graph.edit import GraphEditor
from krl_deploy.graph.files import to_bytes
from krl_deploy.graph.placement import weighted_nodes
from krl_deploy.precision.calibrate import calibrate
from krl_deploy.precision.emit_fp16 import to_fp16
from krl_deploy.precision.variants import Emitter
from krl_runtime.backends.onnxruntime import open_session
from krl_runtime.bundle import Bundle

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
KRL, STATIC, NNCF, MODELOPT = "krl", "quantize_static", "NNCF", "Model-Optimizer"
MODULES = {STATIC: ("onnxruntime.quantization",), NNCF: ("nncf", "openvino"), MODELOPT: ("modelopt.onnx.quantization",)}
SWITCHES: dict[str, dict[str, Any]] = {
    "no bias correction": {"bias_correction": False},
    "optimal scales": {"optimal_scales": True},
    "equalized everywhere": {"equalize": "all"},
    "never equalized": {"equalize": "none"},
}
NNCF_SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {"preset": "performance", "correction": "fast", "ranges": None, "overflow_fix": True},
    "mixed, fast bias correction": {"preset": "mixed", "correction": "fast", "ranges": None},
    **{
        f"{preset}, {named}, {correction} bias correction": {
            "preset": preset,
            "correction": correction,
            "ranges": ranges,
        }
        for preset in ("mixed", "performance")
        for named, ranges in (("min-max", "MINMAX"), ("histogram", "HISTOGRAM"))
        for correction in ("fast", "full", "no")
    },
}


@dataclass(frozen=True)
class Contender:
    """One row of the table.

    Attributes:
        tool: Name of the tool.
        settings: Its settings, for people.
        make: Calibrates and quantizes; gives ONNX files, or sessions, by the name of the file.
    """

    tool: str
    settings: str
    make: Callable[[], dict[str, Any]]


@dataclass
class SignalTally:
    """The tally of a task, and the power of the reference's outputs and of the error."""

    inner: Any
    signal: float = field(default=0.0, init=False)
    error: float = field(default=0.0, init=False)

    def add(self, outputs: np.ndarray, reference: np.ndarray, truth: np.ndarray | None) -> None:
        """Count one batch."""
        self.inner.add(outputs, reference, truth)
        exact = reference.astype(np.float64)
        self.signal += float(np.square(exact).sum())
        self.error += float(np.square(outputs - exact).sum())

    def score(self) -> tuple[Any, float]:
        """Return the task's score, and the signal-to-noise ratio in dB."""
        with np.errstate(divide="ignore"):
            return self.inner.score(), float(10 * np.log10(np.divide(self.signal, self.error)))


def main() -> None:
    arguments = parse()
    bundle = Bundle.open(arguments.bundle)
    options = EvaluationOptions(arguments.data, arguments.val_limit, 0.2, "refuse", arguments.limit)
    task = task_of(bundle, options)
    fp32 = bundle.read("model.fp32.onnx")
    judge = Judge(task, fp32, timed=not arguments.layers)
    rows: list[dict[str, Any]] = []
    with redirect_stdout(sys.stderr):  # the peers print progress
        for row in measure(judge, contenders(arguments, bundle, task, fp32)):
            rows.append(row)
            if not arguments.json:
                print(line(row), file=sys.__stdout__, flush=True)
    if arguments.json:
        fact = {"images": judge.count, "calibration_images": len(task.calibration_data.inputs), "fp32": judge.exact}
        print(json.dumps({"machine": machine(), "versions": versions(), **fact, "rows": rows}, indent=2))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder of images, best with train/ and val/")
    parser.add_argument("--limit", type=int, default=512, help="images to calibrate on (512)")
    parser.add_argument("--val-limit", type=int, default=2000, help="images to judge on (2000)")
    parser.add_argument("--tools", nargs="+", choices=[KRL, *MODULES], default=[KRL, *MODULES], help="left out: all")
    parser.add_argument("--switches", action="store_true", help="also krl with other options than the defaults")
    parser.add_argument("--layers", action="store_true", help="krl with one layer alone in INT8, and no other row")
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    return parser.parse_args()


def versions() -> dict[str, str]:
    """Return the installed versions of the tools."""
    names = ("onnx", "onnxruntime", "onnxruntime-gpu", "nncf", "openvino", "nvidia-modelopt")
    installed = {dist.name: dist.version for dist in metadata.distributions()}
    return {name: installed[name] for name in names if name in installed}


def contenders(
    arguments: argparse.Namespace, bundle: Bundle, task: Task, fp32: bytes
) -> Iterator[Contender | dict[str, str]]:
    """Yield the rows to make; a tool that is not installed gives a row with the reason."""
    config = partial(QuantizeConfig, bundle.path, arguments.data, limit=arguments.limit)
    if arguments.layers:
        yield from layers(emitter_of(config(), bundle, task))
        return
    pixels = np.asarray(task.calibration_data.inputs)
    for tool in arguments.tools:
        if tool == KRL:
            yield from of_krl(config, bundle, task, switches=arguments.switches)
        elif reason := why_absent(tool):
            yield {"tool": tool, "settings": "", "skipped": reason}
        else:
            yield from {STATIC: of_static, NNCF: of_nncf, MODELOPT: of_modelopt}[tool](fp32, pixels)


def why_absent(tool: str) -> str | None:
    """Return the reason why a tool cannot be used; ``None`` if it is installed."""
    for module in MODULES[tool]:
        try:
            import_module(module)
        except ImportError as error:
            return f"not installed: {error}"
    return None


def of_krl(config: Callable[..., QuantizeConfig], bundle: Bundle, task: Task, *, switches: bool) -> Iterator[Contender]:
    chosen: dict[str, dict[str, Any]] = {"defaults": {}}
    chosen |= {f"--method {method}": {"method": method} for method in get_args(Method)}
    chosen |= SWITCHES if switches else {}
    for settings, options in chosen.items():
        yield Contender(KRL, settings, partial(make_krl, config(**options), bundle, task))
    yield Contender(KRL, "FP16", partial(make_fp16, config(), bundle, task))


def make_krl(config: QuantizeConfig, bundle: Bundle, task: Task) -> dict[str, bytes]:
    """Return both INT8 graphs; TensorRT's has FP32 around INT8."""
    graphs = emitter_of(config, bundle, task).emit()
    return {"int8 for TensorRT": graphs.simulated, "int8 for CPUs": graphs.files["int8.cpu"]}


def make_fp16(config: QuantizeConfig, bundle: Bundle, task: Task) -> dict[str, bytes]:
    emitter = emitter_of(config, bundle, task)
    return {"fp16": to_bytes(to_fp16(emitter.model, emitter.calibration.extremes).model)}


def emitter_of(config: QuantizeConfig, bundle: Bundle, task: Task) -> Emitter:
    """Calibrate as ``krl-deploy quantize`` does."""
    fp32 = bundle.read("model.fp32.onnx")
    calibration = calibrate(config, bundle, onnx.load_model_from_string(fp32), task)
    return Emitter(
        fp32,
        calibration,
        fp16=False,
        optimal_scales=config.optimal_scales,
        bias_correction=config.bias_correction,
        image=not task.predicts,
    )


def layers(emitter: Emitter) -> Iterator[Contender]:
    """Yield krl's graphs with one layer in INT8 and all others in FP32."""
    names = [item.node.name for item in weighted_nodes(GraphEditor(emitter.model))]
    for name in names:
        others = dict.fromkeys([other for other in names if other != name], "measured alone")
        yield Contender(KRL, f"{name} alone in INT8", partial(make_layer, emitter, others))


def make_layer(emitter: Emitter, others: dict[str, str]) -> dict[str, bytes]:
    written = {"int8 for TensorRT": emitter.tensorrt(others), "int8 for CPUs": emitter.cpu(others)}
    return {name: to_bytes(graph.model) for name, graph in written.items() if graph.count}


def of_static(fp32: bytes, pixels: np.ndarray) -> Iterator[Contender]:
    # Activations stay with their layers: their ranges are those that the layers write.
    some = (*LAYERS, "Relu", "Clip")
    for symmetric, where in ((False, "for CPUs"), (True, "for TensorRT")):
        for operators, which in ((None, ""), (some, ", layers alone")):
            for method in PEERS:
                options = {"operators": operators, "symmetric": symmetric, "preprocess": True}
                make = partial(quantize_static, fp32, pixels, method, **options)
                yield Contender(STATIC, f"{method}, {where}{which}", lambda make=make: {"Q/DQ": make()})


def of_nncf(fp32: bytes, pixels: np.ndarray) -> Iterator[Contender]:
    for settings, options in NNCF_SETTINGS.items():
        make = partial(nncf_openvino, fp32, pixels, **options)
        yield Contender(NNCF, settings, lambda make=make: {"OpenVINO": make()})


def of_modelopt(fp32: bytes, pixels: np.ndarray) -> Iterator[Contender]:
    for method in ("entropy", "max"):
        make = partial(model_optimizer, fp32, pixels, method)
        yield Contender(MODELOPT, f"{method}, for TensorRT", lambda make=make: {"Q/DQ": make()})


class Judge:
    """Judges models against FP32 on a task's images.

    Args:
        task: Has the images.
        fp32: The FP32 file.
        timed: Whether to measure the latency.
    """

    def __init__(self, task: Task, fp32: bytes, *, timed: bool) -> None:
        self.task, self.timed = task, timed
        self.batches = list(task.batches())
        self.count = sum(len(inputs) for inputs, _ in self.batches)
        self.reference = opened(fp32)
        self.exact = compare({"fp32": self.reference}, self.batches, task.tally)[1]["fp32"].__dict__

    def __call__(self, model: Any) -> dict[str, Any]:
        """Return what the table has of a file or a session."""
        sessions = {"fp32": self.reference, "int8": opened(model)}
        _, scores = compare(sessions, self.batches, lambda: SignalTally(self.task.tally()))
        after, snr = scores["int8"]
        unit = "points of top-1" if self.task.predicts else "dB of PSNR"
        alike = {"agreement": after.agreement} if hasattr(after, "agreement") else {"psnr_to_fp32": after.psnr_to_fp32}
        row = {"drop": after.drop, "unit": unit, **alike, "snr_db": snr, **count_layers(model)}
        if self.timed:
            latency = interleaved_latency(sessions, self.batches[0][0][:1])
            row["time_over_fp32"] = latency["int8"] / latency["fp32"]
        return row


def opened(model: Any) -> Any:
    """Return a session of an ONNX file at one thread; sessions stay as they are."""
    return open_session(model, cuda=False, threads=1) if isinstance(model, bytes) else model


def count_layers(model: Any) -> dict[str, int]:
    """Return how many layers with weights there are, and how many have their weights in INT8."""
    if not isinstance(model, bytes):
        nodes = [node for node in model.model.get_ops() if node.get_type_name() in OPENVINO_LAYERS]
        return {"int8_layers": sum(map(stored_as_int8, nodes)), "layers": len(nodes)}
    graph = onnx.load_model_from_string(model).graph
    dequantized = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    for node in graph.node:  # the weights of a product can be transposed after they are dequantized
        if node.op_type in ("Transpose", "Cast") and node.input[0] in dequantized:
            dequantized.update(node.output)
    found = [node for node in graph.node if node.op_type in LAYERS]
    return {"int8_layers": sum(node.input[1] in dequantized for node in found), "layers": len(found)}


OPENVINO_LAYERS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul")


def stored_as_int8(layer: Any) -> bool:
    """Return whether OpenVINO's layer reads weights that are stored as integers."""
    node = layer.input_value(1).get_node()
    while node.get_type_name() in ("Multiply", "Subtract", "Convert", "Reshape"):
        node = node.input_value(0).get_node()
    return node.get_type_name() == "Constant" and node.get_element_type().get_type_name() in ("i8", "u8")


def measure(
    judge: Callable[[Any], dict[str, Any]], rows: Iterator[Contender | dict[str, str]]
) -> Iterator[dict[str, Any]]:
    """Yield a row for each file; what fails has its error in its row."""
    for row in rows:
        if isinstance(row, dict):
            yield row
            continue
        named = {"tool": row.tool, "settings": row.settings}
        start = time.perf_counter()
        try:
            files = row.make()
            seconds = time.perf_counter() - start
            for file, model in files.items():
                yield {**named, "file": file, **judge(model), "seconds": seconds}
        except Exception as error:  # the peers' own errors share no base class but this one
            yield {**named, "error": f"{type(error).__name__}: {' '.join(str(error).split())}"}


def line(row: dict[str, Any]) -> str:
    """Return a row for people."""
    start = f"{row['tool']:15} {row['settings']:47}"
    if reason := row.get("skipped", row.get("error")):
        return f"{start} {reason[:200]}"
    alike = f"{row['agreement']:7.2%} alike" if "agreement" in row else f"{row['psnr_to_fp32']:6.2f} dB to FP32"
    drop = "   -" if row["drop"] is None else f"{row['drop']:6.3f} {row['unit'].split()[0]:6}"
    timed = f"  {row['time_over_fp32']:5.2f} × FP32's time" if "time_over_fp32" in row else ""
    return (
        f"{start} {row['file']:17} {row['int8_layers']:3} of {row['layers']:3} layers  drop {drop}  "
        f"{alike}  SNR {row['snr_db']:6.2f} dB{timed}  {row['seconds']:5.1f} s"
    )


if __name__ == "__main__":
    main()
