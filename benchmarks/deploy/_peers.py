"""The shared part of deployment's benchmarks: real images, networks, and ONNX Runtime's quantize_static."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))

import numpy as np
from _common import machine, open_bundle, ratios
from PIL import Image

from krl_runtime.device.timing import interleaved

__all__ = ["PEERS", "interleaved", "machine", "open_bundle", "photographs", "quantize_static", "ratios"]

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


def quantize_static(model: bytes, pixels: np.ndarray, method: str, operators: Sequence[str] | None = None) -> bytes:
    """Return ONNX Runtime's own quantization of the same file on the same images: uint8 activations, int8 per channel.

    Args:
        model: The float32 file, cleaned already: quantize_static is at its best on such.
        pixels: Images ``[N, C, H, W]``, given one by one as its documentation does.
        method: One of ``PEERS``; all other options are quantize_static's own, but for scales for each channel.
        operators: Kinds of operators to quantize; left out: all that it can.
    """
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as quantize

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(pixels)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.left, None)
            return None if image is None else {"pixels": image[None]}

    with TemporaryDirectory() as folder:
        source, target = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        source.write_bytes(model)
        quantize(
            str(source),
            str(target),
            Reader(),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=operators,
            calibrate_method=CalibrationMethod[method],
        )
        return target.read_bytes()
