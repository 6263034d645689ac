from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from krl_runtime.conditions import check_settings, encode, words
from krl_runtime.errors import UsageError

LABELS = {"kind": "labels", "length": 1, "dim": 4, "vocabulary": ["cat", "dog"]}
ATTRIBUTES = {
    "kind": "attributes",
    "length": 2,
    "dim": 4,
    "vocabulary": ["color=", "color=blue", "color=red", "kind=", "kind=rose"],
}
TEXT = {"kind": "text", "length": 4, "dim": 4, "vocabulary": ["", "a", "red", "rose", "white"]}
GRAPH = {
    "kind": "graph",
    "length": 4,
    "dim": 4,
    "vocabulary": ["", "color", "kind", "red", "rose", "rosa", "white"],
    "relations": ["color", "kind"],
    "facts": [["rosa", "color", "red"], ["rosa", "kind", "rose"]],
}
ALL = (LABELS, ATTRIBUTES, TEXT, GRAPH)


@pytest.mark.parametrize(
    ("settings", "condition", "tokens"),
    [
        (LABELS, "dog", [1]),
        (LABELS, " cat ", [0]),
        (ATTRIBUTES, "color=red,kind=rose", [2, 4]),
        (ATTRIBUTES, " kind = rose , color = blue ", [1, 4]),
        (ATTRIBUTES, "kind=rose", [0, 4]),
        (ATTRIBUTES, "color=,kind=rose", [0, 4]),
        (ATTRIBUTES, {"color": "blue"}, [1, 3]),
        (ATTRIBUTES, {}, [0, 3]),
        (TEXT, "a red rose", [1, 2, 3, 0]),
        (TEXT, "White, Rose!", [4, 3, 0, 0]),
        (GRAPH, "rosa", [1, 3, 2, 4]),
        (GRAPH, "rosa,color=white", [2, 4, 1, 6]),  # what is wanted replaces what is known
        (GRAPH, "kind=rose,color=white", [2, 4, 1, 6]),
        (GRAPH, {"color": "white"}, [1, 6, 0, 0]),
        (GRAPH, "red", [0, 3, 0, 0]),  # nothing is known of it but itself
    ],
)
def test_tokens_by_hand(settings: dict[str, Any], condition: Any, tokens: list[int]) -> None:
    result = encode(condition, settings)
    assert result.dtype == np.int64
    assert result.tolist() == [tokens]


def test_several_conditions_are_rows() -> None:
    assert encode(["cat", "dog", "dog"], LABELS).tolist() == [[0], [1], [1]]
    assert encode([], TEXT).shape == (0, 4)


@pytest.mark.parametrize(
    ("settings", "condition", "message"),
    [
        (LABELS, "cow", "label 'cow' is not known; accepted: cat, dog"),
        (LABELS, {"kind": "cat"}, "expected one label; accepted: cat, dog"),
        (ATTRIBUTES, "size=big", "attribute 'size' is not known; accepted: color, kind"),
        (ATTRIBUTES, "color=pink", "color='pink' is not known; accepted: blue, red"),
        (ATTRIBUTES, "red", "'red' is not ATTRIBUTE=VALUE; write it as 'color=blue,kind=rose'"),
        (ATTRIBUTES, "color=red,color=blue", "color is given twice, as 'red' and 'blue'"),
        (TEXT, "a pink rose", "the word 'pink' is not known; accepted: a, red, rose, white"),
        (TEXT, "a red rose a rose", "has 5 words; accepted: 4 at most"),
        (TEXT, "...", "has no words"),
        (TEXT, {"a": "b"}, "expected a description in words"),
        (GRAPH, "tulip", "entity 'tulip' is not known; accepted: red, rose, rosa, white"),
        (GRAPH, "size=red", "relation 'size' is not known; accepted: color, kind"),
        (GRAPH, "rosa,rose", "names 2 entities"),
        (GRAPH, "", "names 0 entities"),
        (GRAPH, "color=red,color=white,kind=rose", "has 3 facts; accepted: 2 at most"),
    ],
)
def test_what_is_not_known_is_named(settings: dict[str, Any], condition: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        encode(condition, settings)


def test_a_long_vocabulary_gets_close_words() -> None:
    settings = {**TEXT, "vocabulary": ["", *(f"word{index:03d}" for index in range(100)), "yellow"]}
    with pytest.raises(UsageError, match=r"'yelow' is not known; did you mean yellow\? 101 are known"):
        encode("yelow", settings)


def test_words_are_lower_case_without_punctuation() -> None:
    assert words("A red-hot 7, it's  “Nice”_now") == ["a", "red-hot", "7", "it's", "nice", "now"]


@pytest.mark.parametrize("settings", ALL, ids=lambda settings: settings["kind"])
def test_whole_settings_are_accepted(settings: dict[str, Any]) -> None:
    check_settings(settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], "are a list; expected an object"),
        ({**LABELS, "kind": "smell"}, "kind 'smell' is not known; known: labels, attributes, text, graph"),
        ({**LABELS, "length": 0}, "length is 0"),
        ({**LABELS, "dim": True}, "dim is True"),
        ({**LABELS, "vocabulary": []}, "vocabulary is not a list of texts"),
        ({**LABELS, "vocabulary": "abc"}, "vocabulary is not a list of texts"),
        ({**LABELS, "vocabulary": ["a", 1]}, "vocabulary is not a list of texts"),
        ({**LABELS, "vocabulary": ["a", "a"]}, "has an entry twice"),
        ({**ATTRIBUTES, "vocabulary": ["color=", "red"]}, "has 'red'; expected ATTRIBUTE="),
        ({**ATTRIBUTES, "vocabulary": ["color=", "kind=rose"]}, "no kind= that leaves one open"),
        ({**ATTRIBUTES, "length": 3}, "2 attributes for a length of 3"),
        ({**TEXT, "untrained": "red"}, "untrained words are not a list of words of its vocabulary"),
        ({**TEXT, "untrained": ["pink"]}, "untrained words are not a list of words of its vocabulary"),
        ({**GRAPH, "length": 3}, "length is 3; a graph's facts are pairs"),
        ({**GRAPH, "relations": ["kind"]}, "does not begin with '' and the relations"),
        ({**GRAPH, "facts": [["rosa", "color"]]}, r"fact \['rosa', 'color'\] is not"),
        ({**GRAPH, "facts": [["rosa", "color", "pink"]]}, "is not .entity, relation, entity. of the vocabulary"),
        ({**GRAPH, "facts": "rosa"}, "facts are not a list"),
    ],
)
def test_damaged_settings_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_settings(settings)


def test_a_condition_is_text() -> None:
    with pytest.raises(UsageError, match="condition 3 is a int; accepted: text, or a mapping"):
        encode(3, LABELS)  # type: ignore[arg-type]


def test_a_word_that_training_never_read_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    settings = {**TEXT, "untrained": ["white", "red"]}
    check_settings(settings)
    with caplog.at_level("WARNING", logger="krl"):
        assert encode("a rose", settings).tolist() == [[1, 3, 0, 0]]
        assert not caplog.messages
        assert encode("a white, red rose", settings).tolist() == [[1, 4, 2, 3]]
    assert caplog.messages == [
        "condition 'a white, red rose': no training description has 'white' or 'red'; its meaning comes from a "
        "sentence-embedding model"
    ]
