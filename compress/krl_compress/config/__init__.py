"""Configurations of ``krl-compress``; nothing here imports torch, so that ``--help`` works without it."""

from pathlib import Path

from .distillation import (
    CacheConfig,
    DataFreeConfig,
    DistillConfig,
    EmbeddingStudentConfig,
    GeneratorStudentConfig,
    JointConfig,
    MutualConfig,
    QuantizationConfig,
    StudyConfig,
)
from .losses import LOSS_OPTIONS, LOSSES, LossConfig, check_loss, split_loss
from .measuring import MeasuringConfig
from .pruning import Criterion, PruneConfig
from .searching import SEARCH_RECORD, SearchConfig

__all__ = [
    "LOSSES",
    "LOSS_OPTIONS",
    "RECIPES",
    "SEARCH_RECORD",
    "CacheConfig",
    "Criterion",
    "DataFreeConfig",
    "DistillConfig",
    "EmbeddingStudentConfig",
    "GeneratorStudentConfig",
    "JointConfig",
    "LossConfig",
    "MeasuringConfig",
    "MutualConfig",
    "PruneConfig",
    "QuantizationConfig",
    "SearchConfig",
    "StudyConfig",
    "check_loss",
    "split_loss",
]

RECIPES = Path(__file__).parent.parent / "recipes"
"""Folder of the recipes, NAME.yaml."""
