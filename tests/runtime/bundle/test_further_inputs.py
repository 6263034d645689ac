from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from krl_runtime.attributes import AttributeInput
from krl_runtime.bundle.further_inputs import (
    FurtherInput,
    ImageInput,
    column_names,
    further_inputs,
    sample_arrays,
    tensor_spec,
)
from krl_runtime.errors import ImageError, UsageError
from krl_runtime.images.descriptors import DescriptorInput
from krl_runtime.images.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(height=8, width=8)
PIXELS = np.random.default_rng(3).integers(0, 256, (8, 8, 3)).astype(np.uint8)


def every_kind() -> tuple[FurtherInput, ...]:
    return (
        AttributeInput.fit([{"color": "red", "size": "1"}, {"color": "blue", "size": "3"}], ["color", "size"]),
        ImageInput.of("right side", PREPROCESSING),
        DescriptorInput.fit([PREPROCESSING(PIXELS)], ["color-histogram"]),
    )


def test_settings_come_back():
    inputs = every_kind()
    assert further_inputs([each.to_dict() for each in inputs], PREPROCESSING) == inputs
    assert column_names(inputs) == (("color", "size"), ("right side",))
    assert [tensor_spec(each).shape for each in inputs] == [("batch", 3), ("batch", 3, 8, 8), ("batch", 24)]
    assert inputs[1].input == "pixels_right_side"


def test_a_sample_becomes_the_arrays_of_the_graph():
    inputs = every_kind()
    sample = {"image": PIXELS, "right side": PIXELS[::-1], "size": 3, "color": "blue"}
    arrays = sample_arrays(sample, inputs, PREPROCESSING)
    assert list(arrays) == ["pixels", *(each.input for each in inputs)]
    np.testing.assert_array_equal(arrays["pixels"], PIXELS.transpose(2, 0, 1))
    np.testing.assert_array_equal(arrays["pixels_right_side"], PIXELS[::-1].transpose(2, 0, 1))
    np.testing.assert_array_equal(arrays["attributes"], [1, 0, 1])
    np.testing.assert_allclose(arrays["descriptors"], 0, atol=1e-3)


def test_descriptors_need_nothing_but_the_image():
    arrays = sample_arrays(PIXELS, every_kind()[2:], PREPROCESSING)
    assert list(arrays) == ["pixels", "descriptors"]


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (PIXELS, r"an image alone has no 'color', 'size', 'right side', which the model needs; give \{\"image\": …"),
        ({"image": PIXELS, "color": "red", "right side": PIXELS}, "a sample has no 'size'"),
        ({"color": "red", "right side": PIXELS, "size": 1}, "has no 'image'"),
        (
            {"image": PIXELS, "color": "red", "right side": PIXELS, "size": 1, "tint": 1},
            "no input 'tint'; accepted",
        ),
        ({"image": PIXELS, "color": "red", "right side": PIXELS, "size": 4}, "'size': 4 is out of range"),
    ],
)
def test_other_samples_are_refused(sample: object, message: str):
    with pytest.raises(UsageError, match=message):
        sample_arrays(sample, every_kind(), PREPROCESSING)


def test_a_truncated_second_image_is_named():
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "png")
    sample = {"image": PIXELS, "color": "red", "size": 1, "right side": file.getvalue()[:90]}
    with pytest.raises(ImageError, match="input 'right side': "):
        sample_arrays(sample, every_kind(), PREPROCESSING)


IMAGE_INPUT = {"kind": "image", "input": "pixels_a", "name": "a"}


@pytest.mark.parametrize(
    "settings",
    [
        "inputs",
        [1],
        [{"kind": "sound", "input": "a"}],
        [{"kind": "image", "input": "", "name": "a"}],
        [{"kind": "image", "input": "a", "name": 7}],
        [{**IMAGE_INPUT, "more": 1}],
        [IMAGE_INPUT, IMAGE_INPUT],
        [IMAGE_INPUT, {**IMAGE_INPUT, "input": "b"}],
        [{**IMAGE_INPUT, "name": "image"}],
        [{"kind": "attributes", "input": "a"}],
        [{"kind": "descriptors", "input": "a"}],
    ],
)
def test_settings_that_are_not_well_formed_are_refused(settings: list[dict[str, object]]):
    with pytest.raises(ValueError, match="accepted"):
        further_inputs(settings, PREPROCESSING)


def test_an_example_is_accepted():
    from krl_runtime.bundle.further_inputs import example_sample

    for inputs in (every_kind(), every_kind()[2:]):
        arrays = sample_arrays(example_sample(inputs, PIXELS), inputs, PREPROCESSING)
        assert list(arrays) == ["pixels", *(each.input for each in inputs)]
