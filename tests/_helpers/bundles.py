"""Tiny real bundles, made without torch: uint8 pixels, normalization, convolution, ReLU, mean, linear layer.

The golden logits come from numpy, so that ONNX Runtime is checked against something else than itself.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from krl_runtime.backends.tensorrt.registry import BuiltEngine, register_engine
from krl_runtime.bundle import Bundle, Engine, Manifest, TensorSpec, Variant
from krl_runtime.files import sha256_bytes
from krl_runtime.images.preprocessing import Preprocessing

LABELS = ("cat", "dog", "frog", "ship")
FILTERS = 5

SHIFTS = {"model.fp32.onnx": 0.0, "model.fp16.onnx": 0.002, "model.int8.onnx": 0.01, "model.int8.cpu.onnx": 0.02}
"""What each file adds to all logits: the class stays, and a test can tell which file ran."""

VARIANTS = {
    "fp32": Variant("fp32", "model.fp32.onnx", tolerance=1e-4),
    "fp16": Variant("fp16", "model.fp16.onnx", tolerance=5e-3),
    "int8": Variant("int8", "model.int8.onnx", "model.int8.cpu.onnx", tolerance=0.05, agreement=0.9),
}


@dataclass(frozen=True)
class TinyNet:
    """Weights of the tiny network, and its forward pass in numpy."""

    preprocessing: Preprocessing
    kernel: np.ndarray  # [FILTERS, channels, 3, 3]
    head: np.ndarray  # [classes, FILTERS]
    bias: np.ndarray  # [classes]

    @classmethod
    def random(cls, preprocessing: Preprocessing, classes: int, seed: int = 0) -> TinyNet:
        rng = np.random.default_rng(seed)
        kernel = rng.normal(size=(FILTERS, preprocessing.channels, 3, 3)).astype(np.float32)
        head = rng.normal(size=(classes, FILTERS)).astype(np.float32)
        return cls(preprocessing, kernel, head, rng.normal(size=classes).astype(np.float32))

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        """Map uint8 ``[N, C, H, W]`` to float32 logits, in float64 on the way."""
        mean, std = (np.reshape(values, (1, -1, 1, 1)) for values in (self.preprocessing.mean, self.preprocessing.std))
        x = np.pad((pixels / 255 - mean) / std, ((0, 0), (0, 0), (1, 1), (1, 1)))
        height, width = pixels.shape[2:]
        convolved = sum(
            np.einsum("nchw,fc->nfhw", x[:, :, i : i + height, j : j + width], self.kernel[:, :, i, j])
            for i in range(3)
            for j in range(3)
        )
        return (np.maximum(convolved, 0).mean((2, 3)) @ self.head.T + self.bias).astype(np.float32)

    def onnx(self, shift: float = 0.0, batch: int | str = "batch") -> bytes:
        """Return the graph ``pixels`` → ``logits``; ``shift`` is added to every logit."""
        spec, classes = self.preprocessing, len(self.bias)
        mean, std = np.array(spec.mean), np.array(spec.std)
        weights = {
            "scale": (1 / (255 * std)).astype(np.float32).reshape(1, -1, 1, 1),
            "offset": (-mean / std).astype(np.float32).reshape(1, -1, 1, 1),
            "kernel": self.kernel,
            "head": self.head,
            "bias": self.bias + np.float32(shift),
        }
        nodes = [
            helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["float", "scale"], ["scaled"]),
            helper.make_node("Add", ["scaled", "offset"], ["normalized"]),
            helper.make_node("Conv", ["normalized", "kernel"], ["convolved"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["convolved"], ["positive"]),
            helper.make_node("GlobalAveragePool", ["positive"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["features"]),
            helper.make_node("Gemm", ["features", "head", "bias"], ["logits"], transB=1),
        ]
        graph = helper.make_graph(
            nodes,
            "tiny",
            [helper.make_tensor_value_info("pixels", TensorProto.UINT8, [batch, *spec.shape])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, classes])],
            [numpy_helper.from_array(value, name) for name, value in weights.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        onnx.checker.check_model(model)
        return model.SerializeToString()


def npz(**arrays: np.ndarray) -> bytes:
    """Return the bytes of an npz file."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def write_bundle(
    path: Path,
    *,
    preprocessing: Preprocessing | None = None,
    labels: Sequence[str] = LABELS,
    variants: Sequence[str] = ("fp32",),
    golden: int = 6,
    batch: int | str = "batch",
    seed: int = 0,
    contents: Mapping[str, Path | bytes] | None = None,
    **changes: Any,
) -> Bundle:
    """Write a bundle that runs.

    Args:
        path: The folder to make.
        preprocessing: By default RGB of 12×10 pixels, cropped.
        labels: Class names.
        variants: Of ``VARIANTS``.
        golden: Number of golden inputs; 0 leaves the golden file out.
        batch: A number fixes the graph's batch size.
        seed: Of the weights and golden inputs.
        contents: Further files, or other bytes for those that are there.
        changes: Values of ``Manifest`` fields.
    """
    preprocessing = preprocessing or Preprocessing(12, 10)
    net = TinyNet.random(preprocessing, len(labels), seed)
    chosen = {name: VARIANTS[name] for name in variants}
    files = {
        file: net.onnx(SHIFTS[file], batch)
        for variant in chosen.values()
        for file in (variant.file, variant.cpu_file)
        if file is not None
    }
    if golden:
        pixels = np.random.default_rng(seed + 1).integers(0, 256, (golden, *preprocessing.shape), dtype=np.uint8)
        files["golden.npz"] = npz(pixels=pixels, logits=net.logits(pixels))
    manifest = Manifest(
        task="classification",
        name=path.stem,
        inputs=(TensorSpec("pixels", "uint8", (batch, *preprocessing.shape)),),
        outputs=(TensorSpec("logits", "float32", (batch, len(labels))),),
        preprocessing=preprocessing,
        labels=tuple(labels),
        variants=chosen,
        golden="golden.npz" if golden else None,
    )
    return Bundle.create(path, replace(manifest, **changes), {**files, **(contents or {})})


def add_engines(bundle: Bundle, plans: Mapping[str, bytes], engines: Mapping[str, Engine]) -> Bundle:
    """Put engines into a bundle, and into the registry, as ``krl-deploy build-engine`` does."""
    for engine in engines.values():
        host_code = engine.version_compatible and engine.library == "tensorrt"
        register_engine(BuiltEngine(sha256_bytes(plans[engine.file]), engine.library, engine.version, host_code))
    return bundle.update(plans, engines=engines)
