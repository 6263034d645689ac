"""Images in, embeddings out: vectors of length 1 whose dot product is their similarity."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast, overload

import numpy as np

from krl_runtime.backends.base import RunningBackend, run_in_parts
from krl_runtime.bundle import Bundle
from krl_runtime.errors import BundleError
from krl_runtime.evaluation.neighbors import unit_vectors

from .image import ImagePipeline, check_image_input
from .streams import StreamItem, Watch, stream

if TYPE_CHECKING:
    import numpy.typing as npt

    from krl_runtime.images.modes import ChannelOrder
    from krl_runtime.images.preprocessing import ImageSource

__all__ = ["EMBEDDING", "Embedder", "Embedding"]

EMBEDDING: Final = "embedding"
"""Name, among a manifest's settings, of what is said of an embedding: its ``size``."""


@dataclass(frozen=True, eq=False)
class Embedding:
    """The embedding of one image.

    Attributes:
        vector: ``[D]`` float32, of length 1.
    """

    vector: npt.NDArray[np.float32] = field(repr=False)

    def similarity(self, other: Embedding) -> float:
        """Return the cosine of two embeddings, -1 to 1."""
        return float(self.vector.astype(np.float64) @ other.vector)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {"vector": self.vector.tolist()}

    def __str__(self) -> str:
        """Return the number of dimensions, for people."""
        return f"embedding of {len(self.vector)} dimensions"


class Embedder(ImagePipeline[Embedding]):
    """Embeds images. ``krl_runtime.load`` makes it. Several threads may call it at once.

    Attributes:
        size: Dimensions of an embedding.
    """

    def __init__(self, bundle: Bundle, backend: RunningBackend, *, channel_order: ChannelOrder = "rgb") -> None:
        super().__init__(bundle, backend, channel_order=channel_order)
        self.size: int = bundle.manifest.settings[EMBEDDING]["size"]

    @staticmethod
    def check(bundle: Bundle) -> None:
        """Check that a bundle's tensors, preprocessing and settings fit each other and this pipeline.

        Raises:
            BundleError: They do not.
        """
        manifest = bundle.manifest
        check_image_input(bundle, "embedding network", "embeddings [batch, size]")
        outputs = [(spec.dtype, list(spec.shape[1:])) for spec in manifest.outputs]
        given = manifest.settings.get(EMBEDDING)
        size = given.get("size") if isinstance(given, Mapping) else None
        whole = isinstance(size, int) and not isinstance(size, bool) and size > 0
        if not whole or outputs != [("float32", [size])] or manifest.labels:
            raise BundleError(
                f"bundle {bundle.path} is no embedding network: it has outputs {outputs}, {len(manifest.labels)} "
                f"labels and an embedding of size {size!r}; accepted: one output of float32 [batch, size], no labels, "
                'and the settings {"embedding": {"size": SIZE}}; export it again'
            )

    @overload
    def __call__(self, source: list[Any] | tuple[Any, ...]) -> list[Embedding]: ...
    @overload
    def __call__(self, source: npt.NDArray[np.uint8]) -> Any: ...
    @overload
    def __call__(self, source: ImageSource) -> Embedding: ...
    def __call__(self, source: Any) -> Embedding | list[Embedding]:
        """Embed one image or several.

        Args:
            source: A path, encoded bytes, a binary file object, a Pillow image, or an array of uint8 ``[H, W]`` or
                ``[H, W, C]`` (RGB or RGBA, unless ``load`` was given another ``channel_order``). For several images a
                list or tuple of those, or an array of uint8 ``[N, H, W, C]``.

        Returns:
            One embedding for one image; a list of embeddings, in order, for several.

        Raises:
            ImageError: An image is truncated, not an image, too large, or of a type that is not accepted.
            ModelError: An embedding is not finite or has no direction.
            BackendError: The device failed, or the model is closed.
        """
        return self._results(source)

    async def embed_async(self, source: ImageSource) -> Embedding:
        """Embed one image in a thread, without blocking the event loop; see ``__call__`` for the exceptions.

        For many requests at once use ``batched``, which limits how many wait.
        """
        import asyncio

        return cast("Embedding", await asyncio.to_thread(self, source))

    def stream(
        self, sources: str | Path | Iterable[ImageSource], *, workers: int | None = None
    ) -> Iterator[StreamItem[Embedding]]:
        """Yield the embedding of each image of a folder or an iterable; see ``pipelines.streams.stream``."""
        return stream(self, sources, workers=workers)

    def watch(self, frames: Iterable[ImageSource]) -> Watch[Embedding]:
        """Yield the embedding of the latest frame of a camera; see ``krl_runtime.pipelines.streams.Watch``."""
        return Watch(self, frames)

    def embed(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Embed decoded images, in batches that the network takes.

        Args:
            pixels: What ``preprocessing`` returns, stacked: uint8 ``[N, channels, height, width]``.

        Returns:
            ``[N, D]`` float32, of length 1.

        Raises:
            BackendError: ``pixels`` has another dtype or shape, the device failed, or the model is closed.
            ModelError: An embedding is not finite or has no direction.
        """
        outputs = run_in_parts(self.backend.run, {self._input: pixels}, self._limit)
        return self.normalized(outputs[self._output])

    def normalized(self, outputs: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return outputs of the network ``[N, D]`` as float32 of length 1, exact whatever the precision was.

        Raises:
            ModelError: One of them is not finite or has no direction.
        """
        vectors = unit_vectors(outputs)
        if not vectors.any(axis=1).all():
            raise self._not_finite("an embedding that is zero or has numbers that are not finite")
        return vectors

    def interpret_outputs(self, outputs: Mapping[str, npt.NDArray[Any]], *, top_k: int = 5) -> list[Embedding]:
        """Turn the outputs of the network into results; see ``normalized``.

        Args:
            outputs: By their names in the graph, ``[N, D]``.
            top_k: Not used: it is for pipelines that have classes.
        """
        del top_k
        return [Embedding(vector) for vector in self.normalized(outputs[self._output])]

    def __repr__(self) -> str:
        """Return name, size, backend and variant."""
        return f"Embedder({self.bundle.manifest.name!r}, {self.size} dimensions, {self._where()})"
