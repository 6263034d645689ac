"""``krl-deploy adopt``: a bundle from an ONNX classifier that somebody else made."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

from krl_runtime._files import sha256_file
from krl_runtime.errors import BackendError, CheckFailedError, KrlError, ModelError, UsageError
from krl_runtime.pictures import decode
from krl_runtime.preprocess import Preprocessing

from .config import AdoptConfig
from .data import choose_any, open_data, with_label_indices
from .graph.cleanup import clean
from .graph.files import opset_of, read_model, to_bytes
from .graph.preprocessing import Signature, raise_opset, signature, to_classifier
from .graph.qdq import QUANTISED_OPS
from .reference import check_target, write_reference
from .verify import compare, decoded, logits_of, open_cpu

__all__ = ["adopt"]

_log = logging.getLogger("krl")

_LEAST_OPSET = 18
_TOLERANCE = 1e-3


def adopt(config: AdoptConfig) -> dict[str, Any]:
    """Put preprocessing into a foreign classifier, check that it still answers the same, and write the bundle.

    Returns:
        What was made and measured, as plain JSON types.

    Raises:
        ModelError: The file is not an ONNX classifier that krl can take.
        UsageError: Labels, size, mean or std do not fit it.
        CheckFailedError: The rewritten graph answers otherwise than the file.
        DataError: The pictures cannot be used.
        BundleError: ``out`` exists and is not to be replaced.
    """
    check_target(config.out, overwrite=config.overwrite)
    original = read_model(config.model)
    _check_finite(original)
    taken = signature(original)
    preprocessing = _preprocessing(config, taken)
    folder = open_data(config.data, on_bad=config.on_bad_image)
    pictures = choose_any(folder, config.val_limit)
    pixels, _ = decode(pictures[: config.golden], preprocessing, on_bad=config.on_bad_image)
    model, changes, logits = _rewrite(original, taken, preprocessing, pixels)
    labels = _labels(config.labels, logits.shape[1])
    data = to_bytes(model)
    batches = decoded(with_label_indices(pictures, folder, labels), preprocessing, on_bad=config.on_bad_image)
    count, scores = compare({"fp32": open_cpu(data)}, batches)
    evidence = {
        "top1": scores["fp32"].top1,
        "count": count,
        "data": folder.root.name,
        "file_bytes": len(data),
        "opset": opset_of(model),
    }
    batch = signature(model).shape[0]
    bundle = write_reference(
        config.out,
        data,
        pixels,
        logits,
        name=config.model.stem,
        preprocessing=preprocessing,
        labels=labels,
        evidence=evidence,
        source={"kind": "onnx", "file": config.model.name, "sha256": sha256_file(config.model), "changes": changes},
        overwrite=config.overwrite,
        batch=batch,
    )
    shape = ", ".join(map(str, (batch, *preprocessing.shape)))
    return {"bundle": str(bundle.path), "input": f"uint8 [{shape}]", "changes": changes, **evidence}


def _check_finite(model: onnx.ModelProto) -> None:
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
    for tensor in model.graph.initializer:
        if tensor.data_type in floats and not np.isfinite(numpy_helper.to_array(tensor)).all():
            raise ModelError(f"the model's weight {tensor.name} has values that are not finite numbers")


def _preprocessing(config: AdoptConfig, taken: Signature) -> Preprocessing:
    """Return what happens from a picture to the model's own input."""
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
        raise UsageError("the model takes uint8 and normalises it itself; leave --mean and --std out")
    unit = 255.0 if config.input_range == "0-255" else 1.0
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


def _labels(given: Sequence[str], classes: int) -> tuple[str, ...]:
    path = Path(given[0]) if len(given) == 1 else None
    names = tuple(given)
    if path is not None and path.is_file():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise UsageError(f"labels file {path} is not UTF-8 text: {error}") from error
        names = tuple(line.strip() for line in lines if line.strip())
    if len(names) != classes:
        raise UsageError(
            f"{len(names)} labels were given ({', '.join(names[:3])} …), but the model has {classes} outputs; give one "
            "name for each, in their order, or a file with a name on each line"
        )
    if len(set(names)) != classes:
        raise UsageError("some labels are the same; each class needs a name of its own")
    return names


def _rewrite(
    original: onnx.ModelProto,
    taken: Signature,
    preprocessing: Preprocessing,
    pixels: npt.NDArray[np.uint8],
) -> tuple[onnx.ModelProto, list[str], npt.NDArray[np.float32]]:
    """Return the bundle's graph, what was changed, and its logits for ``pixels``, checked against the original's."""
    model, changes = original, []
    if QUANTISED_OPS & {node.op_type for node in original.graph.node}:
        _log.warning("the model is quantised already: it is adopted as it is, and cannot be typed again")
    if opset_of(original) < _LEAST_OPSET:
        try:
            model = raise_opset(original, _LEAST_OPSET)
            changes.append(f"opset {opset_of(original)} was raised to {_LEAST_OPSET}")
        except ModelError as error:
            _log.warning("the model stays in opset %d, ONNX cannot raise it: %s", opset_of(original), error)
    model = clean(model)
    expected = _original_outputs(original, taken, preprocessing, pixels)
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
        f"the model with preprocessing and an open batch does not answer as the file does: {failure}"
    )


def _original_outputs(
    model: onnx.ModelProto, taken: Signature, preprocessing: Preprocessing, pixels: npt.NDArray[np.uint8]
) -> npt.NDArray[np.float32]:
    """Return what the file as it was given answers ``[N, classes]``, on inputs normalised outside of it."""
    values: npt.NDArray[Any] = pixels
    if taken.dtype == TensorProto.FLOAT:
        mean, std = (np.reshape(part, (1, -1, 1, 1)) for part in (preprocessing.mean, preprocessing.std))
        values = ((pixels / 255 - mean) / std).astype(np.float32)
    step = taken.shape[0] if isinstance(taken.shape[0], int) else len(values)
    padded = np.concatenate([values, np.repeat(values[-1:], -len(values) % step, axis=0)])
    outputs = logits_of(open_cpu(to_bytes(model)), padded, batch=step)
    return outputs[: len(values)].reshape(len(values), -1)


def _check_same(
    model: onnx.ModelProto, pixels: npt.NDArray[np.uint8], expected: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Return the rewritten model's logits, if they, or their softmax, are the original's outputs."""
    session = open_cpu(to_bytes(model))
    logits = logits_of(session, pixels)
    again = logits_of(session, np.concatenate([pixels, pixels[:1]]), batch=len(pixels) + 1)[:-1]
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    softmax = powers / powers.sum(axis=1, keepdims=True)
    error = min(float(np.abs(values - expected).max()) for values in (logits, softmax))
    error = max(error, float(np.abs(again - logits).max()))
    accepted = _TOLERANCE * max(1.0, float(np.abs(expected).max()))
    if not error <= accepted:
        raise CheckFailedError(
            f"the outputs differ by {error:.3g} on {len(pixels)} pictures, accepted are {accepted:.3g}"
        )
    return logits
