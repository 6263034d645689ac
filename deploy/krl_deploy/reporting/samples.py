"""Sample images with the predictions of teacher, student and INT8 side by side, or grids of generated images.

Bundles are run here on the CPU; nothing else is run for a report.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import krl_runtime
from krl_runtime.bundle import Bundle
from krl_runtime.bundle.further_inputs import inputs_of
from krl_runtime.bundle.golden import golden_arrays
from krl_runtime.bundle.samples import open_samples, sample_of
from krl_runtime.errors import BackendError, BundleError, KrlError, ModelError
from krl_runtime.images.folders import balanced
from krl_runtime.images.luma import psnr
from krl_runtime.pipelines.random_inputs import random_inputs
from krl_runtime.pipelines.raster import grid
from krl_runtime.progress import progress

from .blocks import Gallery, Section, Shown
from .config import ReportConfig
from .gather import Material

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["samples_section"]

_LARGEST_SIDE = 224  # pixels of an image on the page: four columns on a desktop
_SMALL_SIDE = 64  # pixels up to which PNG is as small as JPEG, and the page enlarges the image without smoothing
_QUALITY = 80  # of JPEG: no artifacts at this size, and 24 samples of four images stay below a megabyte
_SEED = 1  # of generated images: that of the gate, never calibrated on
_EQUAL_DB = 99.0  # dB from which two images count as equal


@dataclass(frozen=True)
class _Column:
    """One model of a gallery."""

    title: str
    bundle: Bundle
    variant: str | None


def samples_section(bundle: Bundle, found: Material, config: ReportConfig) -> Section:
    """Return the gallery of a bundle."""
    title = f"Samples of {bundle.path.name}"
    show = _SHOWN.get(bundle.manifest.task)
    if not config.samples or show is None:
        command = f"krl-deploy report {bundle.path.name} --samples 12 -o report.html"
        found.notes.missing(f"sample images of {bundle.path.name}", command)
        return Section(title, [])
    try:
        columns = list(_columns(bundle, found))
        galleries = [show(bundle, columns, config)]
    except (BackendError, BundleError, ModelError) as error:
        found.notes.skipped.append((str(bundle.path), f"no samples: {error}"))
        galleries = []
    return Section(title, galleries)


def _columns(bundle: Bundle, found: Material) -> Iterator[_Column]:
    """Yield the models: the teacher as its bundle has it, FP32, and the lowest precision."""
    teacher = found.teacher_of(bundle)
    if teacher is not None and teacher.manifest.task == bundle.manifest.task:
        yield _Column(f"teacher {teacher.manifest.name}", teacher, None)
    elif bundle.manifest.source.get("parent_sha256"):
        found.notes.missing(
            f"predictions of the teacher of {bundle.path.name}",
            "krl-deploy export TEACHER -o TEACHER.krl, in the folder of the bundle",
        )
    variants, role = bundle.manifest.variants, "" if teacher is None else "student "
    lowest = next((name for name in ("int8", "fp16") if name in variants), "")
    yield from (_Column(f"{role}{name}", bundle, name) for name in ("fp32", lowest) if name in variants)


def _each(columns: Sequence[_Column]) -> Iterator[tuple[_Column, Any]]:
    """Yield each model, loaded on the CPU."""
    for column in progress(columns, "running samples"):
        with krl_runtime.load(column.bundle.path, variant=column.variant, require="cpu") as model:
            yield column, model


def _source(columns: Sequence[_Column], data: str) -> str:
    files = ", ".join(dict.fromkeys(f"{column.bundle.path.name}" for column in columns))
    return f"krl-deploy report: {files} on ONNX Runtime's CPU provider here; images: {data}"


@dataclass(frozen=True)
class _Sample:
    """One image of a gallery of predictions.

    Attributes:
        image: The image for the page.
        truth: Its class; empty if it is not known.
        source: What a model takes; ``None`` for a golden input.
        arrays: Inputs of the graph of a golden input, each ``[1, ...]``.
    """

    image: str
    truth: str
    source: Any
    arrays: Mapping[str, npt.NDArray[Any]]


def _predictions(bundle: Bundle, columns: Sequence[_Column], config: ReportConfig) -> Gallery:
    """Return one row for each image, with the prediction of each model."""
    samples = list(_images(bundle, config) if config.data else _golden(bundle, config.samples))
    shown: list[list[Shown]] = []
    reference: list[Any] = []
    for column, model in _each(columns):
        results = [_result(model, bundle, sample) for sample in samples]
        if column.bundle is bundle and not reference:
            reference = results
        shown.append([])
        for index, result in enumerate(results):
            truth = samples[index].truth
            expected = truth or (_prediction(reference[index]) if reference else "")
            shown[-1].append(_shown(result, expected, reference[index] if reference else None))
    cells = [
        [Shown(sample.truth, sample.image, f"sample {index + 1}, {sample.truth or 'class not known'}"), *row]
        for index, (sample, *row) in enumerate(zip(samples, *shown, strict=True))
    ]
    data = config.data.name if config.data else "the golden inputs of the bundle"
    marked = "wrong predictions" if any(sample.truth for sample in samples) else "predictions that differ from FP32's"
    caption = f"{len(samples)} images with the prediction of each model; {marked} are marked"
    return Gallery(caption, ("image", *(column.title for column in columns)), cells, _source(columns, data))


def _golden(bundle: Bundle, count: int) -> Iterator[_Sample]:
    """Yield golden inputs, evenly spread over all of them."""
    arrays, specs = golden_arrays(bundle), bundle.manifest.inputs
    number = len(arrays[specs[0].name])
    for index in np.unique(np.linspace(0, number - 1, min(count, number)).round().astype(int)):
        inputs = {spec.name: arrays[spec.name][index : index + 1] for spec in specs}
        yield _Sample(_of_pixels(inputs[specs[0].name][0]), "", None, inputs)


def _images(bundle: Bundle, config: ReportConfig) -> Iterator[_Sample]:
    """Yield images of the user's folder, the same number of each class, from its validation images if it has some."""
    inputs = inputs_of(bundle.manifest)
    folder = open_samples(Path(str(config.data)), inputs, on_bad="skip")
    images = folder.split("val" if "val" in folder.splits else "all")
    for image in (images[index] for index in balanced([image.label for image in images], config.samples)):
        known = image.label >= 0 and bool(folder.labels)
        pixels = bundle.manifest.preprocessing(image.path)
        source = sample_of(image) if inputs else image.path
        yield _Sample(_of_pixels(pixels), folder.labels[image.label] if known else "", source, {})


def _result(model: Any, bundle: Bundle, sample: _Sample) -> Any:
    """Return the result of a model for a sample: ``None`` if it takes other inputs, or the error that it raised."""
    try:
        if sample.source is not None:
            return model(sample.source)
        if model.bundle.manifest.inputs != bundle.manifest.inputs:
            return None
        arrays = dict(sample.arrays)
        (result,) = model.run_batch(arrays if len(arrays) > 1 else next(iter(arrays.values())), [1])
    except KrlError as error:
        return error
    return result


def _prediction(result: Any) -> str:
    return str(getattr(result, "prediction", ""))


def _shown(result: Any, expected: str, reference: Any) -> Shown:
    if result is None:
        return Shown("takes other inputs; give --data")
    if isinstance(result, KrlError):
        return Shown(str(result), wrong=True)
    if hasattr(result, "prediction"):
        found = result.prediction
        return Shown(f"{found} {result.score:.1%}".replace("%", " %"), wrong=bool(expected) and found != expected)
    if reference is None or reference is result:
        return Shown("reference" if reference is result else "")
    return Shown(f"cosine {result.similarity(reference):.4f} to FP32")


def _restored(bundle: Bundle, columns: Sequence[_Column], config: ReportConfig) -> Gallery:
    """Return golden inputs of a restorer beside the outputs of each model."""
    own = [column for column in columns if column.bundle.manifest.inputs == bundle.manifest.inputs]
    arrays = golden_arrays(bundle)[bundle.manifest.inputs[0].name][: max(1, config.samples // len(own))]
    rows = [[Shown("input", _of_pixels(pixels), f"input {index + 1}")] for index, pixels in enumerate(arrays)]
    reference: list[npt.NDArray[np.uint8]] = []
    for column, model in _each(own):
        images = [_whole(model.restore_planes(pixels)) for pixels in arrays]
        if column.bundle is bundle and not reference:
            reference = images
        for index, image in enumerate(images):
            text = _distance(image, reference[index]) if reference else ""
            rows[index].append(Shown(text, _of_pixels(image), f"output of {column.title} for input {index + 1}"))
    titles = ("input", *(column.title for column in own))
    caption = f"{len(rows)} golden inputs, and what each model makes of them"
    return Gallery(caption, titles, rows, _source(own, "the golden inputs of the bundle"), large=True)


def _generated(bundle: Bundle, columns: Sequence[_Column], config: ReportConfig) -> Gallery:
    """Return a grid of generated images of each model, of the same latents."""
    row: list[Shown] = []
    reference: npt.NDArray[np.uint8] | None = None
    for column, model in _each(columns):
        feed = list(random_inputs(column.bundle.manifest.settings, config.samples, _SEED).values())
        values = np.concatenate(
            [model.values(*(each[index : index + 1] for each in feed)) for index in range(len(feed[0]))]
        )
        image = grid(model.interpret(values), columns=4).image
        pixels = np.asarray(image)
        if column.bundle is bundle and reference is None:
            reference = pixels
        text = _distance(pixels, reference) if reference is not None else ""
        alt = f"{config.samples} images that {column.title} made"
        row.append(Shown(text, _uri(image), alt))
    caption = f"{config.samples} images of each model, made from the same random numbers (seed {_SEED})"
    titles = tuple(column.title for column in columns)
    return Gallery(caption, titles, [row], _source(columns, f"latents of seed {_SEED}"), large=True)


_SHOWN: Mapping[str, Callable[[Bundle, Sequence[_Column], ReportConfig], Gallery]] = {
    "classification": _predictions,
    "embedding": _predictions,
    "restoration": _restored,
    "generation": _generated,
}


def _distance(image: npt.NDArray[np.uint8], reference: npt.NDArray[np.uint8]) -> str:
    if image is reference:
        return "reference"
    if image.shape != reference.shape:
        return ""
    decibels = psnr(image.astype(np.float64), reference.astype(np.float64))
    return "equal to FP32" if decibels > _EQUAL_DB else f"{decibels:.1f} dB to FP32"


def _whole(planes: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    return np.clip(np.rint(planes), 0, 255).astype(np.uint8)


def _of_pixels(pixels: npt.NDArray[np.uint8]) -> str:
    """Return the data URI of pixels ``[C, H, W]``, of one or three channels."""
    from PIL import Image

    return _uri(Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)))


def _uri(image: Any) -> str:
    """Return an image as a data URI, no larger than the page shows it."""
    small = max(image.size) <= _SMALL_SIDE
    image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    target = io.BytesIO()
    if small:
        image.save(target, "PNG", optimize=True)
    else:
        image.save(target, "JPEG", quality=_QUALITY)
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(target.getvalue()).decode()}"
