"""The tasks of ``krl-runtime evaluate``: what a model is measured on, and its figures beside those of the reference."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from krl_runtime.backends.base import run_in_parts
from krl_runtime.bundle import Bundle
from krl_runtime.bundle.further_inputs import inputs_of as further_of
from krl_runtime.bundle.heads import further_heads
from krl_runtime.bundle.output_kind import is_multi_label, least_score, output_kind, predictions_of
from krl_runtime.bundle.samples import open_samples
from krl_runtime.bundle.tensors import Arrays
from krl_runtime.errors import DataError, ImageError, UsageError
from krl_runtime.evaluation.labels import LabelScore, tally_of
from krl_runtime.evaluation.predictions import PredictionScore, standard_error
from krl_runtime.evaluation.retrieval import RetrievalTally
from krl_runtime.files import sha256_bytes
from krl_runtime.images.folders import ImageFile, ImageFolder, OnBadImage, balanced, report_bad
from krl_runtime.images.hashes import hash_files
from krl_runtime.images.labeled import some, truth_of, unknown_classes, with_label_indices
from krl_runtime.images.luma import mean_psnr, psnr
from krl_runtime.images.pairs import DEGRADATIONS, LARGEST_PSNR, inputs_of, read_planes, scored
from krl_runtime.images.ssim import ssim
from krl_runtime.pipelines.classifier import Classifier
from krl_runtime.pipelines.embedder import Embedder
from krl_runtime.pipelines.generator import Generator
from krl_runtime.pipelines.random_inputs import random_inputs
from krl_runtime.pipelines.restorer import Restorer
from krl_runtime.progress import progress

from .kept_images import KEPT_BYTES, KeptImages

__all__ = ["Measure", "measure_of"]

_LATENTS, _SEED = 256, 1  # generated images that are compared, and their seed: that of the gate, never calibrated on
_LATENTS_AT_ONCE = 64  # images of 3x64x64 in FP32 are 3 MiB then
_TOP = 5  # classes of the second figure of ImageNet

Outputs: TypeAlias = "list[npt.NDArray[Any]]"
"""Outputs of a model, a batch after the other; empty where they are too many to be kept."""


class Measure(Protocol):
    """The data and the figures of one kind of model.

    Attributes:
        name: Name of the data, for people.
        identity: Hash of the data.
        unit: Of a drop: ``"points"`` or ``"dB"``.
        remark: What the data says nothing of; empty if there is nothing.
        drops: Whether the truth is known, so that there is a drop.
    """

    name: str
    identity: str
    unit: str
    remark: str
    drops: bool

    def figures(self, model: Any, reference: Outputs | None, description: str) -> tuple[dict[str, Any], Outputs]:
        """Return the figures of a model, as plain JSON types, and its outputs for the data.

        Args:
            model: The pipeline of the bundle's task.
            reference: Outputs that it is compared with; ``None`` to compare it with itself.
            description: Text of the progress bar.

        Raises:
            DataError: The data cannot be used.
            BackendError: The device failed.
            ModelError: An output is not a finite number.
        """
        ...


def measure_of(bundle: Bundle, data: Path | None, *, split: str, limit: int | None, on_bad: OnBadImage) -> Measure:
    """Open what a bundle is measured on.

    Args:
        bundle: The bundle.
        data: Folder of images; ``None`` for a generator.
        split: ``"auto"`` (``val`` of a folder that has it, else all images), ``"train"``, ``"val"`` or ``"all"``.
        limit: Number of images at most, the same number of each class; ``None`` for all.
        on_bad: Action for files that are not readable images.

    Raises:
        DataError: The folder cannot be used.
        UsageError: There is none, or a generator has one.
    """
    task = bundle.manifest.task
    if task == "generation":
        if data is not None:
            raise UsageError(f"bundle {bundle.path} makes images of latents and takes none; leave {data} out")
        return GeneratorMeasure(bundle, _LATENTS if limit is None else limit)
    if data is None:
        raise UsageError(f"bundle {bundle.path} is measured on images; give a folder of images after the bundle")
    inputs = further_of(bundle.manifest) if task == "classification" else ()
    folder = open_samples(data, inputs, on_bad=on_bad)
    wanted = ("val" if "val" in folder.splits else "all") if split == "auto" else split
    images = folder.split(wanted)
    chosen = [images[index] for index in balanced([image.group for image in images], limit)]
    kinds: dict[str, Any] = {"classification": ClassifierMeasure, "embedding": EmbedderMeasure}
    measure: Measure = kinds.get(task, RestorerMeasure)(bundle, folder, chosen, on_bad)
    return measure


class ClassifierMeasure:
    """Images with labels: top-1, top-5, recall and confusion, or mAP and F1; without labels agreement alone."""

    unit = "points"

    def __init__(self, bundle: Bundle, folder: ImageFolder, images: Sequence[ImageFile], on_bad: OnBadImage) -> None:
        manifest = bundle.manifest
        self.labels = manifest.labels
        self.kind, self.least_score = output_kind(manifest.settings), least_score(manifest.settings)
        self.several = len(self.labels) if is_multi_label(self.kind) else None
        self.images = with_label_indices(images, folder, self.labels, multi_label=self.several is not None)
        self.name = folder.root.name
        self.identity = _identity(self.images)
        self.drops = bool(folder.labels) and bool((truth_of(self.images, self.several) >= 0).all())
        self.remark = _remark(bundle, folder)
        self._kept = KeptImages(self.images, manifest.preprocessing, on_bad, self.several, further_of(manifest))

    def figures(self, model: Classifier, reference: Outputs | None, description: str) -> tuple[dict[str, Any], Outputs]:
        """Return top-1 or mAP and the rest; see ``Measure``."""
        tally, every, truths = tally_of(self.kind, self.least_score), [], []
        for number, (batch, truth) in enumerate(self._kept.batches(description)):
            logits = _logits(model, batch)
            tally.add(logits, logits if reference is None else reference[number], truth)
            every.append(logits)
            truths.append(truth)
        if not every:
            raise DataError("no image is left: none of the files can be decoded")
        score = tally.score()
        found: dict[str, Any] = {"count": tally.count, "agreement": score.agreement, "snr_db": score.snr_db}
        if score.refused is not None:
            found |= {"refused": score.refused, "top1_of_known": score.top1_of_known}
        if score.drop is None:
            return found, every
        found |= {"drop": score.drop, "drop_standard_error": score.drop_error}
        if isinstance(score, LabelScore):
            return {**found, **self._of_labels(score)}, every
        return {**found, **self._of_classes(score, np.concatenate(every), np.concatenate(truths))}, every

    def _of_classes(
        self, score: PredictionScore, logits: npt.NDArray[np.float32], truth: npt.NDArray[np.int64]
    ) -> dict[str, Any]:
        count, top1 = len(truth), score.top1 or 0.0
        confusion = np.zeros((len(self.labels),) * 2, np.int64)
        np.add.at(confusion, (truth, predictions_of(logits)), 1)
        return {
            "correct": round(top1 * count),
            "top1": top1,
            "top1_standard_error": standard_error(top1, count),
            **({"top5": _hits(logits, truth) / count} if len(self.labels) > _TOP else {}),
            "recall": {self.labels[item.index]: item.recall for item in score.classes},
            "confusion": confusion.tolist(),
            "better_than_chance": score.better_than_chance,
        }

    def _of_labels(self, score: LabelScore) -> dict[str, Any]:
        return {
            "map": score.map,
            "map_standard_error": score.map_error,
            "f1_macro": score.f1_macro,
            "labels": {self.labels[item.index]: item.to_dict() for item in score.qualities},
            "better_than_chance": score.better_than_chance,
        }


def _remark(bundle: Bundle, folder: ImageFolder) -> str:
    """Return a note on what the labeled images cannot say: of classes that the model lacks, and of further outputs."""
    unknown = unknown_classes(folder, bundle.manifest.labels)
    remarks = [f"classes that the model does not have: {some(unknown)}"] if unknown else []
    further = [head.name for head in further_heads(bundle.manifest)]
    remarks += [f"only the first output is measured, and not {', '.join(further)}"] if further else []
    return "; ".join(remarks)


class EmbedderMeasure:
    """Images of any labels: recall at 1 and 5, each against all others; without labels agreement alone."""

    unit = "points"

    def __init__(self, bundle: Bundle, folder: ImageFolder, images: Sequence[ImageFile], on_bad: OnBadImage) -> None:
        self.name = folder.root.name
        self.identity = _identity(images)
        counts = Counter(image.label for image in images if image.label >= 0)
        self.drops = any(count > 1 for count in counts.values())
        self.remark = "" if self.drops else "no label is on two images, so that only agreement is measured"
        self._kept = KeptImages(images, bundle.manifest.preprocessing, on_bad)

    def figures(self, model: Embedder, reference: Outputs | None, description: str) -> tuple[dict[str, Any], Outputs]:
        """Return recall and the rest; see ``Measure``."""
        tally, every = RetrievalTally(), []
        for number, (pixels, truth) in enumerate(self._kept.batches(description)):
            vectors = model.embed(pixels)
            tally.add(vectors, vectors if reference is None else reference[number], truth)
            every.append(vectors)
        if not every:
            raise DataError("no image is left: none of the files can be decoded")
        score = tally.score()
        found = {name: getattr(score, name) for name in ("count", "agreement", "snr_db", "mean_cosine")}
        if score.drop is None:
            return found, every
        recalls = {
            name if kind == "" else f"{name}_standard_error": getattr(score, f"{name}{kind}")
            for name in ("recall_at_1", "recall_at_5")
            for kind in ("", "_error")
        }
        more = {name: getattr(score, name) for name in ("counted", "map_at_r", "drop", "better_than_chance")}
        return {**found, **recalls, **more, "drop_standard_error": score.drop_error}, every


class RestorerMeasure:
    """Whole images: PSNR and SSIM of what is made of their degraded versions, by the papers' protocols."""

    unit = "dB"

    def __init__(self, bundle: Bundle, folder: ImageFolder, images: Sequence[ImageFile], on_bad: OnBadImage) -> None:
        settings = bundle.manifest.settings
        self.scale: int = settings["scale"]
        self.color: str = settings["color"]
        self.degradation: Mapping[str, Any] = settings.get("degradation") or {}
        self.drops = self.degradation.get("kind") in DEGRADATIONS
        self.images, self.on_bad = tuple(images), on_bad
        self.name = folder.root.name
        self.identity = _identity(self.images)
        self._reference: list[float] = []  # PSNR of each image, of the reference
        self.remark = "" if self.drops else "the bundle does not say what it undoes, so that no truth is known"

    def _pairs(self, description: str) -> Iterator[tuple[str, npt.NDArray[np.uint8], npt.NDArray[np.uint8] | None]]:
        """Yield the name, the input ``[C, h, w]`` and the truth of each image."""
        for number, image in enumerate(progress(self.images, description)):
            try:
                planes = read_planes(image.path, self.color)
                given, truth = inputs_of(planes, self.scale, self.degradation, number) if self.drops else (planes, None)
            except (ImageError, UsageError) as error:
                report_bad([f"{image.path}: {error}"], self.on_bad)
                continue
            yield image.path.name, given, truth

    def figures(self, model: Restorer, reference: Outputs | None, description: str) -> tuple[dict[str, Any], Outputs]:
        """Return PSNR, SSIM and the rest; see ``Measure``."""
        rows: list[dict[str, Any]] = []
        kept: Outputs = []
        alike: list[float] = []
        for number, (name, given, truth) in enumerate(self._pairs(description)):
            made = model.restore_planes(given)[None]
            rows.append({"name": name, **({} if truth is None else self._scores(made[0], truth))})
            if reference:
                alike.append(mean_psnr(made, reference[number]))
            if number == len(kept) and sum(item.nbytes for item in kept) + made.nbytes <= KEPT_BYTES:
                kept.append(made)
        if not rows:
            raise DataError("no image is left: none of the files can be decoded")
        complete = kept if len(kept) == len(rows) else []
        found: dict[str, Any] = {"count": len(rows), "psnr_to_fp32": float(np.mean(alike)) if alike else None}
        return {**found, **(self._summary(rows, first=reference is None) if self.drops else {})}, complete

    def _summary(self, rows: Sequence[dict[str, Any]], *, first: bool) -> dict[str, Any]:
        """Return the means over the images, and the drop against the images of the reference, which come first."""
        values = [row["psnr"] for row in rows]
        if first:
            self._reference = values
        drops = np.subtract(self._reference, values)
        error = float(np.std(drops, ddof=1)) / math.sqrt(len(drops)) if len(drops) > 1 else 0.0
        similar = [row["ssim"] for row in rows if row["ssim"] is not None]
        return {
            "psnr": float(np.mean(values)),
            "ssim": float(np.mean(similar)) if similar else None,
            "drop": float(drops.mean()),
            "drop_standard_error": error,
            "images": list(rows),
        }

    def _scores(self, output: npt.NDArray[np.float32], truth: npt.NDArray[np.uint8]) -> dict[str, float | None]:
        """Return the PSNR and the SSIM, the mean over colors, of one image; no SSIM below the size of its window."""
        made, wanted = scored(output, truth, self.scale)
        planes = zip(np.atleast_3d(made).transpose(2, 0, 1), np.atleast_3d(wanted).transpose(2, 0, 1), strict=True)
        try:
            similar = float(np.mean([ssim(one, other) for one, other in planes]))
        except UsageError:
            similar = None
        return {"psnr": min(psnr(made, wanted), LARGEST_PSNR), "ssim": similar}


class GeneratorMeasure:
    """Images of the same latents and conditions: how close they are to those of FP32."""

    unit, drops, remark = "dB", False, ""

    def __init__(self, bundle: Bundle, count: int) -> None:
        self.count = count
        self.inputs = random_inputs(bundle.manifest.settings, count, _SEED)
        self.name = f"{count} latents of seed {_SEED}"
        self.identity = sha256_bytes(b"".join(np.ascontiguousarray(item).tobytes() for item in self.inputs.values()))

    def figures(self, model: Generator, reference: Outputs | None, description: str) -> tuple[dict[str, Any], Outputs]:
        """Return the PSNR to FP32's images; see ``Measure``."""
        every: Outputs = []
        for start in progress(range(0, self.count, _LATENTS_AT_ONCE), description):
            part = {name: array[start : start + _LATENTS_AT_ONCE] for name, array in self.inputs.items()}
            every.append(run_in_parts(partial(_made, model), part, model.bundle.batch_limit)["images"])
        alike = None
        if reference is not None:
            alike = mean_psnr(np.concatenate(every), np.concatenate(reference))
        return {"count": self.count, "psnr_to_fp32": alike}, every


def _made(model: Generator, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    return {"images": model.values(*inputs.values())}


def _logits(model: Classifier, batch: Arrays) -> npt.NDArray[np.float32]:
    several = batch if isinstance(batch, Mapping) else {model.bundle.manifest.inputs[0].name: batch}
    found = run_in_parts(lambda part: {"logits": model.logits(part)}, several, model.bundle.batch_limit)
    return np.asarray(found["logits"], np.float32)


def _hits(logits: npt.NDArray[np.float32], truth: npt.NDArray[np.int64]) -> int:
    """Return how many images have their label among the five largest logits; equal ones count in their order."""
    if logits.shape[1] <= _TOP:
        return len(truth)
    order = np.argsort(-logits, axis=1, kind="stable")[:, :_TOP]
    return int((order == truth[:, None]).any(axis=1).sum())


def _identity(images: Sequence[ImageFile]) -> str:
    """Return a hash of the files and their labels, in their order."""
    hashes = hash_files([image.path for image in images])
    labels = [image.label if image.present is None else sorted(image.present) for image in images]
    return sha256_bytes(",".join(f"{label}:{item}" for label, item in zip(labels, hashes, strict=True)).encode())
