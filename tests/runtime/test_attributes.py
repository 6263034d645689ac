from __future__ import annotations

import json

import numpy as np
import pytest

from krl_runtime.attributes import AttributeInput, Category, Number
from krl_runtime.errors import DataError, UsageError

ROWS = [
    {"color": "red", "size": "1", "code": "7"},
    {"color": "blue", "size": "2.5", "code": "11"},
    {"color": "red", "size": "-4e0", "code": "7"},
]


def fitted() -> AttributeInput:
    return AttributeInput.fit(ROWS, ["size", "color", "code"], categories=["code"])


def test_numbers_are_standardized_and_categories_are_one_hot():
    attributes = fitted()
    sizes = np.array([1, 2.5, -4])
    expected = [
        [(size - sizes.mean()) / sizes.std(), *hot]
        for size, hot in zip(sizes, [(0, 1, 0, 1), (1, 0, 1, 0), (0, 1, 0, 1)], strict=True)
    ]
    encoded = np.stack([attributes.encode(row) for row in ROWS])
    assert encoded.dtype == np.float32
    assert attributes.shape == (5,)
    assert attributes.names == ("size", "color", "code")
    np.testing.assert_allclose(encoded, np.array(expected, np.float32), rtol=1e-6)


def test_values_of_python_are_those_of_a_list():
    attributes = fitted()
    np.testing.assert_array_equal(
        attributes.encode({"color": " red ", "size": np.float32(2.5), "code": 7}),
        attributes.encode({"color": "red", "size": "2.5", "code": "7"}),
    )
    boolean = AttributeInput.fit([{"wet": "true"}, {"wet": "false"}], ["wet"])
    assert boolean.encode({"wet": True}).tolist() == [0, 1]


def test_settings_come_back_from_json():
    assert AttributeInput.from_dict(json.loads(json.dumps(fitted().to_dict()))) == fitted()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": "3"}, r"'size': '3' is out of range; accepted: -4 to 2.5"),
        ({"size": -4.1}, "'size': -4.1 is out of range"),
        ({"size": float("nan")}, "'size': nan is no number"),
        ({"size": "inf"}, "'size': 'inf' is no number"),
        ({"size": "big"}, "'size': 'big' is no number; accepted: -4 to 2.5"),
        ({"size": True}, "'size': True is no number"),
        ({"size": None}, "'size': None is no number"),
        ({"size": "9" * 5000}, "is no number"),
        ({"color": "green"}, "'color': 'green' is not known; accepted: blue, red"),
        ({"color": ["red"]}, "'color'.*is not known"),
        ({"code": 8}, "'code': 8 is not known; accepted: 11, 7"),
    ],
)
def test_other_values_are_refused_with_what_is_accepted(values: dict[str, object], message: str):
    with pytest.raises(UsageError, match=message):
        fitted().encode({**ROWS[0], **values})


def test_of_many_values_the_closest_are_named():
    many = AttributeInput.fit([{"place": f"street {number:03d}"} for number in range(100)], ["place"])
    with pytest.raises(UsageError, match=r"did you mean street 07.*100 are known"):
        many.encode({"place": "stret 077"})


def test_an_attribute_that_never_varies_stays_finite():
    same = AttributeInput.fit([{"size": "0.1"}] * 3, ["size"])
    assert np.abs(same.encode({"size": "0.1"})).max() < 1e-6


@pytest.mark.parametrize(
    ("rows", "columns", "categories", "message"),
    [
        ([], ["a"], [], "no training images"),
        ([{"a": " "}], ["a"], [], "'a' is empty"),
        ([{}], ["a"], [], "'a' is empty"),
        ([{"a": f"v{n}"} for n in range(1001)], ["a"], [], "'a' has 1001 values.*'v0'"),
    ],
)
def test_training_data_that_cannot_be_used_are_refused(
    rows: list[dict[str, str]], columns: list[str], categories: list[str], message: str
):
    with pytest.raises(DataError, match=message):
        AttributeInput.fit(rows, columns, categories)


@pytest.mark.parametrize(("columns", "categories"), [([], []), (["a", "a"], []), (["a"], ["b"])])
def test_names_are_given_once(columns: list[str], categories: list[str]):
    with pytest.raises(UsageError):
        AttributeInput.fit([{"a": "1"}], columns, categories)


@pytest.mark.parametrize(
    "column",
    [
        {"name": "a", "values": []},
        {"name": "a", "values": ["x", "x"]},
        {"name": "a", "values": ["x", 1]},
        {"name": "", "values": ["x"]},
        {"name": "a"},
        {"name": "a", "minimum": 1, "maximum": 0, "mean": 0, "std": 1},
        {"name": "a", "minimum": 0, "maximum": 1, "mean": 0, "std": 0},
        {"name": "a", "minimum": 0, "maximum": float("inf"), "mean": 0, "std": 1},
        {"name": "a", "minimum": 0, "maximum": True, "mean": 0, "std": 1},
        {"name": "a", "minimum": 0, "maximum": 10**400, "mean": 0, "std": 1},
        {"name": "a", "values": ["x"], "minimum": 0},
        "a",
    ],
)
def test_settings_that_are_not_whole_are_refused(column: object):
    with pytest.raises(ValueError, match="accepted"):
        AttributeInput.from_dict({"kind": "attributes", "input": "attributes", "columns": [column]})


def test_columns_have_their_own_messages():
    assert Category("a", tuple(map(str, range(10)))).expected == "one of 0, 1, 2, 3, 4, 5, 6, 7 …"
    assert Number("a", 0, 1.5, 0, 1).expected == "0 to 1.5"
