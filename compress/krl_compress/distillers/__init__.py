"""Distillers: how teachers, a student and losses make an objective."""

from __future__ import annotations

from .teacher import FrozenTeacher, Teacher
from .teacher_student import TeacherStudent

__all__ = ["FrozenTeacher", "Teacher", "TeacherStudent"]
