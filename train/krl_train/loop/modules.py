"""Changes of modules before they are trained: synchronized batch normalization, compilation."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from krl_runtime.errors import UsageError
from krl_train.config import PlannedLoop
from krl_train.tasks.base import Learner
from krl_train.worker import Worker

__all__ = ["compile_network", "compiling", "convert_batch_norm", "synchronize_batch_norm"]

_log = logging.getLogger("krl")

_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_COMPILERS = ("torch._dynamo", "torch._inductor")  # modules whose errors are the compiler's


def synchronize_batch_norm(learner: Learner, worker: Worker) -> None:
    """Let the batch normalization of a module take its statistics over all processes.

    Layers are replaced in place. They hold the same parameters and buffers under the same names, so that the weights
    load into the network as it was. In one process nothing is done: its statistics are those of the whole batch.

    Args:
        learner: Before it is prepared for several processes.
        worker: One of them.

    Raises:
        UsageError: The processes are not on GPUs, which torch's implementation needs; or a layer does more than batch
            normalization.
    """
    if worker.world == 1:
        _log.info("--sync-bn: one process has the statistics of the whole batch anyway")
        return
    if worker.device.type != "cuda":
        raise UsageError("--sync-bn needs a GPU for each process (torch's SyncBatchNorm); leave it out on CPUs")
    convert_batch_norm(learner.module)


def convert_batch_norm(module: nn.Module) -> None:
    """Replace the batch normalization inside of a module by the synchronized one.

    Raises:
        UsageError: A layer is of a class derived from batch normalization, which would be lost.
    """
    other = next(
        (layer for layer in module.modules() if isinstance(layer, _BatchNorm) and type(layer) not in _PLAIN), None
    )
    if other is not None:
        raise UsageError(
            f"--sync-bn: {type(other).__name__} does more than batch normalization, and torch has no synchronized form "
            "of it; leave --sync-bn out, or take another --model"
        )
    nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]


def compile_network(learner: Learner) -> None:
    """Compile the network of a learner with torch.compile; names of weights stay, and its average is not compiled."""
    (learner.average_of or learner.module).compile()


@contextmanager
def compiling(config: PlannedLoop) -> Iterator[None]:
    """Turn what the compiler raises at the first use of a network into a message.

    Raises:
        UsageError: The network cannot be compiled here.
    """
    try:
        yield
    except Exception as error:  # inductor's and dynamo's errors have no common class
        causes = [error, *chain(_causes(error))]
        if not config.compile or not any(type(each).__module__.startswith(_COMPILERS) for each in causes):
            raise
        reason = str(causes[-1]).strip().partition("\n")[0]
        raise UsageError(
            f"--compile: torch.compile failed ({type(causes[-1]).__name__}: {reason}); on a CPU it needs a C++ "
            "compiler (g++, or CXX=…); install one, or leave --compile out"
        ) from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    while error.__cause__ is not None:
        error = error.__cause__
        yield error
