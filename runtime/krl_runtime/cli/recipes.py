"""Recipes: named files of options that come with a program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from krl_runtime.errors import UsageError, require

from .commandline import next_command
from .suggestions import suggest
from .tables import table

__all__ = ["recipe_file", "recipe_files", "show_recipes", "with_recipes"]


def recipe_files(folders: Sequence[Path]) -> dict[str, Path]:
    """Return the recipes of folders by name, in the order of their names."""
    files = [path for folder in folders for path in folder.glob("*.yaml")]
    return {path.stem: path for path in sorted(files, key=lambda path: path.stem)}


def recipe_file(name: str, folders: Sequence[Path], option: str = "--recipe") -> Path:
    """Return the file of a recipe.

    Args:
        name: The recipe's.
        folders: Where recipes lie.
        option: What was given, for the message.

    Raises:
        UsageError: No recipe has that name.
    """
    files = recipe_files(folders)
    if name not in files:
        raise UsageError(f"{option} {name}: not known{suggest(name, files)}; accepted: {', '.join(files)}")
    return files[name]


def with_recipes(options: Mapping[str, Any], folders: Sequence[Path]) -> dict[str, Any]:
    """Return the options of a Python function with those of the recipes that ``recipe`` among them names.

    Args:
        options: As they were given; they win over those of recipes, and a later recipe wins over an earlier one.
        folders: Where recipes lie.

    Raises:
        UsageError: No recipe has that name.
    """
    named = options.get("recipe") or ()
    found: dict[str, Any] = {}
    for name in (named,) if isinstance(named, str) else named:
        yaml = require("ruamel.yaml", extra="train", purpose="recipe")
        found |= yaml.YAML(typ="safe", pure=True).load(recipe_file(name, folders, "recipe"))
    return {**found, **options}


def show_recipes(name: str | None, folders: Sequence[Path], command: str) -> None:
    """Print a table of all recipes, or one of them.

    Args:
        name: The one to print; ``None`` for the table.
        folders: Where recipes lie.
        command: What one would type next, with NAME for the recipe.
    """
    if name is None:
        texts = {key: path.read_text(encoding="utf-8") for key, path in recipe_files(folders).items()}
        rows = [(key, text.partition("\n")[0].lstrip("# ")) for key, text in texts.items()]
        print(table(("recipe", "description"), rows))
    else:
        print(recipe_file(name, folders, "recipe").read_text(encoding="utf-8"), end="")
    next_command(command.replace("NAME", name or "NAME", 1))
