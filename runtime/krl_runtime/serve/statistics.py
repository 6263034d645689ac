"""Triton's descriptions of a model that its clients ask for: configuration and statistics."""

from __future__ import annotations

import time
from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

from .protocol import DATATYPES

if TYPE_CHECKING:
    from krl_runtime.bundle import TensorSpec

__all__ = ["Statistics", "configuration"]

# The server's names of what is timed, and Triton's.
_DURATIONS = {
    "success": "success",
    "fail": "fail",
    "queue": "queue",
    "preprocess": "compute_input",
    "inference": "compute_infer",
}


class Statistics:
    """Counts and total times since the start, as Triton's extension "statistics" has them. Threads may share it."""

    def __init__(self) -> None:
        """Begin with nothing counted."""
        self._lock = Lock()
        self._durations = {name: [0, 0] for name in _DURATIONS}
        self._images = self._runs = self._last = 0

    def add(self, name: str, seconds: float) -> None:
        """Count one stage of a request, or a whole one (``"success"``, ``"fail"``)."""
        with self._lock:
            duration = self._durations[name]
            duration[0] += 1
            duration[1] += int(seconds * 1e9)

    def ran(self, images: int) -> None:
        """Count one run of the network on so many images."""
        with self._lock:
            self._images += images
            self._runs += 1
            self._last = int(time.time() * 1000)

    def to_dict(self, name: str) -> dict[str, Any]:
        """Return the statistics of a model of this name; times in ns, the last run in ms since 1970."""
        with self._lock:
            return {
                "name": name,
                "version": "1",
                "last_inference": self._last,
                "inference_count": self._images,
                "execution_count": self._runs,
                "inference_stats": {
                    triton: dict(zip(("count", "ns"), self._durations[ours], strict=True))
                    for ours, triton in _DURATIONS.items()
                },
                "batch_stats": [],
            }


def configuration(
    name: str, platform: str, max_batch: int, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> dict[str, Any]:
    """Return a model's configuration, as Triton's extension "model configuration" has it.

    Args:
        name: The model's name.
        platform: As in the metadata.
        max_batch: Most images that are run together, at least 1. Dimensions are those of one image.
        inputs: The model's inputs.
        outputs: The model's outputs.
    """
    return {
        "name": name,
        "platform": platform,
        "backend": platform.partition("_")[0],
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": max_batch,
        "input": [_tensor(spec) for spec in inputs],
        "output": [_tensor(spec) for spec in outputs],
    }


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    dims = [size if isinstance(size, int) else -1 for size in spec.shape[1:]]
    return {"name": spec.name, "data_type": f"TYPE_{DATATYPES[spec.dtype]}", "dims": dims}
