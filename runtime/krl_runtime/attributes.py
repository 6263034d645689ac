"""Attributes of an image beside its pixels: from names and values to the numbers that a classifier takes.

Training uses this code too. What it needs of the training data, the accepted values and ranges, is in the settings.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from .errors import DataError, UsageError, accepted

__all__ = ["AttributeInput", "Category", "Column", "Number"]

_MOST_VALUES = 1000  # of a category, and so of an input: more are rather identifiers than properties
_MOST_COLUMNS = 1000  # of an input
_MOST_TEXT = 40  # letters of a given value in a message
_LEAST_STD = 1e-9  # below it all values count as equal, and dividing by it would only enlarge rounding


@dataclass(frozen=True)
class Category:
    """An attribute with one of a few values, encoded as one-hot.

    Attributes:
        name: Name of the attribute.
        values: All values that training has seen, sorted.
    """

    name: str
    values: tuple[str, ...]

    @property
    def width(self) -> int:
        """Numbers that encode one value."""
        return len(self.values)

    def encode(self, value: Any) -> list[float]:
        """Return the numbers for one value; see ``AttributeInput.encode``."""
        text = _composed(value)
        if text is None or text not in self.values:
            raise UsageError(f"input {self.name!r}: {_shown(value)} is not known{accepted(value, self.values)}")
        return [float(text == each) for each in self.values]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {"name": self.name, "values": list(self.values)}

    @property
    def example(self) -> str:
        """A value that is accepted."""
        return self.values[0]

    @property
    def expected(self) -> str:
        """Text of the accepted values, for people."""
        return f"one of {', '.join(self.values[:8])}{' …' if len(self.values) > 8 else ''}"


@dataclass(frozen=True)
class Number:
    """A numeric attribute, standardized by mean and standard deviation.

    Attributes:
        name: Name of the attribute.
        minimum: Smallest value of training; smaller ones are refused.
        maximum: Largest value of training; larger ones are refused.
        mean: Mean of training.
        std: Standard deviation of training, positive.
    """

    name: str
    minimum: float
    maximum: float
    mean: float
    std: float

    @property
    def width(self) -> int:
        """Numbers that encode one value."""
        return 1

    def encode(self, value: Any) -> list[float]:
        """Return the numbers for one value; see ``AttributeInput.encode``."""
        number = _number(value)
        if number is None:
            raise UsageError(f"input {self.name!r}: {_shown(value)} is no number; accepted: {self.expected}")
        if not self.minimum <= number <= self.maximum:
            raise UsageError(
                f"input {self.name!r}: {_shown(value)} is out of range; accepted: {self.expected}, as in training"
            )
        return [(number - self.mean) / self.std]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)

    @property
    def example(self) -> float:
        """A value that is accepted: the mean, or the end of the range that rounding put it beyond."""
        return min(max(self.mean, self.minimum), self.maximum)

    @property
    def expected(self) -> str:
        """Text of the accepted values, for people."""
        return f"{self.minimum:g} to {self.maximum:g}"


Column: TypeAlias = "Category | Number"


@dataclass(frozen=True)
class AttributeInput:
    """A classifier's input of attributes: float32 ``[batch, width]``.

    Attributes:
        columns: The attributes, in the order of their numbers.
        input: Name of the graph's input.

    Example:
        >>> rows = [{"color": "red", "size": "1"}, {"color": "blue", "size": "3"}]
        >>> attributes = AttributeInput.fit(rows, ["color", "size"])
        >>> attributes.encode({"color": "red", "size": 3}).tolist()
        [0.0, 1.0, 1.0]
        >>> attributes.encode({"color": "green", "size": 3})
        Traceback (most recent call last):
        krl_runtime.errors.UsageError: input 'color': 'green' is not known; accepted: blue, red
    """

    columns: tuple[Column, ...]
    input: str = "attributes"
    kind: ClassVar[str] = "attributes"

    @property
    def width(self) -> int:
        """Length of the encoded vector."""
        return sum(column.width for column in self.columns)

    @property
    def shape(self) -> tuple[int]:
        """Shape of one sample's array."""
        return (self.width,)

    @property
    def names(self) -> tuple[str, ...]:
        """Names that a sample has to give."""
        return tuple(column.name for column in self.columns)

    def encode(self, values: Mapping[str, Any]) -> npt.NDArray[np.float32]:
        """Turn one sample's attributes into numbers.

        Args:
            values: A value for each name; text or a number. Other names are ignored.

        Returns:
            float32 ``[width]``: one-hot of each category, and each standardized number.

        Raises:
            UsageError: A value is not known or out of the range of training. The message says what is accepted.
            KeyError: A name is missing.
        """
        return np.array([each for column in self.columns for each in column.encode(values[column.name])], np.float32)

    @classmethod
    def fit(
        cls, rows: Sequence[Mapping[str, str]], columns: Sequence[str], categories: Collection[str] = ()
    ) -> AttributeInput:
        """Take from training data what the encoding needs.

        An attribute whose values are all numbers is numeric, any other one is a category.

        Args:
            rows: Each training image's attributes as text.
            columns: Names of the attributes, in the order of their numbers.
            categories: Those of them that are categories although all of their values are numbers.

        Raises:
            DataError: There are no rows, a value is missing or not finite, or a category has too many values.
            UsageError: A name is given twice, or ``categories`` names no column.
        """
        _check_names(columns, categories)
        if not rows:
            raise DataError("there are no training images to take the attributes' values from")
        return cls(tuple(_fit(name, [row.get(name, "") for row in rows], name in categories) for name in columns))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, as settings have them."""
        columns = [column.to_dict() for column in self.columns]
        return {"kind": self.kind, "input": self.input, "columns": columns}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AttributeInput:
        """Build from plain JSON types.

        Raises:
            ValueError: A key is missing or unknown, or a value is not accepted.
        """
        columns = values.get("columns")
        if set(values) != {"kind", "input", "columns"} or not isinstance(columns, list):
            raise ValueError(f"attributes have {sorted(values)}; accepted: kind, input and a list of columns")
        found = tuple(map(_column, columns))
        if not 0 < len(found) <= _MOST_COLUMNS or sum(column.width for column in found) > _MOST_COLUMNS * 10:
            raise ValueError(f"attributes have {len(found)} columns; accepted: 1 to {_MOST_COLUMNS}")
        return cls(found, values["input"])


def _check_names(columns: Sequence[str], categories: Collection[str]) -> None:
    if not columns or len(set(columns)) < len(columns) or not all(columns):
        raise UsageError(f"the attributes are {list(columns)}; accepted: one name or several, each once")
    unknown = sorted(set(categories) - set(columns))
    if unknown:
        raise UsageError(f"the category {unknown[0]!r} is none of the attributes{accepted(unknown[0], columns)}")


def _fit(name: str, texts: Sequence[str], is_category: bool) -> Column:
    """Return an attribute with the values or the range of its training data."""
    values = [_composed(text) for text in texts]
    if None in values or "" in values:
        raise DataError(f"attribute {name!r} is empty for an image; accepted: a value for each image")
    numbers = [_number(text) for text in texts]
    known = [number for number in numbers if number is not None]
    if len(known) == len(numbers) and not is_category:
        array = np.array(known, np.float64)
        std = float(array.std())
        return Number(name, min(known), max(known), float(array.mean()), std if std > _LEAST_STD else 1.0)
    different = sorted({text for text in values if text is not None})
    if len(different) > _MOST_VALUES:
        odd = next((text for text, number in zip(texts, numbers, strict=True) if number is None), None)
        hint = "" if odd is None else f" (it is no number because of {_shown(odd)})"
        raise DataError(f"attribute {name!r} has {len(different)} values{hint}; accepted: {_MOST_VALUES} at most")
    return Category(name, tuple(different))


def _column(values: Any) -> Column:
    """Return an attribute from plain JSON types."""
    if not isinstance(values, Mapping) or not isinstance(values.get("name"), str) or not values["name"]:
        raise ValueError(f"an attribute is {values!r}; accepted: an object with a name")
    name = values["name"]
    if set(values) == {"name", "values"}:
        known = values["values"]
        texts = isinstance(known, list) and 0 < len(known) <= _MOST_VALUES
        if not texts or not all(isinstance(each, str) and each for each in known) or len(set(known)) < len(known):
            raise ValueError(f"attribute {name!r} has the values {known!r}; accepted: different texts")
        return Category(name, tuple(known))
    keys = ("minimum", "maximum", "mean", "std")
    if set(values) != {"name", *keys}:
        raise ValueError(f"attribute {name!r} has {sorted(values)}; accepted: name with values, or with {keys}")
    numbers = [values[key] for key in keys]
    finite = all(
        isinstance(each, int | float) and not isinstance(each, bool) and _number(each) is not None for each in numbers
    )
    if not finite or values["minimum"] > values["maximum"] or values["std"] <= 0:
        raise ValueError(f"attribute {name!r} has {dict(values)}; accepted: finite numbers, a range, a positive std")
    return Number(name, *(float(each) for each in numbers))


def _composed(value: Any) -> str | None:
    """Return a category's value as lists have it; ``None`` for what is neither text nor a number."""
    if isinstance(value, bool):
        return str(value).lower()  # as in JSON
    return unicodedata.normalize("NFC", str(value).strip()) if isinstance(value, str | int | float) else None


def _number(value: Any) -> float | None:
    """Return a finite number; ``None`` for anything else."""
    if isinstance(value, bool) or not isinstance(value, str | int | float | np.number):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]}…"
