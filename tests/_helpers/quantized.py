"""Q/DQ files as other tools write them, from a float model and images."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from _helpers.graphs import run

__all__ = ["float_input", "ranges_of", "static"]


def float_input(bundle: Path, side: int = 16) -> onnx.ModelProto:
    """Return a bundle's FP32 model without its preprocessing: gray and normalized outside, as others export it."""
    model = onnx.load(bundle / "model.fp32.onnx")
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    offset = next(node for node in model.graph.node if first.input[0] in node.output)
    kept = [node for node in model.graph.node if node.op_type != "Cast" and node is not offset]
    kept = [node for node in kept if not set(node.output) & set(offset.input)]
    del model.graph.node[:], model.graph.input[:], model.graph.value_info[:]
    model.graph.node.extend(kept)
    model.graph.input.append(onnx.helper.make_tensor_value_info(first.input[0], 1, ["batch", 1, side, side]))
    used = {name for node in kept for name in node.input}
    constants = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(constants)
    return model


def ranges_of(model: onnx.ModelProto, inputs: np.ndarray) -> dict[str, tuple[float, float]]:
    """Return the smallest and largest value of each tensor for inputs ``[N, ...]``."""
    names = [output for node in model.graph.node for output in node.output]
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    del shown.graph.output[:], shown.graph.value_info[:]
    shown.graph.output.extend(onnx.helper.make_tensor_value_info(name, 1, None) for name in names)
    source = model.graph.input[0].name
    values = {source: inputs, **dict(zip(names, run(shown, **{source: inputs}), strict=True))}
    return {name: (float(value.min()), float(value.max())) for name, value in values.items()}


def static(model: onnx.ModelProto, inputs: np.ndarray, *, symmetric: bool = False, **options: Any) -> onnx.ModelProto:
    """Return the Q/DQ file of ONNX Runtime's ``quantize_static``, with the ranges of inputs ``[N, ...]``.

    Args:
        model: A float model with one input.
        inputs: Calibration data.
        symmetric: Use int8 without zero points for activations, and uint8 with them otherwise.
        options: Further options of ``quantize_static``, in place of those here.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left: Iterator[np.ndarray] = iter(inputs)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.left, None)
            return None if image is None else {model.graph.input[0].name: image[None]}

    chosen = {
        "quant_format": QuantFormat.QDQ,
        "activation_type": QuantType.QInt8 if symmetric else QuantType.QUInt8,
        "weight_type": QuantType.QInt8,
        "per_channel": True,
        "extra_options": {"ActivationSymmetric": symmetric},
        **options,
    }
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source, target = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        onnx.save(model, source)
        quantize_static(source, target, Reader(), **chosen)
        return onnx.load(target)
