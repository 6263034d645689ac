"""A tiny bundle with two outputs, made without torch: the network of ``bundles`` with a second head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from krl_runtime.bundle import Bundle, TensorSpec
from krl_runtime.images.preprocessing import Preprocessing

from .bundles import LABELS, SHIFTS, VARIANTS, TinyNet, npz, write_bundle

__all__ = ["SOURCE", "both", "write_two_heads"]

SOURCE = ("red", "green", "blue")
HEADS = [{"name": "source", "output": "source_logits", "labels": list(SOURCE)}]
OUTPUTS = tuple(
    TensorSpec(name, "float32", ("batch", len(labels)))
    for name, labels in (("logits", LABELS), ("source_logits", SOURCE))
)


def net(preprocessing: Preprocessing | None = None, seed: int = 0) -> TinyNet:
    """Return the network with the rows of both heads."""
    return TinyNet.random(preprocessing or Preprocessing(12, 10), len(LABELS) + len(SOURCE), seed)


def both(pixels: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return the logits of both heads as numpy computes them."""
    logits = net(seed=seed).logits(pixels)
    return logits[:, : len(LABELS)], logits[:, len(LABELS) :]


def two_outputs(shift: float = 0.0, source_shift: float = 0.0) -> bytes:
    """Return the graph; ``source_shift`` is added to the first logit of the second head alone."""
    whole = net()
    whole.bias[len(LABELS)] += source_shift
    model = onnx.load_from_string(whole.onnx(shift))
    graph = model.graph
    graph.node[-1].output[0] = "all"
    sizes = numpy_helper.from_array(np.array([len(LABELS), len(SOURCE)], np.int64), "sizes")
    graph.initializer.append(sizes)
    graph.node.append(helper.make_node("Split", ["all", "sizes"], ["logits", "source_logits"], axis=1))
    del graph.output[:]
    graph.output.extend(
        helper.make_tensor_value_info(spec.name, TensorProto.FLOAT, list(spec.shape)) for spec in OUTPUTS
    )
    onnx.checker.check_model(model)
    return model.SerializeToString()


def write_two_heads(path: Path, *, golden: int = 6, **changes: Any) -> Bundle:
    """Write a bundle with two heads, of all variants; ``changes`` are fields of its manifest."""
    pixels = np.random.default_rng(1).integers(0, 256, (golden, 3, 12, 10), dtype=np.uint8)
    logits, source = both(pixels)
    contents = {file: two_outputs(shift) for file, shift in SHIFTS.items()}
    contents["golden.npz"] = npz(pixels=pixels, logits=logits, source_logits=source)
    given = {"outputs": OUTPUTS, "settings": {"heads": HEADS}, **changes}
    contents |= given.pop("contents", {})
    return write_bundle(path, variants=tuple(VARIANTS), contents=contents, **given)
