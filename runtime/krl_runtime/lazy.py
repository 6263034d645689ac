"""Names of a package that are imported when they are first asked for."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

__all__ = ["attribute"]


def attribute(package: str, places: Mapping[str, Sequence[str]], name: str) -> Any:
    """Return a name of a package and keep it there, for the package's ``__getattr__``.

    Args:
        package: Name of the package.
        places: By relative module, the names that it has.
        name: The name that is asked for.

    Raises:
        AttributeError: No module has it.
    """
    for module, names in places.items():
        if name in names:
            found = getattr(import_module(module, package), name)
            setattr(sys.modules[package], name, found)
            return found
    raise AttributeError(f"module {package!r} has no attribute {name!r}")
