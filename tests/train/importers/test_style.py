"""``krl-train import`` of a network of style that TensorFlow trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from krl_runtime.errors import ModelError, UsageError
from krl_train.config import EvaluateConfig, ImportConfig
from krl_train.evaluation.evaluate import evaluate
from krl_train.importers.importing import import_weights
from krl_train.models.restorers import RestorerNetwork
from krl_train.run import Run

WAVE = Path("../shared/data/models/style_wave.npz")


def variables(width: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Variables as TensorFlow 1 names them, in the order in which the network is made."""
    random = np.random.default_rng(seed)
    wide = 4 * width
    kernels = [(9, 9, 3, width), (3, 3, width, 2 * width), (3, 3, 2 * width, wide), *[(3, 3, wide, wide)] * 10]
    kernels += [(3, 3, 2 * width, wide), (3, 3, width, 2 * width), (9, 9, width, 3)]
    made: list[np.ndarray] = []
    for index, shape in enumerate(kernels):
        outputs = shape[2] if index in (13, 14) else shape[3]
        made += [0.2 * random.standard_normal(shape), 0.1 * random.standard_normal(outputs), np.ones(outputs)]
    return {f"Variable_{i}" if i else "Variable": value.astype(np.float32) for i, value in enumerate(made)}


def reference(image: np.ndarray, values: dict[str, np.ndarray]) -> np.ndarray:
    """What TensorFlow computes, written with loops over the kernel: ``[H, W, 3]`` of 0 to 1, H and W multiples of 4."""
    ordered = iter(values.values())

    def norm(x: np.ndarray) -> np.ndarray:
        shift, scale = next(ordered), next(ordered)
        mean, variance = x.mean((0, 1)), x.var((0, 1))
        return (x - mean) / np.sqrt(variance + 1e-3) * scale + shift

    def conv(x: np.ndarray, stride: int = 1) -> np.ndarray:
        kernel = next(ordered)
        size, height, width = kernel.shape[0], x.shape[0] // stride, x.shape[1] // stride
        before = size // 2 if stride == 1 else 0
        padded = np.pad(x, ((before, size), (before, size), (0, 0)))
        out = np.zeros((height, width, kernel.shape[3]))
        for i in range(size):
            for j in range(size):
                part = padded[i : i + stride * height : stride, j : j + stride * width : stride]
                out += part @ kernel[i, j]
        return out

    def enlarge(x: np.ndarray) -> np.ndarray:
        kernel = next(ordered)
        height, width = 2 * x.shape[0], 2 * x.shape[1]
        out = np.zeros((height + 1, width + 1, kernel.shape[2]))
        for i in range(3):
            for j in range(3):
                out[i : i + height : 2, j : j + width : 2] += x @ kernel[i, j].T
        return out[:height, :width]

    def relu(x: np.ndarray) -> np.ndarray:
        return np.maximum(x, 0)

    x = relu(norm(conv(image)))
    for _ in range(2):
        x = relu(norm(conv(x, 2)))
    for _ in range(5):
        x = x + norm(conv(relu(norm(conv(x)))))
    for _ in range(2):
        x = relu(norm(enlarge(x)))
    return np.tanh(norm(conv(x))) * 150 / 255 + 0.5


def test_it_computes_what_tensorflow_does(tmp_path: Path) -> None:
    values = variables(4)
    np.savez(tmp_path / "style.npz", **values)
    run = import_weights(ImportConfig(weights=tmp_path / "style.npz", model="style-4", out=tmp_path / "run"))
    assert run.record.task == "restoration"
    assert run.record.model.arguments == {
        "scale": 1,
        "color": "rgb",
        "overlap": None,
        "degradation": {"kind": "none"},
    }
    network = Run.open(run.path).module()
    assert isinstance(network, RestorerNetwork)
    image = np.random.default_rng(1).integers(0, 256, (12, 20, 3)).astype(np.uint8)
    with torch.no_grad():
        painted = network(torch.from_numpy(image.transpose(2, 0, 1).copy())[None])[0].numpy().transpose(1, 2, 0)
    assert np.abs(painted / 255 - reference(image / 255, values)).max() < 1e-4


def test_other_arrays_are_refused(tmp_path: Path) -> None:
    def config(name: str, model: str = "style-4") -> ImportConfig:
        return ImportConfig(weights=tmp_path / name, model=model, out=tmp_path / "run")

    with pytest.raises(ModelError, match="no such file"):
        import_weights(config("missing.npz"))
    (tmp_path / "text.npz").write_text("not a zip")
    with pytest.raises(ModelError, match="cannot be read as an npz of numbers"):
        import_weights(config("text.npz"))
    np.savez(tmp_path / "objects.npz", Variable=np.array([{}], dtype=object))
    with pytest.raises(ModelError, match="cannot be read as an npz of numbers"):
        import_weights(config("objects.npz"))
    np.savez(tmp_path / "few.npz", Variable=np.zeros(3))
    with pytest.raises(ModelError, match=r"the npz has 1 arrays \(Variable …\); accepted: 48 named"):
        import_weights(config("few.npz"))
    np.savez(tmp_path / "narrow.npz", **variables(4))
    with pytest.raises(ModelError, match="of another shape"):
        import_weights(config("narrow.npz", "style-8"))
    bad = {**variables(4), "Variable_5": np.full(8, np.nan, np.float32)}
    np.savez(tmp_path / "nan.npz", **bad)
    with pytest.raises(ModelError, match="not finite numbers"):
        import_weights(config("nan.npz"))
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not WAVE.is_file(), reason="../shared/data/models/style_wave.npz is absent")
def test_the_published_wave_paints_light_and_dark(tmp_path: Path) -> None:
    run = import_weights(ImportConfig(weights=WAVE, model="style-32", out=tmp_path / "run"))
    assert run.record.metrics["parameters"] == 1677638
    ramp = torch.arange(0, 256, 4, dtype=torch.uint8).expand(1, 3, 32, 64)
    painted = run.module()(ramp).detach()
    assert painted.shape == (1, 3, 32, 64)
    assert float(painted[..., 48:].mean() - painted[..., :16].mean()) > 30
    with pytest.raises(UsageError, match="was imported, and nothing is known"):
        evaluate(EvaluateConfig(run=run.path, device="cpu"))
