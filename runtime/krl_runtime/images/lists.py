"""Lists of images: CSV and JSON files that name images, their labels and their splits."""

from __future__ import annotations

import csv
import io
import json
import logging
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn

from krl_runtime.errors import DataError

from .formats import IMAGE_SUFFIXES
from .listed_files import FilesBelow, plain_path
from .splits import Role, role_of

__all__ = ["LIST_SUFFIXES", "ImageList", "ListedImage", "is_list", "listed_files", "read_list"]

_log = logging.getLogger("krl")

LIST_SUFFIXES: Final = (".csv", ".tsv", ".json", ".jsonl")
"""Names of files that are read as lists of images."""

_MOST_BYTES = 256 * 2**20  # of a list, read whole: that of ImageNet's 1.3 million images takes 60 MB
_MOST_LABELS = 20_000  # as of ImageNet-21k; a table of all images and labels must fit into memory
_SHOWN = 5  # lines that a message names

# Spellings of columns in public data sets, in small letters and without what is between them.
_IMAGE = frozenset(
    {"image", "images", "img", "file", "filename", "path", "filepath"}
    | {f"{first}{second}" for first in ("image", "img") for second in ("file", "filename", "name", "path")}
)
_LABEL = frozenset({"label", "class", "classname", "labelname", "category", "target"})
_LABELS = frozenset({"labels", "classes", "tags", "categories", "targets"})
_SPLIT = frozenset({"split", "set", "subset", "partition"})
_SEPARATORS = ("|", ";", ",")  # of several labels in one field; the first that occurs in a list is the list's
_DELIMITERS = (",", ";", "\t")
_FLAGS: Mapping[str, bool] = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}


@dataclass(frozen=True)
class ListedImage:
    """One image of a list.

    Attributes:
        path: The file.
        labels: Indices of its labels, the rarest of the list first; one or none where the list is not multi-label.
        role: ``"train"``, ``"val"`` or ``"test"``; empty where the list has no splits.
        fields: Further columns that were asked for, by name: text, of images the path of the file.
    """

    path: Path
    labels: tuple[int, ...]
    role: Role
    fields: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class ImageList:
    """A list that was read.

    Attributes:
        labels: Names of the labels, sorted; empty for a list of images alone.
        multi_label: Whether an image can have several labels, or none.
        images: The images, in the list's order.
        missing: A sentence for each file that is not there.
    """

    labels: tuple[str, ...]
    multi_label: bool
    images: tuple[ListedImage, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class _Row:
    """One image as the list has it: where it stands, for messages, and its fields by column."""

    where: str
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class _Columns:
    """Names of the columns; ``flags`` are those that say of one label each whether an image has it."""

    image: str
    label: str | None
    labels: str | None
    split: str | None
    flags: tuple[str, ...]
    attributes: tuple[str, ...]
    images: tuple[str, ...]


def is_list(path: Path) -> bool:
    """Return whether a path is that of a list of images, by its name."""
    return path.suffix.lower() in LIST_SUFFIXES and path.is_file()


def read_list(path: Path, *, attributes: Sequence[str] = (), images: Sequence[str] = ()) -> ImageList:
    """Read a list of images: ``.csv`` and ``.tsv`` with a header, ``.json`` (a list of objects), ``.jsonl``.

    Paths are relative to the list's folder and stay in it. A column ``label`` has the one class of each image. A column
    ``labels`` has any number of names, separated by ``|``, ``;`` or ``,``, or as a JSON list; columns of 0 and 1 say of
    one label each whether an image has it. Such a list is multi-label. ``split`` is ``train``, ``val`` or ``test``.

    Args:
        path: The list.
        attributes: Names of further columns whose text is kept in ``ListedImage.fields``.
        images: Names of further columns with images, whose files are kept there; paths as those of the first image.

    Raises:
        DataError: The file cannot be read, is too large or empty, or a line cannot be used; lines are named. Or a
            column that was asked for is not there, or has nothing in a line.
    """
    rows = _rows(path)
    columns = _columns(path, rows, attributes, images)
    _check_paths(path, columns, rows)
    multi_label = columns.labels is not None or bool(columns.flags)
    named = _named_labels(path, columns, rows)
    counts = Counter(name for names in named for name in names)
    labels = tuple(sorted({*counts, *map(_composed, columns.flags)}))
    if len(labels) > _MOST_LABELS:
        raise DataError(f"{path} has {len(labels)} labels, such as {labels[0]!r}; accepted: {_MOST_LABELS} at most")
    index = {name: position for position, name in enumerate(labels)}
    if multi_label:
        _describe(path, labels, named)
    files = FilesBelow(path.parent)
    roles = _roles(path, columns.split, rows)
    found: list[ListedImage] = []
    missing: list[str] = []
    for row, names, role in zip(rows, named, roles, strict=True):
        paths = [_file(path, row, row.fields[name], files, missing) for name in (columns.image, *columns.images)]
        kept = [file for file in paths if file is not None]
        if len(kept) < len(paths):
            continue
        fields = {name: _field(path, row, name) for name in columns.attributes}
        fields.update(zip(columns.images, map(str, kept[1:]), strict=True))
        rare_first = sorted(names, key=lambda name: (counts[name], name))
        found.append(ListedImage(kept[0], tuple(index[name] for name in rare_first), role, fields))
    return ImageList(labels, multi_label, tuple(found), tuple(missing))


def listed_files(path: Path) -> tuple[Path, ...]:
    """Return the files below a list's folder that it names: its images, and those of any other column.

    Raises:
        DataError: The file cannot be read, is too large or empty, or has no column with images.
    """
    files = FilesBelow(path.parent)
    found: dict[Path | None, None] = {}
    rows = _rows(path)
    first = _image_column(path, list(dict.fromkeys(name for row in rows for name in row.fields)))
    for row in rows:
        for name, value in row.fields.items():
            if isinstance(value, str) and (name == first or Path(value).suffix.lower() in IMAGE_SUFFIXES):
                with suppress(ValueError):  # outside of the folder: whoever reads the list refuses it
                    found[files.find(value)] = None
    return tuple(file for file in found if file is not None)


def _rows(path: Path) -> list[_Row]:
    text = _text(path)
    rows = list(_json_rows(path, text) if path.suffix.lower() in (".json", ".jsonl") else _csv_rows(path, text))
    if not rows:
        raise DataError(f"{path} lists no images; accepted: a line for each image")
    return rows


def _image_column(path: Path, names: Sequence[str]) -> str:
    """Return the name of the column with the first image."""
    image = _one(path, names, _IMAGE, "the images' files")
    if image is None:
        _refuse_header(path, names)
    return image


def _file(path: Path, row: _Row, value: Any, files: FilesBelow, missing: list[str]) -> Path | None:
    """Return a file of a row; ``None`` for one that is not there, with a sentence for ``missing``."""
    try:
        file = files.find(_path_of(path, row, value))
    except ValueError as error:
        raise DataError(f"{path}, {row.where}: {error}; put the list above its images") from error
    if file is None:
        missing.append(f"{path}, {row.where}: {value} is not in {path.parent}")
    return file


def _field(path: Path, row: _Row, name: str) -> str:
    """Return the text of an attribute."""
    value = row.fields[name]
    text = value.strip() if isinstance(value, str) else json.dumps(value) if isinstance(value, int | float) else ""
    if not text:
        given = "empty" if value in ("", None) else repr(value)
        raise DataError(f"{path}, {row.where}: column {name!r} is {given}; accepted: text or a number; fill it in")
    return text


def _text(path: Path) -> str:
    """Return a list's text, without a byte order mark."""
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(data) > _MOST_BYTES:
        raise DataError(f"{path} has more than {_MOST_BYTES >> 20} MiB; divide it, or put the images into folders")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line} is not UTF-8; accepted: UTF-8; save it in that encoding") from error


def _csv_rows(path: Path, text: str) -> Iterator[_Row]:
    first = text.partition("\n")[0]
    delimiter = next((each for each in _DELIMITERS if _find(_header(first, each), _IMAGE)), None)
    if delimiter is None:
        _refuse_header(path, next((names for each in _DELIMITERS if len(names := _header(first, each)) > 1), [first]))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(reader)]
        twice = sorted(name for name, count in Counter(header).items() if count > 1)
        if twice:
            raise DataError(f"{path} has the column {twice[0]!r} twice; accepted: each name once")
        for fields in reader:
            if not any(field.strip() for field in fields):
                continue  # an empty line, as at the end
            if len(fields) != len(header):
                raise DataError(
                    f"{path}, line {reader.line_num} has {len(fields)} fields, and the header has {len(header)}; "
                    'put fields with a delimiter in them into quotes: "…"'
                )
            yield _Row(f"line {reader.line_num}", dict(zip(header, map(str.strip, fields), strict=True)))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num} is not CSV: {error}") from error


def _header(line: str, delimiter: str) -> list[str]:
    try:
        return [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:
        return []


def _json_rows(path: Path, text: str) -> Iterator[_Row]:
    whole = text.lstrip()[:1] == "["
    try:
        if whole:
            items = [(f"item {number}", item) for number, item in enumerate(json.loads(text), 1)]
        else:
            lines = enumerate(text.split("\n"), 1)
            items = [(f"line {number}", _parsed(path, number, line)) for number, line in lines if line.strip()]
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {error}") from error
    for where, item in items:
        if not isinstance(item, dict):
            raise DataError(f'{path}, {where} is no JSON object; accepted: {{"image": "a.png", "label": "cat"}}')
        yield _Row(where, {name.strip(): field for name, field in item.items()})


def _parsed(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise DataError(
            f"{path}, line {number} is not valid JSON: {error}; accepted: a list of objects, or one object in each line"
        ) from error


def _plain(name: str) -> str:
    """Return a column's name in small letters, without spaces and what stands for them."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _find(names: Sequence[str], known: frozenset[str]) -> list[str]:
    return [name for name in names if _plain(name) in known]


def _refuse_header(path: Path, names: Sequence[str]) -> NoReturn:
    shown = ", ".join(repr(name[:40]) for name in names[:_SHOWN])
    raise DataError(
        f"{path} has no column with the images' files; it has: {shown}; accepted: image, filename, file or path, "
        "beside label or labels, in the first line of a CSV file and in each object of JSON"
    )


def _columns(path: Path, rows: Sequence[_Row], attributes: Sequence[str], images: Sequence[str]) -> _Columns:
    """Return the columns by their names, and check that each row has them."""
    names = list(dict.fromkeys(name for row in rows for name in row.fields))
    image = _image_column(path, names)
    split = _one(path, names, _SPLIT, "the splits")
    label = _one(path, names, _LABEL, "the class")
    labels = _one(path, names, _LABELS, "the labels")
    if label is not None and labels is not None:
        raise DataError(f"{path} has the columns {label!r} and {labels!r}; accepted: one of them")
    if label is not None and any(isinstance(row.fields.get(label), list) for row in rows):
        label, labels = None, label  # JSON says by the list that there can be several
    others = [name for name in names if name not in (image, split, label, labels)]
    further = (*attributes, *images)
    for name in further:
        if name not in others:
            what = "for something else" if name in names else "not at all"
            raise DataError(
                f"{path} has the column {name!r} {what}, and it is needed for a further input of the model; it has "
                f"beside images, labels and splits: {', '.join(map(repr, others[:_SHOWN])) or 'nothing'}"
            )
    flags = tuple(name for name in others if name not in further) if label is None and labels is None else ()
    needed = [name for name in (image, split, label, labels, *flags, *further) if name is not None]
    for row in rows:
        absent = next((name for name in needed if name not in row.fields), None)
        if absent is not None:
            raise DataError(f"{path}, {row.where} has no {absent!r}; accepted: all objects have the same names")
    return _Columns(image, label, labels, split, flags, tuple(attributes), tuple(images))


def _one(path: Path, names: Sequence[str], known: frozenset[str], what: str) -> str | None:
    found = _find(names, known)
    if len(found) > 1:
        raise DataError(f"{path} has {', '.join(map(repr, found))} for {what}; accepted: one column; rename the others")
    return found[0] if found else None


def _named_labels(path: Path, columns: _Columns, rows: Sequence[_Row]) -> list[tuple[str, ...]]:
    """Return the names of each row's labels."""
    if columns.label is not None:
        return [(_class_name(path, row, row.fields[columns.label]),) for row in rows]
    if columns.labels is None:
        return [tuple(_composed(name) for name in columns.flags if _flag(path, row, name)) for row in rows]
    column = columns.labels
    texts = [row.fields[column] for row in rows if isinstance(row.fields[column], str)]
    separator = next((each for each in _SEPARATORS if any(each in text for text in texts if text[:1] != "[")), None)
    return [_several(path, row, row.fields[column], separator) for row in rows]


def _class_name(path: Path, row: _Row, value: Any) -> str:
    if not isinstance(value, str | int) or isinstance(value, bool) or not str(value).strip():
        given = "empty" if value in ("", None) else repr(value)
        raise DataError(
            f"{path}, {row.where}: the label is {given}; accepted: the name of a class. Images of several labels or of "
            "none have a column 'labels'"
        )
    return _composed(str(value))


def _flag(path: Path, row: _Row, column: str) -> bool:
    value = row.fields[column]
    flag = _FLAGS.get(str(value).strip().lower()) if isinstance(value, str | int | float) else None
    if flag is None:
        raise DataError(
            f"{path}, {row.where}: column {column!r} is {value!r}; without a column 'label' or 'labels' every other "
            "one is a label, with 1 for images that have it and 0 for others; remove columns that are no labels"
        )
    return flag


def _several(path: Path, row: _Row, value: Any, separator: str | None) -> tuple[str, ...]:
    """Return the names in one field."""
    items = [] if value is None else value
    if isinstance(value, str) and value[:1] == "[":
        try:
            items = json.loads(value)
        except (ValueError, RecursionError):
            try:
                items = json.loads(value.replace("'", '"'))  # as Python writes a list
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, {row.where}: the labels {value[:80]!r} are no JSON list") from error
    elif isinstance(value, str):
        items = [name for name in (value.split(separator) if separator else [value]) if name.strip()]
    if not isinstance(items, list):
        raise DataError(f"{path}, {row.where}: the labels are {items!r}; accepted: a list of names")
    return tuple(dict.fromkeys(_class_name(path, row, item) for item in items))


def _composed(name: str) -> str:
    """Return a name as folders of classes have it: macOS stores names decomposed."""
    return unicodedata.normalize("NFC", name.strip())


def _describe(path: Path, labels: Sequence[str], named: Sequence[tuple[str, ...]]) -> None:
    if not labels:
        return
    mean = sum(map(len, named)) / len(named)
    _log.info("%s is multi-label: %d labels, %.2f on an image", path, len(labels), mean)
    if all(len(names) == 1 for names in named):
        _log.warning(
            "%s: every image has exactly one of the %d labels, and is trained as if it could have several; for one "
            "class an image name the column 'label'. Several labels are separated by |, ; or ,",
            path,
            len(labels),
        )


def _roles(path: Path, column: str | None, rows: Sequence[_Row]) -> list[Role]:
    if column is None:
        return [""] * len(rows)
    values = [row.fields[column] for row in rows]
    known = {value: role_of(value) for value in set(map(str, values))}
    for row, value in zip(rows, values, strict=True):
        if known[str(value)] is None:
            raise DataError(f"{path}, {row.where}: the split is {value!r}; accepted: train, val, test")
    return [known[str(value)] or "" for value in values]


def _path_of(path: Path, row: _Row, value: Any) -> str:
    """Return the path that a field has."""
    if not isinstance(value, str) or not value or "\0" in value:
        given = "empty" if value in ("", None) else repr(value)
        raise DataError(f"{path}, {row.where}: the image is {given}; accepted: the path of a file")
    return value


def _check_paths(path: Path, columns: _Columns, rows: Sequence[_Row]) -> None:
    """Check that each row names an image, and no two the same."""
    seen: dict[str, str] = {}
    twice = []
    for row in rows:
        value = _path_of(path, row, row.fields[columns.image])
        place = plain_path(value)
        if place in seen:
            twice.append(f"{value} ({seen[place]} and {row.where})")
        seen.setdefault(place, row.where)
    if twice:
        more = f" and {len(twice) - _SHOWN} more" if len(twice) > _SHOWN else ""
        raise DataError(
            f"{path} lists images twice: {', '.join(twice[:_SHOWN])}{more}; accepted: each image once. Several labels "
            "of an image go into one line, in a column 'labels': cat|dog"
        )
