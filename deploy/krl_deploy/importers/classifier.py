"""Importing a third-party ONNX classifier, in floating point or quantized."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from krl_deploy.config import ImportConfig
from krl_deploy.data.folders import choose_any
from krl_deploy.evaluation.comparison import compare, outputs_of
from krl_deploy.graph import LOGITS, PIXELS
from krl_deploy.graph.class_output import scores_tensor, with_output
from krl_deploy.graph.classifier import to_classifier
from krl_deploy.graph.files import to_bytes
from krl_deploy.graph.image_input import Signature, any_signature
from krl_deploy.graph.number_types import widened
from krl_deploy.graph.open_batch import attempts, measured_shapes
from krl_deploy.graph.session import open_cpu
from krl_runtime.bundle import Bundle
from krl_runtime.bundle.output_kind import OUTPUT_KIND, is_multi_label
from krl_runtime.errors import BackendError, CheckFailedError, KrlError, ModelError, UsageError
from krl_runtime.evaluation.labels import tally_of
from krl_runtime.images.folders import decode
from krl_runtime.images.labeled import decoded, open_data, opposite_of, with_label_indices
from krl_runtime.images.preprocessing import Preprocessing
from krl_runtime.pipelines import Classifier

from .labels import labels_for
from .meaning import Meaning, read_meaning
from .original import (
    accepted_difference,
    as_taken,
    class_outputs,
    class_runner,
    float32_model,
    in_float32,
    normalization,
)
from .quantized import FILE, FLOAT, in_bundle, judge_float_model, taken_apart
from .rewritten import Rewritten

__all__ = ["import_classifier"]

_log = logging.getLogger("krl")


def import_classifier(config: ImportConfig, given: onnx.ModelProto) -> Rewritten:
    """Put preprocessing into a third-party classifier, and check that its outputs stay the same.

    Raises:
        ModelError: The file is not a classifier that krl can take.
        UsageError: Labels, size, mean or std do not fit it.
        CheckFailedError: The outputs of the rewritten graph differ from the file's, or from those of the float model of
            a quantized file. Later, from ``Rewritten.measure``: that float model is worse than the file.
        DataError: The images cannot be used.
    """
    given = with_output(given, config.output)
    given = with_output(given, scores_tensor(given))
    brought = taken_apart(config, given)
    original = brought.model if brought else given
    taken = any_signature(original, height=config.height, width=config.width, order=config.channel_order)
    preprocessing = _preprocessing(config, taken)
    folder = open_data(config.images, on_bad=config.on_bad_image)
    images = choose_any(folder, config.val_limit)
    pixels, golden = decode(choose_any(folder, config.golden), preprocessing, on_bad=config.on_bad_image)
    expected = class_outputs(original, taken, preprocessing, pixels)
    model, changes = float32_model(original)
    taken = in_float32(taken)
    meaning = _meaning(config, model, taken, preprocessing, pixels, expected)
    in_logs = meaning.file == "log-probabilities"  # they are compared as probabilities
    tolerance = accepted_difference(original, meaning.scores(expected) if in_logs else expected)
    labels = _labels(config.labels, expected.shape[1])
    model, further, outputs = _rewrite(model, taken, preprocessing, pixels, meaning, expected, tolerance)
    changes += [*meaning.changes, *further]
    if brought:
        brought, change = in_bundle(brought, taken, model)
        changes.append(change)

    def measure(_: Bundle, session: Any) -> dict[str, Any]:
        several = len(labels) if is_multi_label(meaning.bundle) else None
        labeled = with_label_indices(images, folder, labels, multi_label=several is not None)
        batches = decoded(labeled, preprocessing, on_bad=config.on_bad_image, several=several)
        sessions = {FLOAT: session}
        if brought:
            run = class_runner(widened(given), taken, preprocessing)
            sessions[FILE] = lambda part: meaning.in_bundle(run(part))
        count, scores = compare(sessions, batches, partial(tally_of, meaning.bundle))
        beside = judge_float_model(config, brought, count, scores) if brought else {}
        found = scores[FLOAT]
        return {found.METRIC: found.quality, "count": count, "data": folder.root.name, **beside}

    return Rewritten(
        model,
        {PIXELS: pixels},
        {LOGITS: outputs},
        preprocessing,
        changes,
        measure,
        {OUTPUT_KIND: meaning.bundle},
        labels,
        brought if brought and brought.ranges else None,
        partial(_verify, [image.path for image in golden], meaning.scores(expected), tolerance),
    )


def _preprocessing(config: ImportConfig, taken: Signature) -> Preprocessing:
    """Return the preprocessing from an image to the model's own input."""
    sides = {}
    for name, given, size in (("height", config.height, taken.shape[2]), ("width", config.width, taken.shape[3])):
        fixed = size if isinstance(size, int) else None
        if fixed is None and given is None:
            raise UsageError(f"the model leaves its input's {name} open; give --{name}")
        if fixed is not None and given is not None and fixed != given:
            raise UsageError(f"--{name} is {given}, but the model's input is fixed to {fixed}; leave the option out")
        sides[name] = int(fixed or given or 0)
    mean, std = normalization(config, taken)
    return Preprocessing(
        **sides,
        channels=int(taken.shape[1]),
        resize=config.resize,
        crop_fraction=config.crop_fraction,
        interpolation=config.interpolation,
        decode_tolerance=config.decode_tolerance,
        mean=mean,
        std=std,
    )


def _labels(given: Sequence[str], classes: int) -> tuple[str, ...]:
    """Return the labels of a model; one output stands for the second of two classes, whose name alone is enough."""
    if classes > 1:
        return labels_for(given, classes)
    try:
        (name,) = labels_for(given, 1)
    except UsageError:
        return labels_for(given, 2)
    return opposite_of(name), name


def _meaning(
    config: ImportConfig,
    model: onnx.ModelProto,
    taken: Signature,
    preprocessing: Preprocessing,
    pixels: npt.NDArray[np.uint8],
    expected: npt.NDArray[np.float32],
) -> Meaning:
    """Return the meaning of the output.

    Raises:
        ModelError: Outputs are infinite, and not by a function that the runtime computes, such as a log-softmax.
    """
    meaning = read_meaning(model, _one_run(taken, preprocessing, pixels), expected, config.output_kind)
    infinite = int((~np.isfinite(expected)).any(axis=1).sum())
    if infinite and not meaning.activation:
        raise ModelError(
            f"the file's own outputs are infinite for {infinite} of {len(expected)} images; accepted: finite numbers. "
            "Of a logarithm or a division give the tensor before it with --output NAME"
        )
    return meaning


def _one_run(
    taken: Signature, preprocessing: Preprocessing, pixels: npt.NDArray[np.uint8]
) -> dict[str, npt.NDArray[Any]]:
    """Return inputs of one run: of the file's fixed batch, or of one image."""
    count = taken.shape[0] if isinstance(taken.shape[0], int) else 1
    return {taken.input: as_taken(taken, preprocessing, pixels[np.arange(count) % len(pixels)])}


def _rewrite(
    model: onnx.ModelProto,
    taken: Signature,
    preprocessing: Preprocessing,
    pixels: npt.NDArray[np.uint8],
    meaning: Meaning,
    expected: npt.NDArray[np.float32],
    tolerance: float,
) -> tuple[onnx.ModelProto, list[str], npt.NDArray[np.float32]]:
    """Return the bundle's graph, a list of the changes, and its outputs for ``pixels``, equal to the original's."""
    failure: KrlError | None = None
    for attempt in attempts(taken.shape[0]):
        try:
            shapes = measured_shapes(model, _one_run(taken, preprocessing, pixels)) if attempt.measured else None
            candidate, changes = to_classifier(
                model,
                taken,
                preprocessing,
                meaning.head,
                opened=attempt.opened,
                inside=attempt.inside,
                shapes=shapes,
            )
            outputs = _check_same(candidate, pixels, meaning, expected, tolerance)
        except (BackendError, CheckFailedError, ModelError) as error:
            failure = failure or error
            continue
        if not attempt.opened:
            _log.warning("the batch stays fixed to 1; with an open one: %s", failure)
        return candidate, changes, outputs
    raise CheckFailedError(
        f"the outputs of the model with preprocessing and an open batch differ from the file's: {failure}"
    )


def _check_same(
    model: onnx.ModelProto,
    pixels: npt.NDArray[np.uint8],
    meaning: Meaning,
    expected: npt.NDArray[np.float32],
    tolerance: float,
) -> npt.NDArray[np.float32]:
    """Return the rewritten model's outputs, if they stand for the original's, in batches of any size."""
    session = open_cpu(to_bytes(model))
    outputs = outputs_of(session, pixels)
    again = outputs_of(session, np.concatenate([pixels, pixels[:1]]), batch=len(pixels) + 1)[:-1]
    if outputs.shape != again.shape or outputs.shape != (len(pixels), meaning.head.classes):
        wanted = [len(pixels), meaning.head.classes]
        raise CheckFailedError(f"the outputs of {len(pixels)} images have shape {list(outputs.shape)}, not {wanted}")
    error = max(meaning.difference(outputs, expected), float(np.abs(again - outputs).max()))
    if not error <= tolerance:
        raise CheckFailedError(f"the outputs differ by {error:.3g} on {len(pixels)} images; accepted: {tolerance:.3g}")
    return outputs


def _verify(paths: Sequence[Path], expected: npt.NDArray[np.float64], tolerance: float, pipeline: Classifier) -> None:
    """Compare predictions of the loaded bundle with the file's: of one image, of two, and of a full batch.

    Raises:
        CheckFailedError: They differ.
    """
    for count in sorted({1, 2, pipeline.bundle.batch_limit}):
        chosen = [number % len(paths) for number in range(count)]
        results = pipeline([paths[number] for number in chosen], top_k=len(pipeline.labels))
        results = [pipeline(paths[0], top_k=len(pipeline.labels)), *results]
        for result, number in zip(results, [0, *chosen], strict=True):
            scores = dict(result.top)
            made = np.array([scores[label] for label in pipeline.labels])
            error = float(np.abs(made - expected[number]).max())
            if not error <= tolerance:
                raise CheckFailedError(
                    f"in a batch of {count} the scores of {paths[number].name} differ from the file's by {error:.3g}; "
                    f"accepted: {tolerance:.3g}"
                )
