"""The one training loop: devices, mixed precision, several processes, logging, checkpoints, resuming."""

from .devices import process_first, resolve_device
from .stream import BatchStream
from .trainer import CHECKPOINT, Trainer

__all__ = ["CHECKPOINT", "BatchStream", "Trainer", "process_first", "resolve_device"]
