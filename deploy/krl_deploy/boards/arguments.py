"""From a command line on the desk to one on the board: which arguments are paths, and their names there."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, TypeAlias

from krl_runtime.errors import UsageError

from .inputs import list_of_images

__all__ = ["Mapped", "Option", "map_arguments", "options_of_class", "options_of_parser"]

_OUTPUTS = {"out", "output", "emit_script", "cache_dir", "sheet", "plot"}
"""Options whose value a command writes."""

_UPDATES = {"profile"}
"""Options whose file a command adds to, or makes."""

_TEXT_OR_FILE = {"labels"}
"""Options whose text may name a file."""

_SECRETS = {"key"}
"""Options whose file stays on this machine: private keys."""

_ASSIGNMENTS = {"input"}
"""Options with ``NAME=VALUE``, whose value may name a file."""

Kind: TypeAlias = Literal["input", "output", "update", "secret", "assignment", "value"]
"""Kinds of options; see ``Option``."""


@dataclass(frozen=True)
class Option:
    """An option of a command.

    Attributes:
        kind: ``"input"`` or ``"output"`` for paths, ``"update"`` for a file that is both, ``"secret"`` for private
            keys, ``"assignment"`` for ``NAME=VALUE``, or another ``"value"``.
        values: Number of values: ``"none"``, ``"one"`` or ``"many"``.
    """

    kind: Kind
    values: Literal["none", "one", "many"]


def options_of_parser(parser: argparse.ArgumentParser) -> dict[str, Option]:
    """Return the options of a command of ``krl-runtime``."""
    found: dict[str, Option] = {}
    for action in parser._actions:
        values: Literal["none", "one", "many"] = "one" if action.nargs is None else "many"
        if action.nargs == 0:
            values = "none"
        option = Option(_kind(action.dest, action.type is Path), values)
        found.update(dict.fromkeys(action.option_strings, option))
    return found


def options_of_class(configuration: type) -> dict[str, Option]:
    """Return the options of a command of ``krl-deploy``, from the dataclass of its configuration."""
    hints = typing.get_type_hints(configuration, include_extras=True)
    found: dict[str, Option] = {}
    for item in dataclasses.fields(configuration):
        hint, aliases = hints[item.name], []
        if typing.get_origin(hint) is Annotated:
            aliases = [name for mark in hint.__metadata__ for name in getattr(mark, "aliases", None) or ()]
        kinds = list(_flat(hint))
        values: Literal["none", "one", "many"] = "none" if bool in kinds else "many" if tuple in kinds else "one"
        option, name = Option(_kind(item.name, Path in kinds), values), item.name.replace("_", "-")
        found.update(dict.fromkeys((f"--{name}", f"--no-{name}", *aliases), option))
    return found


def _flat(hint: Any) -> Iterator[Any]:
    """Yield the types that a hint is made of."""
    if typing.get_origin(hint) is not None:
        yield typing.get_origin(hint)
        for part in typing.get_args(hint):
            yield from _flat(part)
    else:
        yield hint


def _kind(name: str, path: bool) -> Kind:
    if name in _SECRETS:
        return "secret"
    if path:
        return "output" if name in _OUTPUTS else "update" if name in _UPDATES else "input"
    return "input" if name in _TEXT_OR_FILE else "assignment" if name in _ASSIGNMENTS else "value"


@dataclass
class Mapped:
    """A command line for the board.

    Attributes:
        arguments: The arguments, with the names that paths have there.
        inputs: Files and folders of this machine by their names there; of a list of images, that of its folder there.
        outputs: Places for results on this machine by their names there.
    """

    arguments: list[str] = field(default_factory=list)
    inputs: dict[str, Path] = field(default_factory=dict)
    outputs: dict[str, Path] = field(default_factory=dict)

    def path(self, kind: Kind, text: str) -> str:
        """Return the name of a path on the board; one that is not on this machine stays as it is."""
        if kind == "secret":
            raise UsageError(f"{text} is a private key, which is not copied to a board; sign on this machine")
        if kind == "assignment":
            name, equals, value = text.partition("=")
            return f"{name}{equals}{self.path('input', value)}" if _is_here(value) else text
        if kind == "value" or not text or (kind == "input" and not _is_here(text)):
            return text
        names = self.inputs if kind == "input" else self.outputs
        path = Path(text)
        known = next((name for name, other in names.items() if other == path), None)
        listed = kind == "input" and list_of_images(path) is not None
        name = known or self._name(path.parent if listed else path)
        names[name] = path
        if kind == "update" and path.is_file():
            self.inputs[name] = path  # what the command writes takes the place of the copy
        shown = f"{name}/{path.name}" if listed else name  # the images of a list come with it, in one folder
        return f"./{shown}" if shown.startswith("-") else shown

    def _name(self, path: Path) -> str:
        """Return a name that no other path has, contains or is in: as it was given, if it is below this folder."""
        parts = PurePath(path).parts
        given = not path.is_absolute() and not path.drive and bool(parts) and ".." not in parts
        last = (path.name if path.name not in ("", "..") else path.resolve().name) or "root"
        wanted, number = "/".join(parts) if given else last, 2
        taken = [*self.inputs, *self.outputs]
        name = wanted
        while any(f"{name}/".startswith(f"{other}/") or f"{other}/".startswith(f"{name}/") for other in taken):
            name, number = f"{number}/{last}", number + 1
        return name


def _is_here(text: str) -> bool:
    try:
        return Path(text).is_file() or Path(text).is_dir()  # a camera, as /dev/video0, is one of the board
    except (OSError, ValueError):  # a name that no file can have
        return False


def map_arguments(arguments: Sequence[str], options: Mapping[str, Option]) -> Mapped:
    """Return a command line for the board.

    Args:
        arguments: Those of the command, without its name.
        options: Its options.

    Raises:
        UsageError: A private key is among them.

    Example:
        >>> options = {"-o": Option("output", "one"), "--limit": Option("value", "one")}
        >>> mapped = map_arguments(["/no/such.krl", "--limit", "5", "-o", "../results"], options)
        >>> mapped.arguments
        ['/no/such.krl', '--limit', '5', '-o', 'results']
    """
    mapped = Mapped()
    rest = list(arguments)
    current: Option | None = None
    plain = False
    for item in rest:
        if plain or not (item.startswith("-") and len(item) > 1):
            mapped.arguments.append(mapped.path("input" if current is None else current.kind, item))
            current = current if current is not None and current.values == "many" else None
            continue
        if item == "--":
            plain, current = True, None
            mapped.arguments.append(item)
            continue
        name, value = _split(item, options)
        option = _find(name, options)
        if value is None or option is None:
            mapped.arguments.append(item)
            current = option if option is not None and option.values != "none" else None
            continue
        mapped_value = mapped.path(option.kind, value)
        mapped.arguments.append(f"{name}={mapped_value}" if name.startswith("--") else f"{name}{mapped_value}")
        current = None
    return mapped


def _split(item: str, options: Mapping[str, Option]) -> tuple[str, str | None]:
    """Return an option and the value in the same word, as in ``--out=FOLDER`` and ``-oFOLDER``."""
    if item.startswith("--"):
        name, equals, value = item.partition("=")
        return name, value if equals else None
    short = item[:2]
    return (short, item[2:]) if len(item) > 2 and short in options else (item, None)


def _find(name: str, options: Mapping[str, Option]) -> Option | None:
    """Return an option by its name, or a beginning of it that argparse accepts."""
    name = name.replace("_", "-") if name.startswith("--") else name
    if name in options:
        return options[name]
    longer = {option for other, option in options.items() if name.startswith("--") and other.startswith(name)}
    return longer.pop() if len(longer) == 1 else None
