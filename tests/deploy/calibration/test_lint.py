from __future__ import annotations

import numpy as np
import pytest

from _helpers.digits import pixels_of
from _helpers.graphs import graph, node
from krl_deploy.calibration.collect import collect
from krl_deploy.calibration.lint import check_batches, check_channels, check_classes, check_images
from krl_runtime.errors import DataError

RNG = np.random.default_rng(0)


def test_real_images_pass_without_a_word(digits, caplog):
    check_images(pixels_of(digits / "train")[0])
    assert caplog.text == ""


def test_random_images_are_refused():
    with pytest.raises(DataError, match="100% of the images look like random noise"):
        check_images(RNG.integers(0, 256, (64, 3, 16, 16), dtype=np.uint8))


def test_images_of_one_color_are_refused():
    colors = RNG.integers(0, 256, (64, 3, 1, 1), dtype=np.uint8)
    gray = np.broadcast_to(colors[:, :1], (64, 1, 16, 16))
    with pytest.raises(DataError, match="100% of the images are of one color"):
        check_images(gray)


def test_the_same_image_many_times_is_refused(digits):
    one = pixels_of(digits / "train")[0][:1]
    with pytest.raises(DataError, match="all 40 images are the same"):
        check_images(np.repeat(one, 40, axis=0))


def test_few_images_are_warned_of(digits, caplog):
    check_images(pixels_of(digits / "train")[0][:10])
    assert "only 10 images to calibrate on: 32 or more" in caplog.text


def test_images_one_pixel_wide_pass():
    check_images(RNG.integers(0, 256, (40, 1, 9, 1), dtype=np.uint8))


def test_classes_without_an_image_are_named(caplog):
    check_classes(np.array([0, 0, 2]), ["cat", "dog", "bird", "fish"])
    assert "2 of the 4 classes have no calibration image: dog, fish" in caplog.text


def test_all_classes_or_none_known_say_nothing(caplog):
    check_classes(np.array([1, 0, 1]), ["cat", "dog"])
    check_classes(np.array([-1, -1]), ["cat", "dog"])
    assert caplog.text == ""


def test_dead_channels_are_counted(caplog):
    check_channels({"a": np.float32([0, 1, 0]), "b": np.float32([3, 1]), "c": np.float32([0])}, 128)
    assert "3 channels of 2 activations are 0 on all 128 images of a sample: a (2 of 3), c (1 of 1)" in caplog.text


def test_no_dead_channel_says_nothing(caplog):
    check_channels({"b": np.float32([3, 1e-9])}, 128)
    assert caplog.text == ""


def test_ranges_that_change_with_the_batch_are_named(caplog):
    check_batches({"a": (0.0, 1.0), "b": (-1.0, 2.0)}, {"a": (0.0, 1.001), "b": (-1.1, 2.0)})
    assert "the ranges of 1 tensors change with the batch size: b;" in caplog.text


def test_a_net_that_normalizes_over_the_batch_is_noticed(digits, caplog):
    """A subtraction of the batch's mean, as batch normalization in training mode has."""
    nodes = [
        node("Cast", ["pixels"], "f", to=1),
        node("ReduceMean", ["f", "axes"], "m", keepdims=1),
        node("Sub", ["f", "m"], "logits"),
    ]
    net = graph(nodes, {"pixels": ["batch", 1, 16, 16]}, {"logits": None}, {"axes": [0]}, dtypes={"pixels": "uint8"})
    pixels = pixels_of(digits / "train")[0][::50]
    check_batches(*(collect(net, ["logits"], pixels, size=size) for size in (1, len(pixels))))
    assert "change with the batch size: logits" in caplog.text
