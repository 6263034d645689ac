"""Tiny real bundles of embedding networks, made without torch, and images that they tell apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from PIL import Image

from _helpers.bundles import SHIFTS, VARIANTS, TinyNet, npz
from krl_runtime.bundle import Bundle, Manifest, TensorSpec
from krl_runtime.images.preprocessing import Preprocessing

SIZE = 6
"""Dimensions of an embedding."""

COLORS = {"red": (220, 40, 30), "green": (30, 200, 60), "blue": (40, 60, 230)}
"""Classes of images that a network tells apart by their color."""


def embedding_graph(net: TinyNet, shift: float = 0.0, batch: int | str = "batch") -> bytes:
    """Return the graph ``pixels`` → ``embeddings`` of length 1."""
    model = onnx.load_from_string(net.onnx(shift, batch))
    graph = model.graph
    graph.node.extend(
        [
            helper.make_node("LpNormalization", ["logits"], ["embeddings"], axis=1, p=2),
        ]
    )
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, [batch, len(net.bias)]))
    onnx.checker.check_model(model)
    return model.SerializeToString()


def embed(net: TinyNet, pixels: np.ndarray) -> np.ndarray:
    """Return the embeddings of uint8 ``[N, C, H, W]``, by NumPy."""
    vectors = net.logits(pixels).astype(np.float64)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def colored(count: int, color: Sequence[int] | None = None, seed: int = 0, size: int = 12) -> np.ndarray:
    """Return images ``[N, size, size, 3]``, noise around a color; around one of its own for each without ``color``."""
    generator = np.random.default_rng(seed)
    base = generator.integers(0, 256, (count, 1, 1, 3)) if color is None else np.reshape(color, (1, 1, 1, 3))
    noise = generator.integers(-25, 26, (count, size, size, 3))
    return np.clip(base + noise, 0, 255).astype(np.uint8)


def write_folder(
    folder: Path, classes: Mapping[str, Sequence[int]] = COLORS, count: int = 4, seed: int = 0
) -> list[str]:
    """Write PNG files ``CLASS/N.png``; return their names in the order of the folder."""
    names = []
    for number, (name, color) in enumerate(sorted(classes.items())):
        (folder / name).mkdir(parents=True)
        for index, image in enumerate(colored(count, color, seed + number)):
            Image.fromarray(image).save(folder / name / f"{index}.png")
            names.append(f"{name}/{index}.png")
    return names


def write_embedder(
    path: Path,
    *,
    variants: Sequence[str] = ("fp32",),
    size: int = SIZE,
    golden: int = 6,
    batch: int | str = "batch",
    seed: int = 0,
    contents: Mapping[str, Path | bytes] | None = None,
    **changes: Any,
) -> Bundle:
    """Write a bundle of an embedding network that runs; the arguments are those of ``write_bundle``."""
    preprocessing = Preprocessing(12, 12)
    net = TinyNet.random(preprocessing, size, seed)
    chosen = {name: VARIANTS[name] for name in variants}
    files = {
        file: embedding_graph(net, SHIFTS[file], batch)
        for variant in chosen.values()
        for file in (variant.file, variant.cpu_file)
        if file is not None
    }
    if golden:
        pixels = np.ascontiguousarray(colored(golden, seed=seed + 1).transpose(0, 3, 1, 2))
        files["golden.npz"] = npz(pixels=pixels, embeddings=embed(net, pixels))
    manifest = Manifest(
        task="embedding",
        name=path.stem,
        inputs=(TensorSpec("pixels", "uint8", (batch, *preprocessing.shape)),),
        outputs=(TensorSpec("embeddings", "float32", (batch, size)),),
        preprocessing=preprocessing,
        labels=(),
        variants=chosen,
        golden="golden.npz" if golden else None,
        settings={"embedding": {"size": size}},
    )
    return Bundle.create(path, replace(manifest, **changes), {**files, **(contents or {})})
