"""A user's own loss: a function of the student's and the teacher's logits, and of the labels if it takes them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from krl_runtime.errors import UsageError
from krl_train.custom import in_user_code, load_object

__all__ = ["custom_function"]

_ACCEPTED = "(student_logits, teacher_logits) or (student_logits, teacher_logits, labels)"


def custom_function(name: str) -> tuple[Callable[..., Tensor], bool]:
    """Return a user's loss, which checks what it returns, and whether it takes labels.

    Args:
        name: ``package.module:name``, or the name of an object that was given in Python.

    Raises:
        UsageError: It cannot be imported, or takes other arguments.
    """
    what = f"--loss {name}"
    target = load_object(name, "--loss")
    function = target.forward if isinstance(target, nn.Module) else target
    if not callable(function):
        raise UsageError(f"{what} is a {type(target).__name__}; accepted: a function of {_ACCEPTED}")
    takes_labels = _takes_labels(function, what)
    is_first = True

    @wraps(function)
    def checked(*arguments: Tensor, **options: Any) -> Tensor:
        nonlocal is_first
        with in_user_code(what):
            value = function(*arguments, **options)
        loss = _checked(what, value, arguments[0])
        if is_first and not torch.isfinite(loss):  # later the loop looks at the whole loss
            raise UsageError(f"{what} is {loss.item()} for the first batch; accepted: a finite number")
        is_first = False
        return loss

    return checked, takes_labels


def _takes_labels(function: Callable[..., Any], what: str) -> bool:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        raise UsageError(f"{what} cannot be called: {error}; accepted: a function of {_ACCEPTED}") from error
    positional = [
        item
        for item in parameters
        if item.kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    ]
    needed = [item for item in positional if item.default is inspect.Parameter.empty]
    if len(positional) < 2 or len(needed) > 3:
        raise UsageError(f"{what} takes {len(needed)} arguments; accepted: a function of {_ACCEPTED}")
    return len(needed) == 3 or (len(positional) > 2 and positional[2].name == "labels")


def _checked(what: str, value: object, student: Tensor) -> Tensor:
    if not isinstance(value, Tensor) or value.ndim or not value.is_floating_point():
        given = f"a {type(value).__name__}"
        if isinstance(value, Tensor):
            given = f"{str(value.dtype).removeprefix('torch.')} of shape {list(value.shape)}"
        raise UsageError(f"{what} returns {given}; accepted: one number, a floating-point tensor of shape []")
    if torch.is_grad_enabled() and student.requires_grad and not value.requires_grad:
        raise UsageError(
            f"{what} returns a number without a gradient; compute it from the student's logits with torch, without "
            "detach(), item() or no_grad()"
        )
    return value
