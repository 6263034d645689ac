"""The shared part of deployment's benchmarks: real images, networks, and the tools that krl's INT8 is compared with."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))

import numpy as np
from _common import machine, open_bundle, ratios
from PIL import Image

from krl_runtime.device.timing import interleaved

__all__ = [
    "PEERS",
    "OpenVinoSession",
    "interleaved",
    "machine",
    "model_optimizer",
    "nncf_openvino",
    "open_bundle",
    "photographs",
    "quantize_static",
    "ratios",
]

PEERS = ("MinMax", "Percentile", "Entropy")
"""Names of ONNX Runtime's calibration methods."""


def photographs(count: int, size: int) -> np.ndarray:
    """Return crops of two real photographs (scikit-learn's), uint8 ``[count, 3, size, size]``."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    whole = [Image.fromarray(image) for image in load_sample_images().images]
    found = np.empty((count, 3, size, size), np.uint8)
    for index in range(count):
        photograph, share = whole[index % 2], rng.uniform(0.2, 1)
        width, height = photograph.width * share, photograph.height * share
        left, top = rng.uniform(0, photograph.width - width), rng.uniform(0, photograph.height - height)
        crop = photograph.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height))
        found[index] = np.asarray(crop).transpose(2, 0, 1)
    return found


def quantize_static(
    model: bytes,
    pixels: np.ndarray,
    method: str,
    operators: Sequence[str] | None = None,
    *,
    symmetric: bool = False,
    preprocess: bool = False,
) -> bytes:
    """Return ONNX Runtime's own quantization of the same file on the same images: weights in int8, per channel.

    Args:
        model: The float32 file, cleaned already: quantize_static is at its best on such.
        pixels: Images ``[N, C, H, W]``, given one by one as its documentation does.
        method: One of ``PEERS``; all other options are quantize_static's own, but for scales for each channel.
        operators: Kinds of operators to quantize; left out: all that it can.
        symmetric: Activations in symmetric int8, as TensorRT takes them, and not in uint8.
        preprocess: Run ``quant_pre_process`` first, as its documentation recommends.
    """
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as quantize
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(pixels)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.left, None)
            return None if image is None else {"pixels": image[None]}

    with TemporaryDirectory() as folder:
        source, target = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        source.write_bytes(model)
        if preprocess:
            # ONNX infers the shapes of such networks; the symbolic inference fails on open heights and widths.
            quant_pre_process(str(source), str(source), skip_symbolic_shape=True)
        quantize(
            str(source),
            str(target),
            Reader(),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=operators,
            calibrate_method=CalibrationMethod[method],
            extra_options={"ActivationSymmetric": symmetric},
        )
        return target.read_bytes()


def model_optimizer(model: bytes, pixels: np.ndarray, method: str) -> bytes:
    """Return NVIDIA Model-Optimizer's quantization for TensorRT of the same file on the same images.

    It has FP32 around INT8, and not FP16 as by default: ONNX Runtime 1.24's CPU provider computes the latter wrongly.
    The same numbers written as FP32 are as good as this file.

    Args:
        model: The float32 file.
        pixels: Images ``[N, C, H, W]``.
        method: ``"entropy"`` or ``"max"``.
    """
    from modelopt.onnx.quantization import quantize

    with TemporaryDirectory() as folder:
        source, target = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        source.write_bytes(model)
        quantize(
            str(source),
            quantize_mode="int8",
            calibration_data={"pixels": pixels},
            # One image at a time: open dimensions would otherwise count as 1.
            calibration_shapes="pixels:" + "x".join(map(str, (1, *pixels.shape[1:]))),
            calibration_method=method,
            calibration_eps=["cpu"],
            high_precision_dtype="fp32",
            output_path=str(target),
            log_level="ERROR",
        )
        return target.read_bytes()


@dataclass
class OpenVinoSession:
    """A model of OpenVINO on the CPU, called as a session of ONNX Runtime: one thread, FP32 around INT8."""

    model: Any
    compiled: Any = field(init=False)

    def __post_init__(self) -> None:
        import openvino

        # On processors with BF16 OpenVINO would compute what is not in INT8 in BF16.
        options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
        self.compiled = openvino.Core().compile_model(self.model, "CPU", options)

    def get_inputs(self) -> list[SimpleNamespace]:
        shapes = (given.get_partial_shape() for given in self.compiled.inputs)
        lengths = [[side.get_length() if side.is_static else None for side in shape] for shape in shapes]
        names = [given.get_any_name() for given in self.compiled.inputs]
        return [SimpleNamespace(name=name, shape=shape) for name, shape in zip(names, lengths, strict=True)]

    def run(self, _: None, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [self.compiled(feed)[0]]


def nncf_openvino(
    model: bytes, pixels: np.ndarray, preset: str, *, correction: str, ranges: str | None, overflow_fix: bool = False
) -> OpenVinoSession:
    """Return NNCF's quantization for OpenVINO of the same file on the same images.

    The file is converted by ``openvino.convert_model``. On what ``Core.read_model`` reads from ONNX, NNCF corrects no
    bias of a convolution, and does not say so: there a bias is a ``Reshape`` of a constant, which it does not know.

    Args:
        model: The float32 file.
        pixels: Images ``[N, C, H, W]``.
        preset: ``"performance"`` or ``"mixed"``.
        correction: Bias correction: ``"fast"``, ``"full"`` or ``"no"``.
        ranges: How the ranges of activations are estimated; ``None`` for NNCF's default, the mean over the images.
        overflow_fix: Leave one bit of the first layer's weights unused, as processors without VNNI need.
    """
    import nncf
    import openvino
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    nncf.set_log_level(logging.ERROR)
    advanced = nncf.AdvancedQuantizationParameters(disable_bias_correction=correction == "no")
    if not overflow_fix:
        advanced.overflow_fix = nncf.OverflowFix.DISABLE
    if ranges is not None:
        advanced.activations_range_estimator_params = getattr(RangeEstimatorParametersSet, ranges)
    with TemporaryDirectory() as folder:
        source = Path(folder, "float.onnx")
        source.write_bytes(model)
        quantized = nncf.quantize(
            openvino.convert_model(str(source)),
            nncf.Dataset([image[None] for image in pixels]),
            preset=nncf.QuantizationPreset(preset),
            subset_size=len(pixels),
            fast_bias_correction=correction != "full",
            advanced_parameters=advanced,
        )
        return OpenVinoSession(quantized)
