"""Options of the random views that classifiers and generators are trained on."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Literal

from krl_runtime.cli.options import Advanced, Only, option_name
from krl_runtime.errors import UsageError

__all__ = ["AugmentConfig"]

_CLASSIFIER = Only("classification")
_LABELED = Only("classification", "embedding")
_PIXELS = Only("classification", "embedding", "gan", "vae")
_DETAILS = {
    "random_resized_crop": ("crop_scale", "crop_ratio"),
    "erase": ("erase_scale", "erase_ratio"),
}
"""By option, what says more of it and means nothing without it."""
_LARGEST_MAGNITUDE = 30  # torchvision's RandAugment has 31 magnitudes


@dataclass(frozen=True)
class AugmentConfig:
    """Random views for training; each depends on the seed, the image and the epoch alone.

    By default images are mirrored and shifted, whatever their number.
    """

    augment: bool = True
    """Make random views; --help-all has more of them."""
    flip: Literal["auto", "horizontal", "none"] = "auto"
    """Mirror half of the images, or none; auto: unless classes are numbers, letters, left or right."""
    crop_padding: Advanced[Annotated[int | None, _PIXELS]] = None
    """Shift by up to this many pixels: an eighth of the side up to 64 pixels, 0 above (the crop's margin is used)."""
    random_resized_crop: Advanced[Annotated[bool, _PIXELS]] = False
    """Cut a random rectangle out and resize it, in place of the shift (torchvision's RandomResizedCrop)."""
    crop_scale: Advanced[Annotated[tuple[float, float], _PIXELS]] = (0.08, 1.0)
    """Least and largest share of the image's area that --random-resized-crop keeps."""
    crop_ratio: Advanced[Annotated[tuple[float, float], _PIXELS]] = (3 / 4, 4 / 3)
    """Least and largest width / height of what --random-resized-crop cuts out."""
    rotate: Advanced[Annotated[float, _PIXELS]] = 0.0
    """Rotate by up to this many degrees to either side."""
    zoom: Advanced[Annotated[float, _PIXELS]] = 1.0
    """Magnify by up to this factor, 1 or more."""
    auto_augment: Advanced[Annotated[Literal["none", "randaugment", "trivialaugment"], _LABELED]] = "none"
    """Change geometry and colors by random operations: torchvision's RandAugment or TrivialAugmentWide."""
    ra_ops: Advanced[Annotated[int, _LABELED]] = 2
    """Operations on each view that randaugment makes."""
    ra_magnitude: Advanced[Annotated[int, _LABELED]] = 9
    """Their magnitude, 0 to 30."""
    color_jitter: Advanced[Annotated[tuple[float, ...] | None, _PIXELS]] = None
    """Change brightness, contrast, saturation (and hue, 0 to 0.5) by up to these factors: one number for the first
    three, or 3 or 4 numbers."""
    erase: Advanced[Annotated[float, _LABELED]] = 0.0
    """Share of the views of which a random rectangle is replaced by the mean color (RandomErasing)."""
    erase_scale: Advanced[Annotated[tuple[float, float], _LABELED]] = (0.02, 0.33)
    """Least and largest share of the view's area that --erase takes."""
    erase_ratio: Advanced[Annotated[tuple[float, float], _LABELED]] = (0.3, 3.3)
    """Least and largest height / width of what --erase takes."""
    mixup: Annotated[float, _CLASSIFIER] = 0.0
    """Mix each view with another of its batch, by a share drawn from Beta(mixup, mixup); 0 is off."""
    cutmix: Advanced[Annotated[float, _CLASSIFIER]] = 0.0
    """Put a rectangle of another view of the batch into each, of a share drawn from Beta(cutmix, cutmix); 0 is off.
    With --mixup, each batch has one of the two."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.augment:
            self._check_nothing_asked()
        for name, least in (("rotate", 0), ("zoom", 1), ("mixup", 0), ("cutmix", 0), ("crop_padding", 0)):
            value = getattr(self, name)
            if value is not None and not least <= value < float("inf"):
                raise UsageError(f"{option_name(name)} is {value}; accepted: {least} or more")
        if not 0 <= self.erase <= 1:
            raise UsageError(f"--erase is {self.erase}; accepted: 0 to 1")
        self._check_ranges()
        self._check_auto_augment()
        self._check_color_jitter()

    @property
    def mixes(self) -> bool:
        """Whether views have parts of two images, and so two labels."""
        return self.mixup > 0 or self.cutmix > 0

    def _check_nothing_asked(self) -> None:
        """Refuse options that would be ignored; a task may set the others itself."""
        for item in fields(self):
            free = item.name in ("augment", "flip", "crop_padding")
            if not free and getattr(self, item.name) != item.default:
                raise UsageError(f"{option_name(item.name)} means nothing with --no-augment; leave one of them out")

    def _check_ranges(self) -> None:
        unbounded = float("inf")
        largest = {"crop_scale": 1, "crop_ratio": unbounded, "erase_scale": 1, "erase_ratio": unbounded}
        for name, most in largest.items():
            values = tuple(getattr(self, name))
            object.__setattr__(self, name, values)  # a file of options has a list
            if len(values) != 2 or not 0 < values[0] <= values[1] <= most or values[1] == unbounded:
                given = " ".join(f"{value:g}" for value in values)
                upper = "" if most == unbounded else f", up to {most}"
                raise UsageError(f"{option_name(name)} is {given}; accepted: two increasing numbers above 0{upper}")
        for option, details in _DETAILS.items():
            for name in details:
                if not getattr(self, option) and getattr(self, name) != getattr(AugmentConfig, name):
                    raise UsageError(f"{option_name(name)} is for {option_name(option)}; give both, or leave it out")
        if self.random_resized_crop and self.crop_padding:
            raise UsageError("--random-resized-crop takes the place of the shift; leave --crop-padding out")

    def _check_auto_augment(self) -> None:
        policies = ("none", "randaugment", "trivialaugment")
        if self.auto_augment not in policies:
            raise UsageError(f"--auto-augment is {self.auto_augment!r}; accepted: {', '.join(policies)}")
        for name in ("ra_ops", "ra_magnitude"):
            if self.auto_augment != "randaugment" and getattr(self, name) != getattr(AugmentConfig, name):
                raise UsageError(f"{option_name(name)} is for --auto-augment randaugment; leave it out")
        if self.ra_ops < 1:
            raise UsageError(f"--ra-ops is {self.ra_ops}; accepted: 1 or more")
        if not 0 <= self.ra_magnitude <= _LARGEST_MAGNITUDE:
            raise UsageError(f"--ra-magnitude is {self.ra_magnitude}; accepted: 0 to {_LARGEST_MAGNITUDE}")

    def _check_color_jitter(self) -> None:
        if self.color_jitter is None:
            return
        object.__setattr__(self, "color_jitter", tuple(self.color_jitter))
        given = " ".join(f"{value:g}" for value in self.color_jitter)
        if len(self.color_jitter) not in (1, 3, 4):
            raise UsageError(
                f"--color-jitter is {given}; accepted: one number, or brightness, contrast and saturation, or "
                "these and hue"
            )
        if not all(0 <= value < float("inf") for value in self.color_jitter):
            raise UsageError(f"--color-jitter is {given}; accepted: 0 or more")
        if len(self.color_jitter) == 4 and self.color_jitter[3] > 0.5:
            raise UsageError(f"--color-jitter has hue {self.color_jitter[3]:g}; accepted: 0 to 0.5")
