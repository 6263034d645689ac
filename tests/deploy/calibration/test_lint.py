from __future__ import annotations

import numpy as np
import pytest

from _helpers.digits import pixels_of
from krl_deploy.calibration.lint import check_pictures
from krl_runtime.errors import DataError

RNG = np.random.default_rng(0)


def test_real_pictures_pass_without_a_word(digits, caplog):
    check_pictures(pixels_of(digits / "train")[0])
    assert caplog.text == ""


def test_random_pictures_are_refused():
    with pytest.raises(DataError, match="100% of the pictures look like random noise"):
        check_pictures(RNG.integers(0, 256, (64, 3, 16, 16), dtype=np.uint8))


def test_pictures_of_one_colour_are_refused():
    colours = RNG.integers(0, 256, (64, 3, 1, 1), dtype=np.uint8)
    grey = np.broadcast_to(colours[:, :1], (64, 1, 16, 16))
    with pytest.raises(DataError, match="100% of the pictures are of one colour"):
        check_pictures(grey)


def test_the_same_picture_many_times_is_refused(digits):
    one = pixels_of(digits / "train")[0][:1]
    with pytest.raises(DataError, match="all 40 pictures are the same"):
        check_pictures(np.repeat(one, 40, axis=0))


def test_few_pictures_are_warned_of(digits, caplog):
    check_pictures(pixels_of(digits / "train")[0][:10])
    assert "only 10 pictures to calibrate on: 32 or more" in caplog.text


def test_pictures_one_pixel_wide_pass():
    check_pictures(RNG.integers(0, 256, (40, 1, 9, 1), dtype=np.uint8))
