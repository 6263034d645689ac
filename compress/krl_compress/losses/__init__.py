"""Distillation losses: pure functions of tensors, computed in float32 at least, the teacher always detached.

What holds for all of one kind stands at the top of its module: :mod:`.logits` and :mod:`.decoupled` (logits, the
latter with labels), :mod:`.features` (feature maps), :mod:`.relations` (relations in a batch), :mod:`.alignment` (maps
of generators), :mod:`.inversion` (a classifier alone). :mod:`.adapters` has the modules with parameters or memory.
"""

from __future__ import annotations

from .adapters import CRD, Review, regressor
from .decoupled import dkd, dkd_parts, nkd, rld, wsld
from .features import at, hcl, hint, nst, spatial_affinity, wkd_f
from .logits import (
    batch_correlation,
    class_correlation,
    dist,
    hard_label,
    kd,
    logistic,
    logit_mse,
    mlkd,
    soft_bce,
    standardize,
    standardize_logits,
    ttm,
    wttm,
)
from .relations import cc, cosine, crd_contrast, pkt, rkd_angle, rkd_distance, sp

__all__ = [
    "CRD",
    "Review",
    "at",
    "batch_correlation",
    "cc",
    "class_correlation",
    "cosine",
    "crd_contrast",
    "dist",
    "dkd",
    "dkd_parts",
    "hard_label",
    "hcl",
    "hint",
    "kd",
    "logistic",
    "logit_mse",
    "mlkd",
    "nkd",
    "nst",
    "pkt",
    "regressor",
    "rkd_angle",
    "rkd_distance",
    "rld",
    "soft_bce",
    "sp",
    "spatial_affinity",
    "standardize",
    "standardize_logits",
    "ttm",
    "wkd_f",
    "wsld",
    "wttm",
]
