"""What export and adopt have in common: the bundle with its FP32 reference and its golden inputs."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from krl_deploy.calibration.record import Calibration, Identity
from krl_deploy.graph import LOGITS, PIXELS
from krl_deploy.graph.quantized import Unquantised
from krl_runtime.bundle import Bundle, Manifest, TensorSpec, Variant, names
from krl_runtime.errors import BundleError
from krl_runtime.files import sha256_bytes
from krl_runtime.images.preprocessing import Preprocessing

__all__ = ["check_target", "golden_file", "tensor_spec", "write_picture_maker", "write_reference"]

_ALIKE = 50.0  # dB to the golden images: FP32 against FP32 is far above on any device, a wrong graph far below


def check_target(out: Path, *, overwrite: bool) -> None:
    """Refuse a bundle that exists, before any work is done.

    Raises:
        BundleError: It does, and is not to be replaced.
    """
    if out.exists() and not overwrite:
        raise BundleError(f"{out} exists already; give another name, or --overwrite to replace it")


def write_reference(
    out: Path,
    model: bytes,
    pixels: npt.NDArray[np.uint8],
    logits: npt.NDArray[np.float32],
    *,
    name: str,
    preprocessing: Preprocessing,
    labels: tuple[str, ...],
    evidence: Mapping[str, Any],
    source: Mapping[str, Any],
    overwrite: bool,
    batch: int | str = "batch",
    brought: Unquantised | None = None,
) -> Bundle:
    """Write a classifier's bundle.

    Args:
        out: The bundle.
        model: The FP32 ONNX file.
        pixels: Golden inputs ``[N, C, H, W]``.
        logits: Their outputs ``[N, classes]``. A thousandth of the largest, and 0.001 at least, is tolerated in the
            self-test: devices add up in another order, or multiply in TF32.
        name: Of the model, for people.
        preprocessing: From a picture to an input.
        labels: Class names in the order of the logits.
        evidence: What was measured of the FP32 variant.
        source: Where the model comes from.
        overwrite: Whether an existing bundle is replaced.
        batch: The graph's batch size, or ``"batch"`` where it is open.
        brought: Ranges that the model came with, which ``krl-deploy quantize`` takes as they are.

    Raises:
        BundleError: ``out`` exists and is not to be replaced.
    """
    manifest = Manifest(
        task="classification",
        name=name,
        inputs=(TensorSpec(PIXELS, "uint8", (batch, *preprocessing.shape)),),
        outputs=(TensorSpec(LOGITS, "float32", (batch, len(labels))),),
        preprocessing=preprocessing,
        labels=labels,
        variants={"fp32": Variant("fp32", names.FP32, tolerance=1e-3 * max(1.0, float(np.abs(logits).max())))},
        default_variants={"cpu": "fp32"},
        golden=names.GOLDEN,
        evidence={"fp32": dict(evidence)},
        source=dict(source),
        calibration=names.CALIBRATION if brought else None,
    )
    files = {names.FP32: model, names.GOLDEN: golden_file({PIXELS: pixels, LOGITS: logits})}
    if brought:
        files[names.CALIBRATION] = _brought_calibration(model, brought, preprocessing).to_bytes()
    return Bundle.create(out, manifest, files, replace=overwrite)


def _brought_calibration(fp32: bytes, brought: Unquantised, preprocessing: Preprocessing) -> Calibration:
    """Return a calibration that has what the model came with, and that no picture was seen for."""
    identity = Identity(sha256_bytes(fp32), preprocessing.to_dict(), "", 0, "given", "none")
    scales = {name: tuple(float(value) for value in values) for name, values in brought.weight_scales.items()}
    return Calibration(identity, brought.ranges, given=brought.ranges, weight_scales=scales)


def write_picture_maker(
    out: Path,
    model: bytes,
    inputs: Mapping[str, npt.NDArray[Any]],
    outputs: Mapping[str, npt.NDArray[np.float32]],
    *,
    task: str,
    name: str,
    preprocessing: Preprocessing,
    settings: Mapping[str, Any],
    evidence: Mapping[str, Any],
    source: Mapping[str, Any],
    overwrite: bool,
    labels: tuple[str, ...] = (),
) -> Bundle:
    """Write the bundle of a restorer or a generator.

    Args:
        out: The bundle.
        model: The FP32 ONNX file; its inputs and outputs have the dimensions that the manifest will name.
        inputs: Golden inputs by name ``[N, ...]``.
        outputs: Their one output. A thousandth of its largest value is tolerated in the self-test, and 50 dB of PSNR.
        task: ``"restoration"`` or ``"generation"``.
        name: Of the model, for people.
        preprocessing: Size and channels of the golden pictures.
        settings: See the task's pipeline in ``krl_runtime.pipelines``.
        evidence: What was measured of the FP32 variant.
        source: Where the model comes from.
        overwrite: Whether an existing bundle is replaced.
        labels: Class names, where a generator's conditions are classes.

    Raises:
        BundleError: ``out`` exists and is not to be replaced.
    """
    graph = onnx.load_model_from_string(model).graph
    largest = max(float(np.abs(values).max()) for values in outputs.values())
    manifest = Manifest(
        task=task,
        name=name,
        inputs=tuple(tensor_spec(value) for value in graph.input),
        outputs=tuple(tensor_spec(value) for value in graph.output),
        preprocessing=preprocessing,
        labels=labels,
        variants={"fp32": Variant("fp32", names.FP32, tolerance=1e-3 * max(1.0, largest), psnr=_ALIKE)},
        default_variants={"cpu": "fp32"},
        golden=names.GOLDEN,
        evidence={"fp32": dict(evidence)},
        source=dict(source),
        settings=dict(settings),
    )
    files = {names.FP32: model, names.GOLDEN: golden_file({**inputs, **outputs})}
    return Bundle.create(out, manifest, files, replace=overwrite)


def tensor_spec(value: onnx.ValueInfoProto) -> TensorSpec:
    """Return what a manifest says of a graph's input or output."""
    tensor = value.type.tensor_type
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in tensor.shape.dim)
    return TensorSpec(value.name, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, shape)


def golden_file(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """Return an npz file of inputs and their outputs by name ``[N, ...]``, the same bytes for the same arrays."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            part = io.BytesIO()
            np.lib.format.write_array(part, np.ascontiguousarray(array), allow_pickle=False)
            # numpy's own savez stamps each entry with the time of day.
            entry = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            archive.writestr(entry, part.getvalue(), zipfile.ZIP_DEFLATED)
    return target.getvalue()
