"""The command ``krl-deploy``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from krl_runtime.cli.commandline import print_json
from krl_runtime.cli.dispatch import Program, dispatch
from krl_runtime.cli.tables import table
from krl_runtime.errors import CheckFailedError

from .bundles.triton import PackageConfig
from .config import CheckConfig, ExportConfig, Fp16Config, ImportConfig, QuantizeConfig
from .tensorrt.config import BuildEngineConfig, InspectEngineConfig

__all__ = ["main"]


def export(config: ExportConfig) -> None:
    """Turn a run into a bundle: ONNX with preprocessing inside, checked against torch on real inputs."""
    from .exporters.export import export as run_export

    result = run_export(config)
    if config.json:
        print_json(result)
        return
    parity = result["parity"]
    what = f"{result['labels']} classes" if result["task"] == "classification" else result["task"]
    facts = {
        "model": f"{result['model']}, {what}",
        "parameters": f"{result['parameters']:,}",
        "MACs": f"{result['macs']:,}",
        "file": f"{result['file_bytes'] / 2**20:.2f} MiB, opset {result['opset']}",
        "largest error": f"{parity['max_abs_error']:.3g} on {parity['inputs']} real inputs",
    }
    print(table(("bundle", result["bundle"]), facts.items()))


def import_onnx(config: ImportConfig) -> None:
    """Turn a third-party ONNX classifier or restorer into a bundle: preprocessing is put into the graph."""
    from .importers.import_onnx import import_onnx as run_import

    result = run_import(config)
    if config.json:
        print_json(result)
        return
    kind, form = ("top-1", "{:.2%}") if "top1" in result else ("PSNR in dB", "{:.2f}")
    found = result["top1" if "top1" in result else "psnr"]
    measured = "not measured" if found is None else f"{form.format(found)} on {result['count']} images"
    facts = {
        "input": result["input"],
        "opset": result["opset"],
        "changes": "; ".join(result["changes"]),
        kind: measured,
    }
    print(table(("bundle", result["bundle"]), facts.items()))


def fp16(config: Fp16Config) -> None:
    """Add an FP16 variant to a bundle, with the precision written into the graph."""
    from .precision.fp16 import fp16 as run_fp16

    result, shown = run_fp16(config)
    _print(result, f"{_measured_on(result)}\n{shown}", config.json)


def quantize(config: QuantizeConfig) -> None:
    """Add an INT8 variant to a bundle, calibrated and measured on real inputs."""
    from .precision.quantize import quantize as run_quantize

    result, shown = run_quantize(config)
    _print(result, f"{_measured_on(result)}\n{shown}", config.json)
    if not config.json:
        print(f"default on a CPU: {result['default_on_cpu']} (INT8 runs at {result['speedup']:.2f} times FP32's speed)")


def check(config: CheckConfig) -> None:
    """Say what is wrong with a model for a device, before the device has seen it."""
    from .rules.report import as_dict, as_text, counts
    from .rules.run import check_path, unknown
    from .rules.targets import parse_target

    target = parse_target(config.target)
    checked = check_path(config.model, target, config.precision)
    open_questions = unknown(checked, target)
    if config.json:
        print_json({"model": str(config.model), **as_dict(checked, target, open_questions)})
    else:
        print(as_text(checked, target, open_questions))
    errors = counts(checked)["error"]
    if errors:
        raise CheckFailedError(f"{config.model} is not ready for {target.name}: {errors} error{'s' * (errors > 1)}")


def build_engine(config: BuildEngineConfig) -> None:
    """Build a TensorRT engine on this device, check it and keep it; elsewhere do all up to the engine."""
    from .tensorrt.engines import build_engine as run_build

    result, shown = run_build(config)
    _print(result, shown, config.json)


def inspect_engine(config: InspectEngineConfig) -> None:
    """Show what built an engine, and for what, without TensorRT."""
    from .tensorrt.inspection import inspect_engine as run_inspect

    result, shown = run_inspect(config)
    _print(result, shown, config.json)


def package(config: PackageConfig) -> None:
    """Write a bundle for another server: a model repository of the Triton Inference Server."""
    from .bundles.triton import package as run_package

    result = run_package(config)
    _print(result, table(("field", "value"), result.items()), config.json)


def _print(result: Mapping[str, Any], shown: str, json: bool) -> None:
    """Print a result for programs or for people."""
    if json:
        print_json(result)
    else:
        print(shown)


def _measured_on(result: Mapping[str, Any]) -> str:
    return f"{result['bundle']}, measured on {result['images']['count']} images of {result['images']['data']}"


COMMANDS: dict[str, Callable[[Any], int | None]] = {
    "export": export,
    "import": import_onnx,
    "fp16": fp16,
    "quantize": quantize,
    "check": check,
    "build-engine": build_engine,
    "inspect-engine": inspect_engine,
    "package": package,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return dispatch(Program("krl-deploy", "Turn trained networks into bundles that run at the edge.", COMMANDS), argv)


if __name__ == "__main__":
    sys.exit(main())
