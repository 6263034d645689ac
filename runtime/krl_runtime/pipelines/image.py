"""The shared part of pipelines that take one image and give one result: batches, streams and threads."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from krl_runtime.backends.base import RunningBackend
from krl_runtime.bundle import Bundle
from krl_runtime.bundle.further_inputs import FurtherInput, sample_arrays
from krl_runtime.bundle.tensors import Arrays, stacked
from krl_runtime.errors import BundleError, ImageError, KrlError, ModelError, UsageError

from .base import Pipeline, Sample
from .batching import Batcher

if TYPE_CHECKING:
    import numpy.typing as npt

    from krl_runtime.images.modes import ChannelOrder
    from krl_runtime.images.preprocessing import ImageSource

__all__ = ["ImagePipeline", "check_image_input"]

_Result = TypeVar("_Result")


class ImagePipeline(Pipeline, Generic[_Result]):
    """Gives a result for an image, or for a sample with further inputs. Several threads may call it at once.

    Attributes:
        inputs: Further inputs beside the first image; see ``krl_runtime.bundle.further_inputs``.
    """

    inputs: tuple[FurtherInput, ...] = ()

    def __init__(self, bundle: Bundle, backend: RunningBackend, *, channel_order: ChannelOrder = "rgb") -> None:
        super().__init__(bundle, backend, channel_order=channel_order)
        self._input = bundle.manifest.inputs[0].name
        self._output = bundle.manifest.outputs[0].name
        self._limit = bundle.batch_limit

    @property
    def labels_of_outputs(self) -> Mapping[str, Sequence[str]]:
        """Return the class names of each output of the graph that has some, by its name."""
        return {}

    @abstractmethod
    def interpret_outputs(self, outputs: Mapping[str, npt.NDArray[Any]], *, top_k: int = 5) -> list[_Result]:
        """Turn the outputs of the network into results, one for each image.

        Args:
            outputs: By their names in the graph, ``[N, ...]`` each.
            top_k: Number of classes in a result, of a pipeline that has some.

        Raises:
            ModelError: An output is not a finite number.
        """

    def batched(
        self, *, max_batch: int = 16, max_delay: float = 0.002, max_waiting: int = 64, workers: int = 1
    ) -> Batcher[_Result]:
        """Run the requests of many threads or coroutines together; see ``krl_runtime.pipelines.batching.Batcher``."""
        return Batcher(self, max_batch=max_batch, max_delay=max_delay, max_waiting=max_waiting, workers=workers)

    def prepare(self, source: ImageSource | Sample) -> Arrays:
        """Decode one image or sample to what the network takes; see ``BatchModel.prepare``."""
        if not self.inputs and not isinstance(source, Mapping):
            return self._read(source)
        arrays = sample_arrays(source, self.inputs, self._read)
        return arrays if self.inputs else next(iter(arrays.values()))

    def _read(self, source: ImageSource) -> npt.NDArray[np.uint8]:
        return self.preprocessing(source, channel_order=self.channel_order)

    def run_batch(self, batch: Arrays, top_k: Sequence[int]) -> list[_Result | KrlError]:
        """Run several decoded images together; see ``krl_runtime.pipelines.base.BatchModel.run_batch``."""
        results: list[_Result | KrlError] = []
        outputs = self.run(batch)
        for row, count in enumerate(top_k):
            try:
                one = {name: values[row : row + 1] for name, values in outputs.items()}
                results += self.interpret_outputs(one, top_k=count)
            except ModelError as error:  # outputs that are not finite: the others of the batch have their results
                results.append(error)
        return results

    def _results(self, source: Any, top_k: int = 5) -> _Result | list[_Result]:
        """Return the result of one image, or those of several in a list, a tuple or an array ``[N, H, W, C]``."""
        if not isinstance(source, list | tuple) and not (isinstance(source, np.ndarray) and source.ndim == 4):
            return self.interpret_outputs(self.run(stacked([self.prepare(source)])), top_k=top_k)[0]
        results: list[_Result] = []
        for start in range(0, len(source), self._limit):
            batch = self._stack(source, range(start, min(start + self._limit, len(source))))
            results += self.interpret_outputs(self.run(batch), top_k=top_k)
        return results

    def run(self, batch: Arrays) -> Mapping[str, npt.NDArray[Any]]:
        """Run the network once on prepared inputs.

        Args:
            batch: ``[N, ...]``: what ``prepare`` returns, stacked.

        Returns:
            Its outputs by their names in the graph.

        Raises:
            BackendError: An array is missing or has another dtype or shape, the device failed, or the model is closed.
        """
        return self.backend.run(batch if isinstance(batch, Mapping) else {self._input: batch})

    def _stack(self, sources: Sequence[ImageSource | Sample] | npt.NDArray[np.uint8], chosen: range) -> Arrays:
        prepared = []
        for index in chosen:
            try:
                prepared.append(self.prepare(sources[index]))
            except (ImageError, UsageError) as error:
                raise type(error)(f"item {index} of {len(sources)}: {error}") from error
        return stacked(prepared)

    def _not_finite(self, outputs: str) -> ModelError:
        """Return the error of outputs that are no finite numbers."""
        return ModelError(
            f"variant {self.backend.variant} on {self.backend.name} gave {outputs}, so there is no result; load "
            f"another variant, and run krl-runtime selftest {self.bundle.path}"
        )


def check_image_input(bundle: Bundle, kind: str, accepted: str, *, several: bool = False) -> None:
    """Check that a bundle's input is of images as its preprocessing makes them.

    Args:
        bundle: The bundle.
        kind: What it has to be, as ``"classifier"``.
        accepted: Its outputs, for the message.
        several: Whether further inputs may follow, which are not checked here.

    Raises:
        BundleError: It has another one, or the graph takes several images at once and no other number.
    """
    manifest = bundle.manifest
    shape = list(manifest.preprocessing.shape)
    inputs = [(spec.dtype, list(spec.shape[1:])) for spec in manifest.inputs[: 1 if several else None]]
    if inputs != [("uint8", shape)]:
        raise BundleError(
            f"bundle {bundle.path} is no {kind}: it has inputs {inputs}; accepted: one input of uint8 "
            f"[batch, {', '.join(map(str, shape))}], as its preprocessing says, and {accepted}; export it again"
        )
    batch = manifest.inputs[0].shape[0]
    if isinstance(batch, int) and batch != 1:
        raise BundleError(f"bundle {bundle.path}: its graph takes {batch} images at once; accepted: 1 or any number")
