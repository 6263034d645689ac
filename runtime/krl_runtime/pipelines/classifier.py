"""Images in, class names out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, overload

import numpy as np

from krl_runtime.backends.base import RunningBackend
from krl_runtime.bundle import Bundle
from krl_runtime.bundle.further_inputs import INPUTS, inputs_of
from krl_runtime.bundle.heads import further_heads
from krl_runtime.bundle.output_kind import (
    THRESHOLD,
    OutputKind,
    is_known,
    is_multi_label,
    least_score,
    output_kind,
    scores_of,
)
from krl_runtime.bundle.tensors import Arrays
from krl_runtime.errors import BundleError, UsageError
from krl_runtime.images.descriptors import DescriptorInput

from .base import Sample
from .image import ImagePipeline, check_image_input
from .streams import StreamItem, Watch, stream

if TYPE_CHECKING:
    import numpy.typing as npt

    from krl_runtime.images.modes import ChannelOrder
    from krl_runtime.images.preprocessing import ImageSource

__all__ = ["Classification", "Classifier"]

_NONE = "none of these"  # the prediction of an image that shows none of the classes


@dataclass(frozen=True)
class Classification:
    """The prediction of a classifier for one image.

    Attributes:
        label: The most probable class.
        index: Its index in the labels.
        score: Its probability, 0 to 1.
        top: The most probable classes and their probabilities, the best first; ``top[0]`` is ``(label, score)``.
        logits: The network's outputs ``[classes]``, float32, in the order of the labels; the bundle's ``output_kind``
            says whether they are logits or scores.
        present: Of a multi-label model all labels with a score above 0.5, the best first; ``None`` of any other.
        others: Of a model with further heads, the prediction of each by its name, as ``"source"``, from the same run.
        known: Whether the image shows one of the classes: ``score`` reaches the threshold that was calibrated for the
            bundle. Always true of a bundle without one. Where it is false, ``label`` still is the most probable class.
    """

    label: str
    index: int
    score: float
    top: tuple[tuple[str, float], ...]
    logits: npt.NDArray[np.float32] = field(repr=False, compare=False)
    present: tuple[str, ...] | None = None
    others: Mapping[str, Classification] = field(default_factory=dict, hash=False)

    known: bool = True

    def __str__(self) -> str:
        """Return the classes and their probabilities in one line, the best first."""
        classes = ", ".join(f"{label} {score:.1%}" for label, score in self.top)
        own = classes if self.known else f"{_NONE} ({classes})"
        return "; ".join([own, *(f"{name}: {other}" for name, other in self.others.items())])

    @property
    def prediction(self) -> str:
        """The prediction for people: the label, ``"none of these"``, or all labels of a multi-label model."""
        if self.present is not None:
            return ", ".join(self.present) or "none"
        return self.label if self.known else _NONE

    def to_dict(self, *, logits: bool = True) -> dict[str, Any]:
        """Return plain JSON types.

        Args:
            logits: Whether the network's outputs are among them.
        """
        others = {name: other.to_dict(logits=logits) for name, other in self.others.items()}
        return {
            "label": self.label,
            "index": self.index,
            "score": self.score,
            "top": [{"label": label, "score": score} for label, score in self.top],
            "known": self.known,
            **({"logits": self.logits.tolist()} if logits else {}),
            **({} if self.present is None else {"present": list(self.present)}),
            **({"others": others} if others else {}),
        }


class Classifier(ImagePipeline[Classification]):
    """Predicts the class of an image. ``krl_runtime.load`` makes it. Several threads may call it at once.

    Attributes:
        labels: Class names in the order of the logits.
        output_kind: Meaning of the network's outputs; see ``krl_runtime.bundle.output_kind``.
        heads: Further outputs, each with its name and labels; see ``krl_runtime.bundle.heads``.
        inputs: Further inputs beside the first image; see ``krl_runtime.bundle.further_inputs``.
        least_score: Score that the best class of a known image has at least; ``None`` if all images are known.
    """

    def __init__(self, bundle: Bundle, backend: RunningBackend, *, channel_order: ChannelOrder = "rgb") -> None:
        super().__init__(bundle, backend, channel_order=channel_order)
        self.labels = bundle.manifest.labels
        self.output_kind = output_kind(bundle.manifest.settings)
        self.heads = further_heads(bundle.manifest)
        self.inputs = inputs_of(bundle.manifest)
        for each in self.inputs:
            if isinstance(each, DescriptorInput):
                each.require()
        self.least_score = least_score(bundle.manifest.settings)

    @property
    def labels_of_outputs(self) -> Mapping[str, Sequence[str]]:
        """Return the class names of the first output and of those of further heads, by the output's name."""
        return {self._output: self.labels, **{head.output: head.labels for head in self.heads}}

    @staticmethod
    def check(bundle: Bundle) -> None:
        """Check that a bundle's tensors, preprocessing and labels fit each other and this pipeline.

        Raises:
            BundleError: They do not.
        """
        manifest = bundle.manifest
        # Further inputs are compared with the settings, which say what they are.
        several = INPUTS in manifest.settings
        check_image_input(bundle, "classifier", "logits [batch, labels]", several=several)
        classes = len(manifest.labels)
        outputs = [list(spec.shape[1:]) for spec in manifest.outputs[:1]]
        if outputs != [[classes]] or not classes:
            raise BundleError(
                f"bundle {bundle.path} is no classifier: it has outputs {outputs} and {classes} labels; accepted: "
                "logits [batch, labels]; export it again"
            )
        try:
            output_kind(manifest.settings)
            further_heads(manifest)
            inputs_of(manifest)
            least_score(manifest.settings)
        except ValueError as error:
            raise BundleError(f"bundle {bundle.path} is no classifier: {error}; make it again") from error

    @overload
    def __call__(self, source: list[Any] | tuple[Any, ...], *, top_k: int = ...) -> list[Classification]: ...
    @overload
    def __call__(self, source: npt.NDArray[np.uint8], *, top_k: int = ...) -> Any: ...
    @overload
    def __call__(self, source: ImageSource | Sample, *, top_k: int = ...) -> Classification: ...
    def __call__(self, source: Any, *, top_k: int = 5) -> Classification | list[Classification]:
        """Classify one image or several.

        Args:
            source: A path, encoded bytes, a binary file object, a Pillow image, or an array of uint8 ``[H, W]`` or
                ``[H, W, C]`` (RGB or RGBA, unless ``load`` was given another ``channel_order``). For several images a
                list or tuple of those, or an array of uint8 ``[N, H, W, C]``. A model with further inputs takes
                mappings: ``{"image": source, "color": "red", "size": 3.5}``.
            top_k: Number of classes in a result, 1 or more; all classes if it is larger than their number.

        Returns:
            One result for one image; a list of results, in order, for several.

        Raises:
            ImageError: An image is truncated, not an image, too large, or of a type that is not accepted.
            ModelError: A logit is not a finite number.
            BackendError: The device failed, or the model is closed.
            UsageError: ``top_k`` is less than 1, or a further input is missing, unknown or not accepted.
        """
        return self._results(source, top_k)

    async def classify_async(self, source: ImageSource | Sample, *, top_k: int = 5) -> Classification:
        """Classify one image in a thread, without blocking the event loop; see ``__call__`` for the exceptions.

        For many requests at once use ``batched``, which limits how many wait.
        """
        import asyncio

        return cast("Classification", await asyncio.to_thread(self, source, top_k=top_k))

    def stream(
        self, sources: str | Path | Iterable[ImageSource | Sample], *, top_k: int = 5, workers: int | None = None
    ) -> Iterator[StreamItem[Classification]]:
        """Yield the result of every image of a folder or an iterable; see ``krl_runtime.pipelines.streams.stream``."""
        return stream(self, sources, top_k=top_k, workers=workers)

    def watch(self, frames: Iterable[ImageSource | Sample], *, top_k: int = 5) -> Watch[Classification]:
        """Yield the result of the latest frame of a camera; see ``krl_runtime.pipelines.streams.Watch``."""
        return Watch(self, frames, top_k=top_k)

    def logits(self, batch: Arrays) -> npt.NDArray[np.float32]:
        """Run the network on its inputs as they are, in one batch.

        Args:
            batch: What ``preprocessing`` returns, stacked: uint8 ``[N, channels, height, width]``. With further inputs
                an array for each input of the graph, by name.

        Returns:
            Logits ``[N, classes]``, float32; of several heads those of the first.

        Raises:
            BackendError: An array is missing or has another dtype or shape, the device failed, or the model is closed.
        """
        return self.run(batch)[self._output].astype(np.float32, copy=False)

    def interpret_outputs(self, outputs: Mapping[str, npt.NDArray[Any]], *, top_k: int = 5) -> list[Classification]:
        """Turn the outputs of all heads into results; see ``interpret``.

        Args:
            outputs: By their names in the graph, ``[N, classes]`` each.
            top_k: Number of classes in a result, of each head.
        """
        results = self.interpret(outputs[self._output].astype(np.float32, copy=False), top_k=top_k)
        for head in self.heads:
            rows = outputs[head.output].astype(np.float32, copy=False)
            others = [self._result(row, top_k, head.labels, "logits") for row in rows]
            results = [
                replace(result, others={**result.others, head.name: other})
                for result, other in zip(results, others, strict=True)
            ]
        return results

    def interpret(self, logits: npt.NDArray[np.float32], *, top_k: int = 5) -> list[Classification]:
        """Turn logits of the first head into results.

        Args:
            logits: ``[N, classes]``, float32.
            top_k: Number of classes in a result, 1 or more; all classes if it is larger than their number.

        Raises:
            ModelError: A logit is not a finite number.
            UsageError: ``top_k`` is less than 1, or ``logits`` has another shape.
        """
        if top_k < 1:
            raise UsageError(f"top_k is {top_k}; accepted: 1 or more")
        if logits.ndim != 2 or logits.shape[1] != len(self.labels):
            raise UsageError(f"logits have shape {list(logits.shape)}; accepted: [batch, {len(self.labels)}]")
        least = self.least_score
        return [self._result(row, top_k, self.labels, self.output_kind, least) for row in logits]

    def _result(
        self,
        logits: npt.NDArray[np.float32],
        top_k: int,
        labels: Sequence[str],
        kind: OutputKind,
        least: float | None = None,
    ) -> Classification:
        values = logits.astype(np.float64)
        # Finite float32 numbers cannot overflow the sum in float64, and any other number makes it infinite or NaN.
        if not math.isfinite(values.sum()):
            raise self._not_finite("logits that are not finite numbers")
        best = _largest(values, top_k)
        scores = scores_of(kind, values)
        top = tuple((labels[index], float(scores[index])) for index in best)
        present: tuple[str, ...] | None = None
        if is_multi_label(kind):
            count = int((scores > THRESHOLD).sum())
            present = tuple(labels[index] for index in _largest(values, count)) if count else ()
        known = least is None or bool(is_known(kind, values, least))
        return Classification(top[0][0], best[0], top[0][1], top, logits, present, known=known)

    def __repr__(self) -> str:
        """Return name, number of classes, backend and variant."""
        return f"Classifier({self.bundle.manifest.name!r}, {len(self.labels)} classes, {self._where()})"


def _largest(values: npt.NDArray[np.float64], count: int) -> list[int]:
    """Return the indices of the largest values, the largest first; the first of equal values comes first."""
    count = min(count, len(values))
    # Those that can be among them: a few more than ``count`` where values are equal.
    indices = np.flatnonzero(values >= np.partition(values, -count)[-count]).tolist()
    return sorted(indices, key=values.__getitem__, reverse=True)[:count]
