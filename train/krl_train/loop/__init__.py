"""The one training loop: devices, mixed precision, several processes, logging, checkpoints, resuming."""

from .stream import BatchStream
from .trainer import CHECKPOINT, Trainer, process_first, resolve_device

__all__ = ["CHECKPOINT", "BatchStream", "Trainer", "process_first", "resolve_device"]
