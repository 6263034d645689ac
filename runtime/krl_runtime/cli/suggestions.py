"""The nearest accepted word for a misspelled or renamed one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from krl_runtime.errors import UsageError

__all__ = ["refuse_renamed", "suggest"]

_RENAMED = {
    "adopt": "import",
    "half": "fp16",
    "--around": "--float-precision",
    "--at": "--feature-taps",
    "--colour": "--color",
    "--equalise": "--equalize",
    "--init": "--from",
    "--plan": "--mixed-precision",
    "--translation-colour": "--translation-color",
}
"""Commands and options by the names that they had before version 0.2."""


def suggest(word: str, accepted: Iterable[str]) -> str:
    """Return a hint at the accepted word that is nearest, or nothing where none is near."""
    close = difflib.get_close_matches(word, list(accepted), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def refuse_renamed(prog: str, arguments: Sequence[str], commands: Iterable[str]) -> None:
    """Refuse a command or an option that has another name now.

    Raises:
        UsageError: There is one; the message says the new name.
    """
    command = arguments[0] if arguments else ""
    new = _RENAMED.get(command)
    if new is not None and new in commands:
        raise UsageError(f"{prog} {command} is {prog} {new} now")
    for option in (item.partition("=")[0] for item in arguments[1:]):
        if option.startswith("--") and option in _RENAMED:
            raise UsageError(f"{option} is {_RENAMED[option]} now")
