"""Marks on the options of a command: for which tasks one is, and whether ``--help`` shows it."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union

from krl_runtime.errors import UsageError

__all__ = [
    "Advanced",
    "Only",
    "help_configuration",
    "option_name",
    "positional_options",
    "refuse_other_tasks",
    "repeated_options",
]

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Only:
    """Marks an option, or a section of options, that some tasks have and others refuse.

    Attributes:
        tasks: The tasks.
    """

    tasks: tuple[str, ...]

    def __init__(self, *tasks: str) -> None:
        object.__setattr__(self, "tasks", tasks)


class _Advanced:
    """Marks an option that only ``--help-all`` shows."""


Advanced = Annotated[_T, _Advanced()]
"""An option, or a section of options, that only ``--help-all`` shows."""


def option_name(field: str) -> str:
    """Return the option of a field: ``"--batch-size"`` for ``"batch_size"``, ``"--from"`` for ``"from_"``."""
    return f"--{field.rstrip('_').replace('_', '-')}"


def refuse_other_tasks(config: Any, task: str) -> None:
    """Refuse options that were given, and that a task does not have.

    Args:
        config: A configuration, a dataclass; its sections are dataclasses, too.
        task: The task, as in ``Only``.

    Raises:
        UsageError: An option has another value than by default, and is for other tasks.
    """
    for field, hint in _fields(type(config)):
        value, only = getattr(config, field.name), _mark(hint, Only)
        section = dataclasses.is_dataclass(value)
        if only is None or task in only.tasks:
            if section:
                refuse_other_tasks(value, task)
        elif value != _default(field):
            name = _first_given(value) if section else field.name
            raise UsageError(f"{option_name(name)} is for {' and '.join(only.tasks)}; the task is {task}, leave it out")


def _first_given(section: Any) -> str:
    """Return the first field of a section whose value is not the default."""
    return next(field.name for field, _ in _fields(type(section)) if getattr(section, field.name) != _default(field))


def repeated_options(configuration: type) -> Iterator[str]:
    """Yield the options of a configuration that may be given several times."""
    import tyro

    for field, hint in _fields(configuration):
        section = _bare(hint)
        if dataclasses.is_dataclass(section):
            assert isinstance(section, type)  # noqa: S101  for the type checker
            yield from repeated_options(section)
        elif tyro.conf.UseAppendAction in getattr(hint, "__metadata__", ()):
            yield option_name(field.name)


def positional_options(configuration: type) -> list[str]:
    """Return the names of the fields of a configuration that are given without their name, in order."""
    import tyro

    marks = ((field.name, getattr(hint, "__metadata__", ())) for field, hint in _fields(configuration))
    return [name for name, found in marks if tyro.conf.Positional in found]


def help_configuration(configuration: type, task: str | None, *, everything: bool) -> type:
    """Return a configuration that tyro shows in a help text: without what a task does not have.

    Args:
        configuration: A dataclass whose fields are options or sections.
        task: Leave out what is for other tasks; ``None`` keeps all.
        everything: Keep what is marked ``Advanced`` as well.
    """
    import tyro

    fields: list[Any] = []
    for field, hint in _fields(configuration):
        only = _mark(hint, Only)
        hidden = (_mark(hint, _Advanced) is not None and not everything) or (
            only is not None and task is not None and task not in only.tasks
        )
        section = _bare(hint)
        if dataclasses.is_dataclass(section):
            assert isinstance(section, type)  # noqa: S101  for the type checker
            shown: Any = section if hidden else help_configuration(section, task, everything=everything)
            copy = dataclasses.field(default_factory=shown)
        else:
            shown = hint if hidden else _with_metavar(hint)
            copy = dataclasses.field(default=field.default, kw_only=field.kw_only)
        fields.append((field.name, Annotated[shown, tyro.conf.Suppress] if hidden else shown, copy))
    return dataclasses.make_dataclass(configuration.__name__, fields, bases=(configuration,), frozen=True)


def _with_metavar(hint: Any) -> Any:
    """Name the value of an option that may be left out as if it could not: ``INT`` instead of ``{None}|INT``."""
    import tyro

    parts = typing.get_args(_bare(hint))
    if typing.get_origin(_bare(hint)) not in (Union, types.UnionType) or type(None) not in parts:
        return hint
    (inner,) = (part for part in parts if part is not type(None))
    return Annotated[hint, tyro.conf.arg(metavar=_metavar(inner))]


def _metavar(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "{" + ",".join(map(str, typing.get_args(hint))) + "}"
    if typing.get_origin(hint) is tuple:
        word = _metavar(typing.get_args(hint)[0])
        return f"{word} [{word} ...]"
    return {Path: "PATH", int: "INT", float: "FLOAT"}.get(hint, "STR")


def _fields(configuration: type) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    """Yield each field with its type, marks included."""
    hints = typing.get_type_hints(configuration, include_extras=True)
    return ((field, hints[field.name]) for field in dataclasses.fields(configuration))


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _bare(hint: Any) -> Any:
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint


def _mark(hint: Any, kind: type[_T]) -> _T | None:
    if typing.get_origin(hint) is not Annotated:
        return None
    return next((mark for mark in typing.get_args(hint)[1:] if isinstance(mark, kind)), None)
