"""Training of teachers: images to a run.

::

    import krl_train

    teacher = krl_train.fit(data="images/", model="resnet18", size=112, out="runs/teacher")
    print(teacher.run, teacher.metrics["top1"])

Each function is a command of ``krl-train`` and takes its options as keyword arguments, or a whole configuration.
Importing this does not import torch; calling a function does.
"""

from typing import TYPE_CHECKING, Any

from krl_runtime._version import __version__
from krl_runtime.lazy import attribute

if TYPE_CHECKING:
    from .config import EvaluateConfig, ExplainConfig, FitConfig, ImportConfig, UnpackConfig
    from .run import Run, RunRecord
    from .verbs import (
        EvaluateResult,
        ExplainResult,
        RunResult,
        UnpackResult,
        evaluate,
        explain,
        fit,
        import_weights,
        unpack,
    )

__all__ = [
    "EvaluateConfig",
    "EvaluateResult",
    "ExplainConfig",
    "ExplainResult",
    "FitConfig",
    "ImportConfig",
    "Run",
    "RunRecord",
    "RunResult",
    "UnpackConfig",
    "UnpackResult",
    "__version__",
    "evaluate",
    "explain",
    "fit",
    "import_weights",
    "unpack",
]

_MODULES = {
    ".config": ("EvaluateConfig", "ExplainConfig", "FitConfig", "ImportConfig", "UnpackConfig"),
    ".run": ("Run", "RunRecord"),
    ".verbs": (
        "EvaluateResult",
        "ExplainResult",
        "RunResult",
        "UnpackResult",
        "evaluate",
        "explain",
        "fit",
        "import_weights",
        "unpack",
    ),
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first asked for."""
    return attribute(__name__, _MODULES, name)
