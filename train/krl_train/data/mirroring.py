"""Whether the mirror image of an image is still of its class: not so of digits, letters and signs."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["keeps_class_mirrored"]

_DIGITS = frozenset(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"])
_SIDES = frozenset({"left", "right"})
_WORD = r"[A-Z]*[a-z]+|[A-Z]+"  # of turnLeft_2: turn and Left


def keeps_class_mirrored(labels: Sequence[str]) -> bool:
    """Return whether mirrored images keep their class, as far as the names of the classes say.

    They do not where the classes are digits or letters (``"7"``, ``"seven"``, ``"7 - seven"``, ``"Q"``), where they
    have numbers alone, which name no object (as those of traffic signs do), and where one is on the left or right.

    Args:
        labels: Class names.

    Example:
        >>> keeps_class_mirrored(["cat", "dog"]), keeps_class_mirrored(["0", "1"]), keeps_class_mirrored(["turn_left"])
        (True, False, False)
    """
    if any(_SIDES & {word.lower() for word in re.findall(_WORD, label)} for label in labels):
        return False
    parts = [re.findall(r"[^\W_]+", label) for label in labels]
    return not labels or not all(each and all(map(_is_sign, each)) for each in parts)


def _is_sign(part: str) -> bool:
    return len(part) == 1 or part.isdigit() or part.lower() in _DIGITS
