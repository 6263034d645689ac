"""The shared part of the Python APIs: from keyword arguments to a configuration, and results as dataclasses."""

from __future__ import annotations

import dataclasses
import difflib
import os
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, Union

from krl_runtime.errors import UsageError

__all__ = ["Result", "configure"]

_Config = TypeVar("_Config")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """The result of a verb.

    Attributes:
        details: Everything else that was made and measured, as plain JSON types.
        text: A table of it for people.
    """

    details: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)
    text: str = dataclasses.field(default="", repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain JSON types: what the command prints with ``--json``."""
        own = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        named = {name: _plain(value) for name, value in own.items() if name not in ("details", "text")}
        return {**named, **self.details}


def configure(kind: type[_Config], config: _Config | None, options: Mapping[str, Any]) -> _Config:
    """Return the configuration of a verb.

    Args:
        kind: The configuration's dataclass, whose sections are dataclasses, too.
        config: A whole configuration, instead of options.
        options: Options by name, as on the command line with ``_`` for ``-``, whatever section they are in; or whole
            sections.

    Raises:
        UsageError: Both are given, an option is not known, or one is missing.
    """
    if config is not None:
        if options:
            raise UsageError(f"give a {kind.__name__} or options, not both (given: {', '.join(options)})")
        if not isinstance(config, kind):
            raise UsageError(f"the configuration is a {type(config).__name__}; accepted: {kind.__name__}")
        return config
    used: set[str] = set()
    made: _Config = _build(kind, options, used)
    unknown = sorted(set(options) - used)
    if unknown:
        close = difflib.get_close_matches(unknown[0], _names(kind), n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise UsageError(f"unknown option {unknown[0]}{hint}; accepted: {', '.join(_names(kind))}")
    return made


def _build(kind: Any, options: Mapping[str, Any], used: set[str]) -> Any:
    values: dict[str, Any] = {}
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            if isinstance(options.get(field.name), hint):  # type: ignore[arg-type]
                values[field.name] = options[field.name]
                used.add(field.name)
            else:
                values[field.name] = _build(hint, options, used)
        elif field.name in options:
            values[field.name] = _convert(options[field.name], hint)
            used.add(field.name)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UsageError(f"{field.name} is missing")
    return kind(**values)


def _convert(value: Any, hint: Any) -> Any:
    """Accept a path as text or text as a path, and one item, a list or a tuple where there may be several."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        kinds = [part for part in typing.get_args(hint) if part is not type(None)]
        return None if value is None else _convert(value, kinds[0])
    if typing.get_origin(hint) is tuple:
        several = value if isinstance(value, tuple | list) else (value,)
        return tuple(_convert(item, typing.get_args(hint)[0]) for item in several)
    if hint is Path and isinstance(value, str):
        return Path(value)
    return os.fspath(value) if hint is str and isinstance(value, os.PathLike) else value


def _names(kind: Any) -> list[str]:
    """Return the names of all options."""
    hints = typing.get_type_hints(kind)
    found: list[str] = []
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        found += _names(hint) if dataclasses.is_dataclass(hint) else [field.name]
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
