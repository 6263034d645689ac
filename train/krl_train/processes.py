"""The end of a command that several processes ran together, under torchrun."""

from __future__ import annotations

import gc
import sys

__all__ = ["leave_group"]


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
