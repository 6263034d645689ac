"""Turns runs and third-party ONNX files into bundles, converts them to FP16 and INT8, and builds engines from them.

::

    import krl_deploy

    bundle = krl_deploy.export(run="runs/student", out="student.krl").bundle
    krl_deploy.quantize(bundle=bundle, data="images/", max_drop=0.5)
    print(krl_deploy.check(model=bundle, target="jetpack-6.2").ready)

Importing this does not import onnx; calling a function does, and ``export`` imports torch.
"""

from typing import TYPE_CHECKING, Any

from krl_runtime._version import __version__
from krl_runtime.lazy import attribute

if TYPE_CHECKING:
    from .boards.facts import BoardAddConfig, BoardListConfig, BoardRemoveConfig
    from .comparing.config import CompareConfig
    from .config import CheckConfig, ExportConfig, Fp16Config, ImportConfig, QuantizeConfig
    from .reporting.config import ReportConfig
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
    from .verbs import (
        board_add,
        board_list,
        board_remove,
        build_engine,
        check,
        compare,
        export,
        fp16,
        import_onnx,
        inspect_engine,
        on,
        package,
        quantize,
        refit,
        report,
        sign,
    )

__all__ = [
    "BoardAddConfig",
    "BoardListConfig",
    "BoardRemoveConfig",
    "BoardResult",
    "BuildEngineConfig",
    "BundleResult",
    "CheckConfig",
    "CheckResult",
    "CompareConfig",
    "CompareResult",
    "EngineResult",
    "ExportConfig",
    "Fp16Config",
    "ImportConfig",
    "InspectEngineConfig",
    "InspectResult",
    "OnResult",
    "PackageResult",
    "QuantizeConfig",
    "RefitConfig",
    "ReportConfig",
    "ReportResult",
    "SignResult",
    "VariantResult",
    "__version__",
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

_MODULES = {
    ".boards.facts": ("BoardAddConfig", "BoardListConfig", "BoardRemoveConfig"),
    ".comparing.config": ("CompareConfig",),
    ".reporting.config": ("ReportConfig",),
    ".config": ("CheckConfig", "ExportConfig", "Fp16Config", "ImportConfig", "QuantizeConfig"),
    ".results": (
        "BoardResult",
        "BundleResult",
        "CheckResult",
        "CompareResult",
        "EngineResult",
        "InspectResult",
        "OnResult",
        "PackageResult",
        "ReportResult",
        "SignResult",
        "VariantResult",
    ),
    ".tensorrt.config": ("BuildEngineConfig", "InspectEngineConfig", "RefitConfig"),
    ".verbs": (
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
    ),
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first asked for."""
    return attribute(__name__, _MODULES, name)
