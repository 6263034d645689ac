"""Configurations: each is at once the Python API, the command line, the YAML file and what ``run.json`` stores.

Nothing here imports torch, so that ``--help`` works without it.
"""

from .base import (
    AugmentConfig,
    DataConfig,
    EvaluateConfig,
    FitConfig,
    GeneratorScoreConfig,
    ImportConfig,
    InputConfig,
    LoopConfig,
    OptimConfig,
    OutOption,
    TrainingConfig,
    UnpackConfig,
    to_plain,
)
from .names import RECORD, WEIGHTS, recorded_task
from .tasks import (
    ConditioningConfig,
    GenerationConfig,
    RestorationConfig,
    StyleConfig,
    SyntheticConfig,
    TranslationConfig,
)

__all__ = [
    "RECORD",
    "WEIGHTS",
    "AugmentConfig",
    "ConditioningConfig",
    "DataConfig",
    "EvaluateConfig",
    "FitConfig",
    "GenerationConfig",
    "GeneratorScoreConfig",
    "ImportConfig",
    "InputConfig",
    "LoopConfig",
    "OptimConfig",
    "OutOption",
    "RestorationConfig",
    "StyleConfig",
    "SyntheticConfig",
    "TrainingConfig",
    "TranslationConfig",
    "UnpackConfig",
    "recorded_task",
    "to_plain",
]
