"""The task-specific part of converting a model: its inputs, how two variants are compared, and the accuracy drop."""

from __future__ import annotations

from krl_runtime.bundle import Bundle
from krl_runtime.errors import UsageError

from .task import Batch, CalibrationData, EvaluationOptions, Scored, Tally, Task

__all__ = ["Batch", "CalibrationData", "EvaluationOptions", "Scored", "Tally", "Task", "task_of"]


def task_of(bundle: Bundle, options: EvaluationOptions) -> Task:
    """Return a bundle's task.

    Args:
        bundle: The bundle.
        options: Options for calibration and evaluation data.

    Raises:
        UsageError: The task is not known, or an option is not for it.
        DataError: The data cannot be used.
    """
    from .classification import Classification
    from .embedding import Embedding
    from .generation import Generation
    from .restoration import Restoration

    kinds: dict[str, type[Task]] = {
        "classification": Classification,
        "embedding": Embedding,
        "restoration": Restoration,
        "generation": Generation,
    }
    if bundle.manifest.task not in kinds:
        raise UsageError(f"bundle {bundle.path} is for the task {bundle.manifest.task!r}; accepted: {', '.join(kinds)}")
    return kinds[bundle.manifest.task](bundle, options)
