"""Metrics of models; torchmetrics computes them, and those of several labels ``krl_runtime.evaluation``."""

from __future__ import annotations

from .classification import evaluate_classifier, quality_error, quality_name, quality_of, standard_error
from .restoration import evaluate_restorer

__all__ = [
    "evaluate_classifier",
    "evaluate_restorer",
    "quality_error",
    "quality_name",
    "quality_of",
    "standard_error",
]
