"""The batches of a training on a target and a source: each step has one of both."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, fields

from krl_train.tasks.base import Batch
from krl_train.tasks.joint import JointBatch
from krl_train.worker import Worker

from .stream import BatchStream

__all__ = ["JointStream"]


@dataclass(frozen=True, kw_only=True)
class JointStream(BatchStream):
    """The target's batches, each with the next one of the source, which begins anew after its last one.

    An epoch is one of the target. The batch of the source at each step follows from the number of steps since the start
    of the training alone; so a run that is resumed, and each of several processes, has the one that it would have had.

    Attributes:
        source: The source's batches.
    """

    source: BatchStream

    def epoch(self, epoch: int, first_step: int, worker: Worker) -> Iterator[JointBatch]:
        """Yield the batches of one epoch from ``first_step`` on; see ``BatchStream.epoch``."""
        with closing(self._of_source(epoch * self.steps + first_step, worker)) as others:
            for batch in super().epoch(epoch, first_step, worker):
                target = {item.name: getattr(batch, item.name) for item in fields(Batch)}
                yield JointBatch(**target, source=next(others))

    def _of_source(self, done: int, worker: Worker) -> Generator[Batch, None, None]:
        """Yield the source's batches without an end, after the first ``done`` of them."""
        epoch, step = divmod(done, self.source.steps)
        while True:
            yield from self.source.epoch(epoch, step, worker)
            epoch, step = epoch + 1, 0
