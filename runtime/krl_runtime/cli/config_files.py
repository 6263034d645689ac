"""Options from files: ``--config FILE.yaml``, ``--recipe NAME``, and the configuration that a run holds."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from krl_runtime.errors import UsageError, require

from .options import option_name
from .recipes import recipe_file

__all__ = ["merged", "options_of", "take_files"]

Options = list[tuple[str, list[str]]]
"""Each option with its values, as on the command line."""


def take_files(
    arguments: list[str], recipes: Sequence[Path], repeated: Collection[str]
) -> tuple[list[str], list[Options]]:
    """Take ``--config FILE`` and ``--recipe NAME`` out of a command line.

    Args:
        arguments: The command line.
        recipes: Folders of the recipes, if there are any.
        repeated: Options that may be given several times.

    Returns:
        The other arguments, and the options of each file. A recipe's name stays among the arguments where the command
        records it, as an option that may be repeated.

    Raises:
        UsageError: A file cannot be read, or a recipe is not known.
    """
    rest: list[str] = []
    files: list[Options] = []
    items = iter(arguments)
    for item in items:
        name, equals, value = item.partition("=")
        if name != "--config" and not (name == "--recipe" and recipes):
            rest.append(item)
            continue
        given = value if equals else next(items, None)
        if given is None:
            raise UsageError(f"{name} needs {'a YAML file' if name == '--config' else 'a name'}")
        path = Path(given) if name == "--config" else recipe_file(given, recipes)
        files.append(list(options_of(_read(path), repeated)))
        rest += [name, given] if name == "--recipe" and name in repeated else []
    return rest, files


def merged(rest: list[str], files: Iterable[Options], repeated: Collection[str]) -> list[str]:
    """Put the options of files before the others, which win.

    An option that may be repeated is taken from the command line where that has it, else from the last file that has
    it.
    """
    settled = {item.partition("=")[0] for item in rest} & set(repeated)
    options: list[str] = []
    for file in reversed(list(files)):
        options = [part for option, values in file if option not in settled for part in (option, *values)] + options
        settled |= {option for option, _ in file} & set(repeated)
    return options + rest


def options_of(values: Mapping[str, Any], repeated: Collection[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield a mapping's options; sections are mappings, and ``None`` and empty lists are left out."""
    for key, value in values.items():
        option = option_name(str(key))
        if isinstance(value, Mapping):
            yield from options_of(value, repeated)
        elif isinstance(value, bool) or value in ("true", "false"):
            yield (option if value in (True, "true") else f"--no-{option[2:]}"), []
        elif isinstance(value, list) and option in repeated:
            yield from ((option, [str(item)]) for item in value)
        elif value not in (None, "null", "~", "", []):
            yield option, [str(item) for item in (value if isinstance(value, list) else [value])]


def _read(path: Path) -> Mapping[str, Any]:
    """Read a YAML file with all values as they are written, so that 032 is no octal number and 1:30 none at all."""
    yaml = require("ruamel.yaml", extra="train", purpose="--config")
    errors = require("ruamel.yaml.error", extra="train", purpose="--config")
    try:
        values = yaml.YAML(typ="base", pure=True).load(io.StringIO(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, errors.YAMLError) as error:
        raise UsageError(f"configuration {path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"configuration {path} is not a mapping of option names to values")
    return values
