"""Transparency, depth and color profiles of images, in NumPy from their definitions."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from krl_runtime.images.modes import color_profile
from krl_runtime.images.preprocessing import open_image

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">L", len(content)) + kind + content + struct.pack(">L", zlib.crc32(kind + content))


def png(rows: list[bytes], width: int, bits: int, color: int, transparent: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">LLBBBBB", width, len(rows), bits, color, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"tRNS", transparent) + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize("key", [0, 1600, 40_000, 65_535])
def test_a_transparent_level_of_deep_gray(key: int):
    levels = np.array([[0, 1600, 1601], [40_000, 65_535, 255]], np.uint16)
    decoded = np.asarray(
        open_image(png([row.astype(">u2").tobytes() for row in levels], 3, 16, 0, struct.pack(">H", key)), mode=None)
    )
    assert np.array_equal(decoded[..., 0], levels >> 8)
    assert np.array_equal(decoded[..., 1], np.where(levels == key, 0, 255))


@pytest.mark.parametrize(
    ("bits", "levels", "key"),
    [(1, [0, 1, 1, 0], 1), (2, [0, 1, 2, 3], 2), (4, [0, 5, 15, 9], 9), (8, [0, 7, 200, 255], 7)],
)
def test_a_transparent_level_of_shallow_gray(bits: int, levels: list[int], key: int):
    packed = sum(level << bits * (3 - index) for index, level in enumerate(levels)) << (-4 * bits % 8)
    row = packed.to_bytes(-(-4 * bits // 8), "big")
    decoded = np.asarray(open_image(png([row], 4, bits, 0, struct.pack(">H", key)), mode=None))
    assert decoded[0, :, 0].tolist() == [level * 255 // (2**bits - 1) for level in levels]
    assert decoded[0, :, 1].tolist() == [0 if level == key else 255 for level in levels]


@pytest.mark.parametrize("bits", [8, 16])
def test_a_transparent_color(bits: int):
    scale = 257 if bits == 16 else 1
    colors = np.array([[10, 20, 30], [10, 20, 31], [200, 20, 30]]) * scale
    row = colors.astype(">u2" if bits == 16 else "u1").tobytes()
    decoded = np.asarray(open_image(png([row], 3, bits, 2, struct.pack(">HHH", *colors[1])), mode=None))
    assert decoded[0].tolist() == [[10, 20, 30, 255], [10, 20, 31, 0], [200, 20, 30, 255]]


def test_transparency_of_palettes_and_alpha():
    palette = Image.new("P", (3, 1))
    palette.putdata([0, 1, 2])
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    decoded = np.asarray(open_image(encode(palette, transparency=bytes([0, 128, 255])), mode=None))
    assert decoded[0].tolist() == [[10, 20, 30, 0], [40, 50, 60, 128], [70, 80, 90, 255]]
    decoded = np.asarray(open_image(encode(palette, "GIF", transparency=1), mode=None))
    assert decoded[0, :, 3].tolist() == [255, 0, 255]
    both = np.array([[[9, 0], [200, 77]]], np.uint8)
    assert np.array_equal(np.asarray(open_image(encode(Image.fromarray(both, "LA")), mode=None)), both)
    rgba = np.array([[[9, 0, 5, 3], [200, 77, 1, 255]]], np.uint8)
    assert np.array_equal(np.asarray(open_image(encode(Image.fromarray(rgba)), mode=None)), rgba)


def test_inks_of_a_jpeg_become_rgb():
    """Photoshop's inks are stored inverted; Pillow's conversion is (255 - ink) * (255 - black) / 255."""
    inks = np.full((16, 16, 4), (0, 255, 128, 0), np.uint8)
    decoded = np.asarray(open_image(encode(Image.fromarray(inks, "CMYK"), "JPEG", quality=100), mode=None)).astype(int)
    assert np.abs(decoded - (255, 0, 127)).max() <= 2


def test_floats_and_wide_integers():
    floats, wide = np.float32([[-5, 0.4, 100, 300]]), np.int32([[-5, 256, 65_535, 70_000]])
    assert np.asarray(open_image(Image.fromarray(floats), mode=None)).tolist() == [[0, 0, 100, 255]]
    assert np.asarray(open_image(Image.fromarray(wide), mode=None)).tolist() == [[0, 1, 255, 255]]


def gray_profile() -> bytes:
    data = bytearray(SRGB)
    data[16:20] = b"GRAY"
    return bytes(data)


@pytest.mark.parametrize(
    ("mode", "profile", "kept"),
    [
        ("RGB", SRGB, True), ("RGBA", SRGB, True), ("P", SRGB, True), ("L", SRGB, False), ("L", gray_profile(), True),
        ("LA", gray_profile(), True), ("I;16", gray_profile(), True), ("RGB", gray_profile(), False),
        ("RGB", b"no profile", False), ("RGB", SRGB + bytes(2**22), False),
    ],
)  # fmt: skip
def test_a_profile_is_kept_where_it_is_one_for_the_colors(mode: str, profile: bytes, kept: bool):
    image = Image.new(mode, (4, 4)) if mode != "I;16" else Image.fromarray(np.zeros((4, 4), np.uint16))
    image.info["icc_profile"] = profile
    assert color_profile(open_image(image, mode=None)) == (profile if kept else None)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_profiles_of_files(kind: str):
    data = encode(Image.new("RGB", (4, 4)), kind, icc_profile=SRGB)
    assert color_profile(open_image(data, mode=None)) == SRGB


def test_a_profile_of_inks_is_dropped_with_the_inks():
    inks = bytearray(SRGB)
    inks[16:20] = b"CMYK"
    data = encode(Image.new("CMYK", (4, 4)), "JPEG", icc_profile=bytes(inks))
    assert color_profile(open_image(data, mode=None)) is None
