"""Restorers that take only some sides: smaller and other images are padded by their edges, and cropped."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from PIL import Image

from _helpers.graphs import graph, node
from _helpers.image_nets import run_onnx, smooth, write_restorer
from krl_runtime import BackendError, BundleError, Restorer, load


def reflecting(pad: int) -> bytes:
    """Return a graph that pads by reflection, and takes images with more than ``pad`` pixels a side."""
    side = 2 * pad + 1
    kernel = np.random.default_rng(0).uniform(0, 1, (1, 1, side, side)).astype(np.float32)
    nodes = [
        node("Cast", ["pixels"], "x", to=onnx.TensorProto.FLOAT),
        node("Pad", ["x", "pads"], "p", mode="reflect"),
        node("Conv", ["p", "k"], "restored"),
    ]
    values = {"pads": np.int64([0, 0, pad, pad] * 2), "k": kernel / kernel.sum()}
    model = graph(nodes, {"pixels": ["batch", 1, "height", "width"]}, {"restored": ["batch", 1, "h", "w"]}, values)
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    return model.SerializeToString()


def aligned(multiple: int) -> bytes:
    """Return a graph that adds an image to one that was made smaller and larger again, as a U-Net does."""
    scales = np.float32([1, 1, multiple, multiple])
    nodes = [
        node("Cast", ["pixels"], "x", to=onnx.TensorProto.FLOAT),
        node("AveragePool", ["x"], "down", kernel_shape=[multiple] * 2, strides=[multiple] * 2),
        node("Resize", ["down", "", "scales"], "up", mode="nearest"),
        node("Mul", ["up", "half"], "a"),
        node("Mul", ["x", "half"], "b"),
        node("Add", ["a", "b"], "restored"),
    ]
    values = {"scales": scales, "half": np.float32(0.5)}
    model = graph(nodes, {"pixels": ["batch", 1, "height", "width"]}, {"restored": ["batch", 1, "h", "w"]}, values)
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    return model.SerializeToString()


def bundle(path: Path, model: bytes, overlap: int | None = None, **more: object) -> Path:
    settings = {"scale": 1, "color": "gray", "overlap": overlap, "degradation": {"kind": "none"}, **more}
    return write_restorer(path, scale=1, color="gray", contents={"model.fp32.onnx": model}, settings=settings).path


@pytest.mark.parametrize("pad", [1, 3, 20])
@pytest.mark.parametrize("size", [(1, 1), (1, 30), (21, 2), (40, 50)])
def test_reflection_padding(tmp_path: Path, pad: int, size: tuple[int, int]):
    model = reflecting(pad)
    restorer = load(bundle(tmp_path / "a.krl", model, overlap=2 * pad, smallest_side=pad + 1), Restorer)
    image = smooth(*size)
    missing = [(0, max(0, pad + 1 - side)) for side in size]
    wanted = run_onnx(model, pixels=np.pad(image, missing, mode="edge")[None, None])[0, :, : size[0], : size[1]]
    np.testing.assert_allclose(restorer.restore_planes(image[None]), wanted, atol=1e-3)
    assert restorer(image).pixels.shape[:2] == size


@pytest.mark.parametrize("multiple", [2, 7, 8])
@pytest.mark.parametrize("size", [(1, 1), (16, 21), (33, 56)])
def test_multiples(tmp_path: Path, multiple: int, size: tuple[int, int]):
    model = aligned(multiple)
    restorer = load(bundle(tmp_path / "a.krl", model, smallest_side=multiple, multiple=multiple), Restorer)
    image = smooth(*size)
    missing = [(0, -side % multiple) for side in size]
    wanted = run_onnx(model, pixels=np.pad(image, missing, mode="edge")[None, None])[0, :, : size[0], : size[1]]
    np.testing.assert_allclose(restorer.restore_planes(image[None]), wanted, atol=1e-3)


@pytest.mark.parametrize(("size", "name"), [((2, 9), "a.png"), ((1, 1), "b.png"), ((7, 3), "c.png")])
def test_a_failure_names_the_image_and_its_size(tmp_path: Path, size: tuple[int, int], name: str):
    """Of a bundle that does not name its smallest side."""
    restorer = load(bundle(tmp_path / "a.krl", reflecting(7)), Restorer)
    Image.fromarray(smooth(*size)).save(tmp_path / name)
    with pytest.raises(BackendError, match=rf"{name}, of {size[1]}x{size[0]} pixels: onnxruntime-cpu failed"):
        restorer(tmp_path / name)
    with pytest.raises(BackendError, match=rf"^an image, of {size[1]}x{size[0]} pixels: "):
        restorer(smooth(*size))


@pytest.mark.parametrize(
    "settings", [{"smallest_side": 0}, {"smallest_side": "4"}, {"multiple": 5000}, {"multiple": True}, {"multiple": 7}]
)
def test_settings_that_do_not_fit(tmp_path: Path, settings: dict[str, object]):
    with pytest.raises(BundleError, match="is no restorer: its settings have smallest_side"):
        load(bundle(tmp_path / "a.krl", reflecting(1), overlap=2, **settings))


@pytest.mark.parametrize(("side", "multiple", "most"), [(64, 1, 64), (64, 8, 64), (70, 8, 64)])
def test_an_engine_for_one_size_of_a_network_that_needs_the_whole_image(
    tmp_path: Path, side: int, multiple: int, most: int
):
    """It takes smaller images, and refuses larger ones: parts would have seams."""
    model = aligned(8)
    restorer = load(bundle(tmp_path / "a.krl", model, smallest_side=multiple, multiple=multiple), Restorer)
    inner, sizes = restorer.backend, []

    def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        sizes.append(inputs["pixels"].shape[2:])
        return inner.run(inputs)

    low = side if multiple == 1 or side % multiple == 0 else 64
    restorer.backend = SimpleNamespace(image_sizes=((low, side), (low, side)), run=run)  # type: ignore[assignment]
    assert restorer(smooth(30, 41)).pixels.shape[:2] == (30, 41)
    assert sizes == [(64, 64)]
    with pytest.raises(BackendError, match=rf"a side of {side + 1} pixels does not fit .* at most {most}, .*--tile N"):
        restorer(smooth(20, side + 1))
