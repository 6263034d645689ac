"""Trainings that are stopped, to be resumed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from krl_train.loop import Trainer

__all__ = ["stopped_at_checkpoint"]


@contextmanager
def stopped_at_checkpoint(number: int = 3) -> Iterator[list[int]]:
    """Stop what is trained meanwhile as Ctrl-C does, right after the checkpoint of this number, from 1.

    Yields:
        The step of its epoch that each checkpoint was made at.
    """
    real = Trainer.save
    steps: list[int] = []

    def save_then_stop(trainer: Trainer) -> None:
        real(trainer)
        steps.append(trainer.state.step)
        if len(steps) == number:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Trainer, "save", save_then_stop)
        yield steps
