"""Importing a third-party ONNX restorer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from krl_deploy.config import ImportConfig
from krl_deploy.data.folders import choose_any, open_data
from krl_deploy.evaluation import EvaluationOptions, task_of
from krl_deploy.evaluation.comparison import compare, outputs_of
from krl_deploy.evaluation.restoration import inputs_of, patch_of, read_planes
from krl_deploy.graph import PIXELS, RESTORED
from krl_deploy.graph.cleanup import clean
from krl_deploy.graph.files import to_bytes
from krl_deploy.graph.image_input import Signature, signature
from krl_deploy.graph.restorer import local_radius, open_sides, scale_of, to_restorer
from krl_deploy.graph.session import open_cpu
from krl_deploy.graph.sides import restorer_sides
from krl_runtime.bundle import Bundle
from krl_runtime.errors import BackendError, CheckFailedError, KrlError, ModelError, UsageError
from krl_runtime.images.preprocessing import Preprocessing
from krl_runtime.images.sides import Sides

from .original import TOLERANCE, in_known_opset, input_unit, original_outputs
from .rewritten import Rewritten

__all__ = ["import_restorer"]

_log = logging.getLogger("krl")

_PARTS_OVERLAP = 8  # tile side over overlap, as SwinIR's own script has for its tiles (32 of 256 pixels)
_SIDE = 48  # pixels a side of the trial inputs of a restorer of open size: a judgment, small and thus quick


def import_restorer(config: ImportConfig, original: onnx.ModelProto) -> Rewritten:
    """Let a third-party restorer take pixels of any size, and check that its outputs stay the same.

    Raises:
        ModelError: The file is not a restorer that krl can take.
        UsageError: Scale, color, size, mean or std do not fit it.
        CheckFailedError: The outputs of the rewritten graph differ from the file's.
        DataError: The images cannot be used.
    """
    taken = signature(original)
    scale = config.scale or scale_of(original)
    if scale is None:
        raise UsageError("the model's shapes do not say how many times as large its output is; give --scale")
    channels = int(taken.shape[1])
    color = config.color or ("rgb" if channels == 3 else "y")
    if (color == "rgb") != (channels == 3):
        raise UsageError(f"--color is {color}, but the model takes {channels} channels; rgb has 3, y and gray have 1")
    preprocessing = _preprocessing(config, taken)
    settings = {"scale": scale, "color": color, "overlap": None, "degradation": {"kind": config.degradation}}
    pixels = _pixels(config, preprocessing, settings)
    made = original_outputs(original, taken, preprocessing, pixels, together=False)
    expected = made * np.float32(255 / input_unit(config))
    model, changes, sides = _rewrite(original, taken, preprocessing, scale, config, pixels, expected)
    settings |= {"overlap": _overlap(model, scale), **sides.settings()}
    if not isinstance(signature(model).shape[2], int):
        # Any size will do: golden inputs and calibration data need not be as large as the file's own input.
        height, width = min(_SIDE, preprocessing.height), min(_SIDE, preprocessing.width)
        preprocessing, pixels = replace(preprocessing, height=height, width=width), pixels[:, :, :height, :width]

    def measure(bundle: Bundle, session: Any) -> dict[str, Any]:
        task = task_of(bundle, EvaluationOptions(config.data, config.val_limit, 1.0, config.on_bad_image))
        count, scores = compare({"fp32": session}, task.batches(), task.tally)
        return {"psnr": scores["fp32"].psnr, "count": count, "data": config.images.name}

    outputs = {RESTORED: outputs_of(open_cpu(to_bytes(model)), pixels)}
    return Rewritten(model, {PIXELS: pixels}, outputs, preprocessing, changes, measure, settings)


def _preprocessing(config: ImportConfig, taken: Signature) -> Preprocessing:
    """Return the size of the golden inputs, and what happens from pixels to the model's own input."""
    sides = {"height": config.height or taken.shape[2], "width": config.width or taken.shape[3]}
    for name, fixed in (("height", taken.shape[2]), ("width", taken.shape[3])):
        if isinstance(fixed, int) and sides[name] != fixed:
            raise UsageError(f"--{name} is {sides[name]}, but the model's input is fixed to {fixed}; leave it out")
    channels = int(taken.shape[1])
    unit = input_unit(config)
    height, width = (side if isinstance(side, int) else _SIDE for side in sides.values())
    return Preprocessing(
        height,
        width,
        channels,
        mean=tuple(value / unit for value in config.mean or (0.0,) * channels),
        std=tuple(value / unit for value in config.std or (1.0,) * channels),
    )


def _pixels(config: ImportConfig, spec: Preprocessing, settings: Mapping[str, Any]) -> npt.NDArray[np.uint8]:
    """Return golden inputs: parts of real images, made worse as the model expects it."""
    folder, rng = open_data(config.images, on_bad=config.on_bad_image), np.random.default_rng(0)
    parts = []
    for number, image in enumerate(choose_any(folder, config.golden)):
        planes = read_planes(image.path, settings["color"])
        given, _ = inputs_of(planes, settings["scale"], {"kind": "bicubic"}, number)
        parts.append(patch_of(given, spec.height, spec.width, rng))
    return np.stack(parts)


def _overlap(model: onnx.ModelProto, scale: int) -> int | None:
    """Return by how many pixels the parts of a large image overlap; ``None`` where the whole image is needed.

    A graph of fixed size always runs on parts of its own size. They overlap by the radius of the receptive field if
    the graph is local and large enough for that; otherwise there may be faint seams.
    """
    radius = local_radius(model, scale)
    sides = [side for side in signature(model).shape[2:] if isinstance(side, int)]
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


def _rewrite(
    original: onnx.ModelProto,
    taken: Signature,
    preprocessing: Preprocessing,
    scale: int,
    config: ImportConfig,
    pixels: npt.NDArray[np.uint8],
    expected: npt.NDArray[np.float32],
) -> tuple[onnx.ModelProto, list[str], Sides]:
    """Return the bundle's graph, for images of any size if possible, a list of the changes, and the sides it takes."""
    model, before = in_known_opset(original)
    model = clean(model)
    opened, freed = open_sides(model)
    channels, peak = preprocessing.channels, input_unit(config)
    anything = {
        "input": ("batch", channels, "height", "width"),
        "output": ("batch", channels, "scaled_height", "scaled_width"),
    }
    fixed = {
        "input": ("batch", *preprocessing.shape),
        "output": ("batch", channels, scale * preprocessing.height, scale * preprocessing.width),
    }
    single = {"input": (1, *fixed["input"][1:]), "output": (1, *fixed["output"][1:])}
    attempts: list[tuple[onnx.ModelProto, list[str], Mapping[str, Any]]] = [
        (opened, [*freed, "any height and width is taken"], anything),
        (model, [], fixed),
    ]
    if taken.shape[0] == 1:
        attempts.append((model, [], single))
    failures: list[KrlError] = []
    for candidate, done, sides in attempts:
        try:
            made, further = to_restorer(candidate, preprocessing, peak=peak, sides=sides)
            _check_same(made, pixels, expected, scale)
            taken_sides = _open_sides(made, scale) if sides is anything else Sides()
        except (BackendError, CheckFailedError, ModelError) as error:
            failures.append(error)
            continue
        for what, failure in zip(("height and width stay", "the batch stays"), failures, strict=False):
            _log.warning("%s fixed; with open ones: %s", what, failure)
        return made, [*before, *done, *further], taken_sides
    fixed_batch = isinstance(taken.shape[0], int) and taken.shape[0] != 1
    batch = f"; its batch is fixed to {taken.shape[0]}, accepted: 1 or any number" if fixed_batch else ""
    raise CheckFailedError(f"the outputs of the model with preprocessing differ from the file's: {failures[0]}{batch}")


def _check_same(
    model: onnx.ModelProto,
    pixels: npt.NDArray[np.uint8],
    expected: npt.NDArray[np.float32],
    scale: int,
) -> None:
    """Check that a rewritten model has the original's outputs."""
    session = open_cpu(to_bytes(model))
    made = outputs_of(session, pixels, batch=2)
    wanted = (*pixels.shape[:2], pixels.shape[2] * scale, pixels.shape[3] * scale)
    if made.shape != wanted:
        raise CheckFailedError(f"it makes {list(made.shape)}, with scale {scale} it should be {list(wanted)}")
    error, accepted = float(np.abs(made - expected).max()), TOLERANCE * max(1.0, float(np.abs(expected).max()))
    if not error <= accepted:
        raise CheckFailedError(f"the images differ by {error:.3g} of 255; accepted: {accepted:.3g}")


def _open_sides(model: onnx.ModelProto, scale: int) -> Sides:
    """Return the sides that a rewritten model takes, if the size of its output follows that of its input."""
    sides = restorer_sides(model, scale)
    if sides is None:
        raise CheckFailedError(f"of images of other sizes it makes none that are {scale} times as large")
    return sides
