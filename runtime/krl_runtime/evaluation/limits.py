"""Default limits of accuracy; ``--max-drop``, ``--min-psnr`` and ``--accept-unmeasured`` replace them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = [
    "AGREEMENT_FLOOR",
    "DISAGREEMENT_PER_POINT",
    "ENOUGH_SNR_DB",
    "EXACT",
    "LEAST_AGREEMENT",
    "LEAST_IMAGES",
    "LEAST_PSNR",
    "MAX_DROP_DB",
    "MAX_DROP_POINTS",
    "MAX_RECALL_DROP_POINTS",
    "PSNR_FLOOR",
    "SAME_IMAGE_DB",
]

EXACT: Final = 1e-9
"""Rounding of a mean: 97 of 100 are 97 %, and not 96.99…99."""

MAX_DROP_POINTS: Final = 1.0
"""Largest accuracy drop of a classifier, in percentage points of top-1. A starting value: MLPerf Inference asks for
99 % of FP32's accuracy."""

MAX_RECALL_DROP_POINTS: Final = 10.0
"""Largest drop of the recall of one class, in percentage points, where chance does not explain it. A starting value:
a class of 50 images moves by a few points with no loss at all."""

MAX_DROP_DB: Final = 0.1
"""Largest accuracy drop of a restorer, in dB of PSNR. A starting value, well below a visible difference."""

SAME_IMAGE_DB: Final = 30.0
"""Least PSNR in dB at which two images count as the same where the true image is not known (a generator's)."""

LEAST_IMAGES: Final = 100
"""Least number of images to judge a classifier on, where the user gives no limit: one is worth a point of top-1."""

ENOUGH_SNR_DB: Final = 40.0
"""SNR of the logits in dB from which fewer images are enough: each has a number for every class, and they say more than
one prediction. Disagreement falls with the error: a mobilenet_v3_small of flowers differs in 3.4 % of its predictions
at 24 dB, so that 0.5 % are to be expected at 40 dB. FP16 of networks that it suits is above 55 dB."""

LEAST_AGREEMENT: Final[Mapping[str, float]] = {"fp32": 0.99, "fp16": 0.99, "bf16": 0.99, "int8": 0.95}
"""Least share of images with FP32's prediction, where there are no labels. Starting values: FP16 of networks that it
suits agrees on more than 99.9 %, BF16 on 99.5 %, and INT8 with a drop of a point or less on 97 % and more."""

DISAGREEMENT_PER_POINT: Final = 3.0
"""Points of disagreement with FP32 that go with a drop of one point of top-1: measured INT8 networks with a drop of a
point agree on about 97 %, since most changed predictions were wrong before. Agreement resolves more than top-1 does: on
679 images the drop of plans that keep ever more layers in floating point went up and down by 0.6 points."""

AGREEMENT_FLOOR: Final = 0.5
"""Least share of golden inputs with the golden prediction, whatever was accepted: below it the outputs are another
model's."""

LEAST_PSNR: Final[Mapping[str, float]] = {"fp32": 40.0, "fp16": 40.0, "bf16": 40.0, "int8": SAME_IMAGE_DB}
"""Least PSNR in dB to FP32's images, where the true ones are not known. FP16 is mostly above 60."""

PSNR_FLOOR: Final = 20.0
"""Least PSNR in dB to the golden images, whatever was accepted: below it they are other images."""
