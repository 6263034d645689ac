"""Images for training: named data sets and folders, decoded with the device's own preprocessing."""

from __future__ import annotations

from .augment import Augmentation
from .inputs import preprocessing_for
from .patches import PatchBatch, PatchStream
from .pixels import PixelSet
from .sources import Source, load_split, open_source
from .truths import Truths

__all__ = [
    "Augmentation",
    "PatchBatch",
    "PatchStream",
    "PixelSet",
    "Source",
    "Truths",
    "load_split",
    "open_source",
    "preprocessing_for",
]
