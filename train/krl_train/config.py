"""Configurations: each is at once the Python API, the command line, the YAML file and what ``run.json`` stores.

Nothing here imports torch, so that ``--help`` works without it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from krl_runtime.errors import UsageError
from krl_runtime.pictures import OnBadImage

__all__ = [
    "AugmentConfig",
    "DataConfig",
    "EvaluateConfig",
    "FitConfig",
    "GenerationConfig",
    "GeneratorScoreConfig",
    "ImportConfig",
    "InputConfig",
    "KnowledgeConfig",
    "LoopConfig",
    "OptimConfig",
    "OutOption",
    "RestorationConfig",
    "StyleConfig",
    "SyntheticConfig",
    "TrainingConfig",
    "TranslationConfig",
    "UnpackConfig",
    "to_plain",
]


@dataclass(frozen=True)
class DataConfig:
    """Which pictures."""

    data: str | None = None
    """digits (embedded), mnist, fashion-mnist, cifar10, cifar100, or a folder: train/CLASS/* and val/CLASS/*, or
    CLASS/*."""
    data_root: Path = Path("data")
    """Where torchvision's data sets lie, or are put with --download."""
    download: bool = False
    """Download a named data set that is not there."""
    val_fraction: float = 0.2
    """Share of the pictures held out where the data is not split already; chosen by each picture's hash."""
    on_bad_image: OnBadImage = "refuse"
    """Files that are not readable pictures: refuse the data set, or name and skip them."""
    limit: int | None = None
    """Train on this many pictures at most, the same number of each class."""
    val_limit: int | None = None
    """Evaluate on this many pictures at most, the same number of each class."""
    val_data: Path | None = None
    """Restoration: a folder of pictures to validate on, all of --data then being for training."""
    memory_limit_mb: int = 4096
    """Decoded pictures beyond this are read from disk again in each epoch."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 < self.val_fraction < 1:
            raise UsageError(f"--val-fraction is {self.val_fraction}; accepted: between 0 and 1")
        for name in ("limit", "val_limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} is {value}; accepted: 1 or more")


@dataclass(frozen=True)
class InputConfig:
    """How a picture becomes the network's input; what is left out follows from the network and the data."""

    size: tuple[int, ...] | None = None
    """Side of the input in pixels, or height and width."""
    channels: int | None = None
    """1 (grey) or 3 (RGB)."""
    resize: str | None = None
    """crop keeps proportions and cuts the centre out (the default), stretch ignores them."""
    crop_fraction: float | None = None
    """Share of the scaled picture that the centre crop keeps: 1 up to 64 pixels, 0.875 above."""
    interpolation: str | None = None
    """Filter of the resizing: nearest, bilinear (the default), bicubic or lanczos."""
    decode_tolerance: float | None = None
    """Mean difference, in levels of 255, that decoding JPEG at a smaller scale may make: 0 (exact, the default), or 0.6
    to 255. The device decodes alike."""
    mean: tuple[float, ...] | None = None
    """Per channel, 0 to 1: measured on the training pictures, or ImageNet's for pretrained weights."""
    std: tuple[float, ...] | None = None
    """Per channel, 0 to 1: measured on the training pictures, or ImageNet's for pretrained weights."""

    def __post_init__(self) -> None:
        """Check what ``Preprocessing`` cannot."""
        if self.size is not None and len(self.size) not in (1, 2):
            raise UsageError(f"--size has {len(self.size)} numbers; accepted: one side, or height and width")


@dataclass(frozen=True)
class AugmentConfig:
    """Random views for training; each depends on the seed, the picture and the epoch alone."""

    augment: bool = True
    """Whether to augment at all."""
    flip: Literal["auto", "horizontal", "none"] = "auto"
    """Mirror half of the pictures, or none; auto mirrors all but digits and other signs."""
    crop_padding: int | None = None
    """Shift by up to this many pixels: an eighth of the side up to 64 pixels, 0 above (the crop's margin is used)."""
    rotate: float = 0.0
    """Rotate by up to this many degrees to either side."""
    zoom: float = 1.0
    """Magnify by up to this factor, 1 or more."""
    mixup: float = 0.0
    """Mix each view with another of its batch, by a share drawn from Beta(mixup, mixup); 0 is off."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.zoom < 1:
            raise UsageError(f"--zoom is {self.zoom}; accepted: 1 or more")
        if self.mixup < 0:
            raise UsageError(f"--mixup is {self.mixup}; accepted: 0 or more")
        if self.crop_padding is not None and self.crop_padding < 0:
            raise UsageError(f"--crop-padding is {self.crop_padding}; accepted: 0 or more")


@dataclass(frozen=True)
class OptimConfig:
    """How weights are moved."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or AdamW; restoration takes AdamW always."""
    lr: float | None = None
    """Peak learning rate: 0.1 for sgd and 0.001 for adamw, times batch size / 128; 0.001 for restoration."""
    momentum: float = 0.9
    """Momentum of sgd."""
    nesterov: bool = True
    """Nesterov's form of the momentum."""
    weight_decay: float = 5e-4
    """Weight decay, on all parameters as in the published protocols."""
    schedule: Literal["cosine", "multistep", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    milestones: tuple[float, ...] = (0.625, 0.75, 0.875)
    """Shares of the training after which multistep divides the learning rate by ten."""
    warmup: float = 0.05
    """Share of the training in which the learning rate rises from 0."""
    label_smoothing: float = 0.0
    """Label smoothing of the cross-entropy, 0 to below 1."""
    clip_norm: float | None = None
    """Largest norm of the gradient."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, which is then evaluated and kept; 0 is off."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.lr is not None and not self.lr > 0:
            raise UsageError(f"--lr is {self.lr}; accepted: above 0")
        for name in ("warmup", "label_smoothing", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} is {getattr(self, name)}; accepted: 0 to below 1")


@dataclass(frozen=True)
class LoopConfig:
    """How long, how large, on what."""

    epochs: int = 30
    """Passes over the training pictures."""
    batch_size: int = 128
    """Pictures in one step, over all processes together."""
    seed: int = 0
    """Seed of everything that is random."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Mixed precision of the training; auto takes bf16 where the hardware computes in it. Evaluation is in fp32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes a GPU if there is one."""
    channels_last: bool = True
    """Memory layout of the pictures; faster on most hardware."""
    checkpoint_minutes: float = 10.0
    """Longest time between checkpoints; there is one after each epoch in any case."""
    evaluate_every: int = 1
    """Epochs between evaluations; the last epoch is always evaluated."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("epochs", "batch_size", "evaluate_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} is {getattr(self, name)}; accepted: 1 or more")


OutOption = Annotated[Path, tyro.conf.arg(aliases=["-o"])]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What all commands that train a classifier share."""

    out: OutOption
    """The run's folder."""
    resume: bool = False
    """Continue the interrupted run in --out."""
    overwrite: bool = False
    """Replace the run in --out."""
    json: bool = False
    """Print the result as one JSON object."""
    data: DataConfig = field(default_factory=DataConfig)
    input: InputConfig = field(default_factory=InputConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)


@dataclass(frozen=True)
class SyntheticConfig:
    """Generated pictures that a classifier is trained on, beside the real ones."""

    augment_from: Path | None = None
    """A generator, run or bundle, whose conditions name the classes; its pictures are added to the training pictures,
    the same number of each class. Evaluation stays on real ones."""
    augment_count: int = 1000
    """Number of generated pictures."""

    def __post_init__(self) -> None:
        """Check the range."""
        if self.augment_count < 1:
            raise UsageError(f"--augment-count is {self.augment_count}; accepted: 1 or more")


@dataclass(frozen=True)
class KnowledgeConfig:
    """What guides a generator."""

    condition: Literal["none", "labels", "attributes", "text", "graph"] = "none"
    """What a generator is told: nothing, the class, attributes, a description, or an entity of a graph of facts."""
    condition_file: Path | None = None
    """attributes: CSV, columns picture and one for each attribute. text: CSV or JSON lines, picture and text, several
    for a picture if wanted. graph: CSV, head,relation,tail; the classes of the pictures are among the heads."""
    condition_dim: int = 64
    """Length of the vector that is made of a condition."""
    condition_dropout: float = 0.1
    """Share of the attributes or facts that training leaves open, so that a user may leave them open."""
    guide: Path | None = None
    """Run of a classifier that, frozen, checks each generated picture; its labels are words, values or entities of the
    conditions, or classes."""
    guide_weight: float = 0.1
    """Weight of the guide's cross-entropy beside the generator's own loss."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.condition in ("attributes", "text", "graph") and self.condition_file is None:
            raise UsageError(f"--condition {self.condition} needs --condition-file")
        if self.condition in ("none", "labels") and self.condition_file is not None:
            raise UsageError(f"--condition {self.condition} takes no --condition-file")
        if self.guide is not None and self.condition == "none":
            raise UsageError("--guide needs --condition: without it there is nothing that a picture should show")
        if self.condition_dim < 1:
            raise UsageError(f"--condition-dim is {self.condition_dim}; accepted: 1 or more")
        if not 0 <= self.condition_dropout < 1:
            raise UsageError(f"--condition-dropout is {self.condition_dropout}; accepted: 0 to below 1")
        if not self.guide_weight > 0:
            raise UsageError(f"--guide-weight is {self.guide_weight}; accepted: above 0")


@dataclass(frozen=True)
class GenerationConfig:
    """How a generator is trained.

    The optimiser is Adam: of the optim options --lr (gan 0.0002, vae 0.001), --schedule, --warmup, --clip-norm and
    --ema (0.999) count.
    """

    latent: int = 64
    """Length of the latent; a student has its teacher's."""
    adversarial: Literal["non-saturating", "hinge"] = "non-saturating"
    """gan: the loss of generator and discriminator."""
    r1: float = 1.0
    """gan: gamma, the weight of the penalty on the discriminator's gradient at real pictures; 0 is off."""
    diffaugment: tuple[Literal["colour", "translation", "cutout"], ...] = ()
    """gan: augment what the discriminator sees, for small sets."""
    discriminator_width: int | None = None
    """gan: channels of the discriminator at full resolution; those of the generator by default."""
    discriminator_lr: float | None = None
    """gan: learning rate of the discriminator; the generator's by default."""
    patience: int = 500
    """gan: stop when the discriminator makes no error, or all pictures are the same, for this many steps."""
    beta: float = 1.0
    """vae: weight of the divergence from the prior."""
    features: Path | None = None
    """Run of a classifier, on whose features FID and its like are measured at evaluations; frozen, and not used
    otherwise."""
    score_samples: int = 2000
    """Generated pictures that are measured at evaluations."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, least in (("latent", 1), ("patience", 1), ("score_samples", 64), ("discriminator_width", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"--{name.replace('_', '-')} is {value}; accepted: {least} or more")
        for name in ("r1", "beta"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"--{name} is {getattr(self, name)}; accepted: 0 or more")
        if self.discriminator_lr is not None and not self.discriminator_lr > 0:
            raise UsageError(f"--discriminator-lr is {self.discriminator_lr}; accepted: above 0")


@dataclass(frozen=True)
class RestorationConfig:
    """Restoration: what is undone, on random patches of --size input pixels."""

    restore: Literal["super-resolution", "denoise", "jpeg"] = "super-resolution"
    """Enlarge pictures, take noise away, or take JPEG's artefacts away."""
    scale: int = 3
    """By how much super-resolution enlarges: 2, 3 or 4."""
    colour: Literal["y", "rgb", "grey"] = "y"
    """What the network sees: luma alone (the device enlarges chroma bicubically), all three channels, or grey."""
    noise_level: float = 25.0
    """denoise: standard deviation of the noise, in levels of 255."""
    jpeg_quality: int = 20
    """jpeg: quality that the pictures are written with, 1 to 95."""
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


@dataclass(frozen=True)
class TranslationConfig:
    """Translation: pairs of pictures of one name and size in the folders A (given) and B (wanted)."""

    translation_colour: Literal["rgb", "grey"] = "rgb"
    """Channels of both."""
    pixel_weight: float = 100.0
    """Weight of the mean absolute difference from B, in units of 0 to 1."""
    adversarial_weight: float = 1.0
    """Weight of the patch discriminator; 0 leaves it out."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("pixel_weight", "adversarial_weight"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"--{name.replace('_', '-')} is {getattr(self, name)}; accepted: 0 or more")


@dataclass(frozen=True)
class StyleConfig:
    """Style: pictures are painted in the manner of one, as the features of a classifier see it."""

    style_picture: Path | None = None
    """The picture whose manner is taken."""
    style_features: str | None = None
    """Whose features tell style and content: a classifier's run, or vgg16 (torchvision's, with --pretrained)."""
    content_weight: float = 1.0
    """Weight of the content, relative to the size of its features."""
    style_weight: float = 1.0
    """Weight of the style, relative to the size of the style picture's Gram matrices."""
    variation_weight: float = 0.1
    """Weight of the differences between neighbouring pixels, in units of 0 to 1."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("content_weight", "style_weight", "variation_weight"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"--{name.replace('_', '-')} is {getattr(self, name)}; accepted: 0 or more")


@dataclass(frozen=True, kw_only=True)
class FitConfig(TrainingConfig):
    """Options of ``krl-train fit``."""

    task: Literal["classification", "gan", "vae", "restoration", "translation", "style"] = "classification"
    """What is trained."""
    model: str
    """resnet8 … resnet110, resnet8x4, resnet32x4, wrn-16-2, dscnn-0.5 …, any torchvision classifier, or timm/NAME. gan,
    vae: dcgan-W, resgan-W, dsgan-W with W channels, or mlp-H1-H2."""
    pretrained: bool = False
    """Start from published ImageNet weights; downloads them unless they are in the cache."""
    init: Path | None = None
    """Start from the weights of another run of the same network (fine-tuning); other labels get a new last layer."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    restoration: RestorationConfig = field(default_factory=RestorationConfig)
    translation: TranslationConfig = field(default_factory=TranslationConfig)
    style: StyleConfig = field(default_factory=StyleConfig)
    knowledge: KnowledgeConfig = field(default_factory=KnowledgeConfig)
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)


@dataclass(frozen=True)
class GeneratorScoreConfig:
    """What is measured of a generator; nothing is downloaded."""

    features: Path | None = None
    """Run of a classifier, on whose features FID, KID, precision, recall, density and coverage are measured."""
    score_samples: int = 5000
    """Generated pictures, and real ones at most."""
    against: Path | None = None
    """Run of another generator (the teacher): PSNR and SSIM of what both make of the same latents and conditions."""
    train_on_synthetic: str | None = None
    """Classifier by name that is trained on generated pictures alone and measured on the real ones; for generators with
    --condition labels."""
    synthetic_epochs: int = 5
    """Passes of that training over --score-samples generated pictures."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.score_samples < 64:
            raise UsageError(f"--score-samples is {self.score_samples}; accepted: 64 or more")
        if self.synthetic_epochs < 1:
            raise UsageError(f"--synthetic-epochs is {self.synthetic_epochs}; accepted: 1 or more")


@dataclass(frozen=True)
class EvaluateConfig:
    """Options of ``krl-train evaluate``."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    split: Literal["auto", "train", "val", "all"] = "auto"
    """auto: val where the data is split or was trained on, all pictures of any other folder."""
    batch_size: int = 256
    """Pictures in one step."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    json: bool = False
    """Print the result as one JSON object."""
    generator: GeneratorScoreConfig = field(default_factory=GeneratorScoreConfig)
    data: DataConfig = field(default_factory=DataConfig)


@dataclass(frozen=True)
class ImportConfig:
    """Options of ``krl-train import``."""

    weights: Path
    """The foreign file: .pth, .pt, .th, .ckpt (read without executing anything in it), .safetensors, or for style-WIDTH
    .npz."""
    model: str
    """The network that the weights belong to, by krl's name."""
    out: OutOption
    """The run's folder."""
    split: Literal["auto", "train", "val", "all"] = "auto"
    """What to measure the weights on."""
    latent: int | None = None
    """Length of a generator's latent."""
    overwrite: bool = False
    """Replace the run in --out."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to measure."""
    json: bool = False
    """Print the result as one JSON object."""
    data: DataConfig = field(default_factory=DataConfig)
    input: InputConfig = field(default_factory=InputConfig)


@dataclass(frozen=True)
class UnpackConfig:
    """Options of ``krl-train unpack``."""

    out: OutOption
    """The folder to make."""
    data: DataConfig = field(default_factory=DataConfig)


def to_plain(config: Any) -> dict[str, Any]:
    """Return a configuration as plain JSON types, for ``run.json``."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, tuple | list):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    result: dict[str, Any] = plain(asdict(config))
    return result
