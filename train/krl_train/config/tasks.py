"""Options of the single tasks and additions of ``krl-train fit``; ``krl_train.config`` puts them together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from krl_runtime.cli.options import Advanced, Only, option_name
from krl_runtime.errors import UsageError

__all__ = [
    "ConditioningConfig",
    "DiscriminatorStartConfig",
    "GenerationConfig",
    "ImportedRestorerConfig",
    "RestorationConfig",
    "StyleConfig",
    "SyntheticConfig",
    "TranslationConfig",
]


_GAN, _VAE = Only("gan"), Only("vae")


@dataclass(frozen=True)
class SyntheticConfig:
    """Generated images that a classifier is trained on, beside the real ones."""

    augment_from: Path | None = None
    """A generator, run or bundle, whose conditions name the classes; its images are added to the training images,
    the same number of each class. Evaluation stays on real ones."""
    augment_count: int = 1000
    """Number of generated images."""

    def __post_init__(self) -> None:
        """Check the range."""
        if self.augment_count < 1:
            raise UsageError(f"--augment-count is {self.augment_count}; accepted: 1 or more")


@dataclass(frozen=True)
class ConditioningConfig:
    """Conditions of a generator."""

    condition: Literal["none", "labels", "attributes", "text", "graph"] = "none"
    """Condition of a generator: the class, attributes, a description, or an entity of a graph."""
    condition_file: Path | None = None
    """attributes: CSV, columns image and attributes. text: CSV or JSON lines, image and text. graph: CSV,
    head,relation,tail, with the classes of the images among the heads."""
    sentence_model: Advanced[Path | None] = None
    """text: folder of a sentence-transformers model, which says what each word means; nothing is downloaded."""
    more_words: Advanced[Path | None] = None
    """text: file of words, one in a line, that descriptions may have though no training image's has; needs
    --sentence-model."""
    condition_dim: Advanced[int] = 64
    """Length of the vector that is made of a condition."""
    condition_dropout: Advanced[float] = 0.1
    """Share of the attributes or facts that training leaves open, so that a user may leave them open."""
    guide: Advanced[Path | None] = None
    """Run of a classifier that, frozen, checks each generated image; its labels are words, values or entities of the
    conditions, or classes."""
    guide_weight: Advanced[float] = 0.03
    """Weight of the guide's cross-entropy beside the generator's own loss; with a large one the guide is deceived."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.condition in ("attributes", "text", "graph") and self.condition_file is None:
            raise UsageError(f"--condition {self.condition} needs --condition-file")
        if self.condition in ("none", "labels") and self.condition_file is not None:
            raise UsageError(f"--condition {self.condition} takes no --condition-file")
        if self.sentence_model is not None and self.condition != "text":
            raise UsageError("--sentence-model is for --condition text")
        if self.more_words is not None and self.sentence_model is None:
            raise UsageError("--more-words needs --sentence-model, which says what the words mean")
        if self.guide is not None and self.condition == "none":
            raise UsageError("--guide needs --condition: without it there is nothing that an image should show")
        if self.condition_dim < 1:
            raise UsageError(f"--condition-dim is {self.condition_dim}; accepted: 1 or more")
        if not 0 <= self.condition_dropout < 1:
            raise UsageError(f"--condition-dropout is {self.condition_dropout}; accepted: 0 to below 1")
        if not self.guide_weight > 0:
            raise UsageError(f"--guide-weight is {self.guide_weight}; accepted: above 0")


@dataclass(frozen=True)
class GenerationConfig:
    """How a generator is trained.

    The optimizer is Adam: of the optim options --lr (gan 0.0002, vae 0.001), --schedule, --warmup, --clip-norm and
    --ema (0.999) count.
    """

    latent: int = 64
    """Length of the latent; a student has its teacher's."""
    adversarial: Advanced[Annotated[Literal["non-saturating", "hinge"], _GAN]] = "non-saturating"
    """The loss of generator and discriminator."""
    r1: Advanced[Annotated[float, _GAN]] = 1.0
    """Gamma, the weight of the penalty on the discriminator's gradient at real images; 0 is off."""
    diffaugment: Annotated[tuple[Literal["color", "translation", "cutout"], ...], _GAN] = ()
    """Augment what the discriminator sees."""
    discriminator_width: Advanced[Annotated[int | None, _GAN]] = None
    """Channels of the discriminator at full resolution; those of the generator by default."""
    discriminator_lr: Advanced[Annotated[float | None, _GAN]] = None
    """Learning rate of the discriminator; the generator's by default."""
    patience: Advanced[Annotated[int, _GAN]] = 500
    """Stop when the discriminator makes no error, or all images are the same, for this many steps."""
    beta: Annotated[float, _VAE] = 1.0
    """Weight of the divergence from the prior."""
    features: Path | None = None
    """Run of a classifier, on whose features alone FID and its like are measured at evaluations."""
    score_samples: Advanced[int] = 2000
    """Generated images that are measured at evaluations."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, least in (("latent", 1), ("patience", 1), ("score_samples", 64), ("discriminator_width", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{option_name(name)} is {value}; accepted: {least} or more")
        for name in ("r1", "beta"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"--{name} is {getattr(self, name)}; accepted: 0 or more")
        if self.discriminator_lr is not None and not self.discriminator_lr > 0:
            raise UsageError(f"--discriminator-lr is {self.discriminator_lr}; accepted: above 0")


@dataclass(frozen=True)
class DiscriminatorStartConfig:
    """How the discriminator starts with --from."""

    freeze_discriminator: Advanced[int] = 0
    """Keep this many layers of the run's discriminator as they are, from the image on; for few images."""
    fresh_discriminator: Advanced[bool] = False
    """Begin with a discriminator that has not seen any image, where the run has none."""

    def __post_init__(self) -> None:
        """Check the range, and that there is something to freeze."""
        if self.freeze_discriminator < 0:
            raise UsageError(f"--freeze-discriminator is {self.freeze_discriminator}; accepted: 0 or more")
        if self.freeze_discriminator and self.fresh_discriminator:
            raise UsageError("--freeze-discriminator keeps layers that are trained; leave --fresh-discriminator out")


@dataclass(frozen=True)
class RestorationConfig:
    """Restoration: what is undone, on random patches of --size input pixels."""

    restore: Literal["super-resolution", "denoise", "jpeg"] = "super-resolution"
    """Enlarge images, take noise away, or take JPEG's artifacts away."""
    scale: int = 3
    """By how much super-resolution enlarges: 2, 3 or 4."""
    color: Literal["y", "rgb", "gray"] | None = None
    """Channels that the network sees: y (luma; chroma is enlarged bicubically, or left as it is), rgb, or gray. Left
    out: y for super-resolution, else rgb, or gray where all images are gray."""
    noise_level: float = 25.0
    """denoise: standard deviation of the noise, in levels of 255."""
    jpeg_quality: int = 20
    """jpeg: quality that the images are written with, 1 to 95."""
    pixel_loss: Literal["l1", "charbonnier"] = "l1"
    """Mean absolute difference, or its smooth form."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.scale not in (2, 3, 4):
            raise UsageError(f"--scale is {self.scale}; accepted: 2, 3 or 4")
        if not 0 < self.noise_level <= 255:
            raise UsageError(f"--noise-level is {self.noise_level}; accepted: above 0, up to 255")
        if not 1 <= self.jpeg_quality <= 95:
            raise UsageError(f"--jpeg-quality is {self.jpeg_quality}; accepted: 1 to 95")
        for name, kind in (("scale", "super-resolution"), ("noise_level", "denoise"), ("jpeg_quality", "jpeg")):
            if self.restore != kind and getattr(self, name) != getattr(RestorationConfig, name):
                raise UsageError(f"{option_name(name)} is for --restore {kind}; leave it out")


@dataclass(frozen=True)
class ImportedRestorerConfig:
    """Task of an imported restorer; what is left out is read from the weights."""

    restore: Literal["super-resolution", "denoise", "jpeg"] = "super-resolution"
    """espcn, fsrcnn, edsr: what it undoes."""
    scale: int | None = None
    """By how much it enlarges; the weights of fsrcnn do not say it."""
    color: Literal["y", "rgb", "gray"] | None = None
    """Channels that it sees: rgb for three channels, y (luma) for one."""
    noise_level: Advanced[float] = RestorationConfig.noise_level
    """denoise: standard deviation of the noise, in levels of 255."""
    jpeg_quality: Advanced[int] = RestorationConfig.jpeg_quality
    """jpeg: quality that the images were written with."""
    res_scale: Advanced[float] = 1.0
    """Factor of the residual branches of a published EDSR: 0.1 in those of 256 channels."""


@dataclass(frozen=True)
class TranslationConfig:
    """Translation: pairs of images of one name and size in the folders A (given) and B (wanted)."""

    translation_color: Literal["rgb", "gray"] = "rgb"
    """Channels of both."""
    pixel_weight: float = 100.0
    """Weight of the mean absolute difference from B, in units of 0 to 1."""
    adversarial_weight: float = 1.0
    """Weight of the patch discriminator; 0 leaves it out."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("pixel_weight", "adversarial_weight"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"{option_name(name)} is {getattr(self, name)}; accepted: 0 or more")


@dataclass(frozen=True)
class StyleConfig:
    """Style: images are painted in the manner of one, as the features of a classifier see it."""

    style_image: Path | None = None
    """The image whose manner is taken."""
    style_features: str | None = None
    """Whose features tell style and content: a classifier's run, or vgg16 (torchvision's, with --pretrained)."""
    content_weight: float = 1.0
    """Weight of the content, relative to the size of its features."""
    style_weight: float = 1.0
    """Weight of the style, relative to the size of the style image's Gram matrices."""
    variation_weight: float = 0.1
    """Weight of the differences between neighboring pixels, in units of 0 to 1."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("content_weight", "style_weight", "variation_weight"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"{option_name(name)} is {getattr(self, name)}; accepted: 0 or more")
