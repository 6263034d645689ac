"""Importing a third-party ONNX restorer."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from krl_deploy.config import ImportConfig, OutputRange
from krl_deploy.data.folders import choose_any
from krl_deploy.evaluation import EvaluationOptions, task_of
from krl_deploy.evaluation.comparison import compare, outputs_of
from krl_deploy.evaluation.restoration import patch_of
from krl_deploy.graph import PIXELS, RESTORED
from krl_deploy.graph.class_output import with_output
from krl_deploy.graph.files import to_bytes
from krl_deploy.graph.image_input import Layout, any_signature
from krl_deploy.graph.image_output import RANGES, TRUNCATION, is_range, limits_of, without_truncation
from krl_deploy.graph.number_types import widened
from krl_deploy.graph.open_batch import measured_shapes, open_batch
from krl_deploy.graph.quantized import Unquantized
from krl_deploy.graph.restorer import local_radius, open_sides, to_restorer
from krl_deploy.graph.session import open_cpu
from krl_deploy.graph.sides import restorer_sides
from krl_runtime.bundle import Bundle
from krl_runtime.errors import BackendError, CheckFailedError, KrlError, ModelError, UsageError
from krl_runtime.images.labeled import open_data
from krl_runtime.images.pairs import inputs_of, read_planes
from krl_runtime.images.preprocessing import Preprocessing
from krl_runtime.images.sides import Sides

from .original import accepted_difference, float32_model, in_float32
from .output_range import warn_of_wrapping
from .quantized import FILE, FLOAT, in_bundle, judge_float_model, taken_apart
from .restored import in_levels_of, verify_restorer
from .restorer_file import RestorerFile, open_restorer
from .rewritten import Rewritten

__all__ = ["import_restorer"]

_log = logging.getLogger("krl")

_PARTS_OVERLAP = 8  # tile side over overlap, as SwinIR's own script has for its tiles (32 of 256 pixels)
_SIDE = 48  # pixels a side of the trial inputs of a restorer of open size: a judgment, small and thus quick
_KEPT = 1024  # pixels a side of the images that the bundle is compared on: bounds the memory of photographs
_ATTEMPTS = (
    *((True, "as it is"), (True, "rewritten"), (True, "single")),
    *((False, "as it is"), (False, "rewritten"), (False, "measured"), (False, "single")),
)
"""Ways to open a graph: height and width or not, and the batch as ``open_batch`` does it or not."""


def import_restorer(config: ImportConfig, given: onnx.ModelProto) -> Rewritten:
    """Let a third-party restorer take pixels of any size, and check that its outputs stay the same.

    Raises:
        ModelError: The file is not a restorer that krl can take.
        UsageError: Scale, color, size, mean or std do not fit it.
        CheckFailedError: The outputs of the rewritten graph, or of the bundle, differ from the file's. Later, from
            ``Rewritten.measure``: the float model of a quantized file is worse than the file.
        DataError: The images cannot be used.
    """
    given = with_output(given, config.output, of="images")
    brought = taken_apart(config, given)
    original = brought.model if brought else given
    file = open_restorer(config, original)
    layout, scale = file.layout, file.scale
    if config.scale not in (None, scale):
        raise UsageError(f"--scale is {config.scale}, but the model makes images {scale} times as large; leave it out")
    color = _color(config, file)
    sides = file.sides(scale)
    preprocessing = _preprocessing(config, file, sides)
    settings = {"scale": scale, "color": color, "overlap": None, "degradation": {"kind": config.degradation}}
    planes = _planes(config, preprocessing, settings)
    pixels = _pixels(config, preprocessing, planes)
    made = file.images(pixels)
    model, changes = float32_model(original)
    model, whole, unit = _output(config, file, model, pixels)
    changes += ["the images, which were uint8, are not rounded in the graph"] * whole
    low, high = RANGES[unit]
    expected = in_levels_of(unit, made)
    tolerance = accepted_difference(original, expected) + TRUNCATION * whole
    plan = _Plan(file, preprocessing, scale, sides, layout, unit, pixels, expected, tolerance)
    model, further, sides = _rewrite(model, plan)
    changes += [f"the images were read as {low:g} to {high:g}", *further]
    if brought:
        brought, change = in_bundle(brought, file.taken, model)
        changes.append(change)
    settings |= {"overlap": _overlap(model, scale), **sides.settings()}
    if not isinstance(any_signature(model).shape[2], int):
        # Any size will do: golden inputs and calibration data need not be as large as the file's own input.
        height, width = (min(side, sides.fit(_SIDE)) for side in (preprocessing.height, preprocessing.width))
        preprocessing, pixels = replace(preprocessing, height=height, width=width), pixels[:, :, :height, :width]

    def measure(bundle: Bundle, session: Any) -> dict[str, Any]:
        task = task_of(bundle, EvaluationOptions(config.data, config.val_limit, 1.0, config.on_bad_image))
        count, scores = compare({"fp32": session}, task.batches(), task.tally)
        beside = {}
        if brought:
            as_it_was = replace(file, model=widened(given))
            beside = _beside_file(config, bundle, session, brought, as_it_was, unit)
        return {"psnr": scores["fp32"].psnr, "count": count, "data": config.images.name, **beside}

    return Rewritten(
        model,
        {PIXELS: pixels},
        {RESTORED: outputs_of(open_cpu(to_bytes(model)), pixels)},
        preprocessing,
        changes,
        measure,
        settings,
        brought=brought if brought and brought.ranges else None,
        verify=partial(verify_restorer, file, unit, planes, tolerance),
    )


def _beside_file(
    config: ImportConfig,
    bundle: Bundle,
    session: Any,
    brought: Unquantized,
    file: RestorerFile,
    unit: OutputRange,
) -> dict[str, Any]:
    """Judge the float model of a Q/DQ file on images of the size that the file takes; return the evidence."""
    manifest = bundle.manifest
    spec = manifest.inputs[0]
    sides = tuple(b if isinstance(b, int) else a for a, b in zip(spec.shape[2:], file.taken.shape[2:], strict=True))
    of_its_size = replace(manifest, inputs=(replace(spec, shape=(*spec.shape[:2], *sides)),))
    options = EvaluationOptions(config.data, config.val_limit, 1.0, config.on_bad_image, max_drop=config.max_drop)
    task = task_of(Bundle(bundle.path, of_its_size), options)

    def outputs(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        return in_levels_of(unit, file.images(pixels))

    count, scores = compare({FLOAT: session, FILE: outputs}, task.batches(), task.tally)
    return judge_float_model(config, brought, count, scores)


@dataclass(frozen=True)
class _Plan:
    """Parts of the rewritten graph, and the images that it is compared with.

    Attributes:
        file: The file.
        preprocessing: Size of the golden inputs, and what happens from pixels to the file's input.
        scale: How many times as large the output is.
        sides: Heights and widths that a file of open size takes.
        layout: Layout of the output.
        unit: Range of the output.
        pixels: Golden inputs, uint8 ``[N, C, H, W]``.
        expected: What the file makes of them, in levels of 255.
        tolerance: Accepted difference from that.
    """

    file: RestorerFile
    preprocessing: Preprocessing
    scale: int
    sides: Sides
    layout: Layout
    unit: OutputRange
    pixels: npt.NDArray[np.uint8]
    expected: npt.NDArray[np.float32]
    tolerance: float

    def shapes(self, batch: int | str, *, opened: bool) -> dict[str, tuple[int | str, ...]]:
        """Return the shapes of input and output, of any height and width or of the golden inputs'."""
        _, channels, height, width = self.pixels.shape
        if opened:
            return {
                "input": (batch, channels, "height", "width"),
                "output": (batch, channels, "scaled_height", "scaled_width"),
            }
        made = (batch, channels, self.scale * height, self.scale * width)
        return {"input": (batch, channels, height, width), "output": made}


def _color(config: ImportConfig, file: RestorerFile) -> str:
    """Return the kind of the channels: luma, gray or colors."""
    color = config.color or ("rgb" if file.channels == 3 else "y")
    if (color == "rgb") != (file.channels == 3):
        raise UsageError(
            f"--color is {color}, but the model takes {file.channels} channels; rgb has 3, y and gray have 1"
        )
    return color


def _preprocessing(config: ImportConfig, file: RestorerFile, taken: Sides) -> Preprocessing:
    """Return the size of the golden inputs, and what happens from pixels to the model's own input."""
    sides = []
    for name, given, fixed in zip(
        ("height", "width"), (config.height, config.width), file.taken.shape[2:], strict=True
    ):
        if isinstance(fixed, int):
            if given not in (None, fixed):
                raise UsageError(f"--{name} is {given}, but the model's input is fixed to {fixed}; leave it out")
            sides.append(fixed)
        elif given is not None and given != taken.fit(given):
            raise UsageError(f"--{name} is {given}; the model takes {taken.fit(given)}, or leave it out")
        else:
            sides.append(given or taken.fit(_SIDE))
    return file.preprocessing(*sides)


def _planes(config: ImportConfig, spec: Preprocessing, settings: Mapping[str, Any]) -> list[npt.NDArray[np.uint8]]:
    """Return parts of real images ``[C, H, W]``, made worse as the model expects it; larger than the golden inputs."""
    folder = open_data(config.images, on_bad=config.on_bad_image)
    planes = []
    for number, image in enumerate(choose_any(folder, config.golden)):
        whole = read_planes(image.path, settings["color"])
        given = inputs_of(whole, settings["scale"], {"kind": "bicubic"}, number)[0]
        planes.append(given[:, : max(spec.height, _KEPT), : max(spec.width, _KEPT)].copy())
    return planes


def _pixels(
    config: ImportConfig, spec: Preprocessing, planes: Sequence[npt.NDArray[np.uint8]]
) -> npt.NDArray[np.uint8]:
    """Return golden inputs: parts of the images."""
    rng = np.random.default_rng(0)
    return np.stack([patch_of(each, spec.height, spec.width, rng) for each in planes[: config.golden]])


def _output(
    config: ImportConfig, file: RestorerFile, model: onnx.ModelProto, pixels: npt.NDArray[np.uint8]
) -> tuple[onnx.ModelProto, bool, OutputRange]:
    """Return a model whose output is not rounded, whether it was, and the range of the output.

    It is what the user says; of whole numbers 0 to 255; else what the end of the graph limits it to; else that of the
    input.
    """
    model, whole = without_truncation(model)
    count = file.taken.shape[0] if isinstance(file.taken.shape[0], int) else 1
    wide = replace(file, model=model, taken=in_float32(file.taken))
    limits = limits_of(model, {file.taken.input: wide.inputs(pixels[np.arange(count) % len(pixels)])})
    if whole:
        warn_of_wrapping(limits)
    read = "0-255" if whole else is_range(limits)
    if config.output_range and read and read != config.output_range:
        _log.warning("--output-range is %s, but the end of the graph makes %s images", config.output_range, read)
    of_input: OutputRange = "0-255" if file.taken.dtype == TensorProto.UINT8 else config.input_range
    return model, whole, config.output_range or read or of_input


def _overlap(model: onnx.ModelProto, scale: int) -> int | None:
    """Return by how many pixels the parts of a large image overlap; ``None`` where the whole image is needed.

    A graph of fixed size always runs on parts of its own size. They overlap by the radius of the receptive field if
    the graph is local and large enough for that; otherwise there may be faint seams.
    """
    radius = local_radius(model, scale)
    sides = [side for side in any_signature(model).shape[2:] if isinstance(side, int)]
    if not sides or (radius is not None and min(sides) > 2 * radius):
        return radius
    overlap = min(sides) // _PARTS_OVERLAP
    field = "is not bounded" if radius is None else f"has a radius of {radius}"
    _log.warning(
        "height and width are fixed to %s, and the receptive field %s: larger images are restored in parts of this "
        "size that overlap by %d pixels, which may show faint seams",
        " and ".join(map(str, sides)),
        field,
        overlap,
    )
    return overlap


def _rewrite(model: onnx.ModelProto, plan: _Plan) -> tuple[onnx.ModelProto, list[str], Sides]:
    """Return the bundle's graph, for images of any size if possible, a list of the changes, and the sides it takes."""
    taken = in_float32(plan.file.taken)
    batch = taken.shape[0]
    failures: dict[bool, KrlError] = {}
    for opened, way in _ATTEMPTS:
        if way == "single" and batch not in (1, "batch") and isinstance(batch, int):
            continue
        try:
            candidate, done = open_sides(model, taken.layout) if opened else (model, [])
            if way in ("rewritten", "measured"):
                one_run = {taken.input: replace(plan.file, taken=taken).inputs(_filled(plan.pixels, batch))}
                candidate = open_batch(candidate, measured_shapes(model, one_run) if way == "measured" else None)
            made, further = to_restorer(
                candidate,
                plan.preprocessing,
                taken=taken,
                layout=plan.layout,
                unit=plan.unit,
                sides=plan.shapes(1 if way == "single" else "batch", opened=opened),
            )
            _check_same(made, plan)
            sides = _sides(made, plan) if opened else Sides()
        except (BackendError, CheckFailedError, ModelError) as error:
            failures.setdefault(opened, error)
            continue
        if not opened:
            _log.warning("height and width stay fixed; with open ones: %s", failures[True])
        if way == "single" and opened in failures:
            _log.warning("the batch stays fixed; with an open one: %s", failures[opened])
        opening = ["any height and width is taken"] if opened else []
        return made, [*done, *opening, *further], sides
    fixed_batch = isinstance(batch, int) and batch != 1
    note = f"; its batch is fixed to {batch}, accepted: 1 or any number" if fixed_batch else ""
    raise CheckFailedError(
        f"the outputs of the model with preprocessing differ from the file's: {failures[False]}{note}"
    )


def _filled(pixels: npt.NDArray[np.uint8], batch: int | str) -> npt.NDArray[np.uint8]:
    """Return one batch of a file: as many as it is fixed to, or one."""
    count = batch if isinstance(batch, int) else 1
    return pixels[np.arange(count) % len(pixels)]


def _check_same(model: onnx.ModelProto, plan: _Plan) -> None:
    """Check that a rewritten model has the original's outputs, in batches of two and one by one."""
    session = open_cpu(to_bytes(model))
    for batch in (2, 1):
        made = outputs_of(session, plan.pixels, batch=batch)
        if made.shape != plan.expected.shape:
            raise CheckFailedError(f"it makes {list(made.shape)}, and the file {list(plan.expected.shape)}")
        error = float(np.abs(made - plan.expected).max())
        if not error <= plan.tolerance:
            raise CheckFailedError(f"the images differ by {error:.3g} of 255; accepted: {plan.tolerance:.3g}")


def _sides(model: onnx.ModelProto, plan: _Plan) -> Sides:
    """Return the sides that a rewritten model takes, if the size of its output follows that of its input."""
    sides = plan.sides if plan.file.is_open else restorer_sides(model, plan.scale)
    if sides is None:
        raise CheckFailedError(f"of images of other sizes it makes none that are {plan.scale} times as large")
    return sides
