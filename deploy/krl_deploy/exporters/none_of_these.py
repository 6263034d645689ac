"""The threshold below which an image shows none of a classifier's classes, from validation images.

The score is the largest softmax (Hendrycks and Gimpel, 2017, "A baseline for detecting misclassified and
out-of-distribution examples"). It is what ``Classification.score`` has, so that people can follow the decision.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from krl_deploy.config import ExportConfig
from krl_deploy.data.arrays import Inputs
from krl_deploy.data.folders import choose_any
from krl_deploy.evaluation.comparison import outputs_of
from krl_deploy.graph.session import open_cpu
from krl_runtime.bundle.output_kind import LEAST_SCORE, scores_of
from krl_runtime.bundle.samples import decode_samples, open_samples
from krl_runtime.errors import DataError, UsageError
from krl_runtime.evaluation.refusal import refusing, separation
from krl_runtime.images.labeled import decoded, some, unknown_classes

from .real_inputs import validation_inputs

if TYPE_CHECKING:
    from krl_train.run import Run

__all__ = ["Refusal", "calibrate_refusal", "check_refusal"]

_log = logging.getLogger("krl")

_MOST_IMAGES = 2000  # as krl-deploy quantize measures on: a share of 5 % has a standard error of half a point then


@dataclass(frozen=True)
class Refusal:
    """A calibrated threshold.

    Attributes:
        settings: Settings of the manifest.
        evidence: What was measured.
    """

    settings: dict[str, float]
    evidence: dict[str, Any]


def check_refusal(config: ExportConfig, run: Run) -> None:
    """Refuse ``--none-of-these`` for a run that is no classifier of one of several classes.

    Raises:
        UsageError: It is none.
    """
    record = run.record
    if config.none_of_these is None:
        return
    if record.task == "embedding":
        raise UsageError(
            f"--none-of-these is for classifiers; {config.run} finds images by embeddings, and the distance from which "
            "on nothing is found is calibrated on them: krl-runtime index NAME.krl FOLDER --none-of-these"
        )
    if record.task != "classification":
        raise UsageError(f"--none-of-these is for classifiers; {config.run} is of the task {record.task}; leave it out")
    if record.multi_label:
        raise UsageError(f"--none-of-these is not for {config.run}, which can find no label anyway; leave it out")
    if len(record.labels) < 2:
        raise UsageError(f"--none-of-these needs 2 classes or more; {config.run} has {len(record.labels)}")


def calibrate_refusal(config: ExportConfig, run: Run, model: bytes) -> Refusal | None:
    """Choose the score that refuses a share of the validation images, and measure it; ``None`` if none is asked for.

    Args:
        config: Has the share, and the folders.
        run: The run that is exported.
        model: Its ONNX file.

    Raises:
        DataError: The images cannot be used, or are too few for the share.
    """
    share = config.none_of_these
    if share is None:
        return None
    best = partial(_best_scores, open_cpu(model))
    known = best(_validation(config, run))
    least, refused = refusing(known, share, "validation images", "with --data FOLDER")
    evidence = {"score": "largest softmax", "asked": share, "refused": refused, "images": len(known), "least": least}
    if config.others is not None:
        evidence["others"] = _measure_others(config, run, config.others, known, least, best)
    return Refusal({LEAST_SCORE: least}, evidence)


def _measure_others(
    config: ExportConfig,
    run: Run,
    folder: Path,
    known: npt.NDArray[np.float64],
    least: float,
    best: partial[npt.NDArray[np.float64]],
) -> dict[str, Any]:
    """Return how well images of other classes are separated from the known ones."""
    further = run.record.model.further(run.record.preprocessing)
    data = open_samples(folder, further, on_bad=config.on_bad_image)
    same = sorted(set(data.labels) & set(run.record.labels))
    if same:
        raise DataError(f"--others {folder} has classes of the model: {some(same)}; give images of other classes alone")
    images = decoded(
        choose_any(data, _MOST_IMAGES),
        run.record.preprocessing,
        on_bad=config.on_bad_image,
        decode=partial(decode_samples, inputs=further),
    )
    others = best(inputs for inputs, _ in images)
    recognized = float((others < least).mean())
    return {
        "data": data.root.name,
        "images": len(others),
        "refused": recognized,
        "false_positive_rate": 1 - recognized,
        "auroc": separation(known, others),
    }


def _best_scores(session: Any, batches: Iterable[Inputs]) -> npt.NDArray[np.float64]:
    """Return the largest softmax of each image."""
    parts = [scores_of("logits", outputs_of(session, inputs)).max(axis=1) for inputs in batches]
    if not parts:
        raise DataError("no image is left to calibrate --none-of-these on: none of the files can be decoded")
    return np.concatenate(parts)


def _validation(config: ExportConfig, run: Run) -> Iterator[Inputs]:
    """Yield the inputs of validation images: of ``--data``, else of the run's data."""
    record = run.record
    if config.data is None:
        yield validation_inputs(run, _MOST_IMAGES)
        return
    further = record.model.further(record.preprocessing)
    folder = open_samples(config.data, further, on_bad=config.on_bad_image)
    unknown = unknown_classes(folder, record.labels)
    if unknown:
        raise DataError(
            f"--data {config.data} has classes that the model does not: {some(unknown)}; --none-of-these is calibrated "
            "on the classes of the model; give those, and the others with --others"
        )
    if "val" not in folder.splits:
        _log.warning("%s has no val split: if the model was trained on it, too few images will be refused", folder.root)
    images = choose_any(folder, _MOST_IMAGES)
    read = partial(decode_samples, inputs=further)
    for inputs, _ in decoded(images, record.preprocessing, on_bad=config.on_bad_image, decode=read):
        yield inputs
