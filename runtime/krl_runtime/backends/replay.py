"""Replaying golden inputs on a running backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from krl_runtime.bundle import Bundle

from .base import Backend, run_in_parts

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["replay"]


def replay(bundle: Bundle, backend: Backend, golden: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Run all golden inputs in batches of a bounded size; return the outputs under their names."""
    inputs = {spec.name: golden[spec.name] for spec in bundle.manifest.inputs}
    outputs = run_in_parts(backend.run, inputs, bundle.batch_limit)
    return {spec.name: outputs[spec.name] for spec in bundle.manifest.outputs}
