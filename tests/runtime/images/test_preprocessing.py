"""Preprocessing against an independent resampler, written from the definition of the filters."""

from __future__ import annotations

import io
import itertools
import math
import re
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from krl_runtime import ImageError, Preprocessing, UsageError
from krl_runtime.images.preprocessing import MAX_PIXELS, open_image

GRAY = {"channels": 1, "mean": (0.5,), "std": (0.5,)}
FILTERS = {
    "bilinear": (1, lambda x: max(0.0, 1 - abs(x))),
    "bicubic": (
        2,
        lambda x: (
            1.5 * abs(x) ** 3 - 2.5 * x * x + 1
            if abs(x) < 1
            else -0.5 * abs(x) ** 3 + 2.5 * x * x - 4 * abs(x) + 2
            if abs(x) < 2
            else 0.0
        ),
    ),
    "lanczos": (3, lambda x: float(np.sinc(x) * np.sinc(x / 3)) if abs(x) < 3 else 0.0),
}


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def smooth(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    red, green = 255 * x / max(1, width - 1), 255 * y / max(1, height - 1)
    return np.stack([red, green, (red + green) / 2], -1).round().astype(np.uint8)


def encode(array: np.ndarray, kind: str = "PNG", mode: str | None = None, **options) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()


def identity(height: int, width: int, **options) -> Preprocessing:
    """Preprocessing that neither scales nor cuts an image of this size."""
    return Preprocessing(height, width, resize="stretch", **options)


def weights(length: int, out: int, begin: float, scale: float, name: str) -> np.ndarray:
    """Return ``[out, length]``: antialiased sampling of a line of ``length`` pixels from ``begin`` on."""
    matrix = np.zeros((out, length))
    for row in range(out):
        center = begin + (row + 0.5) * scale
        if name == "nearest":
            matrix[row, min(int(center), length - 1)] = 1
            continue
        support, function = FILTERS[name]
        stretch = max(scale, 1)
        first, last = int(max(0, center - support * stretch + 0.5)), int(min(length, center + support * stretch + 0.5))
        for column in range(first, last):
            matrix[row, column] = function((column + 0.5 - center) / stretch)
        matrix[row] /= matrix[row].sum()
    return matrix


def reference(image: np.ndarray, spec: Preprocessing) -> np.ndarray:
    """Scale and crop ``[H, W, C]`` as the documentation of ``Preprocessing`` says, in float64."""
    height, width = image.shape[:2]
    if spec.resize == "stretch":
        scales, begins = (height / spec.height, width / spec.width), (0.0, 0.0)
    else:
        # The scaled image covers (height / fraction, width / fraction); the center of it is cut out.
        scale = min(height / (spec.height / spec.crop_fraction), width / (spec.width / spec.crop_fraction))
        scales = (scale, scale)
        begins = ((height - scale * spec.height) / 2, (width - scale * spec.width) / 2)
    rows = weights(height, spec.height, begins[0], scales[0], spec.interpolation)
    columns = weights(width, spec.width, begins[1], scales[1], spec.interpolation)
    across = np.clip(np.einsum("ow,hwc->hoc", columns, image.astype(float)), 0, 255)
    return np.clip(np.einsum("oh,hwc->owc", rows, across), 0, 255).transpose(2, 0, 1)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("resize", ["crop", "stretch"])
@pytest.mark.parametrize("size", [(65, 50), (33, 90), (7, 5), (24, 20)], ids=str)
def test_scales_and_crops_like_the_reference(interpolation: str, resize: str, size: tuple[int, int]):
    spec = Preprocessing(24, 20, resize=resize, interpolation=interpolation, crop_fraction=0.875)
    image = noise(*size)
    pixels = spec(image)
    assert (pixels.dtype, pixels.shape, pixels.flags.c_contiguous) == (np.uint8, (3, 24, 20), True)
    # Pillow rounds to whole numbers after each direction; for the overshooting filters that weighs more.
    allowed = {"nearest": 0, "bilinear": 1.01}.get(interpolation, 2)
    assert np.abs(pixels - reference(image, spec)).max() <= allowed


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(65, 50), (33, 90), (177, 95), (94, 13), (341, 256)], ids=str)
def test_rows_are_resized_before_columns(interpolation: str, size: tuple[int, int]):
    """Pillow 13 begins with the columns of some images; each pass rounds, so pixels would depend on its version."""
    image = Image.fromarray(noise(*size))
    for spec in (Preprocessing(24, 24, interpolation=interpolation), Preprocessing(30, 7, interpolation=interpolation)):
        left, upper, right, lower = spec._box(*image.size, spec.height, spec.width)
        method = Image.Resampling[interpolation.upper()]
        rows = image.resize((spec.width, image.height), method, (left, 0, right, image.height))
        both = rows.resize((spec.width, spec.height), method, (0, upper, spec.width, lower))
        assert (spec(image) == np.asarray(both).transpose(2, 0, 1)).all()


def test_the_part_that_is_read_never_leaves_the_image():
    """Of an image 29 pixels wide that is scaled to 28, rounding made the part wider than the image."""
    for side in (28, 32, 49, 96, 224, 299):
        spec = Preprocessing(side, side)
        for width in range(1, 700):
            left, upper, right, lower = spec._box(width, width + 100, side, side)
            assert 0 <= left < right <= width
            assert 0 <= upper < lower <= width + 100
    assert Preprocessing(28, 28)(noise(129, 29)).shape == (3, 28, 28)


def test_crop_equals_scaling_the_shorter_side_and_cutting_the_center():
    image = Image.fromarray(noise(48, 60))
    spec = Preprocessing(24, 24, crop_fraction=0.75)
    usual = image.resize((40, 32), Image.Resampling.BILINEAR).crop((8, 4, 32, 28))
    difference = np.abs(spec(image).astype(int) - np.asarray(usual).transpose(2, 0, 1))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


def test_crop_cuts_the_longer_side_evenly():
    image = np.zeros((10, 30, 3), np.uint8)
    image[:, 10:20] = 200
    assert (Preprocessing(10, 10, interpolation="nearest")(image) == 200).all()


def test_margin_adds_what_lies_around_the_center():
    image = noise(80, 80)
    spec = Preprocessing(32, 32, crop_fraction=0.5)
    wide = spec(image, margin=6)
    assert wide.shape == (3, 44, 44)
    assert np.abs(wide[:, 6:-6, 6:-6].astype(int) - spec(image)).max() <= 1


def test_margin_shows_the_whole_image_where_it_has_no_more():
    spec = Preprocessing(8, 8)
    image = noise(16, 16)
    assert np.array_equal(spec(image, margin=4), image.transpose(2, 0, 1))


def test_an_image_of_the_right_size_is_copied():
    image = noise(9, 11)
    pixels = identity(9, 11)(image)
    assert np.array_equal(pixels, image.transpose(2, 0, 1))
    pixels[:] = 0
    assert image.any()
    gray = noise(9, 11, 1)
    pixels = identity(9, 11, **GRAY)(gray[:, :, 0])
    assert np.array_equal(pixels[0], gray[:, :, 0])
    assert pixels.flags.writeable


def test_gray_becomes_rgb_and_rgb_becomes_gray():
    gray, colors = noise(6, 5, 1), noise(6, 5)
    assert np.array_equal(identity(6, 5)(encode(gray)), np.repeat(gray.transpose(2, 0, 1), 3, 0))
    luma = colors @ np.array([0.299, 0.587, 0.114])  # ITU-R 601
    assert np.abs(identity(6, 5, **GRAY)(encode(colors))[0] - luma).max() <= 1


def test_alpha_is_dropped():
    image = noise(6, 5, 4)
    assert np.array_equal(identity(6, 5)(encode(image)), image[:, :, :3].transpose(2, 0, 1))
    gray_alpha = Image.merge("LA", [Image.fromarray(image[:, :, 0]), Image.fromarray(image[:, :, 3])])
    file = io.BytesIO()
    gray_alpha.save(file, "PNG")
    assert np.array_equal(identity(6, 5, **GRAY)(file.getvalue())[0], image[:, :, 0])


@pytest.mark.parametrize("transparency", [None, 1, bytes([0, 128, 255])])
def test_palettes_are_looked_up(transparency: int | bytes | None):
    colors = np.array([[10, 20, 30], [200, 100, 0], [0, 0, 255]], np.uint8)
    index = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
    image = Image.frombytes("P", (3, 2), index.tobytes())
    image.putpalette(colors.tobytes())
    file = io.BytesIO()
    image.save(file, "PNG", **({} if transparency is None else {"transparency": transparency}))
    reread = Image.open(io.BytesIO(file.getvalue()))
    assert reread.mode == "P"
    assert ("transparency" in reread.info) == (transparency is not None)
    assert np.array_equal(identity(2, 3)(file.getvalue()), colors[index].transpose(2, 0, 1))


def test_sixteen_bits_are_scaled_to_eight():
    levels = np.array([[0, 255, 256], [32768, 65279, 65535]], np.uint16)
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "PNG")
    assert identity(2, 3, **GRAY)(file.getvalue()).tolist() == [[[0, 0, 1], [128, 254, 255]]]
    assert np.array_equal(identity(2, 3)(file.getvalue())[2], levels >> 8)


def test_cmyk_and_one_bit():
    inks = noise(4, 4, 4)
    file = io.BytesIO()
    Image.frombytes("CMYK", (4, 4), inks.tobytes()).save(file, "TIFF")
    expected = (255.0 - inks[:, :, :3]) * (255.0 - inks[:, :, 3:]) / 255
    assert np.abs(identity(4, 4)(file.getvalue()) - expected.transpose(2, 0, 1)).max() <= 1
    bits = encode(np.uint8([[[0], [255]], [[255], [0]]]), mode="1")
    assert identity(2, 2, **GRAY)(bits).tolist() == [[[0, 255], [255, 0]]]


TURNS = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", TURNS)
def test_exif_orientation_is_followed(orientation: int):
    image = noise(6, 4)
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = TURNS[orientation](image)
    pixels = identity(*upright.shape[:2])(encode(image, exif=exif))
    assert np.array_equal(pixels, upright.transpose(2, 0, 1))


def test_exif_orientation_of_a_jpeg():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = smooth(64, 32)
    upright = np.rot90(image, -1)
    pixels = identity(32, 64)(encode(image, "JPEG", exif=exif, quality=95))
    assert np.abs(pixels.astype(int) - upright.transpose(2, 0, 1)).max() <= 8


@pytest.mark.parametrize("size", [(1, 50), (50, 1), (1, 1)], ids=str)
def test_one_pixel_wide(size: tuple[int, int]):
    image = noise(*size)
    for resize in ("crop", "stretch"):
        spec = Preprocessing(8, 6, resize=resize)
        assert np.abs(spec(encode(image)) - reference(image, spec)).max() <= 1.01


def test_twelve_megapixels():
    image = smooth(3000, 4000)
    spec = Preprocessing(32, 32)
    pixels = spec(encode(image, "JPEG", quality=90))
    # The center 3000×3000 shows red from 1/8 to 7/8 of its range, green all of it.
    step = (np.arange(32) + 0.5) / 32
    assert np.abs(pixels[0] - 255 * (0.125 + 0.75 * step)[None, :]).max() <= 3
    assert np.abs(pixels[1] - 255 * step[:, None]).max() <= 3


def test_first_frame_of_an_animation():
    frames = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (10, 200)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    assert (identity(4, 4)(file.getvalue()) == 10).all()


def test_all_kinds_of_sources_agree(tmp_path: Path):
    image = noise(20, 30)
    data = encode(image)
    (tmp_path / "a.png").write_bytes(data)
    spec = Preprocessing(8, 8)
    expected = spec(image)
    with (tmp_path / "a.png").open("rb") as file:
        sources = [
            tmp_path / "a.png", str(tmp_path / "a.png"), data, bytearray(data), memoryview(data), io.BytesIO(data),
            file, Image.open(io.BytesIO(data)), Image.fromarray(image), np.dstack([image, image[:, :, :1]]),
        ]  # fmt: skip
        for source in sources:
            assert np.array_equal(spec(source), expected), type(source)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has one row of it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("width", "height", "message"),
    [
        (20000, 20000, rf"decompression bomb.*at most {MAX_PIXELS} pixels"),
        (12000, 12000, rf"at most {MAX_PIXELS}"),
        (65535, 65535, "at most"),
    ],
)
def test_decompression_bombs_are_refused_before_they_are_decoded(width: int, height: int, message: str):
    with pytest.raises(ImageError, match=message):
        open_image(png_header(width, height), mode="RGB")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_our_own_limit_on_pixels():
    with pytest.raises(ImageError, match=rf"has 12000x12000 pixels; at most {MAX_PIXELS} are accepted"):
        open_image(png_header(12000, 12000), mode="RGB")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
def test_truncated_files_are_refused(kind: str, tmp_path: Path):
    data = encode(noise(64, 64), kind)
    for share in (0.9, 0.5, 0.02):
        file = tmp_path / f"cut.{kind.lower()}"
        file.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(ImageError, match=rf"image .*cut\.{kind.lower()}") as caught:
            open_image(file, mode="RGB")
        assert "damaged or truncated" in str(caught.value) or "is not an image" in str(caught.value)


def test_what_is_no_image_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "empty.png").touch()
    cases = [
        (tmp_path / "text.jpg", r"text\.jpg is not an image of an accepted format: JPEG, PNG"),
        (tmp_path / "empty.png", r"empty\.png is not an image of an accepted format: JPEG, PNG"),
        (tmp_path / "none.png", r"none\.png: no such file"),
        (tmp_path, "is a folder, not an image"),
        (b"123", "image of 3 bytes is not an image"),
        (None, "image given as NoneType; accepted: a path"),
        (7, "image given as int; accepted: a path"),
        (np.zeros((4, 4, 3)), r"dtype float64 and shape \[4, 4, 3\]; accepted: uint8 of shape \[H, W\]"),
        (np.zeros((4, 4, 2), np.uint8), r"shape \[4, 4, 2\]"),
        (np.zeros((0, 4), np.uint8), r"shape \[0, 4\]"),
        (np.zeros(4, np.uint8), r"shape \[4\]"),
        (io.StringIO("text"), "image given as StringIO"),
    ]
    for source, message in cases:
        with pytest.raises(ImageError, match=message):
            open_image(source, mode="RGB")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ImageError, match=r"text\.jpg: no permission to read it"):
        open_image(tmp_path / "text.jpg", mode="RGB")


def test_an_error_of_a_decoder_that_pillow_does_not_translate(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> None:
        raise struct.error("unpack requires a buffer of 4 bytes")

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(ImageError, match="image of 8 bytes cannot be decoded: error: unpack requires"):
        open_image(b"GIF89a\0\0", mode="RGB")


def test_damaged_images_give_an_answer_or_an_image_error():
    rng = np.random.default_rng(11)
    spec = Preprocessing(8, 8)
    outcomes = set()
    for kind in ("JPEG", "PNG"):
        data = np.frombuffer(encode(noise(24, 24), kind), np.uint8)
        for _ in range(150):
            broken = data.copy()
            broken[rng.integers(0, len(data), rng.integers(1, 6))] = rng.integers(0, 256)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # Pillow warns of damaged metadata
                    outcomes.add(spec(broken.tobytes()).shape)
            except ImageError:
                outcomes.add("refused")
    assert outcomes == {(3, 8, 8), "refused"}


def test_threads_agree_and_leave_the_warning_filters_alone():
    spec = Preprocessing(16, 16)
    files = [encode(noise(40 + index, 50, seed=index), "JPEG") for index in range(16)]
    before = list(warnings.filters)
    serial = [spec(file) for file in files]
    with ThreadPoolExecutor(8) as pool:
        for together, alone in zip(pool.map(spec, files * 4), itertools.cycle(serial), strict=False):
            assert np.array_equal(together, alone)
    assert list(warnings.filters) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 4}, "channels is 4; accepted: 1 (gray) or 3 (RGB)"),
        ({"height": 0}, "size is 0x8; accepted: 1 to 16384 a side"),
        ({"width": 20000}, "size is 8x20000"),
        ({"resize": "pad"}, "resize is 'pad'; accepted: crop, stretch"),
        ({"interpolation": "area"}, "interpolation is 'area'; accepted: nearest, bilinear, bicubic, lanczos"),
        ({"crop_fraction": 0}, "crop_fraction is 0; accepted: above 0, up to 1"),
        ({"crop_fraction": math.nan}, "crop_fraction is nan"),
        ({"mean": (0.5,)}, "mean has 1 values (0.5,); accepted: one finite number for each of the 3 channels"),
        ({"mean": (0.5, 0.5, math.inf)}, "mean has 3 values"),
        ({"std": (0.5, 0.5, 0.0)}, "std is (0.5, 0.5, 0.0); accepted: positive numbers"),
        ({"std": "abc"}, "could not convert string to float"),
        ({"height": "8"}, "preprocessing: "),
        ({"padding": 1}, "unknown keys ['padding']; accepted: ['channels', "),
    ],
)
def test_fields_are_checked(changes: dict, message: str):
    with pytest.raises(UsageError) as caught:
        Preprocessing.from_dict({"height": 8, "width": 8, **changes})
    assert message in str(caught.value)


def test_from_dict_names_what_is_missing():
    with pytest.raises(UsageError, match="missing 1 required positional argument: 'width'"):
        Preprocessing.from_dict({"height": 8})


def test_to_dict_and_back():
    spec = Preprocessing(8, 6, resize="stretch", interpolation="bicubic", crop_fraction=0.9, **GRAY)
    values = spec.to_dict()
    assert values["mean"] == [0.5]
    assert Preprocessing.from_dict(values) == spec
    assert (spec.shape, spec.mode, Preprocessing(8, 6).mode) == ((1, 8, 6), "L", "RGB")


# Decoding scaled down.


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    """A real photograph, scaled up to what a camera gives; odd sizes, which JPEG pads."""
    datasets = pytest.importorskip("sklearn.datasets")
    return Image.fromarray(datasets.load_sample_images().images[0]).resize((1283, 857), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("tolerance", [0.6, 1.5, 6.0])
@pytest.mark.parametrize("extra", [{}, {"resize": "stretch"}, GRAY], ids=["crop", "stretch", "gray"])
def test_scaled_decoding_stays_within_its_tolerance(photograph, interpolation: str, tolerance: float, extra: dict):
    exact = Preprocessing(64, 80, crop_fraction=0.875, interpolation=interpolation, **extra)
    scaled = replace(exact, decode_tolerance=tolerance)
    for data in (jpeg(photograph), jpeg(photograph, "MPO")):
        difference = np.abs(scaled(data).astype(int) - exact(data))
        assert 0 < difference.mean() <= tolerance
    png = jpeg(photograph, "PNG")
    assert np.array_equal(scaled(png), exact(png))
    array = np.asarray(photograph)
    assert np.array_equal(scaled(array), exact(array))
    assert np.array_equal(scaled(photograph), exact(photograph))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_scaled_decoding_of_turned_images(photograph, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(photograph, exif=exif)
    exact = Preprocessing(40, 90)
    scaled = replace(exact, decode_tolerance=1.5)
    for margin in (0, 8):
        difference = np.abs(scaled(data, margin=margin).astype(int) - exact(data, margin=margin))
        assert 0 < difference.mean() <= 1.5


@pytest.mark.parametrize(
    ("tolerance", "side", "scale"),
    # A square of 1200 pixels: 1200 / side pixels for each of the output, of which 3, 2 or 1 have to be left.
    [(0, 24, 1), (0.6, 401, 1), (0.6, 200, 2), (0.6, 100, 4), (0.6, 50, 8), (1.4, 150, 2), (1.5, 150, 4),
     (5.9, 301, 1), (6, 600, 2), (6, 601, 1), (6, 150, 8), (255, 10, 8)],
)  # fmt: skip
def test_the_scale_of_the_decoder(monkeypatch: pytest.MonkeyPatch, tolerance: float, side: int, scale: int):
    seen = []
    draft = JpegImageFile.draft
    monkeypatch.setattr(JpegImageFile, "draft", lambda self, *args: [draft(self, *args), seen.append(self.size)][0])
    Preprocessing(side, side, decode_tolerance=tolerance)(encode(smooth(1200, 1200), "JPEG"))
    assert seen == ([] if scale == 1 else [(1200 // scale, 1200 // scale)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decode_tolerance": 0.5}, "decode_tolerance is 0.5; accepted: 0 (exact), or 0.6 to 255"),
        ({"decode_tolerance": -1}, "decode_tolerance is -1.0; accepted"),
        ({"decode_tolerance": math.nan}, "decode_tolerance is nan; accepted"),
        ({"decode_tolerance": 6, "interpolation": "nearest"}, "cannot be kept with interpolation nearest"),
    ],
)
def test_the_tolerance_is_checked(changes: dict, message: str):
    with pytest.raises(UsageError, match=re.escape(message)):
        Preprocessing(8, 8, **changes)


def test_exact_decoding_is_not_written_so_that_older_manifests_stay_valid():
    assert "decode_tolerance" not in Preprocessing(8, 8).to_dict()
    spec = Preprocessing(8, 8, decode_tolerance=1.5)
    assert spec.to_dict()["decode_tolerance"] == 1.5
    assert Preprocessing.from_dict(spec.to_dict()) == spec


def test_an_array_of_the_right_size_is_not_taken_for_its_transpose():
    assert Preprocessing(3, 5, crop_fraction=1.0)(noise(3, 5)).shape == (3, 3, 5)
    gray = Preprocessing(6, 5, resize="stretch", **GRAY)
    image = noise(6, 5)
    assert np.array_equal(gray(image), gray(Image.fromarray(image)))
    cut = Preprocessing(8, 8, crop_fraction=0.5)
    image = noise(8, 8)
    assert np.array_equal(cut(image), cut(Image.fromarray(image)))
    assert not np.array_equal(cut(image), image.transpose(2, 0, 1))
