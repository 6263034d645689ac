"""Restoring images: against the network on the whole image, of any size and mode, in parts without seams."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageCms

from _helpers.bundles import npz, write_bundle
from _helpers.image_nets import RADIUS, restorer_onnx, run_onnx, smooth, write_restorer
from krl_runtime import BundleError, Classifier, Generator, ImageError, ModelError, Raster, Restorer, UsageError, load
from krl_runtime.bundle import TensorSpec
from krl_runtime.images import luma
from krl_runtime.pipelines import restorer as module


@pytest.fixture
def model(tmp_path: Path) -> Restorer:
    return load(write_restorer(tmp_path / "y.krl").path, Restorer, threads=1)


def whole(model: bytes, pixels: np.ndarray) -> np.ndarray:
    """Return what the network makes of ``[C, H, W]`` in one run."""
    return run_onnx(model, pixels=np.ascontiguousarray(pixels[None]))[0]


@pytest.mark.parametrize("size", [(1, 1), (3, 700), (700, 3), (257, 300), (533, 610)])
def test_parts_have_no_seams(model: Restorer, size: tuple[int, int]):
    pixels = smooth(*size)[None]
    np.testing.assert_allclose(model.restore_planes(pixels), whole(restorer_onnx(), pixels), atol=2e-4)


def test_a_smaller_overlap_would_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The test above can fail: parts that overlap by less than the network sees differ at the seams."""
    monkeypatch.setattr(module, "_STRIDE", 1)
    pixels = smooth(533, 200)[None]
    model = load(write_restorer(tmp_path / "y.krl", overlap=RADIUS - 1).path, Restorer)
    error = np.abs(model.restore_planes(pixels) - whole(restorer_onnx(), pixels))[0]
    assert error.max() > 0.01
    assert set(np.flatnonzero(error.max(axis=1) > 0.01)) <= set(range(2 * 255, 2 * 257)) | set(range(2 * 511, 2 * 513))


def test_overlap_of_exactly_the_radius_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_STRIDE", 1)
    pixels = smooth(533, 200)[None]
    model = load(write_restorer(tmp_path / "y.krl").path, Restorer)
    np.testing.assert_allclose(model.restore_planes(pixels), whole(restorer_onnx(), pixels), atol=2e-4)


@pytest.mark.parametrize("size", [(5, 9), (24, 20), (25, 47), (100, 21), (61, 83)])
def test_graphs_of_a_fixed_size(tmp_path: Path, size: tuple[int, int]):
    model = load(write_restorer(tmp_path / "y.krl", size=(24, 20)).path, Restorer)
    pixels = smooth(*size)[None]
    made, wanted = model.restore_planes(pixels), whole(restorer_onnx(), pixels)
    assert made.shape == wanted.shape
    # Where a small image is filled up, its lower right edge sees repeated pixels instead of zeros.
    inner = [
        slice(0, 2 * side if side >= least else 2 * (side - RADIUS)) for side, least in zip(size, (24, 20), strict=True)
    ]
    np.testing.assert_allclose(made[:, inner[0], inner[1]], wanted[:, inner[0], inner[1]], atol=2e-4)


def test_networks_that_are_not_local_see_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = load(write_restorer(tmp_path / "y.krl", overlap=None).path, Restorer)
    seen = []
    monkeypatch.setattr(
        model, "_run", lambda pixels: seen.append(pixels.shape) or np.zeros((1, 1400, 1200), np.float32)
    )
    model.restore_planes(smooth(700, 600)[None])
    assert seen == [(1, 700, 600)]


def test_luma_is_restored_and_chroma_resized(model: Restorer):
    image = smooth(300, 280, 3)
    answer = model(image)
    assert (answer.mode, answer.width, answer.height) == ("RGB", 560, 600)
    restored = whole(restorer_onnx(), luma.to_uint8(luma.luma(image))[None])[0]
    planes = [luma.resize(plane, 600, 560) for plane in luma.chroma(image).transpose(2, 0, 1)]
    expected = luma.to_rgb(restored, np.stack(planes, -1))
    assert np.abs(answer.pixels.astype(int) - expected).max() <= 1
    assert (answer.pixels != expected).mean() < 0.001


@pytest.mark.parametrize("color", ["y", "gray", "rgb"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"])
def test_modes_are_kept(tmp_path: Path, color: str, mode: str):
    model = load(write_restorer(tmp_path / "a.krl", color=color).path, Restorer)
    rgb = Image.fromarray(smooth(20, 30, 3))
    image = Image.fromarray(smooth(20, 30).astype(np.uint16) * 257) if mode == "I;16" else rgb.convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(smooth(20, 30, seed=9)))
    answer = model(image)
    kept = {"1": "L", "I;16": "L", "P": "RGB", "CMYK": "RGB"}.get(mode, mode)
    assert (answer.mode, answer.width, answer.height) == (kept, 60, 40)
    assert answer.image.mode == kept
    if kept.endswith("A"):
        alpha = luma.to_uint8(luma.resize(smooth(20, 30, seed=9).astype(np.float32), 40, 60))
        assert (answer.pixels[..., -1] == alpha).all()


@pytest.mark.parametrize("color", ["y", "gray", "rgb"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_arrays_of_opencv(tmp_path: Path, color: str, mode: str):
    """The result has the order of the array that was given; a file's result too."""
    path = write_restorer(tmp_path / "a.krl", color=color).path
    order = {"L": [0], "RGB": [2, 1, 0], "RGBA": [2, 1, 0, 3]}[mode]
    rgb = np.random.default_rng(3).integers(0, 256, (9, 14, len(order)), np.uint8)
    file = Raster(rgb).save(tmp_path / "a.png")
    with load(path, Restorer) as model, load(path, Restorer, channel_order="bgr") as other:
        expected = model(rgb)
        for made in (other(rgb[..., order]), other(file)):
            assert (made.pixels == expected.pixels[..., order]).all()
            assert made.pixels.flags.c_contiguous
            assert (np.asarray(made.image) == np.asarray(expected.image)).all()


def test_gray_networks_restore_each_color(tmp_path: Path):
    model = load(write_restorer(tmp_path / "a.krl", color="gray").path, Restorer)
    image = smooth(20, 30, 3)
    answer = model(image).pixels
    for band in range(3):
        assert (answer[..., band] == model(image[..., band]).pixels[..., 0]).all()


def test_gray_images_keep_their_range(tmp_path: Path):
    """Through a luma network too, whose studio swing is undone: white stays white."""
    model = load(write_restorer(tmp_path / "y.krl").path, Restorer)
    level = np.full((8, 8), 200, np.uint8)
    gray, colored = model(level).pixels, model(np.repeat(level[..., None], 3, -1)).pixels
    assert np.abs(gray.astype(int) - colored).max() <= 1


def test_alpha_in_strips_is_alpha_at_once(model: Restorer):
    alpha = smooth(700, 40, seed=3)
    image = np.dstack([smooth(700, 40, 3), alpha])
    expected = luma.to_uint8(luma.resize(alpha.astype(np.float32), 1400, 80))
    assert (model(image).pixels[..., 3] == expected).all()


def test_one_pixel(model: Restorer):
    answer = model(np.array([[[9, 99, 199]]], np.uint8))
    assert (answer.width, answer.height) == (2, 2)


def test_several(model: Restorer, tmp_path: Path):
    images = [smooth(10, 12), smooth(11, 9, 3)]
    assert [str(answer) for answer in model(images)] == ["24x20 L", "18x22 RGB"]
    assert model([]) == []


def test_files_and_exif(model: Restorer, tmp_path: Path):
    file = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(smooth(10, 14, 3)).save(file, exif=exif)
    assert str(model(file)) == "20x28 RGB"
    saved = model(file).save(tmp_path / "out" / "large.png")
    with Image.open(saved) as image:
        assert (np.asarray(image) == model(file).pixels).all()


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".jpg"])
def test_the_color_profile_is_written_with_the_restored_image(model: Restorer, tmp_path: Path, suffix: str):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    smooth_image = Image.fromarray(smooth(20, 16, 3))
    smooth_image.save(tmp_path / "given.jpg", icc_profile=profile)
    restored = model(tmp_path / "given.jpg")
    assert restored.image.info["icc_profile"] == profile
    with Image.open(restored.save(tmp_path / f"restored{suffix}")) as written:
        assert written.info["icc_profile"] == profile
    assert model(np.asarray(smooth_image)).icc_profile is None
    smooth_image.convert("L").save(tmp_path / "gray.png", icc_profile=profile)
    assert model(tmp_path / "gray.png").icc_profile is None  # of RGB, and the image is gray


def test_a_transparent_level_of_deep_gray_stays_transparent(model: Restorer, tmp_path: Path):
    levels = np.full((20, 16), 40_000, np.uint16)
    levels[:, 8:] = 1600
    Image.fromarray(levels).save(tmp_path / "deep.png", transparency=1600)
    alpha = model(tmp_path / "deep.png").pixels[..., -1]
    assert (alpha[:, : 4 * model.scale] == 255).all()  # further from the edge than the bicubic filter reaches
    assert (alpha[:, 12 * model.scale :] == 0).all()


def test_bad_images(model: Restorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ImageError, match="no such file"):
        model(tmp_path / "none.png")
    with pytest.raises(ImageError, match="accepted: uint8"):
        model(np.zeros((4, 4), np.float32))
    monkeypatch.setattr(module, "MAX_RESTORED", 399)
    with pytest.raises(ImageError, match="10x10 pixels would have more than 399"):
        model(np.zeros((10, 10), np.uint8))


def test_numbers_that_are_not_finite(model: Restorer, monkeypatch: pytest.MonkeyPatch):
    nan = np.full((1, 1, 8, 8), np.nan, np.float32)
    monkeypatch.setattr(type(model.backend), "run", lambda self, inputs: {"restored": nan})
    with pytest.raises(ModelError, match="not finite"):
        model(np.zeros((4, 4), np.uint8))


def test_a_graph_of_another_scale(model: Restorer, monkeypatch: pytest.MonkeyPatch):
    large = np.zeros((1, 1, 12, 12), np.float32)
    monkeypatch.setattr(type(model.backend), "run", lambda self, inputs: {"restored": large})
    with pytest.raises(ModelError, match=r"made \[1, 12, 12\] of \[1, 4, 4\] pixels; with scale 2"):
        model(np.zeros((4, 4), np.uint8))


SETTINGS = {"scale": 2, "color": "y", "overlap": 3, "degradation": {"kind": "bicubic"}}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "scale None, color None"),
        ({**SETTINGS, "scale": 0}, "scale 0"),
        ({**SETTINGS, "scale": True}, "scale True"),
        ({**SETTINGS, "scale": "2"}, "scale '2'"),
        ({**SETTINGS, "color": "cmyk"}, "color 'cmyk'"),
        ({**SETTINGS, "color": ["y"]}, "color"),
        ({**SETTINGS, "overlap": -1}, "overlap -1"),
        ({**SETTINGS, "overlap": 1.5}, "overlap 1.5"),
        ({name: value for name, value in SETTINGS.items() if name != "overlap"}, "overlap None"),
        ({**SETTINGS, "color": "rgb"}, "accepted for color rgb"),
    ],
)
def test_forged_settings(tmp_path: Path, settings: dict, message: str):
    bundle = write_restorer(tmp_path / "a.krl", settings=settings)
    with pytest.raises(BundleError, match=message):
        load(bundle.path)


@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": ()},
        {"outputs": ()},
        {"inputs": (TensorSpec("pixels", "float32", ("batch", 1, "h", "w")),)},
        {"inputs": (TensorSpec("pixels", "uint8", ("batch", 1)),)},
        {"inputs": (TensorSpec("pixels", "uint8", (4, 1, "h", "w")),)},
        {"inputs": (TensorSpec("pixels", "uint8", ("batch", 1, 8, "w")),)},
        {"outputs": (TensorSpec("restored", "float32", ("batch", 1, 60, "w")),)},
    ],
)
def test_forged_tensors(tmp_path: Path, changes: dict):
    bundle = write_restorer(tmp_path / "a.krl", **changes)
    with pytest.raises(BundleError, match="is no restorer"):
        load(bundle.path)


def test_fixed_sizes_need_an_overlap(tmp_path: Path):
    for overlap in (None, 10):
        bundle = write_restorer(tmp_path / f"{overlap}.krl", size=(24, 20), overlap=overlap)
        with pytest.raises(BundleError, match="more than twice the overlap"):
            load(bundle.path)


def test_the_pipeline_that_was_asked_for(tmp_path: Path):
    restorer = write_restorer(tmp_path / "a.krl")
    assert isinstance(load(restorer.path), Restorer)
    with pytest.raises(UsageError, match="is for the task 'restoration'; a bundle for classification is needed here"):
        load(restorer.path, Classifier)
    with pytest.raises(UsageError, match="a bundle for generation is needed here"):
        load(write_bundle(tmp_path / "b.krl").path, Generator)


def test_closing_and_repr(model: Restorer):
    assert repr(model) == "Restorer('y', scale 2, color y, variant fp32 on onnxruntime-cpu)"
    with model as same:
        assert same is model
    with pytest.raises(Exception, match="closed"):
        model(np.zeros((4, 4), np.uint8))


def test_a_variant_is_replaceable(tmp_path: Path):
    """A variant's golden check is by PSNR where images are made; see also test_selftest."""
    bundle = write_restorer(tmp_path / "a.krl")
    variant = replace(bundle.manifest.variants["fp32"], psnr=None)
    assert bundle.update({}, variants={"fp32": variant}).manifest.variants["fp32"].psnr is None


def test_torch_is_never_imported(tmp_path: Path):
    path = write_restorer(tmp_path / "a.krl").path
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'onnx', 'krl_train', 'krl_deploy'))); "
        "import numpy, krl_runtime; "
        f"print(krl_runtime.load({str(path)!r})(numpy.zeros((5, 4, 3), numpy.uint8)))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "8x10 RGB\n"
    )


def phases_onnx(seed: int = 0) -> tuple[bytes, np.ndarray]:
    """A network that multiplies each pixel by a weight of its place modulo 16: some halve an image four times."""
    weights = np.random.default_rng(seed).uniform(0.2, 1.0, (16, 16)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["pixels"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("SpaceToDepth", ["x"], ["s"], blocksize=16),
        helper.make_node("Mul", ["s", "w"], ["m"]),
        helper.make_node("DepthToSpace", ["m"], ["restored"], blocksize=16, mode="DCR"),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", 1, "height", "width"])
    shape = ["batch", 1, "scaled_height", "scaled_width"]
    restored = helper.make_tensor_value_info("restored", TensorProto.FLOAT, shape)
    graph = helper.make_graph(
        nodes, "phases", [pixels], [restored], [numpy_helper.from_array(weights.reshape(1, 256, 1, 1), "w")]
    )
    opsets = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString(), weights


@pytest.mark.parametrize("overlap", [1, 3, 17])
def test_parts_begin_where_the_network_sees_the_same_phase(tmp_path: Path, overlap: int):
    data, weights = phases_onnx()
    golden = npz(pixels=np.zeros((1, 1, 32, 32), np.uint8), restored=np.zeros((1, 1, 32, 32), np.float32))
    contents = {"model.fp32.onnx": data, "golden.npz": golden}
    bundle = write_restorer(tmp_path / "a.krl", scale=1, color="gray", overlap=overlap, contents=contents)
    pixels = np.random.default_rng(1).integers(0, 256, (1, 1040, 720), np.uint8)
    with load(bundle.path, Restorer, threads=1) as model:
        made = model.restore_planes(pixels)
    np.testing.assert_allclose(made[0], pixels[0] * np.tile(weights, (65, 45)), rtol=1e-5)
