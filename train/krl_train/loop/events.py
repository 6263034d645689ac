"""TensorBoard's event file of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Events"]


class Events:
    """TensorBoard's event file of a run, as a context manager; yields a function of a history entry and images."""

    def __init__(self, out: Path | None) -> None:
        self._out = out
        self._writer: Any = None

    def __enter__(self) -> Callable[[dict[str, Any], Mapping[str, npt.NDArray[np.uint8]]], None]:
        """Open the file."""
        if self._out is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._out / "events"))
        return self._write

    def _write(self, entry: dict[str, Any], images: Mapping[str, npt.NDArray[np.uint8]]) -> None:
        if self._writer is None:
            return
        for name, image in images.items():
            self._writer.add_image(name, image, entry["epoch"], dataformats="HWC")
        for name, value in entry.items():
            if isinstance(value, int | float) and name != "epoch":
                self._writer.add_scalar(name.replace("val_", "val/"), value, entry["epoch"])

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
