"""A user's own network, data set or loss: an object in Python, ``package.module:name`` on the command line.

A configuration holds names alone; the name of an object that was given in Python carries the object along. A module is
imported because the user wrote its name, or because a run that the user opens was made with it. Nothing here imports
torch.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from krl_runtime.errors import KrlError, UsageError
from krl_runtime.files import sha256_file

__all__ = [
    "Custom",
    "CustomName",
    "accepted_arguments",
    "each_named",
    "in_user_code",
    "is_custom",
    "load_object",
    "named",
    "source_of",
    "sources_of",
    "warn_of_change",
]

_log = logging.getLogger("krl")

if TYPE_CHECKING:
    Custom: TypeAlias = Any
else:
    Custom = str
"""Type of an option that is text on the command line and may be an object in Python; a configuration holds text."""

# A dotted module, and after the colon a name, or that of what cannot be imported: <locals>, <lambda>, Class(...).
_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:(<|[^\W\d])[\w.<>]*(\(\.\.\.\))?")
_UNNAMED = ("<", "(")
_SHOWN = 8  # names of a module in a message; more would hide the sentence


class CustomName(str):
    """The name of an object that was given in Python, with the object.

    Attributes:
        target: The object. Copies of the name share it; a pickled name is text alone.
    """

    target: Any

    def __new__(cls, name: str, target: Any) -> CustomName:
        """Attach the object to its name."""
        made = super().__new__(cls, name)
        made.target = target
        return made

    def __copy__(self) -> CustomName:
        """Return the name itself."""
        return self

    def __deepcopy__(self, memo: object) -> CustomName:
        """Return the name itself: a configuration is copied, its network is not."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave the object behind."""
        return str, (str(self),)


def named(value: Any, option: str, *, by_class: bool = False) -> Any:
    """Return what a configuration holds for an option: text, or the name of an object.

    Args:
        value: What was given: text or a path, which stay as they are; ``None``; or an object.
        option: Name of the option, for messages.
        by_class: Whether an instance has the name of its class, which can be called again; otherwise its name says that
            it was an instance.

    Raises:
        UsageError: It is none of these.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if not callable(value) and not hasattr(value, "__getitem__"):
        raise UsageError(
            f"{option} is {value!r}; accepted: a name, package.module:name, or in Python the object itself (a class, a "
            "function, a network or a data set)"
        )
    return CustomName(_name_of(value, by_class), value)


def each_named(values: Any, option: str, *, by_class: bool = False) -> tuple[Any, ...]:
    """Return an option that may be given several times, each value as ``named`` returns it; one alone is accepted."""
    several = values if isinstance(values, tuple | list) else (values,)
    return tuple(named(value, option, by_class=by_class) for value in several)


def _name_of(value: Any, by_class: bool) -> str:
    if isinstance(value, functools.partial):
        return f"{_name_of(value.func, True)}(...)"
    named_itself = isinstance(value, type) or hasattr(value, "__qualname__")
    owner = value if named_itself else type(value)
    name = f"{owner.__module__}:{owner.__qualname__}"
    return name if named_itself or by_class else f"{name}(...)"


def is_custom(name: str | None) -> bool:
    """Whether a name is ``package.module:name``, and not that of something that krl has, nor a path."""
    return isinstance(name, CustomName) or (name is not None and _NAME.fullmatch(name) is not None)


def load_object(name: str, what: str) -> Any:
    """Return the object of a name, imported unless the name carries it.

    The current directory is searched first, as ``python -m`` does.

    Args:
        name: ``package.module:name``.
        what: Beginning of a message, as ``"model"``.

    Raises:
        UsageError: The module or the object is not there, the module cannot be imported, or the object had no name in
            a module.
    """
    if isinstance(name, CustomName):
        return name.target
    module_name, _, path = name.partition(":")
    if module_name.partition(".")[0] in sys.stdlib_module_names:
        raise UsageError(f"{what} {name} is in Python's standard library; accepted: a module of yours")
    if any(mark in path for mark in _UNNAMED):
        raise UsageError(
            f"{what} {name} was an object in Python without a name in a module (an instance, or something made inside "
            "a function), which cannot be imported; give it in Python, or define it at the top of a module"
        )
    module = _import(module_name, f"{what} {name}")
    found: Any = module
    for part in path.split("."):
        if not hasattr(found, part):
            if module_name == "__main__":
                raise UsageError(
                    f"{what} {name} was defined in a script that is not the one that runs; define it in a module that "
                    "can be imported"
                )
            raise UsageError(f"{what} {name}: module {module_name} has no {path}{_has(found, part)}")
        found = getattr(found, part)
    return found


def _import(module: str, what: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or f"{module}.".startswith(f"{error.name}."):
            raise UsageError(
                f"{what} needs the module {module}, which cannot be imported: {error}; install it, or run where it "
                "lies (or name its folder in PYTHONPATH)"
            ) from error
        raise UsageError(
            f"{what} needs the module {module}, which needs {error.name}, and that is not installed"
        ) from error
    except (Exception, SystemExit) as error:  # a module's own code raises whatever it raises
        raise UsageError(
            f"{what} needs the module {module}, and importing it fails: {_cause(error)}; mend the module"
        ) from error


def _has(owner: Any, wanted: str) -> str:
    """Say which names there are, for a message."""
    public = [name for name, value in vars(owner).items() if not name.startswith("_") and callable(value)]
    close = difflib.get_close_matches(wanted, public, n=1)
    hint = f"; did you mean {close[0]!r}? It has" if close else "; it has"
    shown = f"{', '.join(public[:_SHOWN])}{' …' if len(public) > _SHOWN else ''}"
    return f"{hint}: {shown or 'nothing that can be called'}"


def _cause(error: BaseException) -> str:
    """Return an error's type, text, and the line of the user's code that raised it."""
    text = str(error).strip().partition("\n")[0]
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<frozen")]
    if isinstance(error, SyntaxError):  # its text names the place
        frames = []
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames[1:] else ""
    return f"{type(error).__name__}: {text}{place}"


@contextmanager
def in_user_code(what: str, kind: type[KrlError] = UsageError) -> Iterator[None]:
    """Turn what a user's code raises in a ``with`` block into an error that says what was called, and where it failed.

    Args:
        what: What is called, as the beginning of a sentence.
        kind: The error that is raised.
    """
    try:
        yield
    except KrlError:
        raise
    except Exception as error:
        raise kind(f"{what} fails: {_cause(error)}") from error


def accepted_arguments(function: Any, offered: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return those of the offered arguments that a class or function takes, by name.

    Args:
        function: What will be called.
        offered: What krl can give.
        what: Beginning of a message.

    Raises:
        UsageError: It needs others.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise UsageError(f"{what} cannot be called: {error}") from error
    if any(item.kind is inspect.Parameter.VAR_KEYWORD for item in parameters):
        given = dict(offered)
    else:
        keywords = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        given = {item.name: offered[item.name] for item in parameters if item.name in offered and item.kind in keywords}
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    missing = [
        item.name
        for item in parameters
        if item.default is inspect.Parameter.empty and item.kind not in variable and item.name not in given
    ]
    if missing:
        raise UsageError(
            f"{what} needs arguments that krl does not know: {', '.join(missing)}; accepted: {', '.join(offered)}, and "
            "any that have a default. Write a function that gives the others"
        )
    return given


def source_of(name: str, what: str) -> dict[str, str | None]:
    """Return a custom object's name and the hash of the file that it is defined in.

    The file is that of the class or function; of an object that a module makes, the file of this module. Other modules
    that it imports are not part of the hash. It is ``None`` where there is no file, as in a notebook.

    Raises:
        UsageError: It cannot be imported.
    """
    target = load_object(name, what)
    while isinstance(target, functools.partial):
        target = target.func
    module = str(name).partition(":")[0]
    if isinstance(target, type) or hasattr(target, "__qualname__"):
        module = target.__module__
    file = getattr(sys.modules.get(module), "__file__", None)
    digest = sha256_file(Path(file)) if file is not None and Path(file).is_file() else None
    return {"name": str(name), "sha256": digest}


def sources_of(uses: Sequence[tuple[str, str | None]]) -> tuple[dict[str, str | None], ...]:
    """Return the record of all custom objects for ``run.json``.

    Args:
        uses: What each is used as (``"model"``, ``"data"``, ``"loss"``, ``"teacher"``), and its name; names of what
            krl has itself are left out.

    Returns:
        For each ``"use"``, ``"name"`` and ``"sha256"``.
    """
    return tuple({"use": use, **source_of(name, use)} for use, name in uses if name is not None and is_custom(name))


def warn_of_change(recorded: Sequence[Mapping[str, Any]], use: str, name: str, where: str) -> None:
    """Log a warning where the source of a custom object is not the one that a run was made with.

    Args:
        recorded: The run's ``sources``.
        use: As which the object is used.
        name: Its name.
        where: The run, as the beginning of the message.
    """
    before = next((item["sha256"] for item in recorded if item["use"] == use and item["name"] == name), None)
    now = source_of(name, use)["sha256"] if is_custom(name) else None
    if before is not None and now != before:
        _log.warning(
            "%s: the source of %s %s has changed since: its SHA-256 was %s and is %s; the result may differ",
            where,
            use,
            name,
            before[:16],
            str(now)[:16],
        )
