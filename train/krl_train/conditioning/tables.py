"""Files of knowledge, read and checked: tables of attributes, descriptions, and triples."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from krl_runtime.conditions import words
from krl_runtime.errors import DataError

__all__ = ["Triple", "read_attributes", "read_texts", "read_triples", "read_words"]

Triple: TypeAlias = tuple[str, str, str]
"""Head, relation, tail."""

_IMAGE = "image"
_Row = TypeVar("_Row")


def read_attributes(file: Path) -> dict[str, dict[str, str]]:
    """Read a table of attributes.

    Args:
        file: CSV; its first line names the columns: ``image`` and one for each attribute. An empty cell leaves the
            attribute open.

    Returns:
        For each image its attributes' values, by name; all have the same names in the same order.

    Raises:
        DataError: There is no such table, an image comes twice, or a value has a comma, which a condition could not
            be written with.
    """
    rows = _rows(file)
    _, header = next(rows)
    names = [name for name in header if name != _IMAGE]
    if _IMAGE not in header or not names or len(set(header)) != len(header):
        raise DataError(f"{file}: its columns are {', '.join(header)}; expected image and different attributes")
    if any(not name or "=" in name or "," in name for name in names):
        raise DataError(f"{file}: its columns are {header}; an attribute's name has neither '=' nor ',' nor is empty")
    table: dict[str, dict[str, str]] = {}
    for line, cells in rows:
        if len(cells) != len(header):
            raise DataError(f"{file}, line {line} has {len(cells)} columns; the first line has {len(header)}")
        row = dict(zip(header, cells, strict=True))
        image = row.pop(_IMAGE)
        if image in table:
            raise DataError(f"{file}, line {line}: image {image!r} comes for the second time; keep one row of it")
        if any("," in value for value in row.values()):
            raise DataError(f"{file}, line {line}: a value has a comma; write it without")
        table[image] = row
    return _not_empty(table, file)


def read_texts(file: Path) -> dict[str, list[str]]:
    """Read descriptions.

    Args:
        file: CSV with the columns ``image`` and ``text``, or, where its name ends in ``.jsonl``, one JSON object in
            each line with these keys, ``text`` being one text or a list. An image may come several times.

    Returns:
        The descriptions of each image.

    Raises:
        DataError: There is no such table.
    """
    table: dict[str, list[str]] = {}
    pairs = _json_pairs(file) if file.suffix == ".jsonl" else _csv_pairs(file)
    for image, texts in pairs:
        table.setdefault(image, []).extend(texts)
    return _not_empty(table, file)


def read_words(file: Path) -> list[str]:
    """Read words, one in a line; empty lines are left out.

    Returns:
        The words in lower case, each once, in the file's order.

    Raises:
        DataError: A line has several words, or there is none.
    """
    found: dict[str, None] = {}
    for line, text in enumerate(_content(file).splitlines(), 1):
        several = words(text)
        if len(several) > 1 or (text.strip() and not several):
            raise DataError(f"{file}, line {line}: {text.strip()!r} is not one word; write one in each line")
        found.update(dict.fromkeys(several))
    if not found:
        raise DataError(f"{file} has no words")
    return list(found)


def read_triples(file: Path) -> list[Triple]:
    """Read the facts of a graph.

    Args:
        file: CSV of three columns, head, relation, tail; a first line ``head,relation,tail`` is left out.

    Returns:
        The facts, each once, in the file's order.

    Raises:
        DataError: A line has not three entries, or a name has ``,`` or ``=``, or a relation is an entity as well.
    """
    facts: dict[Triple, None] = {}
    for line, cells in _rows(file):
        if line == 1 and cells == ["head", "relation", "tail"]:
            continue
        if len(cells) != 3 or not all(cells):
            raise DataError(f"{file}, line {line} is {','.join(cells)!r}; expected three entries, head,relation,tail")
        if any("," in cell or "=" in cell for cell in cells):
            raise DataError(f"{file}, line {line}: a name has ',' or '='; write it without")
        facts[(cells[0], cells[1], cells[2])] = None
    relations = {relation for _, relation, _ in facts}
    both = relations & {entity for head, _, tail in facts for entity in (head, tail)}
    if both:
        raise DataError(f"{file}: {sorted(both)[0]!r} is an entity and a relation; give one of them another name")
    if not facts:
        raise DataError(f"{file} has no facts; expected lines head,relation,tail")
    return list(facts)


def _not_empty(table: dict[str, _Row], file: Path) -> dict[str, _Row]:
    if not table:
        raise DataError(f"{file} has no rows; expected one or more for each training image")
    return table


def _csv_pairs(file: Path) -> Iterator[tuple[str, list[str]]]:
    rows = _rows(file)
    _, header = next(rows)
    if sorted(header) != [_IMAGE, "text"]:
        raise DataError(f"{file}: its columns are {', '.join(header)}; expected image,text")
    for line, cells in rows:
        if len(cells) != 2:
            raise DataError(f"{file}, line {line} has {len(cells)} columns, expected 2; quote a text with commas")
        yield cells[header.index(_IMAGE)], [cells[header.index("text")]]


def _json_pairs(file: Path) -> Iterator[tuple[str, list[str]]]:
    for line, text in enumerate(_content(file).splitlines(), 1):
        if not text.strip():
            continue
        try:
            row: Any = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file}, line {line} is not JSON: {error}") from error
        image, texts = (row.get(_IMAGE), row.get("text")) if isinstance(row, dict) else (None, None)
        several = texts if isinstance(texts, list) else [texts]
        if not isinstance(image, str) or not several or not all(isinstance(item, str) for item in several):
            raise DataError(f'{file}, line {line}: expected {{"image": "…", "text": "…"}}, text being one or a list')
        yield image, [str(item) for item in several]


def _rows(file: Path) -> Iterator[tuple[int, Sequence[str]]]:
    """Yield the lines of a CSV file that are not empty, with their numbers."""
    reader = csv.reader(io.StringIO(_content(file), newline=""), strict=True)
    empty = True
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                empty = False
                yield reader.line_num, [cell.strip() for cell in cells]
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num} is not CSV: {error}") from error
    if empty:
        raise DataError(f"{file} is empty")


def _content(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the conditions' file {file} cannot be read: {error}") from error
