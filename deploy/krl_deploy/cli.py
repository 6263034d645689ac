"""The command ``krl-deploy``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from krl_runtime.cli.commandline import next_command, print_json
from krl_runtime.cli.dispatch import Program, dispatch, run_nested
from krl_runtime.cli.tables import table
from krl_runtime.errors import CheckFailedError
from krl_runtime.verbs import Result

from . import verbs
from .boards.facts import BoardAddConfig, BoardListConfig, BoardRemoveConfig
from .bundles.sign import SignConfig
from .bundles.triton import PackageConfig
from .comparing.config import CompareConfig
from .config import CheckConfig, ExportConfig, Fp16Config, ImportConfig, QuantizeConfig
from .reporting.config import ReportConfig
from .results import VariantResult
from .tensorrt.config import BuildEngineConfig, InspectEngineConfig, RefitConfig

__all__ = ["main"]


def export(config: ExportConfig) -> None:
    """Turn a run into a bundle: ONNX with preprocessing inside, checked against torch on real inputs."""
    result = verbs.export(config)
    found, parity = result.details, result.details["parity"]
    kind = f"{found['labels']} classes" if found["task"] == "classification" else found["task"]
    facts = {
        "model": f"{found['model']}, {kind}",
        "parameters": f"{found['parameters']:,}",
        "MACs": f"{found['macs']:,}",
        "file": f"{found['file_bytes'] / 2**20:.2f} MiB, opset {found['opset']}",
        "largest error": f"{parity['max_abs_error']:.3g} on {parity['inputs']} real inputs",
        **_refusal(found.get("none_of_these")),
    }
    _print(result, table(("bundle", str(result.bundle)), facts.items()), config.json)
    data = "" if found["task"] == "generation" else f" --data {config.data or 'FOLDER'}"
    next_command(f"krl-deploy quantize {result.bundle}{data}")


def _refusal(found: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the rows of a table about the threshold of ``--none-of-these``."""
    if found is None:
        return {}
    threshold = f"a score below {found['least']:.4g}: {found['refused']:.2%} of {found['images']} validation images"
    if "others" not in found:
        return {"none of these": threshold}
    others = found["others"]
    measured = f"{others['refused']:.2%} of {others['images']} images, AUROC {others['auroc']:.4f}"
    return {"none of these": threshold, f"of {others['data']}": measured}


def import_onnx(config: ImportConfig) -> None:
    """Turn a third-party ONNX classifier, restorer or generator into a bundle: its input and output become krl's."""
    result = verbs.import_onnx(config)
    found = result.details
    facts = {
        "input": found["input"],
        "opset": found["opset"],
        "changes": "; ".join(found["changes"]),
        **_measured(found),
    }
    _print(result, table(("bundle", str(result.bundle)), facts.items()), config.json)
    next_command(f"krl-deploy quantize {result.bundle}{'' if config.data is None else f' --data {config.data}'}")


def fp16(config: Fp16Config) -> None:
    """Add an FP16 variant to a bundle, with the precision written into the graph."""
    result = verbs.fp16(config)
    _print(result, f"{_measured_on(result)}\n{result.text}", config.json)
    next_command(f"krl-deploy build-engine {result.bundle} --precision fp16")


def quantize(config: QuantizeConfig) -> None:
    """Add an INT8 variant to a bundle, calibrated and measured on real inputs."""
    result = verbs.quantize(config)
    found = result.details
    default = f"default on a CPU: {found['default_on_cpu']} (INT8 runs at {found['speedup']:.2f} times FP32's speed)"
    _print(result, f"{_measured_on(result)}\n{result.text}\n{default}", config.json)
    engine = [f"krl-deploy build-engine {result.bundle} --precision int8"] if found["operators"]["int8"]["int8"] else []
    next_command(*engine, f"krl-runtime selftest {result.bundle}")


def check(config: CheckConfig) -> None:
    """Say what is wrong with a model for a device, before the device has seen it."""
    result = verbs.check(config)
    if config.format == "sarif":
        print_json(result.sarif)
    else:
        _print(result, result.text, config.json)
    errors, name = result.counts["error"], result.details["target"]["name"]
    if errors:
        raise CheckFailedError(f"{config.model} is not ready for {name}: {errors} error{'s' * (errors > 1)}")
    next_command(f"krl-deploy build-engine {config.fix or config.model}")


def compare(config: CompareConfig) -> None:
    """Say how far two variants of a bundle are apart, or two backends, and with --layers which layer is wrong."""
    result = verbs.compare(config)
    _print(result, result.text, config.json)
    if config.min_snr is not None and result.below:
        raise CheckFailedError(
            f"{result.below} layers of {config.b} have too little SNR to {config.a}, required: {config.min_snr:g} dB"
        )


def build_engine(config: BuildEngineConfig) -> None:
    """Build an engine of TensorRT on this device, or of TensorRT-RTX anywhere; check it and keep it."""
    result = verbs.build_engine(config)
    _print(result, result.text, config.json)
    if config.model.is_dir() and result.engine is not None:
        next_command(f"krl-runtime selftest {config.model}")


def refit(config: RefitConfig) -> None:
    """Put a bundle's weights into an engine of the same architecture; check it and keep it, in seconds."""
    result = verbs.refit(config)
    _print(result, result.text, config.json)


def inspect_engine(config: InspectEngineConfig) -> None:
    """Show what built an engine, and for what, without TensorRT."""
    result = verbs.inspect_engine(config)
    _print(result, result.text, config.json)
    if config.model.is_dir():
        next_command(f"krl-runtime selftest {config.model}")


def report(config: ReportConfig) -> None:
    """Write one self-contained HTML page of what is known of a bundle, or of a folder of runs and bundles."""
    result = verbs.report(config)
    found = result.details
    facts = {
        "size": f"{found['bytes'] / 1e6:.2f} MB",
        "bundles": len(found["bundles"]),
        "runs": len(found["runs"]),
        "sections": len(found["sections"]),
        "not measured": len(found["absent"]),
        "files not used": len(found["skipped"]),
    }
    _print(result, table(("report", str(result.report)), facts.items()), config.json)


def package(config: PackageConfig) -> None:
    """Write a bundle for another server, as a Triton repository; or as one file with only what a target loads."""
    result = verbs.package(config)
    rows = [(name, ", ".join(value) if isinstance(value, list) else value) for name, value in result.details.items()]
    _print(result, table(("field", "value"), rows), config.json)
    if config.slim:
        next_command(f"tar xf {config.out}", f"krl-runtime selftest {result.details['bundle']}")
    else:
        next_command(f"tritonserver --model-repository {config.out}")


def sign(config: SignConfig) -> None:
    """Sign a bundle, so that devices can tell whose it is and trust its engines."""
    result = verbs.sign(config)
    rows = [(name, ", ".join(value) if isinstance(value, list) else value) for name, value in result.details.items()]
    _print(result, table(("field", "value"), rows), config.json)
    next_command(f"krl-runtime selftest {config.bundle} --trust PUBLIC_KEY")


def board_add(config: BoardAddConfig) -> None:
    """Connect to a board over SSH, say what is there, and keep it under a name."""
    result = verbs.board_add(config)
    found = result.details
    modules = {name: "not installed" if version is None else version for name, version in found["modules"].items()}
    facts = {
        "host": found["host"],
        "machine": f"{found['machine']}, {found['system']}",
        "JetPack": found["jetpack"] or found["jetson_linux"] or "none: not a Jetson",
        "Python": found["python"],
        "free disk": f"{found['free_bytes'] / 2**30:.1f} GiB for {found['folder']}",
        **modules,
    }
    _print(result, table(("board", found["board"]), facts.items()), config.json)
    next_command(f"krl-deploy on {config.name} doctor")


def board_list(config: BoardListConfig) -> None:
    """List the boards that were added."""
    result = verbs.board_list(config)
    rows = [
        (item["name"], item["host"], item["port"], item["python"], item["folder"]) for item in result.details["boards"]
    ]
    _print(result, table(("board", "host", "port", "Python", "folder"), rows), config.json)


def board_remove(config: BoardRemoveConfig) -> None:
    """Forget a board, and with --clean remove krl's files from it."""
    result = verbs.board_remove(config)
    _print(result, table(("field", "value"), result.details.items()), config.json)


def _board(arguments: list[str]) -> int | None:
    """Add, list or remove boards that are reached over SSH: krl-deploy board COMMAND."""
    return run_nested(_BOARD_PROGRAM, arguments)


def _on(arguments: list[str]) -> int | None:
    """Run any command of krl-runtime or krl-deploy on a board: krl-deploy on BOARD COMMAND ..."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_ON_HELP)
        return 0 if arguments else 2
    if len(arguments) > 2 and arguments[1] in COMMANDS and {"-h", "--help", "--help-all"} & set(arguments[2:]):
        return run_nested(_PROGRAM, arguments[1:])
    return verbs.on(arguments[0], arguments[1:], capture=False).exit_code


def _print(result: Result, shown: str, json: bool) -> None:
    """Print a result for programs or for people."""
    if json:
        print_json(result.to_dict())
    else:
        print(shown)


_MEASURED = (("top1", "top-1", "{:.2%}"), ("map", "mAP", "{:.2%}"))


def _measured(found: Mapping[str, Any]) -> dict[str, str]:
    """Return the measurement of an imported model, for people."""
    if "parity" in found:
        parity = found["parity"]
        return {"largest difference": f"{parity['max_abs_error']:.3g} of 255 on {parity['inputs']} latents"}
    key, kind, form = next((each for each in _MEASURED if each[0] in found), ("psnr", "PSNR in dB", "{:.2f}"))

    def shown(value: float | None, count: int) -> str:
        return "not measured" if value is None else f"{form.format(value)} on {count} images"

    facts = {kind: shown(found[key], found["count"])}
    if "quantized_file" in found:
        file = found["quantized_file"]
        facts[f"{kind} of the file itself"] = shown(file["scores"]["quantized_file"][key], file["count"])
    return facts


def _measured_on(result: VariantResult) -> str:
    images = result.details["images"]
    return f"{result.bundle}, measured on {images['count']} images of {images['data']}"


COMMANDS: dict[str, Callable[[Any], int | None]] = {
    "export": export,
    "import": import_onnx,
    "fp16": fp16,
    "quantize": quantize,
    "check": check,
    "compare": compare,
    "build-engine": build_engine,
    "inspect-engine": inspect_engine,
    "refit": refit,
    "report": report,
    "package": package,
    "sign": sign,
}


_BOARD_COMMANDS: dict[str, Callable[[Any], int | None]] = {
    "add": board_add,
    "list": board_list,
    "remove": board_remove,
}
_BOARD_PROGRAM = Program("krl-deploy board", "Boards that are reached over SSH.", _BOARD_COMMANDS)
_PROGRAM = Program(
    "krl-deploy",
    "Turn trained networks into bundles that run at the edge.",
    COMMANDS,
    unparsed={"board": _board, "on": _on},
)
_ON_HELP = """\
usage: krl-deploy on BOARD COMMAND [options]

Run any command of krl-runtime or krl-deploy on a board, with bundles, folders
and files of this machine. What is not on the board yet is copied; a copy that
broke off goes on where it stopped. Its output appears here, its exit code is
the exit code, and what it wrote is brought back: results of -o to their place,
engines, tuning and evaluations to NAME.krl.boards/BOARD/. The bundle here stays
as it is. Paths that are not on this machine are paths of the board.

  krl-deploy board add jetson user@host
  krl-deploy on jetson evaluate flowers.krl photos/
  krl-deploy on jetson build-engine flowers.krl --precision int8
  krl-deploy on jetson bench flowers.krl --json
  krl-deploy on jetson doctor"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return dispatch(_PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
