"""Generating images: from seeds and latents, with and without conditions, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from _helpers.image_nets import LABELS_CONDITION, LATENT, generator_onnx, run_onnx, write_generator
from krl_runtime import BackendError, BundleError, Generator, ModelError, Raster, UsageError, grid, load
from krl_runtime.bundle import TensorSpec
from krl_runtime.pipelines.generator import latents_of


@pytest.fixture
def model(tmp_path: Path) -> Generator:
    return load(write_generator(tmp_path / "gan.krl", channels=3).path, Generator, threads=1)


@pytest.fixture
def conditioned(tmp_path: Path) -> Generator:
    return load(write_generator(tmp_path / "cats.krl", condition=LABELS_CONDITION).path, Generator, threads=1)


def pixels(images: list[Raster]) -> np.ndarray:
    return np.stack([image.pixels for image in images])


def test_latents_are_pinned():
    """What a seed means must never change: these numbers are numpy's PCG64 and its ziggurat in float32."""
    expected = [[1.117622, -1.387125, -0.4265716], [-0.8035873, 0.6014277, -0.07499325]]
    np.testing.assert_allclose(latents_of(0, 2, 3), expected, rtol=1e-6)
    assert latents_of(7, 1, 2).dtype == np.float32


def test_uniform_latents_are_pinned():
    """Numpy's PCG64 in float32, from -1 to 1."""
    expected = [[0.7012484, 0.2739233, 0.02227294], [-0.4604267, -0.3843412, -0.9180531]]
    np.testing.assert_allclose(latents_of(0, 2, 3, "uniform"), expected, rtol=1e-6)
    many = latents_of(1, 1000, 4, "uniform")
    assert many.dtype == np.float32
    assert (many[:3] == latents_of(1, 3, 4, "uniform")).all()
    assert -1 <= many.min() < -0.99
    assert 0.99 < many.max() <= 1
    assert abs(many.std() - 1 / np.sqrt(3)) < 0.02


def test_uniform_latents_of_a_bundle(tmp_path: Path):
    settings = {"latent": {"size": LATENT, "distribution": "uniform"}}
    uniform = load(write_generator(tmp_path / "a.krl", settings=settings).path, Generator, threads=1)
    first, last = (latents_of(seed, 1, LATENT, "uniform") for seed in (1, 2))
    assert (pixels(uniform.generate(1, seed=1)) == pixels(uniform.generate_from(first))).all()
    middle = pixels(uniform.generate_from((first + last) / 2))  # a straight line, which stays within -1 and 1
    assert np.abs(pixels(uniform.interpolate(1, 2, 3))[1:2].astype(int) - middle).max() <= 1
    with pytest.raises(UsageError, match="draw them from a uniform distribution"):
        uniform.generate_from(np.full((1, LATENT), np.nan, np.float32))


def test_images_are_the_networks(model: Generator):
    latents = latents_of(3, 5, LATENT)
    wanted = run_onnx(generator_onnx(3), latent=latents).clip(0, 255)
    made = pixels(model.generate(5, seed=3))
    assert made.shape == (5, 8, 8, 3)
    assert np.abs(made - wanted.transpose(0, 2, 3, 1)).max() <= 0.51
    assert (made == pixels(model.generate_from(latents))).all()


def test_seeds(model: Generator):
    many = pixels(model.generate(20, seed=1))
    assert (pixels(model.generate(20, seed=1)) == many).all()
    assert np.abs(pixels(model.generate(3, seed=1)).astype(int) - many[:3]).max() <= 1  # whatever the batch
    assert (pixels(model.generate(1, seed=2)) != many[:1]).any()
    assert len(model.generate()) == 1


def test_a_batch_of_one(tmp_path: Path):
    bundle = write_generator(tmp_path / "a.krl")
    inputs = (TensorSpec("latent", "float32", (1, LATENT)),)
    one = load(bundle.update({}, inputs=inputs).path, Generator)
    assert (pixels(one.generate(3)) == pixels(load(write_generator(tmp_path / "b.krl").path).generate(3))).all()


def test_conditions(conditioned: Generator):
    latents = latents_of(0, 2, LATENT)
    made = pixels(conditioned.generate(2, condition="dog"))
    wanted = run_onnx(generator_onnx(1, classes=3), latent=latents, condition=np.array([[1], [1]])).clip(0, 255)
    assert np.abs(made[..., 0] - wanted[:, 0]).max() <= 0.51
    mixed = pixels(conditioned.generate(2, condition=["dog", "frog"]))
    assert (mixed[0] == made[0]).all()
    assert (mixed[1] != made[1]).any()


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (None, "makes images for a condition of labels; give one, of: cat, dog, frog"),
        ("bird", "'bird' is not known; accepted: cat, dog, frog"),
        (["cat", "dog", "frog"], "3 conditions were given for 2 images; accepted: 1, or 2"),
        ([], "0 conditions were given"),
    ],
)
def test_bad_conditions(conditioned: Generator, condition: object, message: str):
    with pytest.raises(UsageError, match=message):
        conditioned.generate(2, condition=condition)


def test_a_condition_that_is_not_taken(model: Generator):
    with pytest.raises(UsageError, match="gan was trained without conditions and cannot make 'a rose'"):
        model.generate(condition="a rose")


@pytest.mark.parametrize(
    "latents",
    [
        np.zeros((2, LATENT + 1), np.float32),
        np.zeros(LATENT, np.float32),
        np.zeros((0, LATENT), np.float32),
        np.zeros((2, LATENT)),
        [[0.0] * LATENT],
    ],
)
def test_wrong_latents(model: Generator, latents: object):
    with pytest.raises(UsageError, match=r"accepted: float32 \[N, 6\]"):
        model.generate_from(latents)


def test_latents_that_are_not_finite(model: Generator):
    with pytest.raises(UsageError, match="not finite"):
        model.generate_from(np.full((1, LATENT), np.nan, np.float32))


@pytest.mark.parametrize(("count", "seed"), [(0, 0), (1, -1), (1.5, 0), (1, "x")])
def test_bad_counts_and_seeds(model: Generator, count: Any, seed: Any):
    with pytest.raises(UsageError, match="accepted: whole numbers from 0, and from 1"):
        model.generate(count, seed=seed)


def test_interpolation(model: Generator, monkeypatch: pytest.MonkeyPatch):
    way = model.interpolate(1, 2, 5)
    assert (pixels(way[:1]) == pixels(model.generate(1, seed=1))).all()
    assert np.abs(pixels(way[-1:]).astype(int) - pixels(model.generate(1, seed=2))).max() <= 1
    assert (pixels(model.interpolate(1, 1, 3)) == pixels(model.generate(1, seed=1))).all()
    with pytest.raises(UsageError, match="steps is 1"):
        model.interpolate(1, 2, 1)


def test_numbers_that_are_not_finite(model: Generator):
    with pytest.raises(ModelError, match="not finite"):
        model.interpret(np.full((1, 3, 8, 8), np.inf, np.float32))


def test_closing(model: Generator):
    assert repr(model) == "Generator('gan', 8x8 RGB, variant fp32 on onnxruntime-cpu)"
    model.close()
    with pytest.raises(BackendError, match="closed"):
        model.generate()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"latent": 6},
        {"latent": {"size": 6}},
        {"latent": {"size": 0, "distribution": "normal"}},
        {"latent": {"size": True, "distribution": "normal"}},
        {"latent": {"size": 6, "distribution": "cauchy"}},
        {"latent": {"size": 7, "distribution": "normal"}},
        {"latent": {"size": 6, "distribution": "normal"}, "condition": LABELS_CONDITION},
    ],
)
def test_forged_settings(tmp_path: Path, settings: dict):
    bundle = write_generator(tmp_path / "a.krl", settings=settings)
    with pytest.raises(BundleError, match="is no generator"):
        load(bundle.path)


def test_a_forged_condition(tmp_path: Path):
    condition = {**LABELS_CONDITION, "vocabulary": ["cat", "cat"]}
    settings = {"latent": {"size": LATENT, "distribution": "normal"}, "condition": condition}
    bundle = write_generator(tmp_path / "a.krl", settings=settings)
    with pytest.raises(BundleError, match="vocabulary"):
        load(bundle.path)


@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": ()},
        {"inputs": (TensorSpec("latent", "float64", ("batch", LATENT)),)},
        {"inputs": (TensorSpec("latent", "float32", (3, LATENT)),)},
        {"outputs": ()},
        {"outputs": (TensorSpec("images", "float32", ("batch", 3, 8, 8)),)},
    ],
)
def test_forged_tensors(tmp_path: Path, changes: dict):
    bundle = write_generator(tmp_path / "a.krl", **changes)
    with pytest.raises(BundleError, match=r"is no generator|takes 3 latents at once"):
        load(bundle.path)


def test_grids():
    black, gray = (Raster(np.full((2, 3, 1), level, np.uint8)) for level in (0, 90))
    whole = grid([black, gray, black], 2, gap=1)
    assert whole.pixels[..., 0].tolist() == [
        [0, 0, 0, 255, 90, 90, 90],
        [0, 0, 0, 255, 90, 90, 90],
        [255] * 7,
        [0, 0, 0, 255, 255, 255, 255],
        [0, 0, 0, 255, 255, 255, 255],
    ]
    assert str(grid([black] * 5, gap=0)) == "9x4 L"
    assert str(grid([black], 9)) == "3x2 L"
    for images, columns in (([], 1), ([black], 0), ([black, Raster(np.zeros((2, 2, 1), np.uint8))], 2)):
        with pytest.raises(UsageError, match="make no grid"):
            grid(images, columns)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_blue_first(tmp_path: Path, channels: int):
    """Pixels are in the order that was asked for; files and Pillow's images are right all the same."""
    rgb = np.random.default_rng(0).integers(0, 256, (5, 4, channels), np.uint8)
    bgr = rgb[..., [2, 1, 0, 3][:channels]] if channels > 2 else rgb
    image = Raster(bgr, channel_order="bgr")
    assert (np.asarray(image.image).reshape(rgb.shape) == rgb).all()
    with Image.open(image.save(tmp_path / "a.png")) as saved:
        assert (np.asarray(saved).reshape(rgb.shape) == rgb).all()
    assert repr(image) == f"Raster(4x5 {image.mode})"
    assert (np.asarray(grid([image], gap=0).image).reshape(rgb.shape) == rgb).all()
    with pytest.raises(UsageError, match="one order of colors"):
        grid([image, Raster(rgb)])


def test_generated_pixels_blue_first(tmp_path: Path):
    path = write_generator(tmp_path / "a.krl", channels=3).path
    with load(path, Generator) as model, load(path, Generator, channel_order="bgr") as other:
        for made, expected in zip(other.generate(3, seed=2), model.generate(3, seed=2), strict=True):
            assert (made.pixels == expected.pixels[..., ::-1]).all()
            assert made.pixels.flags.c_contiguous


@pytest.mark.parametrize("name", ["a.png", "b.webp", "c.tif", "d.PNG"])
def test_saving_loses_nothing(tmp_path: Path, name: str):
    image = Raster(np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8))
    with Image.open(image.save(tmp_path / name)) as saved:
        assert (np.asarray(saved) == image.pixels).all()


def test_saving_as_what_cannot_be(tmp_path: Path):
    image = Raster(np.zeros((2, 2, 4), np.uint8))
    with pytest.raises(UsageError, match=r"mode RGBA cannot be written as a.txt; accepted: .png, .webp"):
        image.save(tmp_path / "a.txt")
    with pytest.raises(UsageError, match=r"a.jpg; accepted: .png, .webp, .tif"):
        image.save(tmp_path / "a.jpg")
    with Image.open(Raster(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "a.jpg")) as saved:
        assert saved.format == "JPEG"
    assert [file.name for file in tmp_path.iterdir()] == ["a.jpg"]


def test_torch_is_never_imported(tmp_path: Path):
    path = write_generator(tmp_path / "a.krl", condition=LABELS_CONDITION).path
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'onnx', 'krl_train', 'krl_deploy'))); "
        "import krl_runtime; "
        f"print(krl_runtime.load({str(path)!r}).generate(2, condition='cat')[1])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "8x8 L\n"
