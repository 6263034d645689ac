"""Metrics of models; torchmetrics computes them."""

from __future__ import annotations

from .classification import evaluate_classifier, standard_error
from .restoration import evaluate_restorer

__all__ = ["evaluate_classifier", "evaluate_restorer", "standard_error"]
