"""What every backend is: adding one means adding one file that follows this protocol, and a line in ``select``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from krl_runtime.errors import BackendError

if TYPE_CHECKING:
    import numpy.typing as npt

    from krl_runtime.bundle import Bundle, TensorSpec

__all__ = ["Backend", "check_graph", "check_inputs", "keeps_weights_inside"]

_EXTERNAL = b"\n\x08location"  # the key, as protobuf writes it, under which a tensor names another file


class Backend(Protocol):
    """Runs one graph on one device. Instances may be called from several threads at once."""

    name: str
    """``"tensorrt"``, ``"onnxruntime-cuda"``, ``"onnxruntime-cpu"``, ``"openvino"`` or ``"openvino-bf16"``: what really
    runs, not what was asked for."""

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


def check_inputs(specs: Sequence[TensorSpec], inputs: Mapping[str, npt.NDArray[Any]]) -> None:
    """Check that a backend is given what its graph takes.

    Args:
        specs: The graph's inputs; a dimension that has a name accepts any size from 1 on.
        inputs: What was given.

    Raises:
        BackendError: An input is missing, unknown, or has another dtype or shape. The message names it, what was
            given and what is accepted.
    """
    for spec in specs:
        array = inputs.get(spec.name)
        if array is None:
            raise BackendError(f"input {spec.name!r} is missing; given: {', '.join(map(str, inputs)) or 'nothing'}")
        if not isinstance(array, np.ndarray):
            raise BackendError(f"input {spec.name!r} is a {type(array).__name__}; accepted: a numpy array")
        if array.dtype != spec.dtype or not _fits(array.shape, spec.shape):
            raise BackendError(
                f"input {spec.name!r} has dtype {array.dtype} and shape {list(array.shape)}; accepted: {spec.dtype} "
                f"of shape [{', '.join(map(str, spec.shape))}]"
            )
    if len(inputs) > len(specs):
        known = [spec.name for spec in specs]
        unknown = [name for name in inputs if name not in known]
        raise BackendError(f"the graph has no input {unknown[0]!r}; it has: {', '.join(known)}")


def _fits(given: Sequence[int], accepted: Sequence[int | str]) -> bool:
    return len(given) == len(accepted) and all(
        size == dimension if isinstance(dimension, int) else size >= 1
        for size, dimension in zip(given, accepted, strict=True)
    )


def check_graph(bundle: Bundle, variant: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    """Check that a graph is the one that the manifest describes.

    Args:
        bundle: The bundle.
        variant: The variant that the graph belongs to, for the message.
        inputs: What the graph takes; a dimension of any size is a string.
        outputs: What it returns.

    Raises:
        BackendError: It is not.
    """
    manifest = bundle.manifest
    for what, found, expected in (("inputs", inputs, manifest.inputs), ("outputs", outputs, manifest.outputs)):
        by_name = {spec.name: spec for spec in found}
        same = all(spec.name in by_name and _agree(by_name[spec.name], spec) for spec in expected)
        if not same or (what == "inputs" and len(found) != len(expected)):
            raise BackendError(
                f"the graph of variant {variant} has {what} {_show(found)}, the manifest says {_show(expected)}; "
                "export the bundle again"
            )


def _agree(found: TensorSpec, expected: TensorSpec) -> bool:
    """Whether dtype, rank and those dimensions agree that are numbers on both sides."""
    return (
        found.dtype == expected.dtype
        and len(found.shape) == len(expected.shape)
        and all(
            a == b or isinstance(a, str) or isinstance(b, str) for a, b in zip(found.shape, expected.shape, strict=True)
        )
    )


def _show(specs: Iterable[TensorSpec]) -> str:
    return ", ".join(f"{spec.name} {spec.dtype} [{', '.join(map(str, spec.shape))}]" for spec in specs) or "none"


def keeps_weights_inside(model: Path | bytes) -> bool:
    """Whether an ONNX file keeps all its weights inside: nobody has hashed those in others."""
    import mmap

    if isinstance(model, bytes):
        return _EXTERNAL not in model
    if model.stat().st_size == 0:  # which cannot be mapped
        return True
    with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(_EXTERNAL) < 0
