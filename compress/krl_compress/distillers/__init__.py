"""Distillers: how teachers, a student and losses make an objective."""

from __future__ import annotations

from krl_compress.teachers.fusion import FusedTeacher, Fusion
from krl_compress.teachers.teacher import FrozenTeacher, Teacher

from .distiller import Distiller
from .peers import PeerTask
from .weighted_losses import REGISTRY, WeightedLoss, check_labels, parse_loss

__all__ = [
    "REGISTRY",
    "Distiller",
    "FrozenTeacher",
    "FusedTeacher",
    "Fusion",
    "PeerTask",
    "Teacher",
    "WeightedLoss",
    "check_labels",
    "parse_loss",
]
