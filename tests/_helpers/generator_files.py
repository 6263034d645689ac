"""Small third-party generators as ONNX files, and their images by ONNX Runtime and NumPy alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto

from _helpers.graphs import graph, node, run
from krl_deploy.config import ImportConfig
from krl_deploy.importers.import_onnx import import_onnx
from krl_runtime import Bundle, Generator, load

SIZE, SIDE = 12, 8
"""Numbers in a latent, and sides of an image."""


def decoder(channels: int = 3, *, shape: Sequence[int] = (SIZE, 1, 1)) -> tuple[list[NodeProto], dict[str, np.ndarray]]:
    """Return nodes and weights of a DCGAN from ``z``, a latent of ``shape``, to ``x`` ``[N, channels, 8, 8]``."""
    rng = np.random.default_rng(channels)
    nodes = [
        node("ConvTranspose", ["p", "w1", "b1"], "c1"),
        node("Relu", ["c1"], "r1"),
        node("ConvTranspose", ["r1", "w2", "b2"], "x", strides=[2, 2], pads=[1] * 4),
    ]
    weights = {
        "w1": rng.normal(0, 0.5, (SIZE, 8, 4, 4)).astype(np.float32),
        "b1": rng.normal(0, 0.1, 8).astype(np.float32),
        "w2": rng.normal(0, 0.2, (8, channels, 4, 4)).astype(np.float32),
        "b2": np.linspace(-0.4, 0.4, channels).astype(np.float32),
    }
    if tuple(shape) == (SIZE, 1, 1):
        nodes[0].input[0] = "z"
        return nodes, weights
    weights["planes"] = np.array([-1, SIZE, 1, 1])
    return [node("Reshape", ["z", "planes"], "p"), *nodes], weights


def generator_file(
    ends: Sequence[NodeProto] = (),
    *,
    channels: int = 3,
    shape: Sequence[int] = (SIZE, 1, 1),
    batch: int | str = "n",
    more: Mapping[str, Any] | None = None,
    made: str = "float32",
    opset: int = 17,
) -> onnx.ModelProto:
    """Return a generator from ``z`` to ``y``: the decoder with other ends, whose constants are in ``more``."""
    nodes, weights = decoder(channels, shape=shape)
    return graph(
        [*nodes, *(ends or [node("Tanh", ["x"], "y")])],
        {"z": [batch, *shape]},
        {"y": None},
        {**weights, **(more or {})},
        opset=opset,
        dtypes={"y": made},
        ir=8,
    )


def brought(model: onnx.ModelProto, folder: Path, **options: Any) -> tuple[Bundle, dict[str, Any]]:
    """Import a model; return the bundle, and what the command prints."""
    file = folder / "third_party.onnx"
    file.write_bytes(model.SerializeToString())
    given: dict[str, Any] = {"task": "generation", "overwrite": True, **options}
    said = import_onnx(ImportConfig(file, folder / "third_party.krl", **given))
    return Bundle.open(folder / "third_party.krl"), said


def draw(count: int = 20, size: int = SIZE) -> np.ndarray:
    """Return latents, float32 ``[count, size]``."""
    return np.random.default_rng(9).standard_normal((count, size)).astype(np.float32)


def one_by_one(model: onnx.ModelProto, latents: np.ndarray, output: int = 0) -> np.ndarray:
    """Return the outputs of a file for latents that are given alone, ``[N, …]`` without their batch of 1."""
    (name,) = [value.name for value in model.graph.input]
    rows = [run(model, **{name: item[None]})[output] for item in latents]
    return np.stack([row[0] if row.shape[0] == 1 else row for row in rows]).astype(np.float64)


def check(
    bundle: Bundle, latents: np.ndarray, levels: np.ndarray, tolerance: float = 0.02, batch: int | str = "batch"
) -> None:
    """Compare a bundle's images with levels ``[N, C, H, W]`` of 0 to 255, by the runtime, in a batch and alone."""
    assert [(spec.name, spec.dtype, spec.shape) for spec in bundle.manifest.inputs] == [
        ("latent", "float32", (batch, latents.shape[1]))
    ]
    assert [(spec.name, spec.dtype, spec.shape) for spec in bundle.manifest.outputs] == [
        ("images", "float32", (batch, *levels.shape[1:]))
    ]
    assert levels.max() - levels.min() > 20, "the images of the test are not all alike"
    with load(bundle.path, Generator, require="cpu", threads=1) as model:
        step = len(latents) if batch == "batch" else 1
        made = np.concatenate([model.values(latents[at : at + step]) for at in range(0, len(latents), step)])
        np.testing.assert_allclose(made, levels, atol=tolerance)
        np.testing.assert_allclose(model.values(latents[:1]), levels[:1], atol=tolerance)
        pixels = np.stack([image.pixels for image in model.generate_from(latents)]).transpose(0, 3, 1, 2)
        assert np.abs(pixels - levels.clip(0, 255)).max() <= 0.5 + tolerance


def keras(batch: int | str) -> onnx.ModelProto:
    """A decoder as tf2onnx writes Keras's: shapes that are computed, and images in NHWC around each convolution."""
    rng = np.random.default_rng(4)
    weights = {
        "dense": rng.normal(0, 0.3, (SIZE, 4 * 4 * 6)).astype(np.float32),
        "bias": rng.normal(0, 0.1, 4 * 4 * 6).astype(np.float32),
        "kernel": rng.normal(0, 0.3, (6, 3, 4, 4)).astype(np.float32),
        "color": rng.normal(0, 0.1, 3).astype(np.float32),
        "start": np.array([0]),
        "stop": np.array([1]),
        "rest": np.array([4, 4, 6]),
    }
    nodes = [
        node("MatMul", ["latent_input", "dense"], "m"),
        node("Add", ["m", "bias"], "images"),
        node("LeakyRelu", ["images"], "latent", alpha=0.3),
        node("Shape", ["latent"], "s"),
        node("Slice", ["s", "start", "stop"], "b"),
        node("Concat", ["b", "rest"], "to", axis=0),
        node("Reshape", ["latent", "to"], "r"),
        node("Transpose", ["r"], "n", perm=[0, 3, 1, 2]),
        node("ConvTranspose", ["n", "kernel"], "k", strides=[2, 2], pads=[1] * 4),
        node("Transpose", ["k"], "h", perm=[0, 2, 3, 1]),
        node("Add", ["h", "color"], "a"),
        node("Sigmoid", ["a"], "y"),
    ]
    return graph(nodes, {"latent_input": [batch, SIZE]}, {"y": None}, weights, opset=15, ir=8)
