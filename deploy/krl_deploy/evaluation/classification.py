"""Classifiers: real or generated images, and top-1 in points."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from krl_deploy.calibration.lint import check_classes, check_images
from krl_deploy.data.decoding import decoded
from krl_deploy.data.folders import choose, choose_disjoint, open_data, with_label_indices
from krl_runtime.bundle import Bundle
from krl_runtime.errors import UsageError
from krl_runtime.evaluation.gate import Verdict, judge_predictions, resolution
from krl_runtime.evaluation.limits import DISAGREEMENT_PER_POINT, LEAST_AGREEMENT, MAX_DROP_POINTS
from krl_runtime.images.folders import ImageFile, decode, identity

from .comparison import PredictionTally, Score
from .paired import EXACT, Paired, Pairs
from .task import AccuracyDrop, Batch, CalibrationData, EvaluationOptions, Task, worst

__all__ = ["Classification"]

_MOST_GENERATED = 512  # generated images that are compared: a judgment between time and the scatter of their mean


class Classification(Task):
    """Images of a folder, or of a generator, and top-1."""

    predicts = True

    def __init__(self, bundle: Bundle, options: EvaluationOptions) -> None:
        if options.min_psnr is not None:
            raise UsageError("--min-psnr is for bundles that make images; give --max-drop")
        self.bundle, self.options = bundle, options
        self.accepted = MAX_DROP_POINTS if options.max_drop is None else options.max_drop
        self.train: list[ImageFile] = []
        self.planned: list[ImageFile] = []
        self.val: list[ImageFile] = []
        self.name = "golden inputs"
        if options.data is not None:
            self._choose()
        elif options.from_generator is not None:
            self.name = f"images of {options.from_generator.name}"

    def _choose(self) -> None:
        options = self.options
        assert options.data is not None  # noqa: S101  for the type checker
        folder = open_data(options.data, on_bad=options.on_bad_image)
        if options.planning:
            calibrated = 0 if options.from_generator is not None else options.limit
            train, planned, val = choose_disjoint(
                folder, calibrated, options.planning, options.val_limit, val_fraction=options.val_fraction
            )
        else:
            train = choose(folder, "train", options.limit, val_fraction=options.val_fraction)
            planned, val = [], choose(folder, "val", options.val_limit, val_fraction=options.val_fraction)
        labeled = iter(with_label_indices([*train, *planned, *val], folder, self.bundle.manifest.labels))
        self.train, self.planned, self.val = (list(islice(labeled, len(part))) for part in (train, planned, val))
        self.name = folder.root.name

    @cached_property
    def calibration_data(self) -> CalibrationData:
        """The images to calibrate on; see ``Task.calibration_data``."""
        manifest, options = self.bundle.manifest, self.options
        if options.from_generator is not None:
            from .generation import images_of

            made, origin = images_of(options.from_generator, options.limit, 0, manifest.preprocessing)
            check_images(made)
            return CalibrationData(made, identity(made, []), origin)
        if options.data is None:
            raise UsageError("a classifier is calibrated on images; give --data FOLDER, or --from-generator NAME.krl")
        pixels, used = decode(self.train, manifest.preprocessing, on_bad=options.on_bad_image)
        labels = [image.label for image in used]
        check_images(pixels)
        check_classes(labels, manifest.labels)
        return CalibrationData(pixels, identity(pixels, labels), "images")

    def batches(self) -> Iterator[Batch]:
        """Yield images and labels; see ``Task.batches``."""
        manifest, options = self.bundle.manifest, self.options
        if self.val:
            yield from decoded(self.val, manifest.preprocessing, on_bad=options.on_bad_image)
            return
        if options.from_generator is not None:
            yield self._generated(options.from_generator, options.val_limit, 1)
            return
        pixels = self.bundle.golden()[manifest.inputs[0].name]
        yield pixels, np.full(len(pixels), -1)

    def _generated(self, generator: Path, limit: int, seed: int) -> Batch:
        from .generation import images_of

        pixels, _ = images_of(generator, min(limit, _MOST_GENERATED), seed, self.bundle.manifest.preprocessing)
        return pixels, np.full(len(pixels), -1)

    def planning_batches(self) -> Iterator[Batch]:
        """Yield images and labels; see ``Task.planning_batches``."""
        options = self.options
        if self.planned:
            yield from decoded(self.planned, self.bundle.manifest.preprocessing, on_bad=options.on_bad_image)
        elif options.planning and options.from_generator is not None:
            yield self._generated(options.from_generator, options.planning, 2)
        else:
            raise UsageError("--mixed-precision plans on images of its own; give --data FOLDER")

    def pairs(
        self, outputs: npt.NDArray[np.float32], reference: npt.NDArray[np.float32], truth: npt.NDArray[Any] | None
    ) -> Pairs:
        """Return whether predictions agree, and for each label the points that are lost: 100, 0 or -100."""
        made, wanted = outputs.argmax(axis=1), reference.argmax(axis=1)
        if truth is None or (truth < 0).any():
            return (made == wanted).astype(np.float64), None
        return (made == wanted).astype(np.float64), 100.0 * ((wanted == truth).astype(np.float64) - (made == truth))

    def why_refused(self, precision: str, paired: Paired) -> str | None:
        """Return the agreement that is missing, or a drop that the images resolve; see ``Task.why_refused``."""
        required = LEAST_AGREEMENT[precision]
        if paired.drop is not None or self.options.max_drop is not None:
            by_drop = max(0.0, 1 - DISAGREEMENT_PER_POINT * self.accepted / 100)
            required = max(required, by_drop) if precision == "fp16" else by_drop
        if paired.alike < required - EXACT:
            return f"{paired.alike:.2%} of the predictions agree with fp32, required: {required:.2%}"
        if paired.drop is not None and paired.drop - paired.error > self.accepted + EXACT:
            return f"a drop of {paired.drop:.2f} ± {paired.error:.2f} points, accepted: {self.accepted:g}"
        return None

    def tally(self) -> PredictionTally:
        """Return an empty tally."""
        return PredictionTally()

    def alike(self, outputs: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
        """Return the share, 0 to 1, with the same top-1."""
        return float((outputs.argmax(1) == expected.argmax(1)).mean())

    def floor(self, alike: float, count: int, slack: int) -> dict[str, float]:
        """Return the agreement that the self-test requires."""
        return {"agreement": max(0.0, alike - slack / count)}

    def accuracy_drop(self, scores: Mapping[str, Score]) -> AccuracyDrop:
        """Return points of top-1; without labels points of agreement, by the limit of INT8."""
        _, *variants = scores.values()
        drop = self._drop(scores)
        if drop is not None:
            return AccuracyDrop(drop, "points of top-1", self.accepted)
        value = worst([(1 - score.agreement) * 100 for score in variants])
        unit = "points of agreement with fp32, since there are no labels"
        return AccuracyDrop(value, unit, (1 - LEAST_AGREEMENT["int8"]) * 100)

    def verdict(self, precision: str, count: int, scores: Mapping[str, Score]) -> Verdict:
        """Return whether variants pass the gate; see ``Task.verdict``."""
        _, *variants = scores.values()
        return judge_predictions(
            precision,
            count=count,
            agreement=min(score.agreement for score in variants),
            drop=self._drop(scores),
            max_drop=self.options.max_drop,
            accept_unmeasured=self.options.accept_unmeasured,
        )

    def evidence(self, scores: Mapping[str, Score], verdict: Verdict) -> dict[str, Any]:
        """Return the drop, the limits, and whether enough was judged."""
        return {"drop_points": self._drop(scores), "limits": dict(verdict.limits), "judged": verdict.judged}

    def remark(self, count: int, scores: Mapping[str, Score]) -> str:
        """Return the resolution of the images in words; see ``Task.remark``."""
        top1 = next(iter(scores.values())).top1
        if top1 is None:
            return ""
        image, error = resolution(top1, count)
        finer = f"; --max-drop {self.accepted:g} is finer than that" if self.accepted < image else ""
        return f"one image is worth {image:.2g} points, one standard error of top-1 is {error:.2g} points{finer}"

    def _drop(self, scores: Mapping[str, Score]) -> float | None:
        """Return the largest drop of top-1 in points; ``None`` without labels."""
        reference, *variants = scores.values()
        if reference.top1 is None:
            return None
        return worst([(reference.top1 - (score.top1 or 0.0)) * 100 for score in variants])
