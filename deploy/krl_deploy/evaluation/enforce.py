"""The one place that stops a variant which does not pass the gate."""

from __future__ import annotations

import logging

from krl_runtime.errors import CheckFailedError
from krl_runtime.evaluation.gate import Verdict

__all__ = ["enforce"]

_log = logging.getLogger("krl")


def enforce(verdict: Verdict, name: str, count: int, shown: str, advice: str = "") -> None:
    """Log that a variant was judged on too little, if the user accepted that.

    Args:
        verdict: Of the gate.
        name: Name of the precision, as ``"FP16"``.
        count: Number of inputs that were judged.
        shown: The table of scores.
        advice: Further things to do about a variant that fails, as a sentence.

    Raises:
        CheckFailedError: The variant does not pass; the message has the reasons and the table.
    """
    if not verdict.passes:
        more = f"{advice} Few images: give more with --data, or --accept-unmeasured".strip()
        raise CheckFailedError(
            f"{name} is not kept, judged on {count} images: {verdict.reason}; the bundle is unchanged. {more}\n{shown}"
        )
    if not verdict.judged:
        _log.warning("%s was judged on %d images alone, which was accepted with --accept-unmeasured", name, count)
