"""``krl-deploy compare``: how far two variants of a bundle are apart, or two backends, and which layer is the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from krl_deploy.calibration.record import Calibration
from krl_deploy.data.arrays import batches
from krl_deploy.evaluation import EvaluationOptions, task_of
from krl_deploy.precision.equalization import divided_layers
from krl_runtime.backends.onnxruntime import computes_fp16_pairs
from krl_runtime.bundle import Bundle
from krl_runtime.bundle.golden import golden_arrays
from krl_runtime.bundle.onnx_check import check_onnx, has_float16
from krl_runtime.errors import UsageError
from krl_runtime.files import write_atomic

from .backends import Runner
from .config import CompareConfig, ComparedBackend, ComparedFile
from .measuring import compare_outputs, find_first, measure_layers
from .report import Comparison
from .sides import Arrays, Pair, Side

__all__ = ["compare"]

_FIELDS: Mapping[ComparedFile, tuple[str, str]] = {
    "fp32": ("fp32", "file"),
    "fp16": ("fp16", "file"),
    "int8": ("int8", "file"),
    "int8.fp32": ("int8", "fp32_file"),
    "int8.cpu": ("int8", "cpu_file"),
}
_BATCH = 8  # inputs in one run: larger batches are no faster on a CPU, and their activations take memory
_VAL_FRACTION = 0.2  # of a folder that is not split, as of the other commands: its images were not calibrated on
_LIMITS = {"fp32": 60.0, "fp16": 35.0, "int8": 15.0}
"""SNR in dB below which a layer by itself is wrong, by the lower precision. Right layers of a resnet20 had at least
32 dB in INT8 and 66 dB in FP16; right layers of a resnet8 on two backends had 69 dB in INT8 and 128 dB in FP32."""


def compare(config: CompareConfig) -> tuple[dict[str, Any], str]:
    """Compare two variants, or one on two backends.

    Returns:
        The differences as plain JSON types, and as text.

    Raises:
        UsageError: The bundle does not have a variant, or an option cannot be used.
        ModelError: The layers cannot be matched.
        KrlError: The bundle, the data or a backend cannot be used.
    """
    bundle = Bundle.open(config.bundle)
    golden = golden_arrays(bundle)
    specs = bundle.manifest.inputs
    inputs, name = _inputs(config, bundle, golden)
    pair = Pair(_side(bundle, config.a, config.a_backend), _side(bundle, config.b, config.b_backend))
    run_a, run_b = pair.a.open(), pair.b.open()
    outputs = [spec.name for spec in bundle.manifest.outputs]
    limit = _LIMITS[_lowest(config)] if config.min_snr is None else config.min_snr
    found = Comparison(
        bundle=bundle.path,
        a=pair.a,
        b=pair.b,
        data=name,
        count=sum(len(batch[specs[0].name]) for batch in inputs),
        limit=limit,
        outputs=compare_outputs(run_a, run_b, inputs, outputs),
        golden=_to_golden(golden, {"a": run_a, "b": run_b}, bundle, outputs),
    )
    if config.layers:
        found.layers = measure_layers(pair, inputs)
        found.first = find_first(pair, found.layers, inputs, limit)
    if config.plot is not None:
        write_atomic(config.plot, found.plot())
    return found.to_dict(), found.text()


def _inputs(config: CompareConfig, bundle: Bundle, golden: Mapping[str, npt.NDArray[Any]]) -> tuple[list[Arrays], str]:
    """Return the inputs of the networks in batches that they take, and the name of the data."""
    specs = bundle.manifest.inputs
    if config.data is None:
        count = min(config.limit, len(golden[specs[0].name]))
        given, name = [{spec.name: golden[spec.name][:count] for spec in specs}], "golden inputs"
    else:
        options = EvaluationOptions(config.data, config.limit, _VAL_FRACTION, config.on_bad_image, limit=1)
        task = task_of(bundle, options)
        given = [{specs[0].name: each} if isinstance(each, np.ndarray) else dict(each) for each, _ in task.batches()]
        name = task.name
    return _batches(given, bundle), name


def _side(bundle: Bundle, name: ComparedFile, backend: ComparedBackend) -> Side:
    """Return a file of the bundle on a backend."""
    variant, kind = _FIELDS[name]
    chosen = bundle.manifest.variants.get(variant)
    file = None if chosen is None else getattr(chosen, kind) or (chosen.file if kind == "fp32_file" else None)
    if file is None:
        present = [each for each, (of, key) in _FIELDS.items() if getattr(bundle.manifest.variants.get(of), key, None)]
        make = "krl-deploy fp16" if variant == "fp16" else "krl-deploy quantize"
        raise UsageError(f"bundle {bundle.path} has no {name}; it has {', '.join(present)}; make it with {make}")
    data = bundle.read(file)
    if name == "int8" and backend == "cpu" and has_float16(check_onnx(data)) and not computes_fp16_pairs():
        raise UsageError(
            "this ONNX Runtime computes Q/DQ pairs with FP16 scales wrongly; compare int8.fp32, or install onnxruntime "
            "1.30 or later"
        )
    divisors = _divisors(bundle) if variant == "int8" else {}
    return Side(name, data, backend, divisors)


def _divisors(bundle: Bundle) -> dict[str, npt.NDArray[np.float32]]:
    """Return the divisors of the layers of the INT8 variant; see ``krl_deploy.precision.equalization``."""
    if bundle.manifest.calibration is None:
        return {}
    factors = Calibration.from_bytes(bundle.read(bundle.manifest.calibration)).factors
    if not factors:
        return {}
    model = onnx.load_model_from_string(bundle.read(bundle.reference.file))
    return divided_layers(model, {name: np.asarray(values, np.float32) for name, values in factors.items()})


def _lowest(config: CompareConfig) -> str:
    """Return the lower precision of the two files."""
    return min((_FIELDS[config.a][0], _FIELDS[config.b][0]), key=lambda precision: _LIMITS[precision])


def _to_golden(
    golden: Mapping[str, npt.NDArray[Any]], networks: Mapping[str, Runner], bundle: Bundle, outputs: Sequence[str]
) -> dict[str, float]:
    """Return the smallest SNR of each network's outputs to the golden ones, in dB, on the golden inputs."""
    names = [spec.name for spec in bundle.manifest.inputs]
    found = {}
    for name, run in networks.items():
        differences = compare_outputs(
            lambda batch: batch,
            lambda batch, run=run: run({key: batch[key] for key in names}),  # type: ignore[misc]
            _batches([golden], bundle),
            outputs,
        )
        found[name] = min(difference.snr_db for difference in differences.values())
    return found


def _batches(inputs: Sequence[Arrays], bundle: Bundle) -> list[Arrays]:
    """Return inputs in batches that the bundle's graph takes."""
    fixed = bundle.manifest.inputs[0].shape[0]
    return [dict(part) for each in inputs for part in batches(each, fixed, _BATCH)]
