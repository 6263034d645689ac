"""Tiny restorers and generators as ONNX graphs and as bundles, made without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from _helpers.bundles import npz
from krl_runtime.bundle import Bundle, Manifest, TensorSpec, Variant
from krl_runtime.images.preprocessing import Preprocessing

RADIUS = 3
"""How far an output pixel of ``restorer_onnx`` sees: a 5×5 and a 3×3 convolution."""

LABELS_CONDITION = {"kind": "labels", "length": 1, "dim": 4, "vocabulary": ["cat", "dog", "frog"]}
LATENT = 6


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    output: onnx.ValueInfoProto,
    weights: Mapping[str, np.ndarray],
) -> bytes:
    for index, node in enumerate(nodes):
        node.name = f"{node.op_type}_{index}"
    constants = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "tiny", inputs, [output], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    model = onnx.shape_inference.infer_shapes(model)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def restorer_onnx(
    scale: int = 2, channels: int = 1, *, size: tuple[int | str, int | str] = ("height", "width"), width: int = 32
) -> bytes:
    """Return ``pixels`` → ``restored``: nearest-neighbor enlargement plus what random convolutions add to it."""
    rng = np.random.default_rng(scale + channels)
    made = channels * scale**2
    weights = {
        "unit": np.float32(1 / 255),
        "first": rng.normal(0, 0.2, (width, channels, 5, 5)).astype(np.float32),
        "first_bias": rng.normal(0, 0.1, width).astype(np.float32),
        "second": rng.normal(0, 0.02, (made, width, 3, 3)).astype(np.float32),
        "second_bias": np.zeros(made, np.float32),
        "repeat": np.repeat(np.eye(channels, dtype=np.float32), scale**2, axis=0).reshape(made, channels, 1, 1),
        "peak": np.float32(255),
    }
    nodes = [
        helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "unit"], ["scaled"]),
        helper.make_node("Conv", ["scaled", "first", "first_bias"], ["hidden"], pads=[2, 2, 2, 2]),
        helper.make_node("Relu", ["hidden"], ["positive"]),
        helper.make_node("Conv", ["positive", "second", "second_bias"], ["residual"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["scaled", "repeat"], ["repeated"]),
        helper.make_node("Add", ["residual", "repeated"], ["sum"]),
        helper.make_node("DepthToSpace", ["sum"], ["large"], blocksize=scale, mode="CRD"),
        helper.make_node("Mul", ["large", "peak"], ["restored"]),
    ]
    out = [f"scaled_{side}" if isinstance(side, str) else side * scale for side in size]
    return _model(
        nodes,
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", channels, *size])],
        helper.make_tensor_value_info("restored", TensorProto.FLOAT, ["batch", channels, *out]),
        weights,
    )


def generator_onnx(channels: int = 1, *, classes: int = 0, width: int = 32) -> bytes:
    """Return ``latent`` (and ``condition``) → ``images`` of 8×8: a linear layer and a transposed convolution."""
    rng = np.random.default_rng(channels)
    weights = {
        "linear": rng.normal(0, 0.5, (LATENT, width * 16)).astype(np.float32),
        "shape": np.array([-1, width, 4, 4]),
        "transposed": rng.normal(0, 0.15, (width, channels, 4, 4)).astype(np.float32),
        "half": np.float32(127.5),
    }
    inputs = [helper.make_tensor_value_info("latent", TensorProto.FLOAT, ["batch", LATENT])]
    nodes = []
    if classes:
        weights["table"] = rng.normal(0, 1, (classes, LATENT)).astype(np.float32)
        weights["axis"] = np.array([1])
        inputs.append(helper.make_tensor_value_info("condition", TensorProto.INT64, ["batch", 1]))
        nodes = [
            helper.make_node("Gather", ["table", "condition"], ["looked_up"]),
            helper.make_node("Squeeze", ["looked_up", "axis"], ["meant"]),
            helper.make_node("Add", ["latent", "meant"], ["both"]),
        ]
    nodes += [
        helper.make_node("MatMul", ["both" if classes else "latent", "linear"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], ["planes"]),
        helper.make_node("Relu", ["planes"], ["positive"]),
        helper.make_node("ConvTranspose", ["positive", "transposed"], ["made"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Tanh", ["made"], ["bounded"]),
        helper.make_node("Mul", ["bounded", "half"], ["centered"]),
        helper.make_node("Add", ["centered", "half"], ["images"]),
    ]
    output = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", channels, 8, 8])
    return _model(nodes, inputs, output, weights)


def run_onnx(model: bytes, **feeds: np.ndarray) -> np.ndarray:
    """Return a model's first output, on ONNX Runtime with one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", "1")  # exact INT8 on x86 without VNNI
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, feeds)[0]


def smooth(height: int, width: int, channels: int = 0, seed: int = 0) -> np.ndarray:
    """Return an image with the neighborhoods of a photograph: waves, uint8 ``[H, W]`` or ``[H, W, channels]``."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    planes = [
        np.sin(x * rng.uniform(0.05, 0.5) + rng.uniform(0, 6)) + np.sin(y * rng.uniform(0.05, 0.5) + rng.uniform(0, 6))
        for _ in range(max(1, channels))
    ]
    pixels = np.rint(np.stack(planes, -1) * 60 + 127).astype(np.uint8)
    return pixels if channels else pixels[..., 0]


def write_restorer(
    path: Path,
    *,
    scale: int = 2,
    color: str = "y",
    overlap: int | None = RADIUS,
    size: tuple[int | str, int | str] = ("height", "width"),
    contents: Mapping[str, bytes] | None = None,
    **changes: Any,
) -> Bundle:
    """Write a restorer's bundle that runs."""
    channels = 3 if color == "rgb" else 1
    model = restorer_onnx(scale, channels, size=size)
    height, width = (side if isinstance(side, int) else default for side, default in zip(size, (24, 20), strict=True))
    pixels = np.stack([smooth(height, width, channels, seed).transpose(2, 0, 1) for seed in range(4)])
    made = [f"scaled_{side}" if isinstance(side, str) else side * scale for side in size]
    fields: dict[str, Any] = {
        "task": "restoration",
        "name": path.stem,
        "inputs": (TensorSpec("pixels", "uint8", ("batch", channels, *size)),),
        "outputs": (TensorSpec("restored", "float32", ("batch", channels, *made)),),
        "preprocessing": _plain(height, width, channels),
        "labels": (),
        "variants": {"fp32": Variant("fp32", "model.fp32.onnx", tolerance=0.05, psnr=60.0)},
        "golden": "golden.npz",
        "settings": {"scale": scale, "color": color, "overlap": overlap, "degradation": {"kind": "bicubic"}},
    }
    files = {"model.fp32.onnx": model, "golden.npz": npz(pixels=pixels, restored=run_onnx(model, pixels=pixels))}
    return Bundle.create(path, Manifest(**{**fields, **changes}), {**files, **(contents or {})})


def write_generator(
    path: Path,
    *,
    channels: int = 1,
    condition: Mapping[str, Any] | None = None,
    contents: Mapping[str, bytes] | None = None,
    **changes: Any,
) -> Bundle:
    """Write a generator's bundle that runs; ``condition`` is that of labels or none."""
    model = generator_onnx(channels, classes=len(condition["vocabulary"]) if condition else 0)
    rng = np.random.default_rng(5)
    feeds: dict[str, np.ndarray] = {"latent": rng.standard_normal((4, LATENT), dtype=np.float32)}
    inputs = [TensorSpec("latent", "float32", ("batch", LATENT))]
    settings: dict[str, Any] = {"latent": {"size": LATENT, "distribution": "normal"}}
    if condition:
        feeds["condition"] = rng.integers(0, len(condition["vocabulary"]), (4, 1))
        inputs.append(TensorSpec("condition", "int64", ("batch", 1)))
        settings["condition"] = dict(condition)
    fields: dict[str, Any] = {
        "task": "generation",
        "name": path.stem,
        "inputs": tuple(inputs),
        "outputs": (TensorSpec("images", "float32", ("batch", channels, 8, 8)),),
        "preprocessing": _plain(8, 8, channels),
        "labels": (),
        "variants": {"fp32": Variant("fp32", "model.fp32.onnx", tolerance=0.05, psnr=60.0)},
        "golden": "golden.npz",
        "settings": settings,
    }
    files = {"model.fp32.onnx": model, "golden.npz": npz(**feeds, images=run_onnx(model, **feeds))}
    return Bundle.create(path, Manifest(**{**fields, **changes}), {**files, **(contents or {})})


def _plain(height: int, width: int, channels: int) -> Preprocessing:
    return Preprocessing(height, width, channels, mean=(0.0,) * channels, std=(1.0,) * channels)
