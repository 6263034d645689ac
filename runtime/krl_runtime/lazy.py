"""Lazy imports of a package's names."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

__all__ = ["attribute"]


def attribute(package: str, modules: Mapping[str, Sequence[str]], name: str) -> Any:
    """Return a name of a package and keep it there, for the package's ``__getattr__``.

    Args:
        package: Name of the package.
        modules: Names by relative module.
        name: The name to import.

    Raises:
        AttributeError: No module has it.
    """
    for module, names in modules.items():
        if name in names:
            found = getattr(import_module(module, package), name)
            setattr(sys.modules[package], name, found)
            return found
    raise AttributeError(f"module {package!r} has no attribute {name!r}")
