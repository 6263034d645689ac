"""Configurations of ``krl-compress``; nothing here imports torch, so that ``--help`` works without it."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import tyro

from krl_runtime.cli.options import Advanced, Only, option_name, refuse_other_tasks
from krl_runtime.cli.suggestions import suggest
from krl_runtime.errors import UsageError
from krl_train.config import (
    AugmentConfig,
    DataConfig,
    GenerationConfig,
    LoopConfig,
    OptimConfig,
    OutOption,
    TrainingConfig,
)
from krl_train.custom import Custom, CustomName, each_named, is_custom, named

__all__ = [
    "RECIPES",
    "CacheConfig",
    "Criterion",
    "DistillConfig",
    "GeneratorStudentConfig",
    "JointConfig",
    "LossConfig",
    "MeasuringConfig",
    "MutualConfig",
    "PruneConfig",
    "QuantizationConfig",
    "SearchConfig",
    "StudyConfig",
]

RECIPES = Path(__file__).parent / "recipes"
"""Folder of the recipes, NAME.yaml."""

Repeated = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
RepeatedCustom = Annotated[tuple[Custom, ...], tyro.conf.UseAppendAction]

_CLASSIFIER, _GENERATOR = Only("classification"), Only("gan")


LOSSES: Mapping[str, tuple[str, ...]] = {
    "classification": (
        *("ce", "kd", "logistic", "soft_bce", "hard_label", "logit_mse", "dist", "ttm", "wttm", "mlkd", "dkd", "nkd"),
        *("rld", "wsld", "fitnet", "wkd_f", "at", "nst", "sp", "reviewkd", "rkd", "pkt", "cc", "crd", "bce"),
    ),
    "restoration": ("pixels", "teacher", "affinity", "fitnet", "at", "sp"),
    "generation": ("pixels", "squares", "features", "kernel", "perceptual", "adversarial"),
}
"""Names of the losses, by the teacher's task."""

LOSS_OPTIONS = ("weight", "warmup", "standardize", "adaptive")
"""Options of every ``--loss``."""


def split_loss(text: str, known: Container[str]) -> tuple[str, str]:
    """Split what was given to ``--loss`` into the name and the options after it.

    Args:
        text: ``NAME[:key=value,...]``; a user's own function has a colon in its name, ``package.module:name``.
        known: Names of krl's own losses.
    """
    if isinstance(text, CustomName):
        return text, ""
    name, _, rest = text.partition(":")
    path, colon, options = rest.partition(":")
    is_option = not colon and path in LOSS_OPTIONS
    if name in known or is_option or not is_custom(f"{name}:{path}"):
        return name, rest
    return f"{name}:{path}", options


def check_loss(text: str, task: str) -> None:
    """Check the name in ``NAME[:key=value,...]`` before torch is imported.

    Args:
        text: What was given to ``--loss``; ``package.module:name`` is left to those that load it.
        task: The teacher's task.

    Raises:
        UsageError: No loss of the task has that name.

    Example:
        >>> check_loss("kd:weight=0.9", "classification")
        >>> check_loss("kdd", "classification")
        Traceback (most recent call last):
        krl_runtime.errors.UsageError: --loss kdd: unknown loss 'kdd' (did you mean 'kd'?); accepted: ce, kd, ...
    """
    known = LOSSES.get(task, ())
    name = split_loss(text, known)[0]
    if known and name not in known and not is_custom(name):
        raise UsageError(f"--loss {text}: unknown loss {name!r}{suggest(name, known)}; accepted: {', '.join(known)}")


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
class LossConfig:
    """Options of the losses."""

    alpha: Annotated[float | None, _CLASSIFIER] = None
    """Loss = alpha * CE + (1 - alpha) * T^2 * KL. Left out: CE + w * DKD, whose w falls as the student overtakes the
    teacher (several labels: BCE + binary KL)."""
    temperature: Advanced[Annotated[float | None, _CLASSIFIER]] = None
    """T of --alpha (4 unless given), by which both nets' logits are divided; without --alpha that is 0.1."""
    loss: RepeatedCustom = ()
    """A term of the loss, NAME[:weight=W,warmup=EPOCHS,...], as in --loss ce:weight=0.1 --loss kd:weight=0.9. Given
    once or several times, nothing else counts, labels neither. Of labels: ce, bce. Of
    logits: kd, logistic, soft_bce, hard_label, logit_mse, dist, ttm, wttm, mlkd, dkd, nkd, rld, wsld, or your own
    function as package.module:name. Of features: fitnet, wkd_f, at, nst, sp, reviewkd, rkd, pkt, cc, crd. Restorers:
    pixels, teacher, affinity, fitnet, at, sp. Generators: pixels, squares, features, kernel, perceptual,
    adversarial."""
    feature_taps: Advanced[Annotated[Repeated, _CLASSIFIER]] = ()
    """Where losses on features look, STUDENT_MODULE=TEACHER_MODULE, or =TENSOR of a bundle or ONNX file; may be given
    several times. Left out: the outputs of the stages of each resolution that both networks have."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        object.__setattr__(self, "loss", each_named(self.loss, "--loss"))
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise UsageError(f"--alpha is {self.alpha}; accepted: 0 (teacher alone) to 1 (labels alone)")
        if self.temperature is not None and not self.temperature > 0:
            raise UsageError(f"--temperature is {self.temperature}; accepted: above 0")
        if self.loss and (self.alpha is not None or self.temperature is not None):
            raise UsageError(
                "--alpha and --temperature are of the objective without --loss (recipes have their own --loss); leave "
                "them out, or give --loss ce:weight=0.1 --loss kd:weight=0.9,temperature=4"
            )


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
    map_labels: Advanced[Annotated[Repeated, _CLASSIFIER]] = ()
    """DATA_LABEL=TEACHER_LABEL, for a class that the teacher names otherwise (or numbers, from 0); may be given several
    times. A file of such lines; or names, for a teacher that knows the data's classes and others as well."""
    fusion: Advanced[Annotated[Literal["mean", "confidence", "class"], _CLASSIFIER]] = "mean"
    """How several teachers are weighed: evenly, by how sure each is of the label, or the best one for the class."""
    unlabeled: Annotated[Annotated[tuple[Path, ...], tyro.conf.UseAppendAction], _CLASSIFIER] = ()
    """Folder of images without labels (recordings) to learn from as well; may be given several times."""
    baseline: bool = False
    """Train the same student without the teacher on the same budget as well, and report both."""
    pretrained: Annotated[bool, _CLASSIFIER] = False
    """Let a teacher by name (torchvision, timm/NAME) be downloaded."""
    losses: LossConfig = field(default_factory=LossConfig)
    cache: Advanced[Annotated[CacheConfig, _CLASSIFIER]] = field(default_factory=CacheConfig)
    data_free: Advanced[Annotated[DataFreeConfig, _CLASSIFIER]] = field(default_factory=DataFreeConfig)
    quantization: Annotated[QuantizationConfig, _CLASSIFIER] = field(default_factory=QuantizationConfig)
    generator_student: Annotated[GeneratorStudentConfig, _GENERATOR] = field(default_factory=GeneratorStudentConfig)
    generation: Advanced[Annotated[GenerationConfig, _GENERATOR]] = field(default_factory=GenerationConfig)

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
class MeasuringConfig:
    """Where the cost of a network is measured, as a bundle."""

    board: str | None = None
    """Measure on this board, which krl-deploy board added; left out: here."""
    backend: Literal["tensorrt", "cuda", "openvino", "cpu"] | None = None
    """Backend that has to run the network; left out: the first that can."""
    threads: int | None = None
    """CPU threads to measure with; left out: one for each physical core."""
    profile: Path | None = None
    """Predict latencies from this file, which krl-runtime bench --profile recorded, and measure nothing."""
    profile_machine: str | None = None
    """Name of the machine that recorded --profile, if it is another one than this."""

    def __post_init__(self) -> None:
        """Check the range, and that there is one way to measure."""
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"--threads is {self.threads}; accepted: 1 or more")
        if self.profile is not None and self.board is not None:
            raise UsageError("--profile predicts and --board measures; leave one of them out")
        if self.profile is None and self.profile_machine is not None:
            raise UsageError("--profile-machine names the machine of --profile; give that as well")


Criterion: TypeAlias = Literal["l2", "l1", "group", "bn", "taylor"]
"""Which channels matter; see ``krl_compress.pruning.criteria``."""


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """Options of ``krl-compress prune``."""

    run: tyro.conf.Positional[Path]
    """The run of a classifier, restorer or generator: it is pruned, and teaches what is left of it."""
    out: OutOption
    """The pruned network's run."""
    keep_channels: float | None = None
    """Share of the channels that each layer keeps, 0 to 1; give this, --macs or --latency."""
    macs: float | None = None
    """Keep as many channels as fit this share of the network's multiply-accumulate operations, 0 to 1."""
    latency: str | None = None
    """Keep as many channels as fit this latency, as in 2ms: p50 of the network at batch 1, measured of bundles."""
    variant: Literal["fp32", "fp16", "int8"] = "fp32"
    """Variant of the bundle that --latency is of."""
    criterion: Criterion = "l2"
    """Which channels go: those of the smallest weights (l2, l1), also of what reads them (group), of the smallest
    factors of batch normalization (bn), or that change the loss least (taylor)."""
    multiple: int = 8
    """Layers keep a multiple of this many channels: 8 or 16 for INT8 and FP16 kernels."""
    steps: int = 1
    """Prune in this many steps, with a distillation of --epochs after each."""
    only_prune: bool = False
    """Write the pruned network as it is, without distillation."""
    sensitivity: bool = False
    """Measure how good the network is with a quarter and half of each layer's channels removed alone; writes
    sensitivity.json and sensitivity.png into OUT."""
    resume: bool = False
    """Continue the interrupted run in --out."""
    overwrite: bool = False
    """Replace the run in --out."""
    json: bool = False
    """Print the result as one JSON object."""
    measuring: Advanced[MeasuringConfig] = field(default_factory=MeasuringConfig)
    losses: Advanced[LossConfig] = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    generator_student: Annotated[GeneratorStudentConfig, _GENERATOR] = field(default_factory=GeneratorStudentConfig)
    generation: Advanced[Annotated[GenerationConfig, _GENERATOR]] = field(default_factory=GenerationConfig)

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.generator_student.online:
            raise UsageError("--online trains a new teacher, and what is pruned was trained before; leave it out")
        ways = ("keep_channels", "macs", "latency")
        given = [option_name(name) for name in ways if getattr(self, name) is not None]
        # The record of a run that --latency was asked for has the share of the channels that it came to.
        if len(given) != 1 and not (self.resume and given == ["--keep-channels", "--latency"]):
            raise UsageError(
                f"{' and '.join(given) or 'nothing'} given that says how much to prune; accepted: one of "
                f"{', '.join(map(option_name, ways))}, as in --keep-channels 0.5"
            )
        if self.latency is None and (self.measuring != MeasuringConfig() or self.variant != "fp32"):
            raise UsageError(
                "--board, --backend, --threads, --profile and --variant are for --latency; leave them out, or give it"
            )
        for name in ("keep_channels", "macs"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                option = option_name(name)
                raise UsageError(f"{option} is {value:g}; accepted: a share between 0 and 1, as in {option} 0.5")
        for name in ("multiple", "steps"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name} is {getattr(self, name)}; accepted: 1 or more")
        if self.only_prune and self.steps > 1:
            raise UsageError("--steps are for the distillations between them, and --only-prune has none; leave one out")


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Options of ``krl-compress search``."""

    teacher: str
    """The run of a classifier, restorer or generator, which teaches the students."""
    budget: Repeated
    """The most that the student may cost: latency=2ms (p50 of the network at batch 1), memory=200MB, size=300KB or
    macs=10M; may be given several times."""
    out: OutOption
    """Folder of the search: winner.krl, the runs, search.json, search.md and search.png."""
    architectures: str = ""
    """Networks to try, by name, separated by commas; each is made as wide as the budget allows, but NAME@0.5 keeps half
    of its channels. Left out: common ones for images of this size."""
    prune_teacher: bool = True
    """Try the teacher itself as well, with channels removed."""
    sizes: tuple[int, ...] = ()
    """Sides of the input to try, in pixels; left out: the teacher's."""
    precisions: tuple[Literal["fp32", "fp16", "int8"], ...] = ()
    """Precisions to try; left out: fp32 and int8, of generators fp32 alone."""
    multiple: Advanced[int] = 8
    """Layers keep a multiple of this many channels."""
    shortlist: int = 12
    """Students to train at most: those with the most operations within the budget."""
    rounds: int = 3
    """Rounds of training; the last one has --epochs, each one before as many less as --reduction says."""
    reduction: Advanced[int] = 3
    """Factor by which a round has fewer students and more epochs than the one before."""
    max_drop: float | None = None
    """Largest accepted accuracy drop of the winner's variant to FP32, as in krl-deploy quantize."""
    time_limit: str | None = None
    """Stop after this time with the best so far, as in 90s, 30m or 2h."""
    resume: bool = False
    """Continue the interrupted search in --out."""
    json: bool = False
    """Print the result as one JSON object."""
    measuring: MeasuringConfig = field(default_factory=MeasuringConfig)
    losses: Advanced[LossConfig] = field(default_factory=LossConfig)
    cache: Advanced[CacheConfig] = field(default_factory=CacheConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, least in (("shortlist", 1), ("rounds", 1), ("reduction", 2), ("multiple", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"--{name} is {getattr(self, name)}; accepted: {least} or more")
        if len(set(self.precisions)) < len(self.precisions):
            raise UsageError("--precisions: accepted: fp32, fp16, int8, each once")
        if any(size < 1 for size in self.sizes):
            raise UsageError(f"--sizes {' '.join(map(str, self.sizes))}: accepted: 1 or more")


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
