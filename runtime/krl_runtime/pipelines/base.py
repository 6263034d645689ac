"""The shared part of all pipelines: a bundle, its backend, and closing it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from krl_runtime.backends.base import RunningBackend
from krl_runtime.bundle import Bundle

if TYPE_CHECKING:
    from krl_runtime.bundle.tensors import Arrays
    from krl_runtime.errors import KrlError
    from krl_runtime.images.modes import ChannelOrder
    from krl_runtime.images.preprocessing import ImageSource

__all__ = ["BatchModel", "Pipeline", "Sample"]

Sample: TypeAlias = Mapping[str, Any]
"""One sample of a classifier with further inputs: images and values by name; ``"image"`` is the first image."""

_Self = TypeVar("_Self", bound="Pipeline")

_Result = TypeVar("_Result", covariant=True)


class BatchModel(Protocol[_Result]):
    """A model that ``Batcher`` and the streams can use: it decodes one image, and runs a batch of decoded ones."""

    @property
    def bundle(self) -> Bundle:
        """Return the bundle."""
        ...

    def prepare(self, source: ImageSource | Sample) -> Arrays:
        """Decode one image, or a sample with further inputs.

        Returns:
            What the network takes: uint8 ``[channels, height, width]``, or with further inputs an array for each.

        Raises:
            ImageError: The image cannot be used.
            UsageError: A further input is missing, or its value is not accepted.
        """
        ...

    def run_batch(self, batch: Arrays, top_k: Sequence[int]) -> Sequence[_Result | KrlError]:
        """Run several decoded images together.

        Args:
            batch: What ``prepare`` returned, stacked: ``[N, ...]``; see ``krl_runtime.bundle.tensors.stacked``.
            top_k: How many classes each result names, ``N`` numbers.

        Returns:
            For each image its result, or why it has none while the others have theirs.

        Raises:
            BackendError: The device failed, or the model is closed.
        """
        ...


class Pipeline:
    """A loaded bundle. Made by ``krl_runtime.load``; several threads may call it at once.

    Attributes:
        bundle: What was loaded.
        preprocessing: Size and channels of the images that the network takes or makes.
        backend: What runs the network; ``backend.name``, ``backend.variant`` and ``backend.reason`` say where and why.
        channel_order: Order of the colors in arrays, those that are given and those that are made.
    """

    def __init__(self, bundle: Bundle, backend: RunningBackend, *, channel_order: ChannelOrder = "rgb") -> None:
        self.bundle = bundle
        self.channel_order = channel_order
        self.preprocessing = bundle.manifest.preprocessing
        self.backend = backend

    @staticmethod
    def check(bundle: Bundle) -> None:
        """Check that a bundle's manifest is one of the pipeline's task.

        Raises:
            BundleError: It is not.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Free the model's resources; a later call raises ``BackendError``."""
        self.backend.close()

    def __enter__(self: _Self) -> _Self:
        """Return the model."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the model."""
        self.close()

    def _where(self) -> str:
        """Return variant and backend, for people."""
        return f"variant {self.backend.variant} on {self.backend.name}"
