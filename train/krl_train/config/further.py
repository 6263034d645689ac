"""Options of a classifier with several inputs: what it takes beside the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from krl_runtime.errors import UsageError

__all__ = ["CATEGORY", "FurtherInputsConfig"]

CATEGORY = ":category"
"""Ending of an attribute's column whose numbers are names of categories."""


@dataclass(frozen=True)
class FurtherInputsConfig:
    """Inputs beside the image: attributes and further images from columns of the list that --data names, descriptors.

    A student of such a classifier takes the image alone, or the same inputs (--student-inputs same).
    """

    attributes: tuple[str, ...] = ()
    """Columns with attributes of the image: numbers, or names of categories. COLUMN:category: numbers are names."""
    further_images: tuple[str, ...] = ()
    """Columns with files of further images of the same thing; each is seen by the same weights."""
    descriptors: tuple[Literal["hog", "lbp", "color-histogram"], ...] = ()
    """Descriptors of the image that scikit-image computes, in training and on a device."""
    input_fusion: Literal["late", "gated"] = "late"
    """How what is known of the inputs comes together: side by side, or weighted by learned gates."""

    def __post_init__(self) -> None:
        """Check that nothing is named twice, and that there is something to fuse."""
        columns = [*self.columns, *self.further_images]
        for names in (columns, [str(name) for name in self.descriptors]):
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise UsageError(f"{twice!r} is named twice among the inputs; name it once")
        if self.input_fusion != "late" and not self.asked:
            raise UsageError(
                "--input-fusion is for several inputs; give --attributes, --further-images or --descriptors"
            )

    @property
    def columns(self) -> list[str]:
        """Names of the columns with attributes."""
        return [name.removesuffix(CATEGORY) for name in self.attributes]

    @property
    def asked(self) -> bool:
        """Whether there is an input beside the image."""
        return bool(self.attributes or self.further_images or self.descriptors)
