"""The protocol of a backend: adding one means adding one file that follows it, and a line in ``select``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from krl_runtime.errors import BackendError

if TYPE_CHECKING:
    import numpy.typing as npt

    from krl_runtime.bundle import Bundle, TensorSpec

__all__ = ["Backend", "ImageSizes", "RunningBackend", "check_graph", "check_not_forked", "run_in_parts"]

ImageSizes: TypeAlias = tuple[tuple[int, int], tuple[int, int]]
"""Smallest and largest height, smallest and largest width, of images that a backend takes."""


class Backend(Protocol):
    """Runs one graph on one device. Instances may be called from several threads at once."""

    name: str
    """``"tensorrt"``, ``"tensorrt-rtx"``, ``"onnxruntime-cuda"``, ``"onnxruntime-cpu"``, ``"openvino"`` or
    ``"openvino-bf16"``: what really runs, not what was asked for."""

    @property
    def image_sizes(self) -> ImageSizes | None:
        """Sizes of images that it takes, where the graph takes any and the backend does not; else ``None``."""
        ...

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
        """Free the backend's resources. A closed backend raises ``BackendError`` when it is run."""
        ...


class RunningBackend(Protocol):
    """A backend that was chosen for a bundle: what ``SelectedBackend`` and ``WarmStart`` have in common."""

    @property
    def name(self) -> str:
        """The backend that runs; see ``Backend.name``."""
        ...

    @property
    def variant(self) -> str:
        """The variant of the bundle that runs."""
        ...

    @property
    def image_sizes(self) -> ImageSizes | None:
        """Sizes of images that run; see ``Backend.image_sizes``."""
        ...

    @property
    def reason(self) -> str:
        """Reason for this backend and variant, in one sentence."""
        ...

    @property
    def skipped(self) -> Mapping[str, str]:
        """Reasons for skipping each earlier kind of backend."""
        ...

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run the graph once; see ``Backend.run``."""
        ...

    def close(self) -> None:
        """Free the backend's resources; a later run raises ``BackendError``."""
        ...


def check_not_forked(process: int, what: str) -> None:
    """Check that this process made what it uses: a forked one has none of its threads, and waits for them forever.

    Args:
        process: Number of the process that made it.
        what: Its name, for the message: ``"a model"``.

    Raises:
        BackendError: Another process made it.
    """
    if os.getpid() != process:
        raise BackendError(
            f"{what} of process {process} is used in process {os.getpid()}, which was forked from it; threads and "
            "devices do not survive a fork. Load the model in the new process, after the fork, or start processes "
            "with multiprocessing.get_context('spawn') (gunicorn: without --preload)"
        )


def run_in_parts(
    run: Callable[[dict[str, npt.NDArray[Any]]], Mapping[str, npt.NDArray[Any]]],
    inputs: Mapping[str, npt.NDArray[Any]],
    limit: int,
) -> dict[str, npt.NDArray[Any]]:
    """Run a graph on any number of inputs, in batches of a bounded size.

    Args:
        run: Runs one batch; ``Backend.run``, or a wrapper of it.
        inputs: ``[N, ...]`` each, ``N`` from 1.
        limit: Most inputs in a batch; ``Bundle.batch_limit``.

    Returns:
        The outputs by name, ``[N, ...]`` each.
    """
    count = len(next(iter(inputs.values())))
    parts = [
        run({name: array[start : start + limit] for name, array in inputs.items()}) for start in range(0, count, limit)
    ]
    if len(parts) == 1:
        return dict(parts[0])
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def check_graph(bundle: Bundle, variant: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    """Check that a graph is that of the manifest.

    Args:
        bundle: The bundle.
        variant: The variant that the graph belongs to, for the message.
        inputs: Inputs of the graph; a dimension of any size is a string.
        outputs: Outputs of the graph.

    Raises:
        BackendError: An input or output differs.
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
    """Return whether dtype, rank, and dimensions that are numbers on both sides agree."""
    return (
        found.dtype == expected.dtype
        and len(found.shape) == len(expected.shape)
        and all(
            a == b or isinstance(a, str) or isinstance(b, str) for a, b in zip(found.shape, expected.shape, strict=True)
        )
    )


def _show(specs: Iterable[TensorSpec]) -> str:
    return ", ".join(f"{spec.name} {spec.dtype} [{', '.join(map(str, spec.shape))}]" for spec in specs) or "none"
