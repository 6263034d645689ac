"""Where a training computes: the device, the mixed precision, and the processes that take part."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from krl_runtime.errors import UsageError
from krl_train.config import PlannedLoop

__all__ = ["make_accelerator", "process_first", "resolve_device"]


def resolve_device(name: str) -> torch.device:
    """Return the device to use.

    Args:
        name: ``"auto"``, ``"cpu"`` or ``"cuda"``.

    Raises:
        UsageError: A GPU is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UsageError("--device cuda, but torch sees no CUDA device on this machine; use --device cpu")
    if name == "cpu" or not available:
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def _precision(name: str, device: torch.device) -> str:
    """Return Accelerate's name of the mixed precision: ``"no"``, ``"bf16"`` or ``"fp16"``."""
    if name == "fp16" and device.type == "cpu":
        raise UsageError("--precision fp16 needs a GPU; on a CPU use fp32 or bf16")
    if name != "auto":
        return {"fp32": "no"}.get(name, name)
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    # On a CPU without bfloat16 instructions mixed precision is slower than float32.
    fast = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return "bf16" if any(getattr(torch.cpu, probe, bool)() for probe in fast) else "no"


@contextmanager
def process_first(device: str) -> Iterator[None]:
    """Let one of several processes run a block before the others do; a single process just runs it.

    Args:
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``, as for the training that follows.
    """
    from accelerate import PartialState

    with PartialState(cpu=resolve_device(device).type == "cpu").main_process_first():
        yield


def make_accelerator(config: PlannedLoop, *, unfreezes: bool) -> Any:
    """Return Accelerate's object for a training: device, processes and mixed precision.

    Args:
        config: How long and on what.
        unfreezes: Whether some parameters are trained from a later step on.
    """
    import torch.distributed
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState

    device = resolve_device(config.device)
    # Accelerate keeps its settings for the process; a second training may have others.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=_precision(config.precision, device),
        step_scheduler_with_optimizer=False,
        # Processes would otherwise wait for the gradients of what is frozen as yet.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=unfreezes)],
    )
