"""Classifiers: real or generated images, and top-1, or mAP of several labels, in points."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from krl_deploy.calibration.lint import check_classes, check_images
from krl_deploy.data.arrays import Inputs, identity_of, joined, length, rows
from krl_deploy.data.folders import choose_disjoint, choose_two
from krl_deploy.graph.session import open_cpu
from krl_runtime.bundle import Bundle
from krl_runtime.bundle.further_inputs import inputs_of
from krl_runtime.bundle.heads import further_heads
from krl_runtime.bundle.output_kind import is_multi_label, least_score, output_kind
from krl_runtime.bundle.samples import decode_samples, open_samples
from krl_runtime.cli.tables import table
from krl_runtime.errors import UsageError
from krl_runtime.evaluation.gate import Verdict, judge_predictions, least_agreement
from krl_runtime.evaluation.labels import LabelScore, tally_of
from krl_runtime.evaluation.limits import DISAGREEMENT_PER_POINT, EXACT, LEAST_AGREEMENT, MAX_DROP_POINTS
from krl_runtime.evaluation.predictions import PredictionScore, PredictionTally, resolution
from krl_runtime.files import sha256_bytes
from krl_runtime.images.folders import ImageFile, ImageFolder, identity
from krl_runtime.images.labeled import decoded, some, truth_of, unknown_classes, with_label_indices

from .comparison import outputs_of
from .heads import HeadsTally
from .shift import LEAST_GOLDEN, SAMPLE, distribution_shift
from .task import Batch, CalibrationData, EvaluationOptions, Task, judged, largest_drop

__all__ = ["Classification", "LabeledImages"]

_MOST_CLASSES = 20  # in the table of recall; more than that is no longer read


class LabeledImages(Task):
    """Images of a folder or a list, or of a generator: to calibrate on, to plan on, and to judge on.

    Attributes:
        several: Of a multi-label model the number of labels, else ``None``.
        accepted: Largest drop in points that is accepted.
    """

    predicts = True
    several: int | None = None

    def __init__(self, bundle: Bundle, options: EvaluationOptions) -> None:
        if options.min_psnr is not None:
            raise UsageError("--min-psnr is for bundles that make images; give --max-drop")
        self.bundle, self.options = bundle, options
        self.accepted = MAX_DROP_POINTS if options.max_drop is None else options.max_drop
        self.train: list[ImageFile] = []
        self.planned: list[ImageFile] = []
        self.val: list[ImageFile] = []
        self.other_classes: tuple[str, ...] = ()
        self.inputs = inputs_of(bundle.manifest) if bundle.manifest.task == "classification" else ()
        if self.inputs and options.from_generator is not None:
            raise UsageError(
                "--from-generator makes images alone, and the model has further inputs; give --data LIST.csv"
            )
        self.used: dict[str, Inputs] = {}  # a sample of the images, by their use
        self.name = "golden inputs"
        if options.data is not None:
            self._choose()
        elif options.from_generator is not None:
            self.name = f"images of {options.from_generator.name}"

    def _labels_for(self, folder: ImageFolder) -> tuple[str, ...]:
        """Return the labels of the truth: those of the model."""
        return self.bundle.manifest.labels

    def _choose(self) -> None:
        options = self.options
        assert options.data is not None  # noqa: S101  for the type checker
        folder = open_samples(options.data, self.inputs, on_bad=options.on_bad_image)
        if options.planning:
            calibrated = 0 if options.from_generator is not None else options.limit
            train, planned, val = choose_disjoint(
                folder, calibrated, options.planning, options.val_limit, val_fraction=options.val_fraction
            )
        else:
            train, val, same = choose_two(folder, options.limit, options.val_limit, val_fraction=options.val_fraction)
            planned, self.doubts = [], (same,) if same else ()
        labels = self._labels_for(folder)
        several = self.several is not None
        unknown = unknown_classes(folder, labels)
        # A multi-label model is measured on the labels that it knows.
        self.other_classes = () if several and set(folder.labels) & set(labels) else tuple(unknown)
        labeled = iter(with_label_indices([*train, *planned, *val], folder, labels, multi_label=several))
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
            raise UsageError("calibration needs images; give --data FOLDER, or --from-generator NAME.krl")
        inputs, used = decode_samples(self.train, manifest.preprocessing, self.inputs, on_bad=options.on_bad_image)
        labels = truth_of(used, self.several)
        for pixels in _images(inputs):
            check_images(pixels)
        check_classes(labels, manifest.labels)
        self.used["calibration"] = _sample(inputs)
        return CalibrationData(inputs, _identity(inputs, labels), "images")

    def batches(self) -> Iterator[Batch]:
        """Yield images and labels; see ``Task.batches``."""
        options = self.options
        if self.val:
            sample = []
            for inputs, labels in self._decoded(self.val):
                sample.append(rows(inputs, slice(None, None, -(-len(self.val) // SAMPLE))))
                yield inputs, labels
            self.used["evaluation"] = rows(joined(sample), slice(SAMPLE))
            return
        if options.from_generator is not None:
            pixels, labels = self._generated(options.from_generator, options.val_limit, 1)
            self.used["evaluation"] = _sample(pixels)
            yield pixels, labels
            return
        golden = self._golden()
        yield golden, np.full(length(golden), -1)

    def _golden(self) -> Inputs:
        """Return the golden inputs: pixels alone, or all inputs by name."""
        golden, specs = self.bundle.golden(), self.bundle.manifest.inputs
        return {spec.name: golden[spec.name] for spec in specs} if self.inputs else golden[specs[0].name]

    def _decoded(self, images: Sequence[ImageFile]) -> Iterator[tuple[Inputs, npt.NDArray[np.int64]]]:
        preprocessing, on_bad = self.bundle.manifest.preprocessing, self.options.on_bad_image
        read = partial(decode_samples, inputs=self.inputs)
        return decoded(images, preprocessing, on_bad=on_bad, several=self.several, decode=read)

    def _generated(self, generator: Path, limit: int, seed: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[Any]]:
        from .generation import MOST_GENERATED, images_of

        pixels, _ = images_of(generator, min(limit, MOST_GENERATED), seed, self.bundle.manifest.preprocessing)
        return pixels, np.full(len(pixels), -1)

    def planning_batches(self) -> Iterator[Batch]:
        """Yield images and labels; see ``Task.planning_batches``."""
        options = self.options
        if self.planned:
            yield from self._decoded(self.planned)
        elif options.planning and options.from_generator is not None:
            yield self._generated(options.from_generator, options.planning, 2)
        else:
            raise UsageError("--mixed-precision plans on images of its own; give --data FOLDER")

    def _shift(self) -> list[str]:
        """Return in which way the images are unlike the golden inputs, as doubts; empty if they are alike."""
        if not self.used:
            return []
        known = self._golden()
        if length(known) < LEAST_GOLDEN:
            return [f"whether the images are the model's cannot be seen from {length(known)} golden inputs"]
        session = open_cpu(self.bundle.read(self.bundle.reference.file))
        width = self.bundle.golden()[self.bundle.manifest.outputs[0].name].shape[1]  # further heads are beside it
        outputs = outputs_of(session, known)[:, :width]
        doubts = []
        for use, inputs in self.used.items():
            made = outputs_of(session, inputs)[:, :width]
            shift = distribution_shift(_pixels(known), outputs, _pixels(inputs), made)
            if shift:
                doubts.append(f"the {use} images are unlike the golden inputs of the bundle: {shift}")
        return doubts


class Classification(LabeledImages):
    """Images, and top-1, or mAP of a multi-label model."""

    def __init__(self, bundle: Bundle, options: EvaluationOptions) -> None:
        self.heads = further_heads(bundle.manifest)
        self.kind = output_kind(bundle.manifest.settings)
        self.least_score = least_score(bundle.manifest.settings)
        self.several = len(bundle.manifest.labels) if is_multi_label(self.kind) else None
        self.metric = tally_of(self.kind).score_type.METRIC_NAME
        super().__init__(bundle, options)

    def why_refused(self, precision: str, score: PredictionScore) -> str | None:
        """Return the agreement that is missing, or a drop that the images resolve; see ``Task.why_refused``."""
        least = least_agreement(precision, self.options.max_drop)
        for name, share in score.further.items():
            if share < least - EXACT:
                return f"{share:.2%} of the predictions of the head {name} agree with fp32, required: {least:.2%}"
        required = LEAST_AGREEMENT[precision]
        if score.drop is not None or self.options.max_drop is not None:
            by_drop = max(0.0, 1 - DISAGREEMENT_PER_POINT * self.accepted / 100)
            required = max(required, by_drop) if precision == "fp16" else by_drop
        if score.agreement < required - EXACT:
            return f"{score.agreement:.2%} of the predictions agree with fp32, required: {required:.2%}"
        if score.drop is not None and score.drop - (score.drop_error or 0.0) > self.accepted + EXACT:
            return f"a drop of {score.drop:.2f} ± {score.drop_error:.2f} points, accepted: {self.accepted:g}"
        return None

    def tally(self) -> PredictionTally | HeadsTally:
        """Return an empty tally."""
        if self.heads:
            return HeadsTally(self.kind, len(self.bundle.manifest.labels), self.heads, self.least_score)
        return tally_of(self.kind, self.least_score)

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
            known=reference.drop is None or reference.better_than_chance,
            labels=self.bundle.manifest.labels,
            metric=self.metric,
            max_drop=self.options.max_drop,
            max_recall_drop=self.options.max_recall_drop,
            doubts=self._doubts(reference),
            accept_unmeasured=self.options.accept_unmeasured,
            further={head.name: min(score.further[head.name] for score in variants) for head in self.heads},
        )

    def _doubts(self, reference: PredictionScore) -> list[str]:
        """Return reasons why the images say nothing of the variants."""
        doubts = list(self.doubts)
        if self.other_classes:
            doubts.append(f"the images are of classes that the model does not have: {some(self.other_classes)}")
        if reference.better_than_chance:
            return doubts  # the model knows the images
        return [*doubts, *self._shift()]

    def evidence(self, scores: Mapping[str, PredictionScore], verdict: Verdict) -> dict[str, Any]:
        """Return the drop, recall of the classes (F1 of several labels), the limits, and whether enough was judged."""
        rows = self._rows(scores)
        each_class = {name: {"images": count, **dict(zip(scores, each, strict=True))} for name, count, *each in rows}
        drop, name = ("drop_points", "recall") if self.several is None else ("map_drop_points", "f1")
        return {drop: largest_drop(scores), **({name: each_class} if each_class else {}), **judged(verdict)}

    def remark(self, count: int, scores: Mapping[str, PredictionScore]) -> str:
        """Return the resolution of the images, and the recall of classes; see ``Task.remark``."""
        reference, *_ = scores.values()
        if reference.drop is None or reference.quality is None:
            worth = f"{100 / count:.2g} points of agreement"
            return f"{count} images without labels; one is worth {worth}{_refused(scores)}{self._further(scores)}"
        rows = self._rows(scores)
        missing = len(self.bundle.manifest.labels) - len(reference.classes)
        kind, column = ("classes", "recall") if self.several is None else ("labels", "F1 of label")
        absent = f"\n{missing} {kind} have no image and were not judged" if missing else ""
        which = column if len(rows) == len(reference.classes) else f"{column}, largest drops"
        cells = [(name, number, *(f"{each:.1%}" for each in more)) for name, number, *more in rows]
        shown = table((which, "images", *scores), cells)
        said = f"{self._resolution(reference, count)}{_refused(scores)}"
        return f"{count} images; {said}\n{shown}{absent}{self._further(scores)}"

    def _further(self, scores: Mapping[str, PredictionScore]) -> str:
        """Return a line for each further head: how many of its predictions are those of FP32."""
        _, *variants = scores.items()
        lines = []
        for head in self.heads:
            shares = ", ".join(f"{name} {score.further[head.name]:.2%}" for name, score in variants)
            lines.append(f"\nhead {head.name}: agreement {shares}")
        return "".join(lines)

    def _resolution(self, reference: PredictionScore, count: int) -> str:
        """Return how fine the images resolve the metric, for people."""
        if isinstance(reference, LabelScore):
            return f"one standard error of mAP is {100 * (reference.map_error or 0.0):.2g} points"
        image, error = resolution(reference.quality or 0.0, count)
        finer = f"; --max-drop {self.accepted:g} is finer than that" if self.accepted < image else ""
        return f"one image is worth {image:.2g} points, one standard error of top-1 is {error:.2g} points{finer}"

    def _rows(self, scores: Mapping[str, PredictionScore]) -> list[tuple[Any, ...]]:
        """Return name, number of images, and in each file recall (F1 of several labels) of all classes.

        Of many classes there are those whose recall drops most.
        """
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
                *(score.share_of(position) for score in scores.values()),
            )
            for position in positions
        ]


def _refused(scores: Mapping[str, PredictionScore]) -> str:
    """Return a line with the share of images that are none of the classes to each file; nothing if none refuses."""
    shares = {name: score.refused for name, score in scores.items() if score.refused is not None}
    shown = ", ".join(f"{name} {share:.2%}" for name, share in shares.items())
    return f"\nnone of these: {shown} of the images" if shown else ""


def _sample(inputs: Inputs) -> Inputs:
    return rows(inputs, slice(None, None, -(-length(inputs) // SAMPLE)))


def _images(inputs: Inputs) -> list[npt.NDArray[np.uint8]]:
    """Return the inputs that are images, the first one first."""
    return [array for array in inputs.values() if array.ndim == 4] if isinstance(inputs, Mapping) else [inputs]


def _identity(inputs: Inputs, labels: npt.NDArray[np.int64]) -> str:
    """Return a hash of inputs and their labels."""
    own = identity(_pixels(inputs), labels)
    return sha256_bytes(f"{own}:{identity_of(inputs)}".encode()) if isinstance(inputs, Mapping) else own


def _pixels(inputs: Inputs) -> npt.NDArray[np.uint8]:
    return _images(inputs)[0]
