"""The input of a classifier that learns from a teacher."""

from __future__ import annotations

from dataclasses import replace

from krl_compress.config import DistillConfig
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.config import InputConfig
from krl_train.data import Source, preprocessing_for
from krl_train.models import native_size
from krl_train.run import Run

__all__ = ["student_input"]


def student_input(
    config: DistillConfig, teacher: Preprocessing, source: Source, name: str, start: Run | None
) -> Preprocessing:
    """Return the student's input: that of the run which it starts from, else the teacher's."""
    if start is None:
        return preprocessing_for(_input(config.input, teacher, name), source, name)
    trained = start.record.preprocessing
    if config.quantization.quantize:
        return trained  # its normalization is frozen
    return preprocessing_for(config.input, source, name, trained=trained)


def _input(config: InputConfig, teacher: Preprocessing, student: str) -> InputConfig:
    """Let the student see images as the teacher does, but for what the user says."""
    needs_rgb = native_size(student) is not None
    channels = config.channels or (3 if needs_rgb else teacher.channels)
    same = channels == teacher.channels
    return replace(
        config,
        size=config.size or (teacher.height, teacher.width),
        channels=channels,
        resize=config.resize or teacher.resize,
        crop_fraction=config.crop_fraction or teacher.crop_fraction,
        interpolation=config.interpolation or teacher.interpolation,
        decode_tolerance=teacher.decode_tolerance if config.decode_tolerance is None else config.decode_tolerance,
        mean=config.mean or (teacher.mean if same else None),
        std=config.std or (teacher.std if same else None),
    )
