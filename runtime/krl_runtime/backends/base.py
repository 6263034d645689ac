"""What every backend is: adding one means adding one file that follows this protocol, and a line in ``select``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy.typing as npt

__all__ = ["Backend"]


class Backend(Protocol):
    """Runs one graph on one device. Instances may be called from several threads at once."""

    name: str
    """``"onnxruntime-cpu"``, ``"onnxruntime-cuda"`` or ``"tensorrt"``; what really runs, not what was asked for."""

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run the graph once.

        Args:
            inputs: For each input of the graph an array of its dtype and shape.

        Returns:
            For each output of the graph an array that the caller owns.

        Raises:
            BackendError: An input has another name, dtype or shape, or the device failed.
        """
        ...

    def close(self) -> None:
        """Free what the backend holds. A closed backend raises ``BackendError`` when it is run."""
        ...
