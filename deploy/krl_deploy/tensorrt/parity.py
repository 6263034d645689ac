"""Check that the outputs of a finished engine are those of its model, before the engine is kept.

TensorRT has built engines that run and give wrong outputs (NVIDIA/TensorRT #4723 and #4837), so every build has this
check.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from krl_runtime.bundle import Manifest
from krl_runtime.errors import CheckFailedError
from krl_runtime.evaluation.golden import compare, device_limits, makes_images

from .options import Range

if TYPE_CHECKING:
    import numpy.typing as npt

    from krl_runtime.backends.base import Backend

__all__ = ["Parity", "check_parity"]


@dataclass(frozen=True)
class Parity:
    """How an engine compares with the golden outputs.

    Attributes:
        inputs: Number of golden inputs.
        max_error: Largest absolute difference of any output.
        agreement: Share, 0 to 1, of the inputs whose top-1 is the golden one; ``None`` where images are made.
    """

    inputs: int
    max_error: float
    agreement: float | None


def check_parity(
    backend: Backend,
    golden: Mapping[str, npt.NDArray[Any]],
    manifest: Manifest,
    variant: str,
    profiles: Sequence[Range],
    *,
    tf32: bool,
) -> Parity:
    """Run the golden inputs through an engine, in each smallest, best and largest batch, and close it.

    If there are fewer golden inputs than a batch takes, they are repeated.

    Args:
        backend: The engine.
        golden: Golden inputs and outputs under their names, ``[N, ...]`` each.
        manifest: The bundle's manifest, with the variant's limits.
        variant: The engine's variant.
        profiles: The engine's smallest, best and largest batches.
        tf32: Whether it may multiply in TF32.

    Raises:
        CheckFailedError: The outputs differ by more than the variant allows.
        BackendError: The engine cannot be run.
    """
    count = len(golden[manifest.outputs[0].name])
    inputs = {spec.name: golden[spec.name] for spec in manifest.inputs}
    max_error, agreement = 0.0, 1.0
    try:
        limits = device_limits(manifest, variant, tf32=tf32)
        for batch in sorted({size for sizes in profiles for size in sizes}):
            outputs = _replay(backend, inputs, count, batch)
            error, agreed, cause = compare(manifest, limits, outputs, golden)
            if cause:
                raise CheckFailedError(
                    f"the engine was built, but its outputs are wrong, and it was not kept: in batches of {batch}, on "
                    f"{count} golden inputs, {cause}. Try another --optimization-level or precision"
                )
            max_error, agreement = max(max_error, error), min(agreement, agreed)
    finally:
        backend.close()
    return Parity(count, max_error, None if makes_images(manifest) else agreement)


def _replay(
    backend: Backend, inputs: Mapping[str, npt.NDArray[Any]], count: int, batch: int
) -> dict[str, npt.NDArray[Any]]:
    """Run all inputs in full batches, and return the outputs of the first ``count``."""
    parts = []
    for start in range(0, count, batch):
        rows: npt.NDArray[np.intp] = np.arange(start, start + batch) % count
        parts.append(backend.run({name: array[rows] for name, array in inputs.items()}))
    return {name: np.concatenate([part[name] for part in parts])[:count] for name in parts[0]}
