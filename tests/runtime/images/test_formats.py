"""The formats that are decoded, and the bounds on the work of decoding: hostile files made by hand."""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from krl_runtime import ImageError, Preprocessing, load
from krl_runtime.images import work
from krl_runtime.images.folders import find_images
from krl_runtime.images.formats import IMAGE_SUFFIXES, open_header
from krl_runtime.images.preprocessing import open_image
from krl_runtime.images.work import ImageSizeError

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n"


def encode(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def photograph(width: int = 40, height: int = 24) -> Image.Image:
    small = np.random.default_rng(3).integers(0, 256, (4, 5, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


# Formats


def others() -> dict[str, bytes]:
    """Images of formats that are not accepted, which Pillow would open."""
    image, made = photograph(64, 64), {"EPS": EPS, "PDF": b"%PDF-1.7\n%%EOF\n"}
    made["EPS of DOS"] = b"\xc5\xd0\xd3\xc6" + struct.pack("<LLLLLL", 32, len(EPS), 0, 0, 0, 0) + bytes(4) + EPS
    made["WMF"] = b"\xd7\xcd\xc6\x9a\0\0" + struct.pack("<hhhhH", 0, 0, 64, 64, 72) + bytes(6) + b"\1\0\t\0" + bytes(40)
    made["EMF"] = b"\1\0\0\0" + bytes(36) + b" EMF" + bytes(60)
    made["PSD"] = b"8BPS" + struct.pack(">H6xHLLHH", 1, 3, 8, 8, 8, 3) + bytes(300)
    made["FITS"] = b"SIMPLE  =                    T".ljust(80) + b"BITPIX  =  8".ljust(80) + b"END".ljust(80)
    made["GRIB"], made["BUFR"] = b"GRIB" + bytes(4) + b"\1" + bytes(40), b"BUFR" + bytes(40)
    made["HDF5"] = b"\x89HDF\r\n\x1a\n" + bytes(40)
    for kind in ("JPEG2000", "ICNS", "ICO", "TGA", "PCX", "SGI", "DDS", "MSP", "XBM"):
        given = {"MSP": image.convert("1"), "XBM": image.convert("1")}.get(kind, image)
        made[kind] = encode(given, kind)
    made["plain PPM"] = b"P3\n1 1\n255\n1 2 3\n"
    made["PFM"] = b"Pf\n1 1\n-1.0\n" + bytes(4)
    return made


@pytest.mark.parametrize("suffix", [".eps", ".jpg", ".png"])
@pytest.mark.parametrize("kind", sorted(others()))
def test_other_formats_are_refused_by_their_content(tmp_path: Path, kind: str, suffix: str):
    (tmp_path / f"a{suffix}").write_bytes(others()[kind])
    with pytest.raises(ImageError, match=rf"a{suffix} is not an image of an accepted format: JPEG, PNG, WebP"):
        open_image(tmp_path / f"a{suffix}", mode="RGB")


@pytest.mark.parametrize(("kind", "suffix"), [("PNG", ".jpg"), ("JPEG", ".png"), ("GIF", ".webp"), ("BMP", ".tif")])
def test_the_content_decides_and_not_the_name(tmp_path: Path, kind: str, suffix: str):
    photograph().save(tmp_path / f"a{suffix}", kind)
    assert open_image(tmp_path / f"a{suffix}", mode=None).size == (40, 24)


def test_no_program_is_started_whatever_way_an_image_enters(bundle, tmp_path: Path, monkeypatch):
    """A stand-in for Ghostscript on the PATH tells when it is started."""
    folder, started = tmp_path / "bin", tmp_path / "started"
    folder.mkdir()
    for name in ("gs", "gswin64c"):
        (folder / name).write_text(f"#!/bin/sh\ntouch {started}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    data = tmp_path / "data"
    data.mkdir()
    for name in ("a.jpg", "b.tif"):
        (data / name).write_bytes(EPS)
    with load(bundle.path, require="cpu", threads=1) as model:
        for source in (EPS, bytearray(EPS), data / "a.jpg", str(data / "b.tif"), io.BytesIO(EPS)):
            with pytest.raises(ImageError, match="not an image of an accepted format"):
                model(source)
        with pytest.raises(ImageError, match="is of format EPS and not decoded"), Image.open(io.BytesIO(EPS)) as lazy:
            model(lazy)
        assert [type(item.error) for item in model.stream(data)] == [ImageError, ImageError]
        with model.watch([EPS]) as frames:
            assert [type(item.error) for item in frames] == [ImageError]
    assert not started.exists()


def test_stubs_of_pillow_are_refused_and_decoded_images_are_not():
    class Stub(ImageFile.StubImageFile):
        format = "GRIB"

        def _open(self) -> None:
            self._size, self._mode = (4, 4), "L"

    with pytest.raises(ImageError, match="is of format GRIB and not decoded"):
        open_image(Stub(io.BytesIO(b"x")), mode="L")
    icon = Image.open(io.BytesIO(encode(photograph(64, 64), "TGA")))
    with pytest.raises(ImageError, match="is of format TGA and not decoded; accepted: JPEG"):
        open_image(icon, mode="RGB")
    icon.load()
    assert open_image(icon, mode="RGB").size == (64, 64)


def test_a_folder_counts_accepted_suffixes_and_names_the_others(tmp_path: Path, caplog):
    for name in ("a.jpg", "b.PNG", "c.pbm", "d.eps", "e.pdf", "f.jp2", "g.psd"):
        (tmp_path / name).touch()
    assert [path.name for path in find_images(tmp_path, on_bad="skip")] == ["a.jpg", "b.PNG", "c.pbm"]
    assert "skipped 4 files" in caplog.text
    assert all(name in caplog.text for name in ("d.eps", "e.pdf", "f.jp2", "g.psd"))
    assert {".eps", ".pdf", ".wmf", ".jp2", ".avif", ".ico"}.isdisjoint(IMAGE_SUFFIXES)


@pytest.mark.parametrize("size", [1, 3, 70_000])
def test_streams_that_give_little_at_once_and_cannot_go_back(size: int):
    class Pipe(io.RawIOBase):
        def __init__(self, data: bytes) -> None:
            self.rest = data

        def readable(self) -> bool:
            return True

        def read(self, count: int = -1) -> bytes:
            part, self.rest = self.rest[: min(size, count)], self.rest[min(size, count) :]
            return part

    data = encode(photograph(), "PNG")
    assert np.array_equal(np.asarray(open_image(Pipe(data), mode="RGB")), np.asarray(photograph()))


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="has no file without an end")
def test_a_file_without_an_end_is_not_read():
    with pytest.raises(ImageError, match="/dev/zero is not an image of an accepted format"):
        open_image("/dev/zero", mode="RGB")


def test_more_bytes_than_the_largest_image_has(monkeypatch):
    data = encode(photograph(), "BMP")
    monkeypatch.setattr("krl_runtime.images.formats.MAX_BYTES", len(data) - 1)
    for source in (data, io.BytesIO(data)):
        with pytest.raises(ImageSizeError, match=f"has more than {len(data) - 1} bytes"):
            open_image(source, mode="RGB")


# Work


def jpeg_of_scans(scans: int, size: tuple[int, int] = (4000, 3000), **options) -> bytes:
    """Return a gray progressive JPEG whose last scan is there so many times more."""
    data = encode(Image.new("L", size, 128), "JPEG", progressive=True, **options)
    last = [found.start() for found in re.finditer(b"\xff\xda", data)][-1]
    end = data.rindex(b"\xff\xd9")
    return data[:end] + data[last:end] * scans + data[end:]


@pytest.mark.parametrize("scans", [200, 1000, 20_000])
def test_scans_of_a_jpeg_are_counted_before_it_is_decoded(scans: int, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("it was decoded"))
    with pytest.raises(ImageSizeError, match=r"scans times pixels|more than 4096 segments"):
        Preprocessing(32, 32)(jpeg_of_scans(scans))


def test_a_thumbnail_in_the_tags_does_not_hide_or_make_scans():
    """Markers inside a segment are its content."""
    inner = jpeg_of_scans(800, (8, 8))
    comment = b"\xff\xfe" + struct.pack(">H", len(inner) + 2) + inner
    assert len(inner) < 65_000
    usual = encode(photograph(4000, 3000), "JPEG")
    assert open_image(usual[:2] + comment + usual[2:], mode="RGB").size == (4000, 3000)
    bad = jpeg_of_scans(200)
    with pytest.raises(ImageSizeError, match="scans times pixels are 2472000000"):  # 6 + 200 scans
        open_image(bad[:2] + comment + bad[2:], mode="RGB")


def test_scans_of_a_sequential_jpeg_count_if_there_are_several():
    """One scan for each band, which libjpeg takes any number of."""
    data = encode(photograph(4000, 3000), "JPEG", quality=30)
    start = data.index(b"\xff\xda")
    bands = [data[start + 5 + 2 * band : start + 7 + 2 * band] for band in range(3)]
    one = b"".join(b"\xff\xda\0\x08\1" + band + b"\0\x3f\0" for band in bands)
    with pytest.raises(ImageSizeError, match="scans times pixels are 3600000000"):
        open_image(data[:start] + one * 100 + b"\xff\xd9", mode="RGB")


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("options", [{"quality": 95}, {"optimize": True}, {"subsampling": 0, "restart_marker_rows": 1}])
def test_real_scans_are_accepted(progressive: bool, options: dict):
    data = encode(photograph(800, 600), "JPEG", progressive=progressive, exif=b"Exif\0\0", **options)
    expected = np.asarray(Image.open(io.BytesIO(data)))
    assert np.array_equal(np.asarray(open_image(data, mode="RGB")), expected)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">L", len(content)) + kind + content + struct.pack(">L", zlib.crc32(kind + content))


def png_with(extra: bytes) -> bytes:
    data = encode(Image.new("L", (8, 8)), "PNG")
    return data[:33] + extra + data[33:]


def overlapping(tags: int, size: int = 2**20) -> bytes:
    """Return TIFF tags that all have the same bytes."""
    entries = b"".join(struct.pack("<HHLL", 1000 + tag, 7, size, 8) for tag in range(tags))
    return b"II*\0" + struct.pack("<L", 8 + size) + bytes(size) + struct.pack("<H", tags) + entries + bytes(4)


def tiff(width: int, height: int, tags: dict[int, tuple[int, ...]], data: bytes = b"a", compression: int = 8) -> bytes:
    tags = {256: (width,), 257: (height,), 258: (8,), 259: (compression,), 262: (1,), 277: (1,), **tags}
    entries, values, place = b"", b"", 8 + len(data) + 6 + 12 * len(tags)
    for tag, numbers in sorted(tags.items()):
        packed = struct.pack(f"<{len(numbers)}L", *numbers)
        entries += struct.pack("<HHL", tag, 4, len(numbers))
        entries += packed if len(numbers) == 1 else struct.pack("<L", place + len(values))
        values += packed if len(numbers) > 1 else b""
    head = b"II*\0" + struct.pack("<L", 8 + len(data)) + data
    return head + struct.pack("<H", len(tags)) + entries + bytes(4) + values


def bmp_rle() -> bytes:
    data = bytearray(encode(Image.new("P", (4, 4)), "BMP"))
    struct.pack_into("<ll", data, 18, 5 * 10**7, 1)
    struct.pack_into("<L", data, 30, 1)
    return bytes(data) + b"\0\2\xff\xff" * 64 + b"\0\1"


def webp_canvas() -> bytes:
    images = [photograph(16, 16), Image.new("RGB", (16, 16))]
    data = bytearray(encode(images[0], "WEBP", save_all=True, append_images=images[1:]))
    data[24:30] = b"\xff\x3f\0" * 2
    return bytes(data)


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty chunks": (lambda: png_with(chunk(b"prIv", b"") * 10_000), "more parts than its size justifies"),
    "text": (lambda: png_with(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**24)))), "too large"),
    "profile": (lambda: png_with(chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**24)))), "too large"),
    "fill": (lambda: b"\xff\xd8" + b"\xff" * 20_000 + b"\xd9", "more parts"),
    "segments": (lambda: b"\xff\xd8" + b"\xff\xfe\0\2" * 5000, "more than 4096 segments"),
    "comments": (lambda: encode(photograph(), "GIF")[:13] + b"!\xfe" + b"\1a" * 10_000 + b"\0", "more parts"),
    "EXIF": (
        lambda: b"\xff\xd8\xff\xe1" + struct.pack(">H", 60_000) + b"Exif\0\0" + overlapping(2000, 30_000),
        "its tags claim",
    ),
    "tags": (lambda: overlapping(4000), "its tags claim"),
    "many tags": (lambda: overlapping(5000, 8), "it has 5000 tags; at most 4096"),
    "tile": (lambda: tiff(8, 8, {322: (60_000,), 323: (60_000,), 324: (8,), 325: (1,)}), "60000x60000 pixels"),
    "narrow": (lambda: tiff(1, 10**6, {322: (4096,), 323: (16,), 324: (8,), 325: (1,)}), "4096x1000000 pixels"),
    "strips": (lambda: tiff(8, 8, {273: (8,) * 10**5, 279: (1,) * 10**5}), "tag 273 has 100000 values"),
    "same strip": (
        lambda: tiff(8, 1000, {273: (8,) * 1000, 279: (4000,) * 1000, 278: (1,)}, bytes(4000)), "4000000 bytes"
    ),
    "JPEG in TIFF": (
        lambda: (
            lambda data: tiff(4000, 3000, {273: (8,), 279: (len(data),), 278: (3000,)}, data, 7)
        )(jpeg_of_scans(300)),
        "scans times pixels",
    ),
    "LERC": (lambda: tiff(8, 8, {273: (8,), 279: (1,)}, compression=34887), "TIFF of compression 34887; accepted"),
    "LZMA": (lambda: tiff(8, 8, {273: (8,), 279: (1,)}, compression=34925), "TIFF of compression 34925; accepted"),
    "WebP canvas": (webp_canvas, "16384x16384 pixels"),
    "BMP": (bmp_rle, "run-length coded"),
    "PGM levels": (lambda: b"P5\n4 4\n100\n" + bytes(16), "other levels than 255 and 65535"),
    "PGM comment": (lambda: b"P5\n#" + b"a" * 20_000 + b"\n4 4\n255\n" + bytes(16), "more parts"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_hostile_files_are_refused_before_they_are_decoded(name: str, monkeypatch):
    make, message = HOSTILE[name]
    data = make()
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("it was decoded"))
    with pytest.raises(ImageError, match=message):
        open_image(data, mode="RGB")


def test_pixels_in_tiny_chunks_are_bounded(monkeypatch):
    data = encode(photograph(64, 64), "PNG")
    place = data.index(b"IDAT") - 4
    (length,) = struct.unpack_from(">L", data, place)
    packed = data[place + 8 : place + 8 + length]
    tiny = b"".join(chunk(b"IDAT", packed[index : index + 1]) for index in range(length))
    file = data[:place] + tiny + chunk(b"IEND", b"")
    assert np.array_equal(np.asarray(open_image(file, mode="RGB")), np.asarray(photograph(64, 64)))
    monkeypatch.setattr(work, "_PIXEL_READS", 100)
    monkeypatch.setattr(work, "_READS_PER_KIB", 1)
    with pytest.raises(ImageSizeError, match="more parts than its size justifies"):
        open_image(file, mode="RGB")


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_of_many_frames_the_first_one_is_decoded(kind: str):
    first, other = Image.new("RGB", (16, 12), (10, 200, 30)), photograph(16, 12)
    many = [other, first] * 200
    data = encode(first, kind, save_all=True, append_images=many, **({"lossless": True} if kind == "WEBP" else {}))
    assert np.array_equal(np.asarray(open_image(data, mode="RGB")), np.asarray(first))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *[("TIFF", {"compression": name}) for name in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")],
        *[("TIFF", {"compression": None, "strip_size": 64}), ("TIFF", {"big_tiff": True}), ("BMP", {}), ("PPM", {})],
        *[("GIF", {"interlace": 1}), ("WEBP", {"lossless": True, "exact": True}), ("PNG", {"compress_level": 0})],
    ],
)
def test_ordinary_files_are_decoded_as_pillow_does(kind: str, options: dict):
    data = encode(photograph(70, 50), kind, **options)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(np.asarray(open_image(data, mode="RGB")), expected)
    assert open_header(data).size == (70, 50)


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt"])
def test_faxes(compression: str):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 2, (40, 60), np.uint8) * 255).convert("1")
    decoded = open_image(encode(image, "TIFF", compression=compression), mode="L")
    assert np.array_equal(np.asarray(decoded), np.asarray(image.convert("L")))


# Orientation


def turned(array: np.ndarray, orientation: int) -> np.ndarray:
    """Return the upright image of stored pixels, by the definition of the eight orientations in EXIF."""
    swap, right, bottom = {1: (0, 0, 0), 2: (0, 1, 0), 3: (0, 1, 1), 4: (0, 0, 1), 5: (1, 0, 0), 6: (1, 1, 0),
                           7: (1, 1, 1), 8: (1, 0, 1)}[orientation]  # fmt: skip
    upright = array.swapaxes(0, 1) if swap else array
    upright = upright[:, ::-1] if right else upright
    return upright[::-1] if bottom else upright


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("how", ["TIFF", "TIFF of two", "TIFF LZW", "BigTIFF", "PNG", "WEBP", "JPEG", "PNG XMP"])
def test_an_orientation_is_applied_once(how: str, orientation: int):
    image, exif = photograph(40, 24), Image.Exif()
    exif[0x112] = orientation
    kind = how.split()[0].replace("Big", "")
    options: dict = {"exif": exif} if kind != "TIFF" else {"tiffinfo": {0x112: orientation}}
    options |= {"compression": "tiff_lzw"} if how == "TIFF LZW" else {"big_tiff": True} if how == "BigTIFF" else {}
    options |= {"save_all": True, "append_images": [image]} if how == "TIFF of two" else {}
    options |= {"lossless": True} if kind == "WEBP" else {}
    data = encode(image, kind, **options)
    if how == "PNG XMP":
        text = b'<x tiff:Orientation="%d"/>' % orientation
        plain = encode(image, "PNG")
        data = plain[:33] + chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + text) + plain[33:]
    stored = np.asarray(Image.open(io.BytesIO(encode(image, "JPEG")))) if kind == "JPEG" else np.asarray(image)
    expected = turned(stored, orientation)
    assert np.array_equal(np.asarray(open_image(data, mode="RGB")), expected)
    prepare = Preprocessing(16, 20, crop_fraction=0.875)
    assert np.array_equal(prepare(data), prepare(np.ascontiguousarray(expected)))
    with Image.open(io.BytesIO(data)) as lazy:
        assert np.array_equal(np.asarray(open_image(lazy, mode="RGB")), expected)
    if how != "PNG XMP":
        assert np.array_equal(np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))), expected)


@pytest.mark.parametrize(
    "exif",
    [
        b"", b"II", b"II*\0\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff", b"XX*\0\x08\0\0\0",
        b"MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\x09\0\0",
    ],
)  # fmt: skip
def test_exif_data_that_are_damaged_or_absurd_are_ignored(exif: bytes):
    data = encode(photograph(), "PNG", exif=b"Exif\0\0" + exif)
    assert np.array_equal(np.asarray(open_image(data, mode="RGB")), np.asarray(photograph()))


# Damage


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "LZW", "BMP", "GIF", "PPM"])
def test_damaged_files_give_an_image_or_an_image_error(kind: str):
    rng, image = random.Random(5), photograph(48, 32)
    options = {"LZW": {"compression": "tiff_lzw"}, "JPEG": {"progressive": True}}.get(kind, {})
    whole = encode(image, "TIFF" if kind == "LZW" else kind, **options)
    for attempt in range(60):
        data = bytearray(whole)
        if attempt % 3 == 0:
            del data[rng.randrange(len(data)) :]
        for _ in range(rng.choice((1, 3, 10)) if data else 0):
            place = rng.randrange(min(len(data), 200) if attempt % 2 else len(data))
            data[place] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        with contextlib.suppress(ImageError):  # nothing else is raised
            open_image(bytes(data), mode=None)


@pytest.mark.parametrize(
    "error",
    [SyntaxError, struct.error, ValueError, OSError, MemoryError, OverflowError, RecursionError, zlib.error, EOFError,
     ZeroDivisionError, AssertionError, UnicodeDecodeError("utf-8", b"", 0, 1, "x"), NotImplementedError],
)  # fmt: skip
def test_whatever_a_decoder_raises_is_an_image_error(error, monkeypatch):
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(ImageError, match=r"^image of"):
        open_image(encode(photograph(), "BMP"), mode="RGB")
