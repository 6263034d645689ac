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
from .tasks import GenerationConfig, KnowledgeConfig, RestorationConfig, StyleConfig, SyntheticConfig, TranslationConfig

__all__ = [
    "AugmentConfig",
    "DataConfig",
    "EvaluateConfig",
    "FitConfig",
    "GenerationConfig",
    "GeneratorScoreConfig",
    "ImportConfig",
    "InputConfig",
    "KnowledgeConfig",
    "LoopConfig",
    "OptimConfig",
    "OutOption",
    "RestorationConfig",
    "StyleConfig",
    "SyntheticConfig",
    "TrainingConfig",
    "TranslationConfig",
    "UnpackConfig",
    "to_plain",
]
