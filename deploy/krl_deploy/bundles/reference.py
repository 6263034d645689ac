"""The shared part of export and import: the bundle with its FP32 reference and its golden inputs."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from krl_deploy.calibration.record import Calibration, Identity, Int8Ranges
from krl_deploy.data.arrays import batches, feed
from krl_deploy.graph.quantized import Unquantized
from krl_deploy.graph.session import open_cpu
from krl_deploy.graph.tf32 import to_tf32
from krl_runtime.bundle import Bundle, Manifest, TensorSpec, Variant, names
from krl_runtime.errors import BundleError
from krl_runtime.evaluation.golden import content_of, golden_limits, likeness
from krl_runtime.files import sha256_bytes
from krl_runtime.images.preprocessing import Preprocessing

__all__ = ["Reference", "check_target", "golden_file", "make_reference", "outputs_in_tf32", "tensor_spec"]

_ROUNDING = 1e-3  # of the largest golden output: sums in another order differ by 1e-5 of it in deep networks
_BATCH = 8  # golden inputs in a run, whose activations have to fit the memory
_ALIKE = 50.0  # dB to the golden images: FP32 against FP32 is far above on any device, a wrong graph far below


@dataclass(frozen=True)
class Reference:
    """A bundle that is not written yet.

    Attributes:
        manifest: All but the evidence.
        files: Contents by path in the bundle.
    """

    manifest: Manifest
    files: Mapping[str, bytes]

    def write(self, out: Path, evidence: Mapping[str, Any], *, overwrite: bool) -> Bundle:
        """Write it.

        Args:
            out: The bundle.
            evidence: Measurements of the FP32 variant.
            overwrite: Whether an existing bundle is replaced.

        Raises:
            BundleError: ``out`` exists and is not to be replaced.
        """
        manifest = replace(self.manifest, evidence={"fp32": dict(evidence)})
        return Bundle.create(out, manifest, self.files, replace=overwrite)


def check_target(out: Path, *, overwrite: bool) -> None:
    """Refuse a bundle that exists, before any work is done.

    Raises:
        BundleError: It does, and is not to be replaced.
    """
    if out.exists() and not overwrite:
        raise BundleError(f"{out} exists already; give another name, or --overwrite to replace it")


def make_reference(
    model: bytes,
    inputs: Mapping[str, npt.NDArray[Any]],
    outputs: Mapping[str, npt.NDArray[np.float32]],
    *,
    name: str,
    preprocessing: Preprocessing,
    source: Mapping[str, Any],
    task: str = "classification",
    labels: tuple[str, ...] = (),
    settings: Mapping[str, Any] | None = None,
    brought: Unquantized | None = None,
) -> Reference:
    """Make a bundle's FP32 variant, golden inputs and manifest.

    Args:
        model: The FP32 ONNX file; its inputs and outputs have the dimensions that the manifest will name.
        inputs: Golden inputs by name ``[N, ...]``.
        outputs: Their outputs by name ``[N, ...]``. A thousandth of the largest value, and 0.001 at least, is tolerated
            in the self-test: devices add up in another order. Images must have 50 dB of PSNR, too. Limits for devices
            that multiply in TF32 are those of FP16 around its error in simulation.
        name: Of the model, for people.
        preprocessing: From an image file to an input; size and channels of the golden images.
        source: Origin of the model.
        task: ``"classification"``, ``"embedding"``, ``"restoration"`` or ``"generation"``.
        labels: Class names: of a classifier in the order of the logits, of a generator its conditions.
        settings: See the task's pipeline in ``krl_runtime.pipelines``.
        brought: Ranges that the model came with, which ``krl-deploy quantize`` takes as they are.
    """
    graph = onnx.load_model_from_string(model).graph
    largest = max(float(np.abs(values).max()) for values in outputs.values())
    images = task not in ("classification", "embedding")
    fp32 = Variant("fp32", names.FP32, tolerance=_ROUNDING * max(1.0, largest), psnr=_ALIKE if images else None)
    manifest = Manifest(
        task=task,
        name=name,
        inputs=tuple(tensor_spec(value) for value in graph.input),
        outputs=tuple(tensor_spec(value) for value in graph.output),
        preprocessing=preprocessing,
        labels=labels,
        variants={"fp32": fp32},
        default_variants={"cpu": "fp32"},
        golden=names.GOLDEN,
        source=dict(source),
        settings=dict(settings or {}),
        calibration=names.CALIBRATION if brought else None,
    )
    manifest = replace(manifest, variants={"fp32": replace(fp32, tf32=_tf32_limits(manifest, model, inputs, outputs))})
    files = {names.FP32: model, names.GOLDEN: golden_file({**inputs, **outputs})}
    if brought:
        files[names.CALIBRATION] = _brought_calibration(model, brought, preprocessing).to_bytes()
    return Reference(manifest, files)


def outputs_in_tf32(model: bytes, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Return the outputs of an FP32 model by name ``[N, ...]``, with products in simulated TF32; see ``to_tf32``.

    Args:
        model: The ONNX file.
        inputs: By name, ``[N, ...]``.
    """
    session = open_cpu(to_tf32(onnx.load_model_from_string(model)).SerializeToString())
    found = [value.name for value in session.get_outputs()]
    parts = [
        session.run(None, feed(session, part)) for part in batches(inputs, session.get_inputs()[0].shape[0], _BATCH)
    ]
    return {name: np.concatenate(rows) for name, rows in zip(found, zip(*parts, strict=True), strict=True)}


def _tf32_limits(
    manifest: Manifest,
    model: bytes,
    inputs: Mapping[str, npt.NDArray[Any]],
    outputs: Mapping[str, npt.NDArray[np.float32]],
) -> dict[str, float]:
    """Return the limits of FP32 in TF32, whose rounding is FP16's; none if the simulation has no finite numbers."""
    measured = likeness(manifest, outputs_in_tf32(model, inputs), outputs)
    if not np.isfinite(measured.error):
        return {}
    return golden_limits("fp16", measured, {}, content=content_of(manifest))[0]


def _brought_calibration(fp32: bytes, brought: Unquantized, preprocessing: Preprocessing) -> Calibration:
    """Return a calibration with the ranges that the model came with, without calibration images."""
    identity = Identity(sha256_bytes(fp32), preprocessing.to_dict(), "", 0, "given", "none")
    scales = {name: tuple(float(value) for value in values) for name, values in brought.weight_scales.items()}
    ranges = Int8Ranges(tensorrt=brought.ranges, cpu=brought.ranges)
    return Calibration(identity, ranges, given=brought.ranges, weight_scales=scales)


def tensor_spec(value: onnx.ValueInfoProto) -> TensorSpec:
    """Return the manifest's entry for a graph's input or output."""
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
