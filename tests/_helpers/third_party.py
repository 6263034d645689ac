"""Small third-party classifiers in color, images for them, and their files run by ONNX Runtime alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper
from PIL import Image

from _helpers.graphs import node, run
from krl_deploy.config import ImportConfig
from krl_deploy.importers.import_onnx import import_onnx
from krl_runtime import Bundle

LABELS = ("red", "green", "blue", "brown")
SIDE = 16
COLORS = ((200, 60, 60), (60, 200, 60), (60, 60, 200), (150, 100, 50))


def write_images(root: Path, each: int = 6) -> Path:
    """Write a folder of four classes of colors, in waves."""
    rng, across = np.random.default_rng(0), np.arange(SIDE)
    for label, color in zip(LABELS, COLORS, strict=True):
        (root / label).mkdir(parents=True)
        for number in range(each):
            waves = 50 * np.sin(across / rng.uniform(1.5, 6)) + 50 * np.cos(across / rng.uniform(1.5, 6))[:, None]
            planes = np.array(color) + rng.normal(0, 30, 3) + waves[..., None]
            Image.fromarray(planes.clip(0, 255).astype(np.uint8)).save(root / label / f"{number}.png")
    return root


def read_pixels(root: Path) -> tuple[list[Path], np.ndarray]:
    """Return the files, and their pixels uint8 ``[N, 3, H, W]`` as Pillow reads them."""
    files = sorted(root.rglob("*.png"))
    return files, np.stack([np.asarray(Image.open(file)).transpose(2, 0, 1) for file in files])


def body(seed: int = 0, channels: int = 3, columns: int = 4) -> tuple[list[NodeProto], dict[str, np.ndarray]]:
    """Return nodes and weights from ``image`` to ``z`` ``[N, columns, 1, 1]``, whose values differ between images."""
    rng = np.random.default_rng(seed)
    nodes = [
        node("Conv", ["image", "w1", "b1"], "c", pads=[1] * 4, strides=[2, 2]),
        node("Relu", ["c"], "r"),
        node("GlobalAveragePool", ["r"], "g"),
        node("Conv", ["g", "w2", "b2"], "z"),
    ]
    weights = {
        "w1": rng.normal(0, 0.5, (16, channels, 3, 3)),
        "b1": rng.normal(0, 0.1, 16),
        "w2": rng.normal(0, 3, (columns, 16, 1, 1)),
        "b2": rng.normal(0, 0.5, columns),
    }
    weights = {name: value.astype(np.float32) for name, value in weights.items()}
    flat = np.ones((4, channels, SIDE, SIDE)) * np.float32(COLORS)[:, :channels, None, None] / 255
    shape = ("N", channels, SIDE, SIDE)
    middle = run(model_of(nodes[:-1], weights, "g", shape=shape), image=flat.astype(np.float32))[0].mean(0).reshape(-1)
    weights["b2"] -= weights["w2"].reshape(columns, -1) @ middle  # so that each color has a prediction of its own
    return nodes, weights


def model_of(
    nodes: Sequence[NodeProto],
    weights: Mapping[str, np.ndarray],
    output: str | Sequence[str],
    *,
    shape: Sequence[int | str] = ("N", 3, SIDE, SIDE),
    dtype: int = TensorProto.FLOAT,
    made: int = TensorProto.FLOAT,
    opset: int = 17,
) -> onnx.ModelProto:
    """Return a model with the shapes that ONNX infers."""
    names = [output] if isinstance(output, str) else output
    used = {name for item in nodes for name in item.input}
    proto = helper.make_graph(
        list(nodes),
        "third_party",
        [helper.make_tensor_value_info("image", dtype, list(shape))],
        [helper.make_tensor_value_info(name, made, None) for name in names],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items() if name in used],
    )
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    model = onnx.shape_inference.infer_shapes(model)
    for value in model.graph.output:
        if not value.type.tensor_type.HasField("shape"):
            value.type.tensor_type.shape.dim.add().dim_param = "anything"
    return model


def brought(model: onnx.ModelProto, folder: Path, data: Path, **options: Any) -> tuple[Bundle, dict[str, Any]]:
    """Import a model; return the bundle, and what the command prints."""
    file = folder / "third_party.onnx"
    file.write_bytes(model.SerializeToString())
    given = {"labels": LABELS, "overwrite": True, **options}
    said = import_onnx(ImportConfig(file, folder / "third_party.krl", data, **given))
    return Bundle.open(folder / "third_party.krl"), said


def one_by_one(model: onnx.ModelProto, inputs: np.ndarray, output: int = 0) -> np.ndarray:
    """Return the outputs of a file for images that are given alone, ``[N, values]``."""
    return np.stack([run(model, image=item[None])[output].reshape(-1) for item in inputs]).astype(np.float64)
