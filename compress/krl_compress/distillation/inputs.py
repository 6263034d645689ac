"""Teachers with several inputs: what their students are trained with, and what does not go with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from krl_compress.config import DistillConfig
from krl_compress.teachers.loading import LoadedTeacher
from krl_runtime.bundle.further_inputs import INPUTS, FurtherInput
from krl_runtime.errors import UsageError
from krl_runtime.images.descriptors import DescriptorInput
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.models.fusion import FusionNetwork
from krl_train.models.spec import FUSION
from krl_train.training.further import refuse_mixing

__all__ = ["check_size", "inputs_of", "same_inputs"]


def inputs_of(teachers: Sequence[LoadedTeacher], config: DistillConfig) -> tuple[FurtherInput, ...]:
    """Return the inputs beside the image that teachers take; none for most of them.

    Args:
        teachers: The teachers.
        config: The options of the distillation.

    Raises:
        UsageError: Teachers take other inputs, or an option does not go with them.
    """
    fused = [teacher for teacher in teachers if isinstance(teacher.network, FusionNetwork)]
    if not fused:
        if config.student_inputs == "same":
            raise UsageError("--student-inputs same is for a teacher with several inputs; leave it out")
        return ()
    first, *others = (_network(teacher).further for teacher in fused)
    if any(other != first for other in others):
        names = " and ".join(teacher.name for teacher in fused)
        raise UsageError(f"teachers {names} take other inputs beside the image; give teachers that take the same")
    for option, given in (
        ("--unlabeled", bool(config.unlabeled)),
        ("--data-free", config.data_free.data_free is not None),
        ("--cache-teacher", config.cache.cache_teacher),
        ("--quantize", config.quantization.quantize is not None and config.student_inputs == "same"),
    ):
        if given:
            raise UsageError(
                f"{option} is for classifiers of the image alone, and teacher {fused[0].name} takes "
                f"{', '.join(item.input for item in first)} as well; leave it out"
            )
    refuse_mixing(config.augment.mixes)
    return tuple(first)


def check_size(inputs: Sequence[FurtherInput], teachers: Sequence[LoadedTeacher], preprocessing: Preprocessing) -> None:
    """Check that descriptors are computed as the teacher was trained with: of images of the same size and colors.

    Args:
        inputs: Inputs beside the image.
        teachers: The teachers.
        preprocessing: From an image to the student's input.

    Raises:
        UsageError: The student sees other images.
    """
    if not any(isinstance(item, DescriptorInput) for item in inputs):
        return
    shapes = {teacher.network.preprocessing.shape for teacher in teachers if isinstance(teacher.network, FusionNetwork)}
    if shapes != {preprocessing.shape}:
        (channels, height, width), *_ = shapes
        raise UsageError(
            f"the teacher takes descriptors of images of {channels}x{height}x{width}, the student would see others; "
            "leave --size and --channels out, or give another student"
        )


def same_inputs(teachers: Sequence[LoadedTeacher]) -> dict[str, Any]:
    """Return the arguments of a student that takes the inputs of its teacher, fused in the same way."""
    fused = next(teacher for teacher in teachers if isinstance(teacher.network, FusionNetwork))
    assert fused.record is not None  # noqa: S101  for the type checker: only runs are such networks
    return {key: fused.record.model.arguments[key] for key in (INPUTS, FUSION)}


def _network(teacher: LoadedTeacher) -> FusionNetwork:
    assert isinstance(teacher.network, FusionNetwork)  # noqa: S101  for the type checker
    return teacher.network
