"""What is measured of a model; the computing is torchmetrics'."""

from __future__ import annotations

from .classification import evaluate_classifier

__all__ = ["evaluate_classifier"]
