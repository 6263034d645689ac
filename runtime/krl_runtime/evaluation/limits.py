"""Default limits of accuracy; ``--max-drop`` and ``--min-psnr`` replace them."""

from __future__ import annotations

from typing import Final

__all__ = ["MAX_DROP_DB", "MAX_DROP_POINTS", "SAME_IMAGE_DB"]

MAX_DROP_POINTS: Final = 1.0
"""Largest accuracy drop of a classifier, in percentage points of top-1. A starting value: MLPerf Inference asks for
99 % of FP32's accuracy."""

MAX_DROP_DB: Final = 0.1
"""Largest accuracy drop of a restorer, in dB of PSNR. A starting value, well below a visible difference."""

SAME_IMAGE_DB: Final = 30.0
"""Least PSNR in dB at which two images count as the same where the true image is not known (a generator's)."""
