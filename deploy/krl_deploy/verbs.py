"""The Python API of deployment: the commands of ``krl-deploy`` as functions. Only ``export`` imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krl_runtime.verbs import configure

from .config import CheckConfig, ExportConfig, Fp16Config, ImportConfig, QuantizeConfig
from .results import (
    BoardResult,
    BundleResult,
    CheckResult,
    CompareResult,
    EngineResult,
    InspectResult,
    OnResult,
    PackageResult,
    ReportResult,
    SignResult,
    VariantResult,
)
from .tensorrt.config import BuildEngineConfig, InspectEngineConfig, RefitConfig

if TYPE_CHECKING:
    from .boards.facts import BoardAddConfig, BoardListConfig, BoardRemoveConfig
    from .bundles.sign import SignConfig
    from .bundles.triton import PackageConfig
    from .comparing.config import CompareConfig
    from .reporting.config import ReportConfig

__all__ = [
    "board_add",
    "board_list",
    "board_remove",
    "build_engine",
    "check",
    "compare",
    "export",
    "fp16",
    "import_onnx",
    "inspect_engine",
    "on",
    "package",
    "quantize",
    "refit",
    "report",
    "sign",
]


def export(config: ExportConfig | None = None, /, **options: Any) -> BundleResult:
    """Turn a run into a bundle: ONNX with preprocessing inside, checked against torch on real inputs.

    Args:
        config: A whole configuration; or give options.
        **options: As on the command line of ``krl-deploy export``: ``run``, ``out``, ``data`` …

    Raises:
        CheckFailedError: The graph's outputs differ from torch's.
        KrlError: The run, the data or an option cannot be used.
    """
    config = configure(ExportConfig, config, options)
    from .exporters.export import export as run_export

    return _bundle_result(run_export(config))


def import_onnx(config: ImportConfig | None = None, /, **options: Any) -> BundleResult:
    """Turn a third-party ONNX classifier, restorer or generator into a bundle: its input and output become krl's.

    Args:
        config: A whole configuration; or give options.
        **options: As on the command line of ``krl-deploy import``: ``model``, ``out``, ``data``, ``labels`` …

    Raises:
        CheckFailedError: The outputs of the rewritten graph differ from those of the file.
        KrlError: The file, the data or an option cannot be used.
    """
    config = configure(ImportConfig, config, options)
    from .importers.import_onnx import import_onnx as run_import

    return _bundle_result(run_import(config))


def fp16(config: Fp16Config | None = None, /, **options: Any) -> VariantResult:
    """Add an FP16 variant to a bundle, with the precision written into the graph.

    Args:
        config: A whole configuration; or give options.
        **options: As on the command line of ``krl-deploy fp16``: ``bundle``, ``data`` …

    Raises:
        CheckFailedError: The variant's outputs are not finite.
        KrlError: The bundle, the data or an option cannot be used.
    """
    config = configure(Fp16Config, config, options)
    from .precision.fp16 import fp16 as run_fp16

    return _variant_result(*run_fp16(config))


def quantize(config: QuantizeConfig | None = None, /, **options: Any) -> VariantResult:
    """Add an INT8 variant to a bundle, calibrated and measured on real inputs.

    Args:
        config: A whole configuration; or give options.
        **options: As on the command line of ``krl-deploy quantize``: ``bundle``, ``data``, ``max_drop`` …

    Raises:
        CheckFailedError: The accuracy drop is larger than accepted; the bundle is unchanged.
        KrlError: The bundle, the data or an option cannot be used.
    """
    config = configure(QuantizeConfig, config, options)
    from .precision.quantize import quantize as run_quantize

    return _variant_result(*run_quantize(config))


def build_engine(config: BuildEngineConfig | None = None, /, **options: Any) -> EngineResult:
    """Build an engine of TensorRT on this device, or of TensorRT-RTX anywhere; check it and keep it.

    Args:
        config: A whole configuration; or give options.
        **options: As on the command line of ``krl-deploy build-engine``: ``model``, ``precision``, ``profile`` …

    Raises:
        CheckFailedError: The outputs of the engine differ from the golden ones.
        KrlError: The model or an option cannot be used, nothing can be built here (unless ``prepare`` is given), or
            the build failed.
    """
    config = configure(BuildEngineConfig, config, options)
    from .tensorrt.engines import build_engine as run_build

    found, text = run_build(config)
    details = {name: value for name, value in found.items() if name not in ("model", "engine")}
    return EngineResult(config.model, found["engine"], details=details, text=text)


def refit(config: RefitConfig | None = None, /, **options: Any) -> EngineResult:
    """Put the weights of a bundle into an engine that was built for another one of the same architecture, and keep it.

    Args:
        config: A whole configuration; or give options.
        **options: As on the command line of ``krl-deploy refit``: ``model``, ``engine_of``, ``precision`` …

    Raises:
        CheckFailedError: The outputs of the engine with the new weights are wrong.
        KrlError: No engine fits this machine and these weights, or an option is wrong.
    """
    config = configure(RefitConfig, config, options)
    from .tensorrt.refitting import refit as run_refit

    found, text = run_refit(config)
    details = {key: value for key, value in found.items() if key not in ("model", "engine")}
    return EngineResult(Path(found["model"]), found["engine"], details=details, text=text)


def inspect_engine(config: InspectEngineConfig | None = None, /, **options: Any) -> InspectResult:
    """Return how and for what engines were built; TensorRT is not needed.

    Args:
        config: A whole configuration; or give options.
        **options: As on the command line of ``krl-deploy inspect-engine``: ``model``.

    Raises:
        KrlError: The file is not an engine, or the bundle cannot be opened.
    """
    config = configure(InspectEngineConfig, config, options)
    from .tensorrt.inspection import inspect_engine as run_inspect

    found, text = run_inspect(config)
    return InspectResult(config.model, found["engines"], text=text)


def check(config: CheckConfig | None = None, /, **options: Any) -> CheckResult:
    """Find what is wrong with a model for a device, before the device has seen it.

    Args:
        config: A whole configuration; or give options.
        **options: As on the command line of ``krl-deploy check``: ``model``, ``target``, ``parser`` …

    Returns:
        The findings; errors among them raise nothing here, see ``CheckResult.ready``.

    Raises:
        NoTensorRTError: ``parser`` is given, and no NVIDIA parser is installed.
        KrlError: The model, the target or an option cannot be used.
    """
    config = configure(CheckConfig, config, options)
    from .rules.fixes import fix_file
    from .rules.report import as_dict, as_text
    from .rules.run import check_path, unknown
    from .rules.sarif import as_sarif
    from .rules.targets import parse_target
    from .tensorrt.ask import TIME_LIMIT, ask_about, check_target

    target = parse_target(config.target)
    if config.parser:
        check_target(target)
    repaired = fix_file(config.model, target, config.fix, show=config.diff) if config.fix or config.diff else None
    checked = check_path(config.fix or config.model, target, config.precision)
    if config.parser:
        checked = ask_about(checked, target, config.time_limit or TIME_LIMIT)
    questions = unknown(checked, target)
    found = as_dict(checked, target, questions)
    details = {name: value for name, value in found.items() if name != "counts"}
    text = as_text(checked, target, questions)
    if repaired is not None:
        details["fixes"] = repaired.to_dict()
        text = f"{repaired.text}\n\n{text}"
    return CheckResult(config.model, found["counts"], as_sarif(checked, target), details=details, text=text)


def compare(config: CompareConfig | None = None, /, **options: Any) -> CompareResult:
    """Compare two variants of a bundle, or one on two backends, and with ``layers`` each layer of them.

    Args:
        config: A whole configuration; or give options.
        **options: As on the command line of ``krl-deploy compare``: ``bundle``, ``a``, ``b``, ``layers`` …

    Returns:
        The differences; a wrong layer raises nothing here, see ``CompareResult.first_wrong``.

    Raises:
        KrlError: The bundle, the data, a backend or an option cannot be used.
    """
    from .comparing.compare import compare as run_compare
    from .comparing.config import CompareConfig

    found, text = run_compare(configure(CompareConfig, config, options))
    wrong, layers = found.get("wrong", []), found.get("layers", [])
    below = sum(layer["status"] != "" for layer in layers)
    details = _without(found, "bundle")
    return CompareResult(Path(found["bundle"]), wrong[0] if wrong else None, below, details=details, text=text)


def report(config: ReportConfig | None = None, /, **options: Any) -> ReportResult:
    """Write one self-contained page of what is known of a bundle, or of a folder with runs, bundles and results.

    Args:
        config: A whole configuration; or give options.
        **options: As on the command line of ``krl-deploy report``: ``path``, ``out``, ``data``, ``samples`` …

    Raises:
        KrlError: There is nothing to report, a library is missing, or an option cannot be used.
    """
    from .reporting.config import ReportConfig
    from .reporting.report import report as run_report

    found = run_report(configure(ReportConfig, config, options))
    return ReportResult(Path(found["report"]), details=_without(found, "report"))


def package(config: PackageConfig | None = None, /, **options: Any) -> PackageResult:
    """Write a bundle for another server, as a Triton repository; or as one file with only what a target loads.

    Args:
        config: A whole configuration; or give options.
        **options: As on the command line of ``krl-deploy package``: ``bundle``, ``out``, ``to``, ``slim`` …

    Raises:
        KrlError: The bundle or an option cannot be used.
    """
    from .bundles.slim import package_slim
    from .bundles.triton import PackageConfig
    from .bundles.triton import package as run_package

    config = configure(PackageConfig, config, options)
    return PackageResult(details=package_slim(config) if config.slim else run_package(config))


def sign(config: SignConfig | None = None, /, **options: Any) -> SignResult:
    """Sign a bundle with an Ed25519 key, so that ``krl_runtime.load(..., trust=KEY)`` accepts it and its engines.

    Args:
        config: A whole configuration; or give options.
        **options: As on the command line of ``krl-deploy sign``: ``bundle``, ``key``.

    Raises:
        KrlError: The bundle is damaged, or the key cannot be used.
    """
    from .bundles.sign import SignConfig
    from .bundles.sign import sign as run_sign

    return SignResult(details=run_sign(configure(SignConfig, config, options)))


def board_add(config: BoardAddConfig | None = None, /, **options: Any) -> BoardResult:
    """Connect to a board over SSH, say what is there, and keep it under a name.

    Args:
        config: A whole configuration; or give options.
        **options: As on the command line of ``krl-deploy board add``: ``name``, ``host``, ``port`` …

    Raises:
        KrlError: The board cannot be reached, or an option cannot be used.
    """
    from .boards.facts import BoardAddConfig, add

    return BoardResult(details=add(configure(BoardAddConfig, config, options)))


def board_list(config: BoardListConfig | None = None, /, **options: Any) -> BoardResult:
    """Return the boards that were added.

    Args:
        config: A whole configuration; or give options.
        **options: As on the command line of ``krl-deploy board list``.

    Raises:
        KrlError: The list of boards cannot be read.
    """
    from .boards.facts import BoardListConfig, listed

    return BoardResult(details=listed(configure(BoardListConfig, config, options)))


def board_remove(config: BoardRemoveConfig | None = None, /, **options: Any) -> BoardResult:
    """Forget a board, and with ``clean`` remove krl's files from it.

    Args:
        config: A whole configuration; or give options.
        **options: As on the command line of ``krl-deploy board remove``: ``name``, ``clean``.

    Raises:
        KrlError: There is no such board, or it cannot be reached.
    """
    from .boards.facts import BoardRemoveConfig, remove

    return BoardResult(details=remove(configure(BoardRemoveConfig, config, options)))


def on(board: str, command: Sequence[str], *, capture: bool = True) -> OnResult:
    """Run a command of ``krl-runtime`` or ``krl-deploy`` on a board, and bring its results back.

    Args:
        board: Name of the board.
        command: The command and its arguments, as ``["evaluate", "flowers.krl", "photos/", "--json"]``. Paths of this
            machine are copied to the board.
        capture: Whether to return the command's standard output; without it, it is this process's.

    Returns:
        The end of the command; an exit code other than 0 raises nothing here.

    Raises:
        KrlError: The board or an argument cannot be used, or the connection broke.
    """
    import logging

    from .boards.command import board_command
    from .boards.on import run_on
    from .boards.registry import find_board

    quiet = not logging.getLogger("krl").isEnabledFor(logging.INFO)
    found = find_board(board)
    outcome = run_on(found, board_command(command, board_configurations(), quiet=quiet), capture=capture)
    return OnResult(outcome.exit_code, outcome.output, outcome.files, outcome.copied)


def board_configurations() -> dict[str, type]:
    """Return the configuration of each command of ``krl-deploy`` that a board can run."""
    from .bundles.sign import SignConfig
    from .bundles.triton import PackageConfig
    from .comparing.config import CompareConfig
    from .reporting.config import ReportConfig

    return {
        "export": ExportConfig,
        "import": ImportConfig,
        "fp16": Fp16Config,
        "quantize": QuantizeConfig,
        "check": CheckConfig,
        "compare": CompareConfig,
        "build-engine": BuildEngineConfig,
        "inspect-engine": InspectEngineConfig,
        "refit": RefitConfig,
        "report": ReportConfig,
        "package": PackageConfig,
        "sign": SignConfig,
    }


def _bundle_result(found: Mapping[str, Any]) -> BundleResult:
    return BundleResult(Path(found["bundle"]), details=_without(found, "bundle"))


def _variant_result(found: Mapping[str, Any], text: str) -> VariantResult:
    return VariantResult(Path(found["bundle"]), details=_without(found, "bundle"), text=text)


def _without(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key != name}
