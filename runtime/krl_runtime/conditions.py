"""Conditions of a generator: from a user's text to the tokens that the graph takes. Training uses this code too.

The settings of a condition are a plain JSON object that the run and the bundle's manifest share::

    kind        "labels", "attributes", "text" or "graph"
    length      L, tokens of one condition
    dim         D, length of the vector that the generator makes of them
    vocabulary  all tokens; a token's number is its index here
    relations   graph only: the vocabulary's relations, which follow its first entry
    facts       graph only: [head, relation, tail], the known facts of each entity
    untrained   text only, optional: words of the vocabulary that no training description has; a sentence-embedding
                model gave their meaning

The vocabularies:

- labels: the class names, ``["zero", "one", …]``; a condition is one of them, ``"seven"``.
- attributes: for each attribute ``"color="``, which leaves it open, and ``"color=red"`` … for its values. A condition
  is ``"color=red,digit=seven"`` or a mapping. Attributes that it does not name are open.
- text: ``""`` for padding, then words; a condition is a description, ``"a red seven"``.
- graph: ``""`` for "no fact", then relations, then entities. A condition is an entity, facts to wish for, or both:
  ``"seven"``, ``"color=red,digit=seven"``, ``"seven,color=red"``. A wished fact replaces a known one.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .errors import UsageError, accepted

__all__ = ["KINDS", "Condition", "attribute_values", "check_settings", "encode", "words"]

KINDS = ("labels", "attributes", "text", "graph")

Condition: TypeAlias = "str | Mapping[str, str]"
"""One condition: text, or a mapping from attributes (relations) to values (entities)."""

_log = logging.getLogger("krl")

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def encode(conditions: Condition | Sequence[Condition], settings: Mapping[str, Any]) -> npt.NDArray[np.int64]:
    """Turn conditions into tokens.

    Args:
        conditions: One condition or several, written as their kind requires; see the module's docstring.
        settings: The condition's settings.

    Returns:
        Tokens ``[N, L]``.

    Raises:
        UsageError: A label, attribute, value, word, relation or entity is not known, or a condition is too long. The
            message names the accepted ones.

    Example:
        >>> settings = {"kind": "labels", "length": 1, "dim": 8, "vocabulary": ["zero", "one", "two"]}
        >>> encode(["two", "zero"], settings).tolist()
        [[2], [0]]
        >>> encode("three", settings)
        Traceback (most recent call last):
        krl_runtime.errors.UsageError: condition: label 'three' is not known; accepted: zero, one, two
    """
    several = [conditions] if isinstance(conditions, str | Mapping) else conditions
    if not isinstance(several, Sequence):
        raise UsageError(f"condition {conditions!r} is a {type(conditions).__name__}; accepted: text, or a mapping")
    known = {token: number for number, token in enumerate(settings["vocabulary"])}
    encode_one = {"labels": _label, "attributes": _attributes, "text": _text, "graph": _graph}[settings["kind"]]
    # A text that comes a thousand times is read and logged once.
    texts = {text: encode_one(text, settings, known) for text in several if isinstance(text, str)}
    tokens = [texts[each] if isinstance(each, str) else encode_one(each, settings, known) for each in several]
    return np.array(tokens, np.int64).reshape(len(several), settings["length"])


def check_settings(settings: Any) -> None:
    """Check that a condition's settings, which may come from a third-party file, are whole.

    Raises:
        UsageError: A key is missing or has a value that cannot be.
    """
    if not isinstance(settings, Mapping):
        raise UsageError(f"the settings of a condition are a {type(settings).__name__}; expected an object")
    if settings.get("kind") not in KINDS:
        raise UsageError(f"a condition of kind {settings.get('kind')!r} is not known; known: {', '.join(KINDS)}")
    for name in ("length", "dim"):
        value = settings.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UsageError(f"the condition's {name} is {value!r}; expected a whole number, 1 or more")
    for name in ("vocabulary", "relations") if settings["kind"] == "graph" else ("vocabulary",):
        value = settings.get(name)
        listed = isinstance(value, Sequence) and not isinstance(value, str)
        if not listed or not value or not all(isinstance(item, str) for item in value):
            raise UsageError(f"the condition's {name} is not a list of texts")
        if len(set(value)) != len(value):
            raise UsageError(f"the condition's {name} has an entry twice")
    if settings["kind"] == "attributes":
        _check_attributes(settings)
    untrained = settings.get("untrained", [])
    if not isinstance(untrained, list | tuple) or not all(word in settings["vocabulary"] for word in untrained):
        raise UsageError("the condition's untrained words are not a list of words of its vocabulary")
    if settings["kind"] == "graph":
        _check_graph(settings)


def _check_attributes(settings: Mapping[str, Any]) -> None:
    bad = [token for token in settings["vocabulary"] if not token.partition("=")[0] or "=" not in token]
    if bad:
        raise UsageError(f"the condition's vocabulary has {bad[0]!r}; expected ATTRIBUTE= or ATTRIBUTE=VALUE")
    attributes = attribute_values(settings)
    missing = [name for name in attributes if f"{name}=" not in settings["vocabulary"]]
    if missing or len(attributes) != settings["length"]:
        raise UsageError(
            f"the condition's vocabulary has {len(attributes)} attributes for a length of {settings['length']}"
            + (f", and no {missing[0]}= that leaves one open" if missing else "")
        )


def _check_graph(settings: Mapping[str, Any]) -> None:
    if settings["length"] % 2:
        raise UsageError(f"the condition's length is {settings['length']}; a graph's facts are pairs of tokens")
    relations, vocabulary = list(settings["relations"]), list(settings["vocabulary"])
    if vocabulary[1 : 1 + len(relations)] != relations:
        raise UsageError("the condition's vocabulary does not begin with '' and the relations")
    facts, entities = settings.get("facts"), set(vocabulary[1 + len(relations) :])
    if not isinstance(facts, Sequence) or isinstance(facts, str):
        raise UsageError("the condition's facts are not a list")
    for fact in facts:
        whole = isinstance(fact, Sequence) and len(fact) == 3 and all(isinstance(part, str) for part in fact)
        if not whole or fact[0] not in entities or fact[1] not in relations or fact[2] not in entities:
            raise UsageError(f"the condition's fact {fact!r} is not [entity, relation, entity] of the vocabulary")


def words(text: str) -> list[str]:
    """Return a text's words in lower case; punctuation separates them and is dropped."""
    return _WORD.findall(text.lower())


def attribute_values(settings: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the values of each attribute, by name, in the order of the tokens."""
    values: dict[str, list[str]] = {}
    for token in settings["vocabulary"]:
        name, _, value = token.partition("=")
        values.setdefault(name, []).extend([value] if value else [])
    return values


def _label(condition: Condition, settings: Mapping[str, Any], known: Mapping[str, int]) -> list[int]:
    if not isinstance(condition, str):
        raise UsageError(f"condition {condition!r}: expected one label{accepted('', settings['vocabulary'])}")
    name = condition.strip()
    if name not in known:
        raise UsageError(f"condition: label {name!r} is not known{accepted(name, settings['vocabulary'])}")
    return [known[name]]


def _attributes(condition: Condition, settings: Mapping[str, Any], known: Mapping[str, int]) -> list[int]:
    values = attribute_values(settings)
    named, wanted = _parts(condition)
    if named:
        example = ",".join(f"{name}={each[0]}" for name, each in values.items() if each)
        raise UsageError(f"condition {condition!r}: {named[0]!r} is not ATTRIBUTE=VALUE; write it as {example!r}")
    for name, value in wanted:
        if name not in values:
            raise UsageError(f"condition: attribute {name!r} is not known{accepted(name, list(values))}")
        if value and value not in values[name]:
            raise UsageError(f"condition: {name}={value!r} is not known{accepted(value, values[name])}")
    chosen = _once(wanted)
    return [known[f"{name}={chosen.get(name, '')}"] for name in values]


def _text(condition: Condition, settings: Mapping[str, Any], known: Mapping[str, int]) -> list[int]:
    if not isinstance(condition, str):
        raise UsageError(f"condition {condition!r}: expected a description in words")
    found, length = words(condition), int(settings["length"])
    if not found:
        raise UsageError(f"condition {condition!r} has no words; give a description")
    for word in found:
        if word not in known:
            raise UsageError(f"condition: the word {word!r} is not known{accepted(word, settings['vocabulary'][1:])}")
    if len(found) > length:
        raise UsageError(f"condition {condition!r} has {len(found)} words; accepted: {length} at most")
    guessed = [word for word in found if word in settings.get("untrained", ())]
    if guessed:
        _log.warning(
            "condition %r: no training description has %s; its meaning comes from a sentence-embedding model",
            condition,
            " or ".join(repr(word) for word in guessed),
        )
    return [known[word] for word in found] + [0] * (length - len(found))


def _graph(condition: Condition, settings: Mapping[str, Any], known: Mapping[str, int]) -> list[int]:
    relations = list(settings["relations"])
    entities = settings["vocabulary"][1 + len(relations) :]
    named, wanted = _parts(condition)
    for name in (*named, *(value for _, value in wanted)):
        if name not in entities:
            raise UsageError(f"condition: entity {name!r} is not known{accepted(name, entities)}")
    for relation, _ in wanted:
        if relation not in relations:
            raise UsageError(f"condition: relation {relation!r} is not known{accepted(relation, relations)}")
    if len(named) > 1 or not (named or wanted):
        raise UsageError(f"condition {condition!r} names {len(named)} entities; accepted: ENTITY, RELATION=ENTITY,…")
    asked = {relation for relation, _ in wanted}
    facts: list[tuple[str, str]] = []
    if named:
        about = [(relation, tail) for head, relation, tail in settings["facts"] if head == named[0]]
        facts = [fact for fact in about if fact[0] not in asked] if about else [("", named[0])]
    facts += [fact for fact in wanted if fact not in facts]
    if 2 * len(facts) > settings["length"]:
        raise UsageError(f"condition {condition!r} has {len(facts)} facts; accepted: {settings['length'] // 2} at most")
    tokens = [known[part] for fact in facts for part in fact]
    return tokens + [0] * (settings["length"] - len(tokens))


def _parts(condition: Condition) -> tuple[list[str], list[tuple[str, str]]]:
    """Split ``"seven,color=red"`` into names and pairs."""
    if isinstance(condition, Mapping):
        return [], [(str(name), str(value)) for name, value in condition.items()]
    named, pairs = [], []
    for part in condition.split(","):
        name, separator, value = (piece.strip() for piece in part.partition("="))
        if separator:
            pairs.append((name, value))
        elif name:
            named.append(name)
    return named, pairs


def _once(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in pairs:
        if found.setdefault(name, value) != value:
            raise UsageError(f"condition: {name} is given twice, as {found[name]!r} and {value!r}; give it once")
    return found
