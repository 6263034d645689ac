"""The meaning of a third-party classifier's output, by its graph, its values, or the user; and the bundle's output."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx

from krl_deploy.config import FileKind
from krl_deploy.graph.class_output import Activation, as_in_file, read_output
from krl_deploy.graph.classifier import Head
from krl_runtime.bundle.output_kind import OutputKind, margins, scores_of
from krl_runtime.errors import UsageError

__all__ = ["Meaning", "read_meaning"]

_log = logging.getLogger("krl")

_NEAR = 0.01  # beyond 0 and 1: FP16 rounds by 5e-4, and quantized files by 1/255
_NEAR_SUM = 0.05  # of probabilities: rounding of each class, and clips at 0.01

_BY_ACTIVATION: Final[Mapping[Activation, FileKind]] = {
    "softmax": "probabilities",
    "log-softmax": "log-probabilities",
    "sigmoid": "sigmoid",
}


@dataclass(frozen=True)
class Meaning:
    """Meaning of a file's output, and where the bundle takes its own from.

    Attributes:
        file: Meaning of the file's output.
        bundle: Meaning of the bundle's.
        head: Where the bundle's comes from.
        activation: The file's last function, which the bundle leaves to the runtime.
    """

    file: FileKind
    bundle: OutputKind
    head: Head
    activation: Activation = ""

    @property
    def changes(self) -> list[str]:
        """Return the changes to the output, for people."""
        done = f"; the last {self.activation} was taken out" if self.activation else ""
        return [f"the output was read as {self.file}{done}"]

    def scores(self, outputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Return the scores that the file's outputs ``[N, values]`` stand for, ``[N, classes]`` of the bundle."""
        if self.file == "log-probabilities":
            return np.exp(outputs.astype(np.float64))
        if self.file == "logits" and not self.head.pair:
            return scores_of("logits", outputs)
        unlike = self.file in ("logits", "sigmoid-logits")
        scores = scores_of("sigmoid-logits" if unlike else "sigmoid", outputs)
        return np.concatenate([1 - scores, scores], axis=1) if self.head.pair else scores

    def in_bundle(self, outputs: npt.NDArray[np.float32]) -> npt.NDArray[np.floating[Any]]:
        """Return the file's outputs ``[N, values]`` as the bundle gives them, ``[N, classes]``.

        Logits of a file that ends in a softmax are known up to a constant, and those of scores of 0 and 1 are finite.
        """
        if self.file == self.bundle and not self.head.pair:
            return outputs
        scores = self.scores(outputs)
        if self.bundle == "logits":
            return margins("probabilities", scores)
        return margins("sigmoid", scores) if self.bundle == "sigmoid-logits" else scores

    def difference(self, outputs: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
        """Return the largest difference of the bundle's outputs from the file's, in the numbers of the file."""
        mine = outputs[:, 1:] if self.head.pair else outputs
        if self.file == "log-probabilities":  # those of 0 are -inf in some files
            return float(np.abs(scores_of("logits", mine) - np.exp(expected.astype(np.float64))).max())
        return float(np.abs(as_in_file(self.activation, mine) - expected).max())


def read_meaning(
    model: onnx.ModelProto,
    feed: Mapping[str, npt.NDArray[Any]],
    expected: npt.NDArray[np.float32],
    stated: FileKind | None,
) -> Meaning:
    """Return the meaning of a file's output.

    Args:
        model: The file as a clean float32 model with one output.
        feed: Inputs of one run.
        expected: Outputs of the file for some images, ``[N, values]``.
        stated: Meaning that the user gave; left out, it is read.

    Raises:
        UsageError: The values are not of the meaning that the user gave.
    """
    columns = expected.shape[1]
    found = read_output(model, feed, columns)
    kind: FileKind = stated or _BY_ACTIVATION.get(found.activation) or _by_values(expected, bounded=found.bounded)
    if stated is not None:
        _check_values(stated, expected)
    activation: Activation = found.activation if _BY_ACTIVATION.get(found.activation) == kind else ""
    source = found.source if activation or not found.activation else model.graph.output[0].name
    if columns == 1:
        as_score = not activation and kind in ("sigmoid", "probabilities")
        head = Head(source, columns, "score" if as_score else "logit")
        return Meaning(kind, "probabilities" if as_score else "logits", head, activation)
    bundle: OutputKind = "logits" if kind == "log-probabilities" else kind
    if activation:
        bundle = "sigmoid-logits" if activation == "sigmoid" else "logits"
    return Meaning(kind, bundle, Head(source, columns), activation)


def _by_values(expected: npt.NDArray[np.float32], *, bounded: bool) -> FileKind:
    """Return the meaning of outputs that no known function makes."""
    values = expected.astype(np.float64)
    unit = _is_unit(values)
    if values.shape[1] == 1:
        return "sigmoid" if unit and bounded else "sigmoid-logits"
    if unit and _is_near(values.sum(axis=1)):
        return "probabilities"
    if (values <= _NEAR).all() and _is_near(np.exp(values).sum(axis=1)):
        return "log-probabilities"
    if unit and bounded:
        return "sigmoid"
    if unit:
        _log.warning(
            "the outputs are all between 0 and 1, but are read as logits, since the graph sets them no bounds; if they "
            "are scores of independent classes, give --output-kind sigmoid"
        )
    return "logits"


def _check_values(stated: FileKind, expected: npt.NDArray[np.float32]) -> None:
    """Refuse a meaning that the outputs cannot have."""
    values = expected.astype(np.float64)
    seen = f"the outputs are {values.min():.4g} to {values.max():.4g}"
    if stated in ("probabilities", "sigmoid"):
        if not _is_unit(values):
            before = "logits" if stated == "probabilities" else "sigmoid-logits"
            raise UsageError(f"--output-kind is {stated}, but {seen}; accepted: 0 to 1; for logits give {before}")
        if stated == "probabilities" and values.shape[1] > 1 and not _is_near(values.sum(axis=1)):
            raise UsageError(
                f"--output-kind is probabilities, but those of an image add up to {values.sum(axis=1).min():.3g} to "
                f"{values.sum(axis=1).max():.3g}; accepted: 1; for independent classes give sigmoid"
            )
    if stated == "log-probabilities" and (values.shape[1] == 1 or not _is_near(np.exp(values).sum(axis=1))):
        raise UsageError(
            f"--output-kind is log-probabilities, but {seen}, and the sum of their exponentials is not 1 for each "
            "image; for other numbers give logits"
        )


def _is_unit(values: npt.NDArray[np.float64]) -> bool:
    return bool((values >= -_NEAR).all() and (values <= 1 + _NEAR).all())


def _is_near(sums: npt.NDArray[np.float64]) -> bool:
    return bool((np.abs(sums - 1) <= _NEAR_SUM).all())
