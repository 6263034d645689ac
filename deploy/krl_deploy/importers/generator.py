"""Importing a third-party ONNX generator: a latent in, an image out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from krl_deploy.config import ImportConfig, OutputRange
from krl_deploy.evaluation.comparison import outputs_of
from krl_deploy.evaluation.generation import GOLDEN_SEED
from krl_deploy.graph import IMAGES
from krl_deploy.graph.bounds import check_bounds
from krl_deploy.graph.class_output import with_output
from krl_deploy.graph.files import to_bytes
from krl_deploy.graph.generator import to_generator
from krl_deploy.graph.image_output import (
    RANGES,
    TRUNCATION,
    ImageOutput,
    image_output,
    limits_of,
    without_truncation,
)
from krl_deploy.graph.latent_input import LatentInput, check_not_random, latent_input
from krl_deploy.graph.number_types import has_other_floats, widened
from krl_deploy.graph.open_batch import attempts, measured_shapes
from krl_deploy.graph.operators import QUANTIZED
from krl_deploy.graph.session import open_cpu
from krl_runtime.errors import BackendError, CheckFailedError, KrlError, ModelError
from krl_runtime.images.preprocessing import Preprocessing
from krl_runtime.pipelines import Generator
from krl_runtime.pipelines.generator import LATENT
from krl_runtime.pipelines.random_inputs import random_inputs

from .original import accepted_difference, float32_model, in_steps
from .output_range import output_range, warn_of_wrapping
from .rewritten import Rewritten

__all__ = ["import_generator"]

_log = logging.getLogger("krl")

_LATENTS = 16  # that the file is compared on, at least: a full batch of the runtime
_STEP = 8  # latents in a run of the file, if its batch is open, as in the evaluation
_ALIKE = 1e-6  # of the largest value: rounding in another place of a batch is below
_ONCE = 1e-4  # of the largest value: sums in another order are far below, and a level of 255 is far above


@dataclass(frozen=True)
class _Original:
    """A file as it was given, and what it makes.

    Attributes:
        model: The file.
        taken: Its input.
        made: Its output.
        latents: float32 ``[N, size]``.
        images: What it makes of them, ``[N, C, H, W]`` in RGB, in its own range.
    """

    model: onnx.ModelProto
    taken: LatentInput
    made: ImageOutput
    latents: npt.NDArray[np.float32]
    images: npt.NDArray[np.float32]

    def levels(self, unit: OutputRange) -> npt.NDArray[np.float32]:
        """Return the images in levels of 0 to 255, neither rounded nor clipped."""
        low, high = RANGES[unit]
        return np.asarray((self.images - np.float32(low)) * np.float32(255 / (high - low)))


def import_generator(config: ImportConfig, given: onnx.ModelProto) -> Rewritten:
    """Let a third-party generator take latents as the runtime draws them, and check that its images stay the same.

    Raises:
        ModelError: The file is not a generator that krl can take.
        UsageError: Output, range, size or order do not fit it, or must be given.
        CheckFailedError: The images of the rewritten graph differ from the file's.
    """
    original = _read(config, given)
    model, changes = float32_model(original.model)
    model, truncated = without_truncation(model)
    if truncated:
        changes.append("the images, which were uint8, are not rounded in the graph")
    parameters = sum(prod(item.dims) for item in model.graph.initializer if item.data_type == TensorProto.FLOAT)
    one_run = _one_run(original.taken, original.latents)
    limits = limits_of(model, one_run)
    if truncated:
        warn_of_wrapping(limits)
    unit = output_range(model, limits, original.images, config.output_range, whole=truncated)
    changes.append(f"the images were read as {RANGES[unit][0]:g} to {RANGES[unit][1]:g}")
    expected = original.levels(unit)
    tolerance = accepted_difference(original.model, expected) + TRUNCATION * truncated
    check = partial(_check_same, latents=original.latents, expected=expected, tolerance=tolerance)
    model, further, outputs = _rewrite(model, original, unit, one_run, check)
    evidence = {
        "parity": {
            "max_abs_error": float(np.abs(outputs - expected).max()),
            "inputs": len(outputs),
            "batches": [1, len(outputs)],
            "tolerance": tolerance,
        },
        "parameters": parameters,
    }
    channels, height, width = original.made.planes
    return Rewritten(
        model,
        {LATENT: original.latents[: config.golden]},
        {IMAGES: outputs[: config.golden]},
        Preprocessing(height, width, channels, mean=(0.0,) * channels, std=(1.0,) * channels),
        [*changes, *further],
        lambda _, __: evidence,
        _settings(config, original.taken),
        verify=partial(_verify, original.latents, expected, tolerance),
    )


def _settings(config: ImportConfig, taken: LatentInput) -> dict[str, Any]:
    return {"latent": {"size": taken.size, "distribution": config.latent_distribution}}


def _read(config: ImportConfig, given: onnx.ModelProto) -> _Original:
    """Return the file with one input and one output, and run it."""
    model, taken = latent_input(with_output(given, config.output, of="images"))
    check_not_random(model)
    quantized = sorted(QUANTIZED & {node.op_type for node in model.graph.node})
    if quantized:
        raise ModelError(
            f"the generator is quantized already ({', '.join(quantized)}); accepted: one in floating point, which "
            "krl-deploy quantize brings to INT8"
        )
    latents = random_inputs(_settings(config, taken), max(config.golden, _LATENTS), GOLDEN_SEED)[LATENT]
    values = _outputs(model, taken, latents)
    made = image_output(
        model.graph.output[0].name,
        values.shape[1:],
        height=config.height,
        width=config.width,
        order=config.channel_order,
    )
    return _Original(model, taken, made, latents, made.images(values))


def _outputs(model: onnx.ModelProto, taken: LatentInput, latents: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Run a file on latents; return its output as float32, ``[N, …]``.

    A file in number types that ONNX Runtime cannot run is compared in float32.

    Raises:
        ModelError: A tensor would be too large, or the output is not finite or not a function of the latent.
        BackendError: ONNX Runtime cannot run it.
    """
    step = taken.batch if isinstance(taken.batch, int) else _STEP
    check_bounds(model, {taken.name: (max(step, len(latents)), *taken.shape)})
    try:
        session = open_cpu(to_bytes(model))
    except BackendError as error:
        if not has_other_floats(model):
            raise
        _log.warning("ONNX Runtime cannot run the file in its own number types, so float32 stands for them: %s", error)
        return _outputs(widened(model), replace(taken, dtype=int(TensorProto.FLOAT)), latents)
    inputs = taken.arranged(latents)
    try:
        values = _images(session, inputs, slice(None), step)
    except (BackendError, ModelError):
        if isinstance(taken.batch, int):
            raise
        step = 1  # its shapes are for one image, whatever its input says
        values = _images(session, inputs, slice(None), step)
    _check_function(model.graph.output[0].name, values, partial(_images, session, inputs), step)
    return values


def _check_function(
    name: str, values: npt.NDArray[np.float32], run: Callable[[slice, int], npt.NDArray[np.float32]], step: int
) -> None:
    """Refuse outputs that are not finite, and those that are no function of their own latent alone.

    Args:
        name: The output.
        values: It for all latents, ``[N, …]``.
        run: Makes it for some of the latents, in batches of a number.
        step: Latents in the batches of ``values``.
    """
    if not np.isfinite(values).all():
        raise ModelError(f"the model's output {name} has numbers that are not finite; accepted: images")
    largest = float(np.abs(values).max())
    if max(float(np.abs(each - values[0]).max()) for each in values) <= _ALIKE * largest:
        raise ModelError(
            f"the model's output {name} is the same for {len(values)} latents; accepted: images of the latent; name "
            "another output with --output, or export the model with its latent as the input"
        )
    if np.abs(run(slice(step), step) - values[:step]).max() > _ONCE * largest:
        raise ModelError(
            f"the model's output {name} differs from run to run for the same latent; accepted: the same image; export "
            "it in eval mode, without random numbers inside"
        )


def _images(session: Any, inputs: npt.NDArray[Any], rows: slice, step: int) -> npt.NDArray[np.float32]:
    """Run a file in batches of ``step``; return its output ``[N, …]``, with a batch where one image has none."""
    parts = []
    for made in in_steps(session, inputs[rows], step):
        if step == 1 and made.shape[:1] != (1,):
            made = made[None]
        if made.shape[:1] != (step,):
            name = session.get_outputs()[0].name
            raise ModelError(
                f"the model's output {name} has shape {list(made.shape)} for {step} latents; accepted: one image for "
                "each, [batch, …]"
            )
        parts.append(made.astype(np.float32))
    return np.concatenate(parts)[: len(inputs[rows])]


def _one_run(taken: LatentInput, latents: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[Any]]:
    """Return inputs of one run of the float32 model: of the file's fixed batch, or of one latent."""
    count = taken.batch if isinstance(taken.batch, int) else 1
    chosen = latents[np.arange(count) % len(latents)]
    return {taken.name: replace(taken, dtype=int(TensorProto.FLOAT)).arranged(chosen)}


def _rewrite(
    model: onnx.ModelProto,
    original: _Original,
    unit: OutputRange,
    one_run: dict[str, npt.NDArray[Any]],
    check: Callable[[onnx.ModelProto], npt.NDArray[np.float32]],
) -> tuple[onnx.ModelProto, list[str], npt.NDArray[np.float32]]:
    """Return the bundle's graph, with an open batch if possible, a list of the changes, and its checked outputs."""
    failure: KrlError | None = None
    batch = original.taken.batch
    for attempt in attempts(batch):
        try:
            shapes = measured_shapes(model, one_run) if attempt.measured else None
            candidate, changes = to_generator(
                model,
                original.taken,
                original.made,
                unit,
                opened=attempt.opened,
                inside=attempt.inside,
                shapes=shapes,
            )
            outputs = check(candidate)
        except (BackendError, CheckFailedError, ModelError) as error:
            failure = failure or error
            continue
        if not attempt.opened:
            _log.warning("the batch stays fixed to 1; with an open one: %s", failure)
        return candidate, changes, outputs
    fixed = f"; its batch is fixed to {batch}, accepted: 1 or any number" if isinstance(batch, int) else ""
    raise CheckFailedError(f"the rewritten model's images differ from the file's: {failure}{fixed}")


def _check_same(
    model: onnx.ModelProto,
    *,
    latents: npt.NDArray[np.float32],
    expected: npt.NDArray[np.float32],
    tolerance: float,
) -> npt.NDArray[np.float32]:
    """Return the rewritten model's images, if they are the file's, in batches of any size."""
    session = open_cpu(to_bytes(model))
    outputs = outputs_of(session, latents, batch=len(latents))
    again = outputs_of(session, latents, batch=1)
    if outputs.shape != expected.shape or again.shape != expected.shape:
        raise CheckFailedError(f"the images have shape {list(outputs.shape)}, not {list(expected.shape)}")
    mixed = float(np.abs(again - outputs).max())
    if mixed > tolerance:
        raise CheckFailedError(
            f"an image depends on the other latents of its batch, by {mixed:.3g} of 255; accepted: {tolerance:.3g}; "
            "export the model in eval mode"
        )
    error = float(max(np.abs(outputs - expected).max(), np.abs(again - expected).max()))
    if not error <= tolerance:
        raise CheckFailedError(
            f"the images differ by {error:.3g} of 255 on {len(latents)} latents; accepted: {tolerance:.3g}"
        )
    return outputs


def _verify(
    latents: npt.NDArray[np.float32], expected: npt.NDArray[np.float32], tolerance: float, pipeline: Generator
) -> None:
    """Compare images of the loaded bundle with the file's: of one latent, of two, and of a full batch.

    Raises:
        CheckFailedError: They differ.
    """
    for count in sorted({1, 2, pipeline.bundle.batch_limit}):
        made = np.stack([image.pixels for image in pipeline.generate_from(latents[:count])]).transpose(0, 3, 1, 2)
        error = float(np.abs(made - expected[:count].clip(0, 255)).max())
        if not error <= tolerance + 0.5:  # half a level of rounding
            raise CheckFailedError(
                f"in a batch of {count} the images differ from the file's by {error:.3g} of 255; accepted: "
                f"{tolerance + 0.5:.3g}"
            )
