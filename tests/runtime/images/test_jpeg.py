from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from _helpers.images import SHARED_DATA
from krl_runtime.errors import ImageError
from krl_runtime.images import jpeg
from krl_runtime.images.preprocessing import Preprocessing, open_image

simplejpeg = pytest.importorskip("simplejpeg", reason="simplejpeg is not installed (extra jpeg)")


@pytest.fixture(autouse=True)
def every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg, "LEAST_PIXELS", 1)
    jpeg.decoder.cache_clear()


def encoded(mode: str = "RGB", size: tuple[int, int] = (201, 134), **options: object) -> bytes:
    rng = np.random.default_rng(1)
    shape = (size[1], size[0], len(mode)) if len(mode) > 1 else (size[1], size[0])
    smooth = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    noise = rng.integers(0, 60, shape, np.uint8)
    image = Image.fromarray((np.asarray(smooth.convert(mode)) // 2 + noise).astype(np.uint8), mode)
    file = io.BytesIO()
    image.save(file, "JPEG", **{"quality": 88, **options})
    return file.getvalue()


KINDS = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "progressive": {"progressive": True},
    "gray": {"mode": "L"},
    "CMYK": {"mode": "CMYK"},
    "odd": {"size": (17, 1)},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_the_same_pixels_as_pillow_decodes(
    kind: str, orientation: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encoded(**{"exif": exif, **KINDS[kind]})
    path = tmp_path / "x.jpg"
    path.write_bytes(data)
    calls = []
    original = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *a, **k: calls.append(a) or original(*a, **k))
    ready = Preprocessing(64, 48)
    sources = (data, path, io.BytesIO(data))
    ours = [(ready(source), np.asarray(open_image(source, mode="RGB"))) for source in sources]
    assert bool(calls) == (kind != "CMYK")
    monkeypatch.setattr(jpeg, "LEAST_PIXELS", 10**12)
    expected = ready(data), np.asarray(open_image(data, mode="RGB"))
    for pair in ours:
        assert all(np.array_equal(mine, theirs) for mine, theirs in zip(pair, expected, strict=True))


@pytest.mark.parametrize("kept", [0.3, 0.9, 0.99])
def test_a_truncated_file_is_refused_as_ever(kept: float) -> None:
    data = encoded()
    with pytest.raises(ImageError, match="damaged or truncated"):
        Preprocessing(32, 32)(data[: int(len(data) * kept)])


def test_a_decoder_that_differs_is_not_used_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *a, **k: original(*a, **k) ^ 1)
    monkeypatch.setattr(logging.getLogger("krl"), "propagate", True)
    with caplog.at_level("WARNING", "krl"):
        assert jpeg.decoder() is None
    assert "does not decode as Pillow does" in caplog.text
    data = encoded()
    assert np.array_equal(np.asarray(open_image(data, mode="RGB")), np.asarray(Image.open(io.BytesIO(data))))


def test_real_photographs() -> None:
    folder = SHARED_DATA / "natural224"
    if not folder.is_dir():
        pytest.skip("../shared/data is not here")
    files = sorted(folder.rglob("*.jp*g"))[:40]
    assert files
    for file in files:
        with Image.open(file) as image:
            expected = np.asarray(image.convert("RGB"))
        assert np.array_equal(np.asarray(open_image(file, mode="RGB")), expected)


def test_damaged_files_are_answered_as_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(data: bytes, least: int) -> object:
        monkeypatch.setattr(jpeg, "LEAST_PIXELS", least)
        try:
            return np.asarray(open_image(data, mode="RGB"))
        except ImageError:
            return None

    rng = np.random.default_rng(0)
    whole = [np.frombuffer(encoded(**options), np.uint8) for options in KINDS.values()]
    refused = 0
    for index in range(300):
        data = whole[index % len(whole)].copy()
        data[rng.integers(0, len(data), 3)] = rng.integers(0, 256, 3)
        mine, theirs = answer(data.tobytes(), 1), answer(data.tobytes(), 10**12)
        assert (mine is None) == (theirs is None)
        refused += mine is None
        if isinstance(mine, np.ndarray) and isinstance(theirs, np.ndarray):
            assert np.array_equal(mine, theirs)
    assert 10 < refused < 290
