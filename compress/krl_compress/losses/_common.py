"""Precision and checks of inputs, the same for every loss."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from krl_runtime.errors import UsageError

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(loss: Callable[P, R]) -> Callable[P, R]:
    """Make a loss compute in float32 at least, whatever it is given and wherever it is called.

    float16 and bfloat16 tensors become float32; float32 and float64 stay. Autocast is off inside: it would take
    matrix products back to half precision.
    """

    @functools.wraps(loss)
    def wrapper(*args: Any, **kwargs: Any) -> R:
        device = next((value.device.type for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), "cpu")
        with torch.autocast(device, enabled=False):
            return loss(*map(_upcast, args), **{name: _upcast(value) for name, value in kwargs.items()})

    return wrapper


def _upcast(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    return value


def check_pair(student: Tensor, teacher: Tensor, *, what: str, form: str, same: str) -> tuple[Tensor, Tensor]:
    """Check what student and teacher give to a loss, and cut the teacher from the graph.

    Args:
        student: Floating point, of the shape ``form``.
        teacher: Likewise.
        what: What the tensors are, for the message ("logits").
        form: Names of the dimensions, separated by spaces ("N C H W"); "N ..." allows any number of further ones.
        same: Those dimensions that must be of the same size in both ("N H W").

    Returns:
        Both in their common dtype, the teacher's detached.

    Raises:
        UsageError: Shapes or dtypes are not these, or a dimension is 0.
    """
    dimensions = form.split()
    if dimensions[-1] == "...":
        fits = student.ndim >= len(dimensions) and teacher.ndim >= len(dimensions)
    else:
        fits = student.ndim == teacher.ndim == len(dimensions)
    equal = fits and all(student.shape[dimensions.index(d)] == teacher.shape[dimensions.index(d)] for d in same.split())
    if not equal or not student.numel() or not teacher.numel():
        raise UsageError(
            f"student {what} {tuple(student.shape)} and teacher {what} {tuple(teacher.shape)}: accepted are two "
            f"tensors ({', '.join(dimensions)}) of the same {', '.join(same.split())}, no dimension 0"
        )
    if not (student.is_floating_point() and teacher.is_floating_point()):
        raise UsageError(
            f"student {what} are {student.dtype} and teacher {what} {teacher.dtype}: accepted are floating dtypes"
        )
    dtype = torch.promote_types(student.dtype, teacher.dtype)
    return student.to(dtype), teacher.detach().to(dtype)


def check_logits(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`check_pair` for logits, (N, C) both."""
    return check_pair(student, teacher, what="logits", form="N C", same="N C")


def check_labels(labels: Tensor, logits: Tensor) -> Tensor:
    """Check the class of each sample against logits (N, C), and return the labels as int64.

    Raises:
        UsageError: Labels are not (N,) integers in [0, C), or C is 1. The range is looked at on the CPU alone:
            elsewhere every step would wait for the device, whose own index check stops it.
    """
    samples, classes = logits.shape
    if classes < 2:
        raise UsageError(f"logits {tuple(logits.shape)}: a loss that sets the label apart needs at least 2 classes")
    if labels.shape != (samples,) or labels.dtype not in (torch.int64, torch.int32):
        raise UsageError(
            f"labels {tuple(labels.shape)} of {labels.dtype} for logits {tuple(logits.shape)}: "
            f"accepted is one class per sample, shape ({samples},), int64 or int32"
        )
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= classes:
            raise UsageError(
                f"labels run from {low} to {high} for logits {tuple(logits.shape)}: accepted are 0 to {classes - 1}"
            )
    return labels.long()


def check_positive(**values: float) -> None:
    """Raise UsageError for a hyperparameter that is not greater than 0."""
    for name, value in values.items():
        if not value > 0:
            raise UsageError(f"{name} is {value}: accepted are numbers greater than 0")


def unit(vectors: Tensor) -> Tensor:
    """Bring vectors (..., D) to L2 norm 1; one that has no direction (norm up to 1e-12) gives 0, and no gradient."""
    norm: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / norm.masked_fill(norm <= 1e-12, float("inf"))


def soften(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Check the logits (N, C) and divide them by the temperature; the teacher's come back detached."""
    check_positive(temperature=temperature)
    student, teacher = check_logits(student, teacher)
    return student / temperature, teacher / temperature


def kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(softmax(teacher) ‖ softmax(student)) of each row of logits (N, C), (N,)."""
    student, teacher = F.log_softmax(student, dim=1), F.log_softmax(teacher, dim=1)
    return (teacher.exp() * (teacher - student)).sum(dim=1)


def binary_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL between Bernoulli distributions of probability sigmoid(logit), element by element, in log space."""
    yes = teacher.sigmoid() * (F.logsigmoid(teacher) - F.logsigmoid(student))
    no = (-teacher).sigmoid() * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    return yes + no
