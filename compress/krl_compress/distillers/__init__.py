"""Distillers: how teachers, a student and losses make an objective."""

from __future__ import annotations

from .distiller import Distiller
from .fusion import FusedTeacher, Fusion
from .peers import PeerTask
from .teacher import FrozenTeacher, Teacher
from .terms import KINDS, TermSpec, parse_term

__all__ = [
    "KINDS",
    "Distiller",
    "FrozenTeacher",
    "FusedTeacher",
    "Fusion",
    "PeerTask",
    "Teacher",
    "TermSpec",
    "parse_term",
]
