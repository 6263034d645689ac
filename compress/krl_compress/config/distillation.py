"""Options of the commands that distill: ``distill``, ``mutual``, ``joint``, ``study``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from krl_runtime.cli.options import Advanced, option_name, refuse_other_tasks
from krl_runtime.errors import UsageError
from krl_train.config import GenerationConfig, OutOption, TrainingConfig
from krl_train.custom import Custom, each_named, named

from .kinds import CLASSIFIER, EMBEDDER, GENERATOR, Repeated, RepeatedCustom
from .losses import LossConfig

__all__ = [
    "CacheConfig",
    "DataFreeConfig",
    "DistillConfig",
    "EmbeddingStudentConfig",
    "GeneratorStudentConfig",
    "JointConfig",
    "MutualConfig",
    "QuantizationConfig",
    "StudyConfig",
]


@dataclass(frozen=True)
class CacheConfig:
    """A stored teacher."""

    cache_teacher: bool = False
    """Compute the teacher's logits once for --views fixed views of each image, store and reuse them."""
    views: int = 1
    """Number of fixed views of each image, with --cache-teacher; epochs go through them in turn."""
    cache_top_k: int | None = None
    """Store each view's largest k probabilities alone; the rest is taken to be spread evenly."""
    cache_dir: Path = Path("~/.cache/krl/teachers")
    """Where stored answers lie; students and runs with the same teacher, data and views share them."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.views < 1:
            raise UsageError(f"--views is {self.views}; accepted: 1 or more")
        if self.cache_top_k is not None and self.cache_top_k < 1:
            raise UsageError(f"--cache-top-k is {self.cache_top_k}; accepted: 1 or more")


@dataclass(frozen=True)
class QuantizationConfig:
    """A student that is made for INT8."""

    quantize: Literal["int8"] | None = None
    """Train the student as its INT8 graph computes, so that krl-deploy quantize costs almost nothing. Without --lr:
    AdamW at a tenth of its usual learning rate."""
    float_epochs: Advanced[int] = 0
    """With --quantize and a --student by name: epochs in floating point before, whose run is put into OUT/float."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.float_epochs < 0:
            raise UsageError(f"--float-epochs is {self.float_epochs}; accepted: 0 or more")
        if self.float_epochs and self.quantize is None:
            raise UsageError("--float-epochs come before quantization; give --quantize int8 as well")


@dataclass(frozen=True)
class GeneratorStudentConfig:
    """A student of a generator.

    Without --loss: pixels, and adversarial where there is data. The optimizer is Adam: of the optim options --lr
    (0.0002), --schedule, --warmup, --clip-norm and --ema (0.999) count.
    """

    perceptual: Path | None = None
    """Run of a classifier for the term perceptual; another one than --features, which measures."""
    online: bool = False
    """Train the teacher, freshly initialized, at the same time (its run is put into OUT/teacher); the student follows
    it and has no discriminator."""
    latents: int = 50000
    """Latents in one epoch, where no images are needed."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.latents < 1:
            raise UsageError(f"--latents is {self.latents}; accepted: 1 or more")


@dataclass(frozen=True)
class EmbeddingStudentConfig:
    """A student that learns embeddings from a network of embeddings.

    Without --loss: the loss of labels that the teacher was trained with, and rkd.
    """

    embedding_dim: int | None = None
    """Numbers of an embedding: the teacher's, so that the student can search among its embeddings, or another."""
    images_per_class: Advanced[int | None] = None
    """Images of each class that come together in a batch: 4 where a loss of labels compares pairs, else 1."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, least in (("embedding_dim", 2), ("images_per_class", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{option_name(name)} is {value}; accepted: {least} or more")


@dataclass(frozen=True)
class DataFreeConfig:
    """A student of a classifier that learns from generated images alone, labeled by the teacher."""

    data_free: str | None = None
    """A generator, run or bundle, whose images are all that the student sees; or "teacher", to make them against the
    teacher alone. Real images, of --data or of the teacher's run where they are there, only measure the result."""
    data_free_count: int = 20000
    """Number of generated images."""

    def __post_init__(self) -> None:
        """Check the range."""
        if self.data_free_count < 10:
            raise UsageError(f"--data-free-count is {self.data_free_count}; accepted: 10 or more")


@dataclass(frozen=True, kw_only=True)
class DistillConfig(TrainingConfig):
    """Options of ``krl-compress distill``."""

    teacher: RepeatedCustom
    """A run, a bundle, an ONNX file, your own (package.module:name), or a published name with --pretrained."""
    student: Custom
    """A network by name, as in krl-train fit, or a run to start from."""
    map_labels: Advanced[Annotated[Repeated, CLASSIFIER]] = ()
    """DATA_LABEL=TEACHER_LABEL, for a class that the teacher names otherwise (or numbers, from 0); may be given several
    times. A file of such lines; or names, for a teacher that knows the data's classes and others as well."""
    fusion: Advanced[Annotated[Literal["mean", "confidence", "class"], CLASSIFIER]] = "mean"
    """How several teachers are weighed: evenly, by how sure each is of the label, or the best one for the class."""
    student_inputs: Advanced[Annotated[Literal["image", "same"], CLASSIFIER]] = "image"
    """Of a teacher with several inputs: the student takes the image alone, or the same inputs."""
    unlabeled: Annotated[Annotated[tuple[Path, ...], tyro.conf.UseAppendAction], CLASSIFIER] = ()
    """Folder of images without labels (recordings) to learn from as well; may be given several times."""
    baseline: bool = False
    """Train the same student without the teacher on the same budget as well, and report both."""
    pretrained: Annotated[bool, CLASSIFIER] = False
    """Let a teacher by name (torchvision, timm/NAME) be downloaded."""
    losses: LossConfig = field(default_factory=LossConfig)
    cache: Advanced[Annotated[CacheConfig, CLASSIFIER]] = field(default_factory=CacheConfig)
    data_free: Advanced[Annotated[DataFreeConfig, CLASSIFIER]] = field(default_factory=DataFreeConfig)
    quantization: Annotated[QuantizationConfig, CLASSIFIER] = field(default_factory=QuantizationConfig)
    embedding_student: Annotated[EmbeddingStudentConfig, EMBEDDER] = field(default_factory=EmbeddingStudentConfig)
    generator_student: Annotated[GeneratorStudentConfig, GENERATOR] = field(default_factory=GeneratorStudentConfig)
    generation: Advanced[Annotated[GenerationConfig, GENERATOR]] = field(default_factory=GenerationConfig)

    def __post_init__(self) -> None:
        """Take objects by their names, and refuse two kinds of images that are not the data's."""
        object.__setattr__(self, "teacher", each_named(self.teacher, "--teacher", by_class=True))
        object.__setattr__(self, "student", named(self.student, "--student", by_class=True))
        if self.unlabeled and self.data_free.data_free is not None:
            raise UsageError(
                "--data-free and --unlabeled exclude each other: one is for generated images alone, the other for real "
                "ones beside the labeled; leave one of them out"
            )


@dataclass(frozen=True, kw_only=True)
class MutualConfig(TrainingConfig):
    """Options of ``krl-compress mutual``; the first network's run is --out, the others' are net1, net2 … inside."""

    peer: RepeatedCustom
    """A network by name; give two or more, the same one as often as wanted."""
    temperature: float = 1.0
    """T, by which all logits are divided."""
    weight: float = 1.0
    """Factor of what the networks learn from each other."""

    def __post_init__(self) -> None:
        """Refuse options of other tasks and of one network."""
        object.__setattr__(self, "peer", each_named(self.peer, "--peer", by_class=True))
        refuse_other_tasks(self, "classification")
        _refuse_parts(self)


@dataclass(frozen=True, kw_only=True)
class JointConfig(TrainingConfig):
    """Options of ``krl-compress joint``; the student's run is --out, the teacher's is net1 inside."""

    teacher: Custom
    """The large network by name; it is trained on the labels."""
    student: Custom
    """The small network by name; it learns from labels and from the teacher as it grows."""
    temperature: float = 4.0
    """T, by which both nets' logits are divided."""
    weight: float = 1.0
    """Lambda, the factor of what the student learns from the teacher."""

    def __post_init__(self) -> None:
        """Refuse options of other tasks and of one network."""
        for name in ("teacher", "student"):
            object.__setattr__(self, name, named(getattr(self, name), f"--{name}", by_class=True))
        refuse_other_tasks(self, "classification")
        _refuse_parts(self)


def _refuse_parts(config: TrainingConfig) -> None:
    """Refuse steps in parts where several networks are trained."""
    if config.loop.accumulate > 1:
        raise UsageError("--accumulate is for krl-train fit and krl-compress distill; leave it out")


@dataclass(frozen=True)
class StudyConfig:
    """Options of ``krl-compress study``."""

    teacher: str
    """The teacher, as in krl-compress distill."""
    student: Repeated
    """A student's network by name, or a run to start from; may be given several times."""
    out: OutOption
    """Folder of the study: a run for each student, method and seed, the table, the plot and study.json."""
    methods: str = "kd,dkd,dist,kd-ls"
    """Names of recipes (krl-compress recipes lists them), separated by commas; the student without a teacher is
    always trained as well."""
    seeds: int = 3
    """Number of seeds, from 0."""
    options: str = ""
    """Options for every training, as on the command line of distill: '--data FOLDER --epochs 30 --lr 0.05'."""
    json: bool = False
    """Print the result as one JSON object."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.seeds < 1:
            raise UsageError(f"--seeds is {self.seeds}; accepted: 1 or more")
