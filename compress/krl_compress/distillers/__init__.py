"""Distillers: how teachers, a student and losses make an objective."""

from __future__ import annotations

from krl_compress.teachers.fusion import FusedTeacher, Fusion
from krl_compress.teachers.teacher import FrozenTeacher, Teacher

from .distiller import Distiller
from .peers import PeerTask
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
