"""Commands that several processes run together, under torchrun: those that cannot, and how they end."""

from __future__ import annotations

import gc
import os
import sys

from krl_runtime.errors import UsageError

__all__ = ["leave_group", "refuse_several"]


def refuse_several(what: str) -> None:
    """Refuse to run in one of several processes.

    Args:
        what: The beginning of the message, as ``"--task gan trains"``.

    Raises:
        UsageError: torchrun started more than one process.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(f"{what} in one process; start it without torchrun")


def leave_group(code: int) -> int:
    """Leave the process group, if there is one, and return the command's exit code.

    A model that outlives the group that it was trained in aborts the interpreter now and then (gloo), with all work
    done: what is left of it goes first. After a failure the others are not waited for; torchrun ends them.

    Args:
        code: Exit code of the command.
    """
    torch = sys.modules.get("torch")
    if code or torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return code
    gc.collect()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    return code
