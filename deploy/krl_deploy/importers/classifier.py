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
from onnx import TensorProto

from krl_deploy.config import ImportConfig
from krl_deploy.data.decoding import decoded
from krl_deploy.data.folders import choose_any, open_data, opposite_of, with_label_indices
from krl_deploy.evaluation.comparison import compare, outputs_of
from krl_deploy.graph import LOGITS, PIXELS
from krl_deploy.graph.class_output import scores_tensor, with_output
from krl_deploy.graph.classifier import to_classifier
from krl_deploy.graph.files import to_bytes
from krl_deploy.graph.image_input import Signature, any_signature
from krl_deploy.graph.number_types import widened
from krl_deploy.graph.open_batch import attempts, measured_shapes
from krl_deploy.graph.operators import INTEGER
from krl_deploy.graph.quantized import Unquantized, is_qdq_model, read_quantized
from krl_deploy.graph.session import open_cpu
from krl_runtime.bundle import Bundle
from krl_runtime.bundle.output_kind import OUTPUT_KIND, same
from krl_runtime.errors import BackendError, CheckFailedError, KrlError, ModelError, UsageError
from krl_runtime.evaluation.predictions import PredictionTally
from krl_runtime.images.folders import decode
from krl_runtime.images.preprocessing import Preprocessing
from krl_runtime.pipelines import Classifier

from .labels import labels_for
from .meaning import Meaning, read_meaning
from .original import accepted_difference, as_taken, class_outputs, float32_model, in_float32, input_unit
from .rewritten import Rewritten

__all__ = ["import_classifier"]

_log = logging.getLogger("krl")

_LEAST_AGREEMENT = 0.5  # with the quantized file's predictions: below it the float model is of another network


def import_classifier(config: ImportConfig, given: onnx.ModelProto) -> Rewritten:
    """Put preprocessing into a third-party classifier, and check that its outputs stay the same.

    Raises:
        ModelError: The file is not a classifier that krl can take.
        UsageError: Labels, size, mean or std do not fit it.
        CheckFailedError: The outputs of the rewritten graph differ from the file's, or from those of the float model of
            a quantized file.
        DataError: The images cannot be used.
    """
    given = with_output(given, config.output)
    given = with_output(given, scores_tensor(given))
    brought = _unquantized(given)
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
        brought = _as_imported(brought, taken, model)
        before = class_outputs(widened(given), taken, preprocessing, pixels)
        agreement = float(same(meaning.bundle, meaning.scores(before), meaning.scores(expected)).mean())
        changes.append(_say(config, brought, agreement))

    def measure(_: Bundle, session: Any) -> dict[str, Any]:
        labeled = with_label_indices(images, folder, labels)
        batches = decoded(labeled, preprocessing, on_bad=config.on_bad_image)
        count, scores = compare({"fp32": session}, batches, partial(PredictionTally, meaning.bundle))
        return {"top1": scores["fp32"].top1, "count": count, "data": folder.root.name}

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


def _unquantized(model: onnx.ModelProto) -> Unquantized | None:
    """Return the ranges of a Q/DQ model; ``None`` for a float one, and for one that computes on integers."""
    if is_qdq_model(model):
        return read_quantized(model)
    integer = sorted(INTEGER & {node.op_type for node in model.graph.node})
    if integer:
        _log.warning(
            "the model computes on integers (%s), so it is imported unchanged. ONNX Runtime's CPU provider runs it, "
            "and TensorRT refuses it; krl cannot convert it. For a GPU start from the float model",
            ", ".join(integer),
        )
    return None


def _as_imported(brought: Unquantized, taken: Signature, model: onnx.ModelProto) -> Unquantized:
    """Return the ranges by the names that the tensors have in the bundle's graph."""
    made = {name for node in model.graph.node for name in node.output}
    # Nodes that read the file's own input read the normalized pixels now.
    normalized = next(
        (node.output[0] for node in model.graph.node if any(name.startswith("pixels_offset") for name in node.input)),
        taken.input,
    )
    named = {normalized if name == taken.input else name: limits for name, limits in brought.ranges.items()}
    ranges = {name: limits for name, limits in named.items() if name in made}
    if len(ranges) < len(named):
        _log.warning("%d ranges of the file are of tensors that the bundle's graph has not", len(named) - len(ranges))
    return Unquantized(model, ranges, brought.weight_scales)


def _say(config: ImportConfig, brought: Unquantized, agreement: float) -> str:
    """Log how a quantized file was imported; return a summary.

    Raises:
        CheckFailedError: The float model has little to do with the file.
    """
    if agreement < _LEAST_AGREEMENT:
        raise CheckFailedError(
            f"the float model agrees with the quantized file on {agreement:.0%} of the images; accepted: at least "
            f"{_LEAST_AGREEMENT:.0%}; give images of the kind that the file was made for, or start from the float model"
        )
    _log.warning(
        "the file is quantized, and could run slowly on a CPU. The bundle has its float model, which agrees with the "
        "file on %.1f %% of the golden images, and the ranges of its %d quantized activations. To write INT8 for "
        "TensorRT and for the CPU from them, run: krl-deploy quantize %s --data %s",
        agreement * 100,
        len(brought.ranges),
        config.out,
        config.data,
    )
    return f"quantized to INT8: taken apart into its float model and {len(brought.ranges)} ranges"


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
    channels = int(taken.shape[1])
    if taken.dtype == TensorProto.UINT8 and (config.mean or config.std):
        raise UsageError("the model takes uint8 and normalizes it itself; leave --mean and --std out")
    unit = input_unit(config)
    mean = config.mean or (0.0,) * channels
    std = config.std or (1.0,) * channels
    if config.input_range == "symmetric":  # (2 u - 1 - mean) / std of a pixel u from 0 to 1
        mean, std = tuple((value + 1) / 2 for value in mean), tuple(value / 2 for value in std)
    if taken.order == "bgr":
        mean, std = mean[::-1], std[::-1]
    return Preprocessing(
        **sides,
        channels=channels,
        resize=config.resize,
        crop_fraction=config.crop_fraction,
        interpolation=config.interpolation,
        decode_tolerance=config.decode_tolerance,
        mean=tuple(value / unit for value in mean),
        std=tuple(value / unit for value in std),
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
