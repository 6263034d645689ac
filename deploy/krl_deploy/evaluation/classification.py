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
from krl_deploy.data.folders import choose_disjoint, choose_two
from krl_deploy.graph.session import open_cpu
from krl_runtime.bundle import Bundle
from krl_runtime.bundle.output_kind import output_kind
from krl_runtime.cli.tables import table
from krl_runtime.errors import UsageError
from krl_runtime.evaluation.gate import Verdict, judge_predictions
from krl_runtime.evaluation.limits import DISAGREEMENT_PER_POINT, EXACT, LEAST_AGREEMENT, MAX_DROP_POINTS
from krl_runtime.evaluation.predictions import PredictionScore, PredictionTally, better_than_chance, resolution
from krl_runtime.images.folders import ImageFile, decode, identity
from krl_runtime.images.labeled import decoded, open_data, some, unknown_classes, with_label_indices

from .comparison import outputs_of
from .shift import LEAST_GOLDEN, SAMPLE, distribution_shift
from .task import Batch, CalibrationData, EvaluationOptions, Task, judged, largest_drop

__all__ = ["Classification"]

_MOST_CLASSES = 20  # in the table of recall; more than that is no longer read


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
        self.other_classes: tuple[str, ...] = ()
        self.used: dict[str, npt.NDArray[np.uint8]] = {}  # a sample of the images, by their use
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
            train, val, same = choose_two(folder, options.limit, options.val_limit, val_fraction=options.val_fraction)
            planned, self.doubts = [], (same,) if same else ()
        labels = self.bundle.manifest.labels
        self.other_classes = tuple(unknown_classes(folder, labels))
        labeled = iter(with_label_indices([*train, *planned, *val], folder, labels))
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
            self.used["calibration"] = _sample(made)
            return CalibrationData(made, identity(made, []), origin)
        if options.data is None:
            raise UsageError("a classifier is calibrated on images; give --data FOLDER, or --from-generator NAME.krl")
        pixels, used = decode(self.train, manifest.preprocessing, on_bad=options.on_bad_image)
        labels = [image.label for image in used]
        check_images(pixels)
        check_classes(labels, manifest.labels)
        self.used["calibration"] = _sample(pixels)
        return CalibrationData(pixels, identity(pixels, labels), "images")

    def batches(self) -> Iterator[Batch]:
        """Yield images and labels; see ``Task.batches``."""
        manifest, options = self.bundle.manifest, self.options
        if self.val:
            sample = []
            for pixels, labels in decoded(self.val, manifest.preprocessing, on_bad=options.on_bad_image):
                sample.append(pixels[:: -(-len(self.val) // SAMPLE)])
                yield pixels, labels
            self.used["evaluation"] = np.concatenate(sample)[:SAMPLE]
            return
        if options.from_generator is not None:
            pixels, labels = self._generated(options.from_generator, options.val_limit, 1)
            self.used["evaluation"] = _sample(pixels)
            yield pixels, labels
            return
        pixels = self.bundle.golden()[manifest.inputs[0].name]
        yield pixels, np.full(len(pixels), -1)

    def _generated(self, generator: Path, limit: int, seed: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[Any]]:
        from .generation import MOST_GENERATED, images_of

        pixels, _ = images_of(generator, min(limit, MOST_GENERATED), seed, self.bundle.manifest.preprocessing)
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

    def why_refused(self, precision: str, score: PredictionScore) -> str | None:
        """Return the agreement that is missing, or a drop that the images resolve; see ``Task.why_refused``."""
        required = LEAST_AGREEMENT[precision]
        if score.drop is not None or self.options.max_drop is not None:
            by_drop = max(0.0, 1 - DISAGREEMENT_PER_POINT * self.accepted / 100)
            required = max(required, by_drop) if precision == "fp16" else by_drop
        if score.agreement < required - EXACT:
            return f"{score.agreement:.2%} of the predictions agree with fp32, required: {required:.2%}"
        if score.drop is not None and score.drop - (score.drop_error or 0.0) > self.accepted + EXACT:
            return f"a drop of {score.drop:.2f} ± {score.drop_error:.2f} points, accepted: {self.accepted:g}"
        return None

    def tally(self) -> PredictionTally:
        """Return an empty tally."""
        return PredictionTally(output_kind(self.bundle.manifest.settings))

    def verdict(self, precision: str, count: int, scores: Mapping[str, PredictionScore]) -> Verdict:
        """Return whether variants pass the gate; see ``Task.verdict``."""
        reference, *variants = scores.values()
        return judge_predictions(
            precision,
            count=count,
            agreement=min(score.agreement for score in variants),
            drop=largest_drop(scores),
            snr_db=min(score.snr_db for score in variants),
            classes=[item for score in variants for item in score.classes],
            known=reference.top1 is None or better_than_chance(reference.classes),
            labels=self.bundle.manifest.labels,
            max_drop=self.options.max_drop,
            max_recall_drop=self.options.max_recall_drop,
            doubts=self._doubts(reference),
            accept_unmeasured=self.options.accept_unmeasured,
        )

    def _doubts(self, reference: PredictionScore) -> list[str]:
        """Return reasons why the images say nothing of the variants."""
        doubts = list(self.doubts)
        if self.other_classes:
            doubts.append(f"the images are of classes that the model does not have: {some(self.other_classes)}")
        if better_than_chance(reference.classes) or not self.used:
            return doubts  # the model knows the images
        manifest = self.bundle.manifest
        known = self.bundle.golden()[manifest.inputs[0].name]
        if len(known) < LEAST_GOLDEN:
            doubts.append(f"whether the images are the model's cannot be seen from {len(known)} golden inputs")
            return doubts
        session = open_cpu(self.bundle.read(self.bundle.reference.file))
        logits = outputs_of(session, known)
        for use, images in self.used.items():
            shift = distribution_shift(known, logits, images, outputs_of(session, images))
            if shift:
                doubts.append(f"the {use} images are unlike the golden inputs of the bundle: {shift}")
        return doubts

    def evidence(self, scores: Mapping[str, PredictionScore], verdict: Verdict) -> dict[str, Any]:
        """Return the drop, recall of the classes, the limits, and whether enough was judged."""
        rows = self._recalls(scores)
        recall = {name: {"images": count, **dict(zip(scores, each, strict=True))} for name, count, *each in rows}
        return {"drop_points": largest_drop(scores), **({"recall": recall} if recall else {}), **judged(verdict)}

    def remark(self, count: int, scores: Mapping[str, PredictionScore]) -> str:
        """Return the resolution of the images, and the recall of classes; see ``Task.remark``."""
        reference, *_ = scores.values()
        if reference.top1 is None:
            return f"{count} images without labels; one is worth {100 / count:.2g} points of agreement"
        image, error = resolution(reference.top1, count)
        finer = f"; --max-drop {self.accepted:g} is finer than that" if self.accepted < image else ""
        rows = self._recalls(scores)
        missing = len(self.bundle.manifest.labels) - len(reference.classes)
        absent = f"\n{missing} classes have no image and were not judged" if missing else ""
        which = "recall" if len(rows) == len(reference.classes) else "recall, largest drops"
        cells = [(name, number, *(f"{each:.1%}" for each in more)) for name, number, *more in rows]
        shown = table((which, "images", *scores), cells)
        return (
            f"{count} images; one image is worth {image:.2g} points, one standard error of top-1 is {error:.2g} points"
            f"{finer}\n{shown}{absent}"
        )

    def _recalls(self, scores: Mapping[str, PredictionScore]) -> list[tuple[Any, ...]]:
        """Return name, number of images, and recall in each file, of all classes, or of those that drop most."""
        reference, *variants = scores.values()
        labels = self.bundle.manifest.labels

        def drop(position: int) -> float:
            return max(score.classes[position].drop for score in variants)

        positions = list(range(len(reference.classes)))
        if len(positions) > _MOST_CLASSES:
            positions = sorted(positions, key=drop, reverse=True)[:_MOST_CLASSES]
        return [
            (
                labels[reference.classes[position].index],
                reference.classes[position].count,
                *(score.classes[position].recall for score in scores.values()),
            )
            for position in positions
        ]


def _sample(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return pixels[:: -(-len(pixels) // SAMPLE)]
