"""The search of the planner: the smallest number of groups to keep in the higher precision that is accepted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from krl_runtime.cli.tables import table

__all__ = ["Attempt", "attempts_table", "search", "steps"]


@dataclass(frozen=True)
class Attempt:
    """A plan that was tried on the planning data. Each figure is the worst one of the plan's files.

    Attributes:
        kept: Number of layers or nodes that the plan keeps.
        drop: Mean paired difference of accuracy, in the unit of the plan; ``None`` if the truth is not known.
        standard_error: One standard error of ``drop``.
        agreement: Share, 0 to 1, of the inputs with FP32's prediction; ``None`` if the model makes images.
        psnr_to_fp32: Mean PSNR in dB to FP32's images; ``None`` for a classifier.
        snr_db: Signal-to-noise ratio of the outputs.
        refused: Reason why the plan is not accepted; ``None`` if it is.
    """

    kept: int
    drop: float | None = None
    standard_error: float | None = None
    agreement: float | None = None
    psnr_to_fp32: float | None = None
    snr_db: float | None = None
    refused: str | None = None


def steps(count: int) -> list[int]:
    """Return how many of ``count`` groups to keep, one attempt after the other; at least one is not kept.

    Example:
        >>> steps(12)
        [0, 1, 2, 3, 4, 6, 9, 11]
    """
    found, kept = [], 0
    while kept < count - 1:
        found.append(kept)
        kept = max(kept + 1, kept * 3 // 2)
    return [*found, max(0, count - 1)]


def search(
    count: int, attempt: Callable[[int], Attempt], in_time: Callable[[], bool]
) -> tuple[list[Attempt], int | None]:
    """Try plans, at least one, until one is accepted; then bisect, so that no more is kept than needed.

    Args:
        count: Number of groups.
        attempt: Tries the plan that keeps this many groups.
        in_time: Whether there is time for another attempt.

    Returns:
        The attempts in the order in which they were made, and the least number of groups with an accepted plan;
        ``None`` if no plan was accepted.
    """
    made: list[Attempt] = []
    refused, accepted = -1, None
    for kept in steps(count):
        if made and not in_time():
            return made, None
        made.append(attempt(kept))
        if made[-1].refused is None:
            accepted = kept
            break
        refused = kept
    while accepted is not None and accepted - refused > 1 and in_time():
        middle = (accepted + refused) // 2
        made.append(attempt(middle))
        accepted, refused = (middle, refused) if made[-1].refused is None else (accepted, middle)
    return made, accepted


def attempts_table(attempts: list[Attempt], kept: str) -> str:
    """Return a table of attempts.

    Args:
        attempts: The attempts.
        kept: Title of the first column, as ``"layers in float"``.
    """
    titles = (kept, "like fp32", "drop ± standard error", "SNR in dB", "refused")
    return table(titles, [_cells(attempt) for attempt in attempts])


def _cells(attempt: Attempt) -> tuple[object, ...]:
    alike = None if attempt.agreement is None else f"{attempt.agreement:.2%}"
    if attempt.psnr_to_fp32 is not None:
        alike = f"{attempt.psnr_to_fp32:.1f} dB"
    drop = None if attempt.drop is None else f"{attempt.drop:.2f} ± {attempt.standard_error or 0.0:.2f}"
    snr = None if attempt.snr_db is None else f"{attempt.snr_db:.1f}"
    refused = "accepted" if attempt.refused is None else attempt.refused.split("; ")[0]  # of one file; the log has all
    return attempt.kept, alike, drop, snr, refused
