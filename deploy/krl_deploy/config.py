"""Configurations of the commands. Each is the Python API, the command line and the YAML file at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import tyro

from krl_runtime.cli.options import option_name
from krl_runtime.errors import UsageError
from krl_runtime.images.folders import OnBadImage
from krl_runtime.images.modes import ChannelOrder

__all__ = ["CheckConfig", "Equalize", "ExportConfig", "Fp16Config", "ImportConfig", "Method", "QuantizeConfig"]

_LONGEST_WAIT = 86400  # seconds: one day

_OutOption = Annotated[Path, tyro.conf.arg(aliases=["-o"])]


def _check_fraction(value: float) -> None:
    if not 0 < value < 1:
        raise UsageError(f"--val-fraction is {value}; accepted: between 0 and 1")


def _check_counts(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise UsageError(f"{option_name(name)} is {value}; accepted: 1 or more")


def _check_limits(max_drop: float | None, max_recall_drop: float | None, min_psnr: float | None) -> None:
    if max_drop is not None and not 0 <= max_drop < math.inf:
        raise UsageError(f"--max-drop is {max_drop}; accepted: 0 or more percentage points, or dB")
    if max_recall_drop is not None and not 0 <= max_recall_drop < math.inf:
        raise UsageError(f"--max-recall-drop is {max_recall_drop}; accepted: 0 or more percentage points")
    if min_psnr is not None and not 0 < min_psnr < math.inf:
        raise UsageError(f"--min-psnr is {min_psnr}; accepted: above 0 dB")


def _check_budget(seconds: float | None, *, mixed_precision: bool) -> None:
    if seconds is not None and not seconds > 0:
        raise UsageError(f"--budget-seconds is {seconds}; accepted: above 0")
    if seconds is not None and not mixed_precision:
        raise UsageError("--budget-seconds bounds the planner; give --mixed-precision as well")


@dataclass(frozen=True)
class ExportConfig:
    """Options of ``krl-deploy export``."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    out: _OutOption
    """The bundle to make, by custom NAME.krl."""
    data: Path | None = None
    """Folder or list of real images for the parity check and the golden inputs; left out: the data of the run."""
    golden: int = 16
    """Number of real inputs that are stored with torch's outputs, for the self-test on any device."""
    opset: Literal[18, 19, 20] = 20
    """Version of the ONNX operators; TensorRT 10.3 and later take all of these."""
    tile: int | None = None
    """For restorers: fix the graph to tiles of this many pixels a side, as a TensorRT engine needs. Images of any size
    are cut into such tiles. Left out: the graph takes any size."""
    tolerance: float = 1e-4
    """Largest accepted difference from torch's logits, or from its images of 0 to 1. A larger rounding error of torch
    itself is accepted too."""
    none_of_these: float | None = None
    """For classifiers: let the model say that an image shows none of its classes. The threshold on the best score is
    the one that refuses this share of the validation images, such as 0.05. Left out: every image has a class."""
    others: Path | None = None
    """With --none-of-these: folder of images of other classes, to measure how many of them are refused."""
    on_bad_image: OnBadImage = "refuse"
    """Files that are not readable images: refuse the folder, or name and skip them."""
    overwrite: bool = False
    """Replace an existing bundle."""
    json: bool = False
    """Print the result as one JSON object."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _check_counts(golden=self.golden)
        if self.none_of_these is not None and not 0 < self.none_of_these < 1:
            raise UsageError(f"--none-of-these is {self.none_of_these}; accepted: a share between 0 and 1, as 0.05")
        if self.others is not None and self.none_of_these is None:
            raise UsageError("--others measures the threshold of --none-of-these; give both, or leave it out")
        if not self.tolerance > 0:
            raise UsageError(f"--tolerance is {self.tolerance}; accepted: above 0")


_ON_IMAGES = ("classification", "restoration")
_IMPORTS_FOR: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("labels", "output_kind"), ("classification",)),
    **dict.fromkeys(("scale", "color", "degradation"), ("restoration",)),
    **dict.fromkeys(("latent_distribution",), ("generation",)),
    **dict.fromkeys(("output_range",), ("restoration", "generation")),
    **dict.fromkeys(("data", "mean", "std", "input_range", "resize", "crop_fraction"), _ON_IMAGES),
    **dict.fromkeys(("interpolation", "decode_tolerance", "val_limit", "on_bad_image"), _ON_IMAGES),
    **dict.fromkeys(("max_drop", "accept_unmeasured"), _ON_IMAGES),
}
"""Tasks that an option of ``krl-deploy import`` is for; the others are for all."""


@dataclass(frozen=True)
class ImportConfig:
    """Options of ``krl-deploy import``."""

    model: tyro.conf.Positional[Path]
    """The ONNX file: an image (channels first or last, or flat) or a latent in, classes or images out."""
    out: _OutOption
    """The bundle to make, by custom NAME.krl."""
    data: Path | None = None
    """Folder or list of real images for the golden inputs. If its classes are the labels, they also measure the
    accuracy. For restoration give undamaged images, which measure the PSNR; for generation none."""
    labels: tuple[str, ...] = ()
    """Class names in the order of the outputs, or one file: a name on each line, or JSON; for classification."""
    task: Literal["classification", "restoration", "generation"] = "classification"
    """Task of the model: a class for each image, a better or larger image, or an image of a latent."""
    scale: int | None = None
    """For restoration: factor from the sides of the input to those of the output; left out: from the file's shapes."""
    color: Literal["y", "rgb", "gray"] | None = None
    """For restoration: luma (BT.601, studio swing), colors, or gray; left out: rgb for 3 channels, else y."""
    degradation: Literal["bicubic", "none"] = "bicubic"
    """For restoration: degradation of the inputs. bicubic: the scale alone; none: one that krl cannot make."""
    mean: tuple[float, ...] | None = None
    """Mean to subtract from each channel, in units of --input-range; left out: 0."""
    std: tuple[float, ...] | None = None
    """Standard deviation to divide each channel by, in units of --input-range; left out: 1."""
    input_range: Literal["0-1", "0-255", "symmetric"] = "0-1"
    """Pixels before mean and std: divided by 255, as they are, or -1 to 1."""
    channel_order: ChannelOrder = "rgb"
    """Order of the model's channels, also in --mean and --std."""
    output: str | None = None
    """The output with the classes or images, or any other tensor, if the model has several outputs."""
    output_range: OutputRange | None = None
    """Black and white of a generator's or restorer's images: -1 and 1 (symmetric), 0 and 1, or 0 and 255; left out:
    read from the graph, and of a restorer without limits as --input-range."""
    latent_distribution: Literal["normal", "uniform"] = "normal"
    """For generation: latents of the training: of a standard normal distribution, or uniform from -1 to 1."""
    output_kind: FileKind | None = None
    """For classification: meaning of the output, read from the graph if left out. sigmoid: scores of independent
    classes; sigmoid-logits: before the sigmoid."""
    height: int | None = None
    """Height of the input, or of a generator's images; needed if the model leaves it open."""
    width: int | None = None
    """Width of the input, or of a generator's images; needed if the model leaves it open."""
    resize: Literal["crop", "stretch"] = "crop"
    """Keep proportions and cut the center out, or stretch."""
    crop_fraction: float = 1.0
    """Share of the scaled image that the center crop keeps; 0.875 is usual for ImageNet."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    """Filter for resizing."""
    decode_tolerance: float = 0.0
    """Mean difference, in levels of 255, that decoding JPEG at a smaller scale may make: 0 (exact), or 0.6 to 255."""
    golden: int = 16
    """Number of real inputs that are stored with their outputs, for the self-test on any device."""
    val_limit: int = 2000
    """Measure accuracy on this many images at most."""
    max_drop: float | None = None
    """For Q/DQ files: largest accepted accuracy drop from the file to its float model: points of top-1 (left out: 1),
    or for restorers dB of PSNR (0.1)."""
    accept_unmeasured: bool = False
    """For Q/DQ files: keep the float model although it is unlike the file on images whose truth is not known; the
    bundle records it."""
    on_bad_image: OnBadImage = "refuse"
    """Files that are not readable images: refuse the folder, or name and skip them."""
    overwrite: bool = False
    """Replace an existing bundle."""
    json: bool = False
    """Print the result as one JSON object."""

    def __post_init__(self) -> None:
        """Check the ranges, and that options are for the task."""
        _check_counts(golden=self.golden, val_limit=self.val_limit)
        _check_limits(self.max_drop, None, None)
        for field in fields(self):
            tasks = _IMPORTS_FOR.get(field.name, (self.task,))
            if self.task not in tasks and getattr(self, field.name) != field.default:
                raise UsageError(
                    f"{option_name(field.name)} is not for --task {self.task}; leave it out, or give --task "
                    f"{' or '.join(tasks)}"
                )
        if self.task == "classification" and not self.labels:
            raise UsageError("--labels is missing; give the class names, or a file with a name on each line")
        if self.task != "generation" and self.data is None:
            raise UsageError(f"--data is missing; --task {self.task} needs a folder of real images")
        if self.scale is not None and not 1 <= self.scale <= 16:
            raise UsageError(f"--scale is {self.scale}; accepted: 1 to 16")

    @property
    def images(self) -> Path:
        """Return the folder of real images, which all tasks but generation have."""
        assert self.data is not None  # noqa: S101  for the type checker: see __post_init__
        return self.data


@dataclass(frozen=True)
class Fp16Config:
    """Options of ``krl-deploy fp16``."""

    bundle: tyro.conf.Positional[Path]
    """The bundle that gets an FP16 variant."""
    data: Path | None = None
    """Folder or list of real images: some to look for overflow on, others to measure on; left out: the golden
    inputs alone."""
    val_limit: int = 512
    """Measure on this many images at most."""
    val_fraction: float = 0.2
    """Share of --data to measure on, if it is not split already."""
    max_drop: float | None = None
    """Largest accepted accuracy drop: percentage points of top-1 or mAP (left out: 1), or for restorers dB of
    PSNR (0.1)."""
    min_psnr: float | None = None
    """For models without true images, such as generators: smallest PSNR in dB to the images of fp32 (40)."""
    max_recall_drop: float | None = None
    """Largest accepted drop of the recall of one class, in percentage points; left out: 10, if it is not by chance."""
    accept_unmeasured: bool = False
    """Keep the variant although it was judged on fewer than 100 images, or on images unlike those of the model; the
    bundle records it."""
    mixed_precision: bool = False
    """If FP16 fails, rank groups of nodes by their error in FP16, and keep the worst in FP32 until images of the train
    split agree."""
    budget_seconds: float | None = None
    """Stop --mixed-precision after this time; without a plan that passes, the bundle stays as it is."""
    resume: bool = False
    """Continue a plan that was interrupted."""
    on_bad_image: OnBadImage = "refuse"
    """Files that are not readable images: refuse the folder, or name and skip them."""
    json: bool = False
    """Print the result as one JSON object."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _check_counts(val_limit=self.val_limit)
        _check_fraction(self.val_fraction)
        _check_limits(self.max_drop, self.max_recall_drop, self.min_psnr)
        _check_budget(self.budget_seconds, mixed_precision=self.mixed_precision)
        if self.resume and not self.mixed_precision:
            raise UsageError("--resume continues a plan; give --mixed-precision as well")


@dataclass(frozen=True)
class QuantizeConfig:
    """Options of ``krl-deploy quantize``."""

    bundle: tyro.conf.Positional[Path]
    """The bundle that gets an INT8 variant."""
    data: Path | None = None
    """Folder of real images: train/CLASS/* and val/CLASS/*, CLASS/*, or images without classes; or a list of them
    (LIST.csv, LIST.json). Restorers take undamaged images; generators take none, but random latents."""
    from_generator: Path | None = None
    """A generator's bundle that makes the calibration images of a classifier, if no data may leave the lab. Without
    --data they also measure it."""
    limit: int = 512
    """Calibrate on this many images at most, the same number of each class."""
    val_limit: int = 2000
    """Measure on this many images at most, the same number of each class."""
    val_fraction: float = 0.2
    """Share of --data to measure on and not to calibrate on, if it is not split already."""
    max_drop: float | None = None
    """Largest accepted accuracy drop: percentage points of top-1 or mAP (left out: 1), or for restorers dB of
    PSNR (0.1)."""
    min_psnr: float | None = None
    """For models without true images, such as generators: smallest PSNR in dB to the images of fp32 (30)."""
    max_recall_drop: float | None = None
    """Largest accepted drop of the recall of one class, in percentage points; left out: 10, if it is not by chance."""
    accept_unmeasured: bool = False
    """Keep the variant although it was judged on fewer than 100 images, or on images unlike those of the model; the
    bundle records it."""
    method: Method = "mse"
    """Range of calibration data: least squared error (mse), all values (minmax), all but a few at both ends
    (percentile), or least loss of information (entropy)."""
    percentile: float = 99.999
    """Percentage of the values that a range holds, with --method percentile."""
    equalize: Equalize = "auto"
    """Bring the channels between two convolutions to like magnitudes, which changes only the rounding. auto: if one
    channel is an outlier; all: wherever possible; none: nowhere."""
    bias_correction: bool = True
    """Correct biases for the shift of a layer's mean that rounding the weights causes."""
    optimal_scales: bool = False
    """Choose the weight scale of each channel by the least squared error, and not by the largest weight."""
    float_precision: Literal["fp16", "fp32"] = "fp16"
    """Precision of the rest of the graph for GPUs. With fp16 there is a second file with fp32 for OpenVINO."""
    mixed_precision: bool = False
    """Rank the layers by their error in INT8, and keep the worst in FP16 or FP32 until images of the train split that
    are not calibrated on agree."""
    budget_seconds: float | None = None
    """Stop --mixed-precision after this time; without a plan that passes, the bundle stays as it is."""
    resume: bool = False
    """Continue a calibration or a plan that was interrupted."""
    reuse_calibration: bool = False
    """Use the ranges in the bundle, if they are of this model and of these images."""
    recalibrate: bool = False
    """Measure new ranges and weight scales in place of those that came with the model: of a Q/DQ file, or of training.
    The bundle keeps those for a later run without this option."""
    on_bad_image: OnBadImage = "refuse"
    """Files that are not readable images: refuse the folder, or name and skip them."""
    json: bool = False
    """Print the result as one JSON object."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _check_counts(limit=self.limit, val_limit=self.val_limit)
        _check_fraction(self.val_fraction)
        if not 50 < self.percentile <= 100:
            raise UsageError(f"--percentile is {self.percentile}; accepted: above 50, up to 100")
        _check_limits(self.max_drop, self.max_recall_drop, self.min_psnr)
        _check_budget(self.budget_seconds, mixed_precision=self.mixed_precision)


@dataclass(frozen=True)
class CheckConfig:
    """Options of ``krl-deploy check``."""

    model: tyro.conf.Positional[Path]
    """The ONNX file, or the bundle NAME.krl, to check; a bundle's variants are all checked."""
    target: str
    """Target to check: jetpack-6.2, jetpack-7.2, tensorrt-10.3, tensorrt-10.16, tensorrt-11.4, rtx, onnxruntime-cpu"""
    precision: Literal["fp32", "fp16", "int8"] | None = None
    """The one variant of a bundle to check."""
    parser: bool = False
    """Ask the installed NVIDIA parser as well, and its builder, in a process of its own: TensorRT's, or without it
    TensorRT-RTX's, which needs no GPU."""
    time_limit: float | None = None
    """With --parser: seconds for each file, 300 if left out."""
    fix: Path | None = None
    """For an ONNX file: write OUT.onnx, without the findings that can be removed safely. Each fix is checked: the
    finding is gone, and ONNX Runtime gives the same outputs. What remains is reported."""
    diff: bool = False
    """Show what --fix changes, or without it, what it would."""
    format: Literal["table", "sarif"] = "table"
    """Form of the report; sarif is SARIF 2.1.0, for CI and code hosts."""
    json: bool = False
    """Print the result as one JSON object."""

    def __post_init__(self) -> None:
        """Check the ranges, and what excludes each other."""
        if self.json and self.format != "table":
            raise UsageError(f"--json and --format {self.format} are two forms of one report; give one of them")
        if self.diff and self.format != "table":
            raise UsageError(f"--diff has no place in --format {self.format}; leave one of them out")
        if self.time_limit is not None and not self.parser:
            raise UsageError("--time-limit is for --parser; give both, or leave it out")
        if self.time_limit is not None and not 0 < self.time_limit <= _LONGEST_WAIT:
            raise UsageError(f"--time-limit is {self.time_limit:g}; accepted: seconds, above 0, up to {_LONGEST_WAIT}")


OutputRange: TypeAlias = Literal["symmetric", "0-1", "0-255"]
"""Range of a generator's values, from black to white; symmetric is -1 to 1."""


FileKind: TypeAlias = Literal["logits", "probabilities", "log-probabilities", "sigmoid", "sigmoid-logits"]
"""Meaning of a file's output: see ``krl_runtime.bundle.output_kind``. Log-probabilities become logits in a bundle."""


Method: TypeAlias = Literal["minmax", "percentile", "entropy", "mse"]
"""``"minmax"``: all values; ``"percentile"``: all but a small part at both ends; ``"entropy"`` and ``"mse"``: see
``krl_deploy.calibration.threshold``. ``"mse"`` gives each INT8 graph the ranges for its own integers."""


Equalize: TypeAlias = Literal["auto", "all", "none"]
"""Activations to equalize: those with an outlier channel, all possible ones, or none."""
