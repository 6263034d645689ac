"""Compression: a teacher's run to a student's run.

::

    import krl_compress

    student = krl_compress.distill(
        teacher="runs/teacher", student="mobilenet_v3_small", baseline=True, out="runs/student"
    )
    print(student.student["top1"], student.baseline["top1"])

``losses`` are functions of tensors; ``teachers`` loads, stores and fuses the teachers of a student; ``distillers``
makes objectives of both; ``distillation`` goes from a configuration to a finished student; ``pruning`` makes a thinner
network of a trained one; ``searching`` finds the student that fits a budget; ``studies`` compares methods. Importing
this does not import torch; calling a function does.
"""

from typing import TYPE_CHECKING, Any

from krl_runtime._version import __version__
from krl_runtime.lazy import attribute

if TYPE_CHECKING:
    from .config import DistillConfig, JointConfig, MutualConfig, PruneConfig, SearchConfig, StudyConfig
    from .verbs import (
        DistillResult,
        PruneResult,
        SearchResult,
        StudyResult,
        TogetherResult,
        distill,
        joint,
        mutual,
        prune,
        search,
        study,
    )

__all__ = [
    "DistillConfig",
    "DistillResult",
    "JointConfig",
    "MutualConfig",
    "PruneConfig",
    "PruneResult",
    "SearchConfig",
    "SearchResult",
    "StudyConfig",
    "StudyResult",
    "TogetherResult",
    "__version__",
    "distill",
    "joint",
    "mutual",
    "prune",
    "search",
    "study",
]

_MODULES = {
    ".config": ("DistillConfig", "JointConfig", "MutualConfig", "PruneConfig", "SearchConfig", "StudyConfig"),
    ".verbs": (
        *("DistillResult", "PruneResult", "SearchResult", "StudyResult", "TogetherResult"),
        *("distill", "joint", "mutual", "prune", "search", "study"),
    ),
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first asked for."""
    return attribute(__name__, _MODULES, name)
