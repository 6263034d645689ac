"""What all pipelines share: a bundle, what runs it, and closing it."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from krl_runtime.backends.select import SelectedBackend
from krl_runtime.bundle import Bundle

if TYPE_CHECKING:
    from krl_runtime.backends.warm import WarmStart

__all__ = ["Pipeline"]

_Self = TypeVar("_Self", bound="Pipeline")


class Pipeline:
    """A loaded bundle. Made by ``krl_runtime.load``; several threads may call it at once.

    Attributes:
        bundle: What was loaded.
        preprocessing: Size and channels of the pictures that the network takes or makes.
        backend: What runs the network; ``backend.name``, ``backend.variant`` and ``backend.reason`` say where and why.
    """

    def __init__(self, bundle: Bundle, backend: SelectedBackend | WarmStart) -> None:
        self.bundle = bundle
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
        """Free what the model holds; calling it afterwards raises ``BackendError``."""
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
