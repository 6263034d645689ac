"""Luma, degradation and PSNR against numbers computed by hand and against Pillow."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from _helpers.image_nets import smooth
from krl_runtime import UsageError
from krl_runtime.images import luma


def test_luma_of_known_colors():
    """MATLAB's rgb2ycbcr of black, white, red, green and blue."""
    colors = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    np.testing.assert_allclose(luma.luma(colors)[0], [16, 235, 81.481, 144.553, 40.966], atol=1e-3)
    expected = [[128, 128], [128, 128], [90.203, 240], [53.797, 34.214], [240, 109.786]]
    np.testing.assert_allclose(luma.chroma(colors)[0], expected, atol=1e-3)


def test_there_and_back():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    assert (luma.to_rgb(luma.luma(image), luma.chroma(image)) == image).all()


def test_what_is_out_of_range_is_clipped():
    values = np.array([-3.0, 0.5, 1.5, 254.6, 300.0, np.nan, np.inf, -np.inf])
    assert luma.to_uint8(values).tolist() == [0, 0, 2, 255, 255, 0, 255, 0]


def test_resizing_a_part_sees_what_lies_around_it():
    plane = smooth(20, 24).astype(np.float32)
    whole = luma.resize(plane, 60, 72)
    part = luma.resize(plane[1:13, 2:14], 12, 12, (4, 4, 8, 8))
    np.testing.assert_allclose(part, whole[15:27, 18:30], atol=1e-3)


def test_degrading():
    image = smooth(22, 31, 3)
    small, truth = luma.degrade(image, 3)
    assert (truth == image[:21, :30]).all()
    wanted = Image.fromarray(image[:21, :30]).resize((10, 7), Image.Resampling.BICUBIC)
    assert (small == np.asarray(wanted)).all()
    assert luma.degrade(image[..., 0], 1)[0].shape == (22, 31)
    for scale in (0, 23):
        with pytest.raises(UsageError, match="accepted: a scale from 1 to the shorter side"):
            luma.degrade(image, scale)


def test_psnr_by_hand():
    zeros = np.zeros((2, 4, 4), np.uint8)
    assert luma.psnr(zeros, zeros + 1) == pytest.approx(20 * np.log10(255))
    assert luma.psnr(zeros / 1.0, zeros + 0.5, peak=1) == pytest.approx(20 * np.log10(2))
    assert luma.psnr(zeros, zeros) == float("inf")
    half = np.stack([zeros[0], zeros[0] + 1])
    assert luma.mean_psnr(half, zeros) == pytest.approx((200 + 20 * np.log10(255)) / 2)
    assert luma.mean_psnr(zeros - 9.0, zeros) == 200
    with pytest.raises(UsageError, match="both need one shape"):
        luma.psnr(zeros, zeros[:1])


def test_borders():
    image = np.arange(30).reshape(5, 6)
    assert luma.crop_border(image, 2).tolist() == [[14, 15]]
    assert luma.crop_border(image, 0) is not None
    for border in (-1, 3):
        with pytest.raises(UsageError, match="cannot be cut off"):
            luma.crop_border(image, border)


def test_tall_images_are_degraded_rows_first():
    """As all versions of Pillow before 13 do it."""
    image = np.random.default_rng(0).integers(0, 256, (90, 30, 3), np.uint8)
    rows = Image.fromarray(image).resize((10, 90), Image.Resampling.BICUBIC)
    both = rows.resize((10, 30), Image.Resampling.BICUBIC)
    small, _ = luma.degrade(image, 3)
    assert (small == np.asarray(both)).all()
