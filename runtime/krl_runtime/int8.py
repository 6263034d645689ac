"""Constants of INT8 that training and the emitters share, so that both round alike."""

from __future__ import annotations

from typing import Final

__all__ = [
    "LARGEST_FACTOR",
    "LARGEST_INT8",
    "LARGEST_WEIGHT",
    "LEAST_FP16_SCALE",
    "MIN_CHANNELS",
    "OUTLIER_RATIO",
    "SMALLEST_INT8",
]

SMALLEST_INT8: Final = -128
"""Smallest value of an int8."""

LARGEST_INT8: Final = 127
"""Largest value of an int8."""

LARGEST_WEIGHT: Final = 127
"""Weights use -127 to 127, so that their scale is symmetric, as TensorRT wants it."""

MIN_CHANNELS: Final = 16
"""INT8 kernels work on at least this many channels, rows or columns (TensorRT's own quantizer keeps to it)."""

LEAST_FP16_SCALE: Final = 2.0**-19
"""Smallest scale that FP16 holds well enough, 1.9e-6. FP16's steps are 2^-24 there. A scale that is rounded up to one
grows by at most 1/32, and rounding noise by 0.3 dB. A smaller scale stays in FP32."""

OUTLIER_RATIO: Final = 4.0
"""A channel is an outlier if its largest magnitude is more than this many times the median channel's. Then the others
have fewer than 6 of 8 bits left."""

LARGEST_FACTOR: Final = 1e3
"""Equalization scales no channel by more than this, or less than its inverse, so that weights stay inside FP16's
range."""
