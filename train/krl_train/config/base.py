"""Options of the commands of ``krl-train``, and the sections that commands share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import tyro

from krl_runtime.cli.options import Advanced, Only, option_name
from krl_runtime.errors import UsageError
from krl_runtime.images.folders import OnBadImage
from krl_train.custom import Custom, named

from .augmentation import AugmentConfig
from .embedding import EmbeddingConfig
from .further import FurtherInputsConfig
from .joint import JointConfig
from .optimization import LoopConfig, OptimConfig
from .tasks import (
    ConditioningConfig,
    DiscriminatorStartConfig,
    GenerationConfig,
    ImportedRestorerConfig,
    RestorationConfig,
    StyleConfig,
    SyntheticConfig,
    TranslationConfig,
)
from .transfer import TransferConfig

__all__ = [
    "DataConfig",
    "EvaluateConfig",
    "FitConfig",
    "GeneratorScoreConfig",
    "ImportConfig",
    "InputConfig",
    "ModelsConfig",
    "OutOption",
    "RecipesConfig",
    "TrainingConfig",
    "UnpackConfig",
]


Task: TypeAlias = Literal["classification", "embedding", "gan", "vae", "restoration", "translation", "style"]

_CLASSIFIER, _EMBEDDING = Only("classification"), Only("embedding")
_LABELED = Only("classification", "embedding")
_GAN, _GENERATORS = Only("gan"), Only("gan", "vae")
_RESTORATION, _TRANSLATION, _STYLE = Only("restoration"), Only("translation"), Only("style")
_FROM_IMAGES = Only("restoration", "style")
_PIXELS = Only("classification", "embedding", "gan", "vae")
_PRETRAINED = Only("classification", "embedding", "style")
_CONTINUED = Only("classification", "embedding", "gan", "restoration", "translation", "style")
_MODEL = tyro.conf.arg(help_behavior_hint="(required without --from)")


@dataclass(frozen=True)
class DataConfig:
    """Which images."""

    data: Custom | None = None
    """digits (embedded), mnist, fashion-mnist, cifar10, cifar100, a folder of images (train/CLASS and val/CLASS, or
    CLASS), a list of them (LIST.csv, LIST.json), or your own torch Dataset as package.module:name."""
    data_root: Advanced[Path] = Path("data")
    """Where torchvision's data sets lie, or are put with --download."""
    download: Advanced[bool] = False
    """Download a named data set that is not there."""
    val_fraction: Advanced[float] = 0.2
    """Share of the images held out where the data is not split already; chosen by each image's hash."""
    on_bad_image: Advanced[OnBadImage] = "refuse"
    """Files that are not readable images: refuse the data set, or name and skip them."""
    limit: int | None = None
    """Train on this many images at most, the same number of each class."""
    shots: Annotated[int | None, _LABELED] = None
    """Train on this many images of each class, drawn by --seed; validation has all of its images."""
    val_limit: Advanced[int | None] = None
    """Evaluate on this many images at most, the same number of each class."""
    val_data: Annotated[Path | None, _FROM_IMAGES] = None
    """Restoration: a folder of images to validate on, all of --data then being for training."""
    memory_limit_mb: Advanced[int] = 4096
    """Decoded images of a split that take more are not kept in memory, but read from disk."""
    # 32 GiB are 170,000 images of 224x224 with their margins, decoded; a tenth of ImageNet has 130,000.
    disk_cache_mb: Advanced[Annotated[int, _PIXELS]] = 32768
    """Decoded images on disk, in KRL_CACHE_DIR or ~/.cache/krl, of all data sets together; the oldest are removed. 0:
    none. What has no room is decoded again in each epoch."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        object.__setattr__(self, "data", named(self.data, "--data"))
        if not 0 < self.val_fraction < 1:
            raise UsageError(f"--val-fraction is {self.val_fraction}; accepted: between 0 and 1")
        for name, least in (("limit", 1), ("shots", 1), ("val_limit", 1), ("memory_limit_mb", 0), ("disk_cache_mb", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{option_name(name)} is {value}; accepted: {least} or more")
        if self.shots is not None and self.limit is not None:
            raise UsageError("--shots and --limit both say how many images are for training; leave one of them out")


@dataclass(frozen=True)
class InputConfig:
    """How an image becomes the network's input; what is left out follows from the network and the data."""

    size: tuple[int, ...] | None = None
    """Side of the input in pixels, or height and width."""
    channels: Advanced[Annotated[int | None, _PIXELS]] = None
    """1 (gray) or 3 (RGB)."""
    resize: Advanced[Annotated[str | None, _PIXELS]] = None
    """crop keeps proportions and cuts the center out (the default), stretch ignores them."""
    crop_fraction: Advanced[Annotated[float | None, _PIXELS]] = None
    """Share of the scaled image that the center crop keeps: 1 up to 64 pixels, 0.875 above."""
    interpolation: Advanced[Annotated[str | None, _PIXELS]] = None
    """Filter of the resizing: nearest, bilinear (the default), bicubic or lanczos."""
    decode_tolerance: Advanced[Annotated[float | None, _PIXELS]] = None
    """Mean difference, in levels of 255, that decoding JPEG at a smaller scale may make: 0 (exact, the default), or 0.6
    to 255. The device decodes alike."""
    mean: Advanced[Annotated[tuple[float, ...] | None, _PIXELS]] = None
    """Per channel, 0 to 1: measured on the training images, or that which loaded weights were trained with."""
    std: Advanced[Annotated[tuple[float, ...] | None, _PIXELS]] = None
    """Per channel, 0 to 1: measured on the training images, or that which loaded weights were trained with."""

    def __post_init__(self) -> None:
        """Check what ``Preprocessing`` cannot."""
        if self.size is not None and len(self.size) not in (1, 2):
            raise UsageError(f"--size has {len(self.size)} numbers; accepted: one side, or height and width")


OutOption = Annotated[Path, tyro.conf.arg(aliases=["-o"])]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Options that all commands share which train a classifier."""

    out: OutOption
    """The run's folder."""
    resume: bool = False
    """Continue the interrupted run in --out."""
    overwrite: bool = False
    """Replace the run in --out."""
    json: bool = False
    """Print the result as one JSON object."""
    recipe: Advanced[Annotated[tuple[str, ...], tyro.conf.UseAppendAction]] = ()
    """Options that come with krl, by name (the command recipes lists them); others on the command line win."""
    data: DataConfig = field(default_factory=DataConfig)
    input: InputConfig = field(default_factory=InputConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)


@dataclass(frozen=True, kw_only=True)
class FitConfig(TrainingConfig):
    """Options of ``krl-train fit``."""

    task: Task = "classification"
    """Task: a classifier, embeddings for retrieval, a generator (gan, vae), or a network from image to image."""
    model: Annotated[Custom, _MODEL] = ""
    """The network, by name; krl-train models lists all of a task. Classifiers: resnet8, resnet56, wrn-16-2, dscnn-0.5,
    lenet5 and others of that size, any of torchvision (resnet18, mobilenet_v3_small), timm/NAME, or your own as
    package.module:name. gan, vae: dcgan-64 (64 channels), resgan-64, mlp-256-256. restoration:
    espcn, edsr-8-32. translation: unet-32-3. style: style-16."""
    pretrained: Annotated[bool, _PRETRAINED] = False
    """Start from published ImageNet weights; downloads them unless they are in the cache."""
    transfer: Annotated[TransferConfig, _CONTINUED] = field(default_factory=TransferConfig)
    embedding: Annotated[EmbeddingConfig, _EMBEDDING] = field(default_factory=EmbeddingConfig)
    generation: Annotated[GenerationConfig, _GENERATORS] = field(default_factory=GenerationConfig)
    discriminator_start: Annotated[DiscriminatorStartConfig, _GAN] = field(default_factory=DiscriminatorStartConfig)
    restoration: Annotated[RestorationConfig, _RESTORATION] = field(default_factory=RestorationConfig)
    translation: Annotated[TranslationConfig, _TRANSLATION] = field(default_factory=TranslationConfig)
    style: Annotated[StyleConfig, _STYLE] = field(default_factory=StyleConfig)
    conditioning: Annotated[ConditioningConfig, _GENERATORS] = field(default_factory=ConditioningConfig)
    synthetic: Annotated[SyntheticConfig, _CLASSIFIER] = field(default_factory=SyntheticConfig)
    joint: Advanced[Annotated[JointConfig, _CLASSIFIER]] = field(default_factory=JointConfig)
    further: Advanced[Annotated[FurtherInputsConfig, _CLASSIFIER]] = field(default_factory=FurtherInputsConfig)

    def __post_init__(self) -> None:
        """Hold the name of a network that was given as an object."""
        object.__setattr__(self, "model", named(self.model, "--model", by_class=True) or "")
        if not self.model and self.transfer.from_ is None:
            raise UsageError("no network is named; give --model NAME (krl-train models lists them), or --from RUN")
        for name, value in vars(self.discriminator_start).items():
            if value and self.transfer.from_ is None:
                raise UsageError(f"{option_name(name)} is for a generator that starts from a run; give --from RUN")


@dataclass(frozen=True)
class GeneratorScoreConfig:
    """Metrics of a generator; nothing is downloaded."""

    features: Path | None = None
    """Run of a classifier, on whose features FID, KID, precision, recall, density and coverage are measured as
    well."""
    score_samples: int = 5000
    """Generated images, and real ones at most."""
    against: Path | None = None
    """Run of another generator (the teacher, or what a bundle was exported from): PSNR and SSIM of what both make of
    the same latents and conditions."""
    train_on_synthetic: str | None = None
    """Classifier by name that is trained on generated images alone and measured on the real ones; for generators with
    --condition labels."""
    synthetic_epochs: int = 5
    """Passes of that training over --score-samples generated images."""
    variant: Literal["fp32", "fp16", "int8"] | None = None
    """Of a bundle: which variant; what the bundle names for the device by default."""
    backend: Literal["tensorrt", "cuda", "openvino-bf16", "openvino", "cpu"] | None = None
    """Of a bundle: where to begin to look for a backend, as krl-runtime does."""

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
    """The run's folder, or the bundle of a generator, which is measured as a device runs it."""
    split: Literal["auto", "train", "val", "all"] = "auto"
    """auto: val where the data is split or was trained on (wherever it lies now), all images of any other folder."""
    batch_size: int = 256
    """Images in one step."""
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
    """The third-party file: .pth, .pt, .th, .ckpt (read without executing anything in it), .safetensors, or .npz for
    style-WIDTH."""
    model: str
    """The network that the weights belong to, by krl's name."""
    out: OutOption
    """The run's folder."""
    weights_key: str | None = None
    """Which weights, where several of the file fit: a name such as params_ema, state_dict or student. By default
    averaged weights (EMA), then plain ones, a teacher's last."""
    split: Literal["auto", "train", "val", "all"] = "auto"
    """Images to measure the weights on; auto: val where the data is split, else all."""
    latent: int | None = None
    """Length of a generator's latent."""
    overwrite: bool = False
    """Replace the run in --out."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to measure."""
    json: bool = False
    """Print the result as one JSON object."""
    restorer: ImportedRestorerConfig = field(default_factory=ImportedRestorerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    input: InputConfig = field(default_factory=InputConfig)


@dataclass(frozen=True)
class UnpackConfig:
    """Options of ``krl-train unpack``."""

    out: OutOption
    """The folder to make."""
    data: DataConfig = field(default_factory=DataConfig)


@dataclass(frozen=True)
class RecipesConfig:
    """Options of ``krl-train recipes`` and ``krl-compress recipes``."""

    name: tyro.conf.Positional[str | None] = None
    """Show this one."""


@dataclass(frozen=True)
class ModelsConfig:
    """Options of ``krl-train models``."""

    task: Task = "classification"
    """The task of the networks."""
    json: bool = False
    """Print the result as one JSON object."""
