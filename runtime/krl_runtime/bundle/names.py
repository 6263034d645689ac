"""The names of the files in a bundle: each is written here, and nowhere else."""

from __future__ import annotations

from typing import Final

__all__ = ["CALIBRATION", "FP16", "FP32", "GOLDEN", "INT8", "INT8_CPU", "INT8_FP32", "MANIFEST", "SIGNATURE"]

MANIFEST: Final = "manifest.json"
"""The manifest, with the hashes of all other files."""

SIGNATURE: Final = "manifest.sig"
"""The signature of the manifest, if it is signed."""

FP32: Final = "model.fp32.onnx"
"""The reference."""

FP16: Final = "model.fp16.onnx"
"""FP16 in the graph."""

INT8: Final = "model.int8.onnx"
"""Q/DQ pairs with FP16 around them, for TensorRT and ONNX Runtime on a GPU."""

INT8_FP32: Final = "model.int8.fp32.onnx"
"""The same Q/DQ pairs with FP32 around them, for OpenVINO."""

INT8_CPU: Final = "model.int8.cpu.onnx"
"""The INT8 graph of the same calibration that ONNX Runtime's CPU provider runs fast."""

GOLDEN: Final = "golden.npz"
"""Real inputs with the outputs of torch."""

CALIBRATION: Final = "calibration.json"
"""The ranges of a calibration, and its identity."""
