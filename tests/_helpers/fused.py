"""A tiny bundle with several inputs, made without torch: the network of ``bundles`` on two images, attributes, colors.

The logits are the sum of what each input gives, so numpy computes the golden ones from the samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper
from PIL import Image

from krl_runtime.attributes import AttributeInput
from krl_runtime.bundle import Bundle
from krl_runtime.bundle.further_inputs import FurtherInput, ImageInput, sample_arrays, tensor_spec
from krl_runtime.images.descriptors import DescriptorInput
from krl_runtime.images.preprocessing import Preprocessing

from .bundles import LABELS, SHIFTS, VARIANTS, TinyNet, npz, write_bundle

__all__ = ["INPUTS", "PREPROCESSING", "expected", "fused_onnx", "samples", "write_fused", "write_fused_list"]

PREPROCESSING = Preprocessing(12, 10)
_ROWS = [{"color": "red", "size": "1"}, {"color": "blue", "size": "3"}]
_IMAGES = np.random.default_rng(7).integers(0, 256, (8, 3, 12, 10), dtype=np.uint8)
INPUTS: tuple[FurtherInput, ...] = (
    AttributeInput.fit(_ROWS, ["color", "size"]),
    ImageInput.of("right", PREPROCESSING),
    DescriptorInput.fit(_IMAGES, ["color-histogram"]),
)
_RNG = np.random.default_rng(8)
WEIGHTS = {
    each.input: _RNG.normal(size=(each.width, len(LABELS))).astype(np.float32)
    for each in INPUTS
    if each.kind != "image"
}


def _net(seed: int) -> TinyNet:
    return TinyNet.random(PREPROCESSING, len(LABELS), seed)


def samples(count: int = 6, seed: int = 1) -> list[dict[str, Any]]:
    """Return samples as ``Classifier`` takes them; the images are arrays."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 2, 12, 10, 3), dtype=np.uint8)
    return [
        {"image": first, "right": right, "color": ("red", "blue")[number % 2], "size": 1 + 2 * number / count}
        for number, (first, right) in enumerate(images)
    ]


def arrays(given: Sequence[Any]) -> dict[str, np.ndarray]:
    """Return the inputs of the graph for samples."""
    each = [sample_arrays(sample, INPUTS, PREPROCESSING) for sample in given]
    return {name: np.stack([row[name] for row in each]) for name in each[0]}


def logits(inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Return the logits as numpy computes them."""
    images = _net(0).logits(inputs["pixels"]) + _net(5).logits(inputs["pixels_right"])
    return images + sum(inputs[name] @ weights for name, weights in WEIGHTS.items())


def expected(sample: dict[str, Any]) -> np.ndarray:
    """Return the logits of one sample, from its values alone."""
    shares = np.stack([np.histogram(sample["image"][..., channel], 8, (0, 256))[0] for channel in range(3)]) / 120
    colors = INPUTS[2]
    values = np.concatenate([[sample["color"] == "blue", sample["color"] == "red", float(sample["size"]) - 2]])
    standardized = (shares.ravel() - np.array(colors.mean)) / np.array(colors.std)
    images = [np.asarray(sample[name])[None].transpose(0, 3, 1, 2) for name in ("image", "right")]
    return (
        _net(0).logits(images[0])[0]
        + _net(5).logits(images[1])[0]
        + values.astype(np.float32) @ WEIGHTS["attributes"]
        + standardized.astype(np.float32) @ WEIGHTS["descriptors"]
    )


def fused_onnx(shift: float = 0.0) -> bytes:
    """Return the graph of all inputs; ``shift`` is added to every logit."""
    first, second = (onnx.load_from_string(_net(seed).onnx(shift if seed == 0 else 0.0)) for seed in (0, 5))
    first, second = (compose.add_prefix(model, f"{name}_") for model, name in ((first, "left"), (second, "right")))
    for model, name in ((first, "pixels"), (second, "pixels_right")):
        compose_input = model.graph.input[0]
        for node in model.graph.node:
            node.input[:] = [name if each == compose_input.name else each for each in node.input]
        compose_input.name = name
    model = compose.merge_models(first, second, io_map=[])
    graph, total = model.graph, first.graph.output[0].name
    others = [second.graph.output[0].name]
    for each in INPUTS:
        if each.kind == "image":
            continue
        graph.input.append(helper.make_tensor_value_info(each.input, TensorProto.FLOAT, ["batch", each.width]))
        graph.initializer.append(numpy_helper.from_array(WEIGHTS[each.input], f"{each.input}_weight"))
        graph.node.append(helper.make_node("MatMul", [each.input, f"{each.input}_weight"], [f"{each.input}_logits"]))
        others.append(f"{each.input}_logits")
    for number, other in enumerate(others):
        out = "logits" if number == len(others) - 1 else f"sum_{number}"
        graph.node.append(helper.make_node("Add", [total, other], [out]))
        total = out
    by_name = {each.name: each for each in graph.input}
    order = ["pixels", *(each.input for each in INPUTS)]
    ordered = [by_name[name] for name in order]
    copies = [onnx.ValueInfoProto.FromString(each.SerializeToString()) for each in ordered]
    del graph.input[:]
    for each in copies:
        each.type.tensor_type.shape.dim[0].dim_param = "batch"
    graph.input.extend(copies)
    del graph.output[:], graph.value_info[:]
    graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(LABELS)]))
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def write_fused(path: Path, *, golden: int = 6, **changes: Any) -> Bundle:
    """Write a bundle with further inputs, of all variants; ``changes`` are fields of its manifest."""
    inputs = arrays(samples(golden, 2))
    contents: dict[str, Any] = {file: fused_onnx(shift) for file, shift in SHIFTS.items()}
    contents["golden.npz"] = npz(**inputs, logits=logits(inputs).astype(np.float32))
    bare = write_bundle(path.with_name(f"{path.stem}_bare.krl"))
    given = {
        "inputs": (*bare.manifest.inputs, *map(tensor_spec, INPUTS)),
        "settings": {"inputs": [each.to_dict() for each in INPUTS]},
        **changes,
    }
    contents |= given.pop("contents", {})
    return write_bundle(path, variants=tuple(VARIANTS), contents=contents, **given)


def write_fused_list(root: Path, given: Sequence[dict[str, Any]], labels: Sequence[str] = ()) -> Path:
    """Write samples as ``root/list.csv`` and its images."""
    root.mkdir(parents=True, exist_ok=True)
    lines = ["image,right,color,size" + ",label" * bool(labels)]
    for number, sample in enumerate(given):
        for name in ("image", "right"):
            Image.fromarray(sample[name]).save(root / f"{name}{number}.png")
        label = f",{labels[number]}" if labels else ""
        lines.append(f"image{number}.png,right{number}.png,{sample['color']},{sample['size']}{label}")
    path = root / "list.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
