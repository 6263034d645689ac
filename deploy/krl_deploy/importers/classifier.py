"""Importing a third-party ONNX classifier, in floating point or quantized."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from krl_deploy.config import ImportConfig
from krl_deploy.data.decoding import decoded
from krl_deploy.data.folders import choose_any, open_data, with_label_indices
from krl_deploy.evaluation.comparison import compare, outputs_of
from krl_deploy.graph import LOGITS, PIXELS
from krl_deploy.graph.cleanup import clean
from krl_deploy.graph.files import to_bytes
from krl_deploy.graph.image_input import Signature, signature, to_classifier
from krl_deploy.graph.operators import INTEGER
from krl_deploy.graph.quantized import Unquantized, is_qdq_model, read_quantized, widened
from krl_deploy.graph.session import open_cpu
from krl_runtime.bundle import Bundle
from krl_runtime.errors import BackendError, CheckFailedError, KrlError, UsageError
from krl_runtime.images.folders import decode
from krl_runtime.images.preprocessing import Preprocessing

from .labels import labels_for
from .original import TOLERANCE, in_known_opset, input_unit, original_outputs
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
    brought = _unquantized(given)
    original = brought.model if brought else given
    taken = signature(original)
    preprocessing = _preprocessing(config, taken)
    folder = open_data(config.data, on_bad=config.on_bad_image)
    images = choose_any(folder, config.val_limit)
    pixels, _ = decode(images[: config.golden], preprocessing, on_bad=config.on_bad_image)
    model, changes, logits = _rewrite(original, taken, preprocessing, pixels)
    if brought:
        brought = _as_imported(brought, taken, model)
        before = _outputs(widened(given), taken, preprocessing, pixels)
        agreement = float((before.argmax(axis=1) == logits.argmax(axis=1)).mean())
        changes.append(_say(config, brought, agreement))
    labels = labels_for(config.labels, logits.shape[1])

    def measure(_: Bundle, session: Any) -> dict[str, Any]:
        labeled = with_label_indices(images, folder, labels)
        batches = decoded(labeled, preprocessing, on_bad=config.on_bad_image)
        count, scores = compare({"fp32": session}, batches)
        return {"top1": scores["fp32"].top1, "count": count, "data": folder.root.name}

    return Rewritten(
        model,
        {PIXELS: pixels},
        {LOGITS: logits},
        preprocessing,
        changes,
        measure,
        labels=labels,
        brought=brought if brought and brought.ranges else None,
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


def _rewrite(
    original: onnx.ModelProto,
    taken: Signature,
    preprocessing: Preprocessing,
    pixels: npt.NDArray[np.uint8],
) -> tuple[onnx.ModelProto, list[str], npt.NDArray[np.float32]]:
    """Return the bundle's graph, a list of the changes, and its logits for ``pixels``, equal to the original's."""
    model, changes = in_known_opset(original)
    model = clean(model)
    expected = _outputs(original, taken, preprocessing, pixels)
    failure: KrlError | None = None
    for open_batch in (True, False):
        candidate, further = to_classifier(model, preprocessing, open_batch=open_batch)
        try:
            logits = _check_same(candidate, pixels, expected)
        except (BackendError, CheckFailedError) as error:
            failure = failure or error
            if taken.shape[0] != 1:
                break
            continue
        if not open_batch:
            _log.warning("the batch stays fixed to 1; with an open one: %s", failure)
        return candidate, [*changes, *further], logits
    raise CheckFailedError(
        f"the outputs of the model with preprocessing and an open batch differ from the file's: {failure}"
    )


def _outputs(
    model: onnx.ModelProto, taken: Signature, preprocessing: Preprocessing, pixels: npt.NDArray[np.uint8]
) -> npt.NDArray[np.float32]:
    """Return the outputs of a file ``[N, classes]``."""
    return original_outputs(model, taken, preprocessing, pixels, together=True).reshape(len(pixels), -1)


def _check_same(
    model: onnx.ModelProto, pixels: npt.NDArray[np.uint8], expected: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Return the rewritten model's logits, if they, or their softmax, are the original's outputs."""
    session = open_cpu(to_bytes(model))
    logits = outputs_of(session, pixels)
    again = outputs_of(session, np.concatenate([pixels, pixels[:1]]), batch=len(pixels) + 1)[:-1]
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    softmax = powers / powers.sum(axis=1, keepdims=True)
    error = min(float(np.abs(values - expected).max()) for values in (logits, softmax))
    error = max(error, float(np.abs(again - logits).max()))
    accepted = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    if not error <= accepted:
        raise CheckFailedError(f"the outputs differ by {error:.3g} on {len(pixels)} images; accepted: {accepted:.3g}")
    return logits
