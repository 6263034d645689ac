"""Training and the device see the same pixels, whatever the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from _helpers.images import SHARED_DATA
from krl_runtime.images.folders import ImageFile
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.config import DataConfig
from krl_train.data import PixelSet, open_source

RNG = np.random.default_rng(0)


def _noise(height: int, width: int, channels: int) -> np.ndarray:
    coarse = RNG.integers(0, 256, (max(1, height // 8), max(1, width // 8), channels)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse.squeeze()).resize((width, height)))


def _write(folder: Path) -> list[Path]:
    rgb = Image.fromarray(_noise(90, 120, 3))
    images = {
        "gray.png": rgb.convert("L"),
        "gray.jpg": rgb.convert("L"),
        "rgb.png": rgb,
        "rgb.jpg": rgb,
        "rgba.png": Image.fromarray(_noise(90, 120, 4)),
        "palette.png": rgb.convert("P", palette=Image.Palette.ADAPTIVE),
        "one-wide.png": Image.fromarray(RNG.integers(0, 256, (50, 1, 3)).astype(np.uint8)),
        "one-high.jpg": Image.fromarray(RNG.integers(0, 256, (1, 50, 3)).astype(np.uint8)),
        "deep.png": Image.fromarray((RNG.integers(0, 65536, (40, 60))).astype(np.uint16)),
        "cmyk.jpg": rgb.convert("CMYK"),
        "large.jpg": Image.fromarray(_noise(3000, 4000, 3)),
    }
    paths = []
    for name, image in images.items():
        image.save(folder / name)
        paths.append(folder / name)
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb.save(folder / "turned.jpg", exif=exif)
    return [*paths, folder / "turned.jpg"]


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing(64, 64, crop_fraction=0.875),
        Preprocessing(32, 48, resize="stretch", interpolation="bicubic"),
        Preprocessing(64, 64, crop_fraction=0.875, decode_tolerance=6.0),
        Preprocessing(28, 28, channels=1, mean=(0.5,), std=(0.5,)),
    ],
)
def test_all_kinds_of_files(tmp_path: Path, preprocessing: Preprocessing) -> None:
    paths = _write(tmp_path)
    images = [ImageFile(path, 0) for path in paths]
    for limit in (2**30, 0):  # in memory, from disk
        trained = PixelSet.from_images(images, preprocessing, margin=0, on_bad="refuse", memory_limit=limit)
        seen = trained.pixels(np.arange(len(paths))).numpy()
        for path, pixels in zip(paths, seen, strict=True):
            for source in (path, path.read_bytes()):
                assert np.array_equal(pixels, preprocessing(source)), path.name


@pytest.mark.skipif(not (SHARED_DATA / "flowers128").is_dir(), reason="the shared data is not here")
def test_real_photographs() -> None:
    preprocessing = Preprocessing(112, 112, crop_fraction=0.875)
    source = open_source(DataConfig(data=str(SHARED_DATA / "flowers128")))
    assert source.folder is not None
    images = source.folder.split("all")[::50]
    trained = PixelSet.from_images(images, preprocessing, margin=0, on_bad="refuse", memory_limit=2**30)
    for index, image in enumerate(images):
        with image.path.open("rb") as file:
            assert np.array_equal(trained.pixels(np.array([index]))[0].numpy(), preprocessing(file))
