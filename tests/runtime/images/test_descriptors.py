from __future__ import annotations

import json

import numpy as np
import pytest

from krl_runtime.errors import DataError, MissingExtraError, UsageError
from krl_runtime.images import descriptors
from krl_runtime.images.descriptors import DESCRIPTORS, ColorHistogram, DescriptorInput, Hog, Lbp


def images(count: int = 5, shape: tuple[int, int, int] = (3, 16, 24)) -> list[np.ndarray]:
    return list(np.random.default_rng(1).integers(0, 256, (count, *shape)).astype(np.uint8))


def test_a_color_histogram_counts_pixels():
    (pixels,) = images(1)
    expected = np.stack([np.histogram(channel, bins=8, range=(0, 256))[0] for channel in pixels]).ravel() / (16 * 24)
    np.testing.assert_allclose(ColorHistogram(8)(pixels), expected)


def test_local_patterns_are_those_of_their_definition():
    """Four neighbors at distance 1 are pixels themselves: count the brighter ones where they are side by side."""
    (pixels,) = images(1, (1, 12, 9))
    padded = np.pad(pixels[0].astype(int), 1)
    neighbors = [padded[1:-1, 2:], padded[:-2, 1:-1], padded[1:-1, :-2], padded[2:, 1:-1]]
    bits = np.stack([each >= pixels[0] for each in neighbors])
    changes = (bits != np.roll(bits, 1, axis=0)).sum(axis=0)
    codes = np.where(changes <= 2, bits.sum(axis=0), 5)
    expected = [(codes == code).mean() for code in range(6)]
    np.testing.assert_allclose(Lbp(points=4)(pixels), expected)


def test_patterns_of_a_color_image_are_those_of_its_gray():
    gray = np.random.default_rng(2).integers(0, 256, (1, 12, 12)).astype(np.uint8)
    np.testing.assert_array_equal(Lbp()(np.repeat(gray, 3, axis=0)), Lbp()(gray))


def test_gradients_have_the_direction_of_the_edges():
    """Vertical stripes have horizontal gradients alone: the first of 9 orientations."""
    stripes = np.tile(np.repeat(np.array([0, 255], np.uint8), 2), (3, 16, 4))
    values = Hog(cell=4)(stripes).reshape(-1, 9)
    assert values[:, 0].min() > 0
    np.testing.assert_array_equal(values[:, 1:], 0)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 24), (3, 33, 70)])
@pytest.mark.parametrize("name", DESCRIPTORS)
def test_the_stated_width_is_the_real_one(name: str, shape: tuple[int, int, int]):
    (descriptor,) = descriptors.chosen([name], shape)
    (pixels,) = images(1, shape)
    assert descriptor(pixels).shape == (descriptor.width(shape),)


def test_training_images_have_mean_0_and_deviation_1():
    data = images(20)
    made = DescriptorInput.fit(iter(data), ["color-histogram", "hog", "lbp"])
    values = np.stack([made(pixels) for pixels in data])
    assert values.dtype == np.float32
    assert made.shape == values.shape[1:]
    np.testing.assert_allclose(values.mean(axis=0), 0, atol=1e-3)
    varied = np.array(made.std) > 2e-3
    np.testing.assert_allclose(values.std(axis=0)[varied], 1, rtol=1e-2)


def test_what_never_varies_is_not_enlarged():
    made = DescriptorInput.fit([np.zeros((3, 8, 8), np.uint8)] * 2, ["color-histogram"])
    assert np.abs(made(np.full((3, 8, 8), 255, np.uint8))).max() <= 1001


def test_settings_come_back_from_json():
    made = DescriptorInput.fit(images(), ["hog", "color-histogram"])
    again = DescriptorInput.from_dict(json.loads(json.dumps(made.to_dict())), (3, 16, 24))
    assert again == made
    np.testing.assert_array_equal(again(images()[0]), made(images()[0]))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "accepted: hog, lbp, color-histogram, each once"),
        (["hog", "hog"], "each once"),
        (["sift"], "'sift' is not known; accepted: hog"),
    ],
)
def test_other_names_are_refused(names: list[str], message: str):
    with pytest.raises(UsageError, match=message):
        DescriptorInput.fit(images(), names)


def test_images_that_are_too_small_are_refused():
    with pytest.raises(UsageError, match="larger images"):
        DescriptorInput.fit(images(1, (1, 6, 6)), ["hog"])


def test_no_images_are_refused():
    with pytest.raises(DataError, match="no training images"):
        DescriptorInput.fit([], ["lbp"])


@pytest.mark.parametrize(
    "changes",
    [
        {"descriptors": []},
        {"descriptors": [{"name": "sift"}]},
        {"descriptors": ["hog"]},
        {"descriptors": [{"name": "color-histogram"}]},
        {"descriptors": [{"name": "color-histogram", "bins": 10**9}]},
        {"descriptors": [{"name": "color-histogram", "bins": True}]},
        {"descriptors": [{"name": "color-histogram", "bins": 2, "more": 1}]},
        {"descriptors": [{"name": "hog", "orientations": 9, "cell": 99, "block": 2}]},
        {"mean": [0.0]},
        {"std": [0.0] * 6},
        {"std": [float("nan")] * 6},
        {"more": 1},
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, object]):
    settings = DescriptorInput((ColorHistogram(2),), (0.0,) * 6, (1.0,) * 6).to_dict()
    assert DescriptorInput.from_dict(settings, (3, 8, 8)).width == 6
    with pytest.raises(ValueError, match=r"accepted|finite|positive"):
        DescriptorInput.from_dict({**settings, **changes}, (3, 8, 8))


def test_without_scikit_image_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    import sys

    monkeypatch.setitem(sys.modules, "skimage.feature", None)
    monkeypatch.setitem(sys.modules, "skimage", None)
    DescriptorInput.fit(images(), ["color-histogram"])
    with pytest.raises(MissingExtraError, match="features"):
        DescriptorInput.fit(images(), ["lbp"])
