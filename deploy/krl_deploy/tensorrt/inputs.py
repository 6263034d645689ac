"""The input of a build: a variant of a bundle or an ONNX file, checked, with the options that fit it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from krl_runtime.backends.cuda import NoTensorRTError
from krl_runtime.backends.tensorrt.interface import SIDES
from krl_runtime.backends.tensorrt.library import tensorrt_library
from krl_runtime.bundle import Bundle
from krl_runtime.errors import UsageError
from krl_runtime.images.sides import Sides
from krl_runtime.pipelines.restorer import longest_part

from .config import BuildEngineConfig
from .onnx_file import OnnxFile, read_source
from .options import BuildOptions, Range
from .profiles import fixed_side

if TYPE_CHECKING:
    from krl_deploy.rules.targets import Target

__all__ = ["Inputs", "read_inputs"]

_MAKERS = {"fp16": "krl-deploy fp16", "int8": "krl-deploy quantize"}
_SMALLEST_SIDE = 16  # pixels; smaller images are padded at run time. Networks halve an image up to four times


@dataclass(frozen=True)
class Inputs:
    """The input of a build.

    Attributes:
        bundle: The bundle; ``None`` for an ONNX file.
        variant: Its variant; empty for an ONNX file.
        source: The ONNX file.
        options: How to build.
    """

    bundle: Bundle | None
    variant: str
    source: OnnxFile
    options: BuildOptions


def read_inputs(config: BuildEngineConfig) -> Inputs:
    """Read the model and check it for the target.

    Raises:
        UsageError: An option is not for this model.
        BundleError: The bundle or a file of it is missing, damaged or changed.
        ModelError: The ONNX file is not ready for the target; the message names each node.
    """
    options = config.options()
    # Whether a GPU is here is asked once the model is known to be in order.
    options.check_library("tensorrt-rtx" if config.target == "rtx" else "tensorrt", gpu=True)
    target = _target(config)
    if config.model.suffix == ".onnx" and not config.model.is_dir():
        if config.precision is not None:
            raise UsageError("--precision is for bundles; the types of an ONNX file stand in it")
        if config.tile is not None:
            raise UsageError("--tile is for bundles of restorers; for an ONNX file give --height and --width")
        source = read_source(config.model, target, beside=True, ignore_errors=config.ignore_errors)
        _check_dla(source, options)
        return Inputs(None, "", source, options)
    if config.output is not None:
        raise UsageError("--output is for ONNX files; a bundle keeps its engines itself")
    bundle = Bundle.open(config.model)
    bundle.verify()
    variants = bundle.manifest.variants
    precision = config.precision or ("fp16" if config.target == "rtx" else None)
    if precision is None:
        raise UsageError(f"--precision is missing; bundle {bundle.path} has: {', '.join(variants)}")
    if precision not in variants:
        raise UsageError(
            f"bundle {bundle.path} has no variant {precision} (it has: {', '.join(variants)}); make it with: "
            f"{_MAKERS[precision]} {bundle.path}"
        )
    if config.tile is not None:
        options = _with_tile(bundle, options, config.tile)
    options = _with_sides(bundle, options)
    source = read_source(bundle.file(variants[precision].file), target, ignore_errors=config.ignore_errors)
    _check_dla(source, options)
    return Inputs(bundle, precision, source, options)


def _check_dla(source: OnnxFile, options: BuildOptions) -> None:
    if options.dla_core is not None:
        import onnx

        from .dla import check_dla

        check_dla(onnx.load_model_from_string(source.data), options.dla_core)


def _with_tile(bundle: Bundle, options: BuildOptions, tile: int) -> BuildOptions:
    """Return the options with the heights and widths of parts of one size.

    The golden inputs, which the engine is compared on, may be smaller and stay in the range.
    """
    manifest = bundle.manifest
    if manifest.task != "restoration":
        raise UsageError(f"--tile is for restorers; bundle {bundle.path} is for {manifest.task}; leave it out")
    if options.height is not None or options.width is not None:
        raise UsageError("--tile stands for --height and --width; give it, or these")
    sides, own = Sides.of(manifest.settings), manifest.inputs[0].shape[2:]
    if all(isinstance(side, int) for side in own):
        if own != (tile, tile):
            raise UsageError(
                f"--tile is {tile}, but the graph of bundle {bundle.path} is fixed to {own[0]}x{own[1]}, and so is its "
                "engine; leave it out"
            )
        return options
    overlap, spec = manifest.settings.get("overlap"), manifest.preprocessing
    least = max(2 * overlap + 1 if overlap is not None else 1, spec.height, spec.width)
    if tile < least or sides.fit(tile) != tile:
        multiples = f", in multiples of {sides.multiple}" if sides.multiple > 1 else ""
        raise UsageError(
            f"--tile is {tile}; accepted: {sides.fit(least)} or more{multiples}: the golden inputs are {spec.height}x"
            f"{spec.width}"
            + ("" if overlap is None else f", and parts overlap by {overlap} pixels, the receptive field's radius")
        )
    return replace(options, height=(spec.height, tile, tile), width=(spec.width, tile, tile))


def _with_sides(bundle: Bundle, options: BuildOptions) -> BuildOptions:
    """Return the options with the heights and widths that a restorer needs, unless they are given.

    A local network gets images in parts, so that an engine for the largest part serves images of any size.
    """
    manifest, sides = bundle.manifest, Sides.of(bundle.manifest.settings)
    for axis, name in SIDES.items():
        shape = manifest.inputs[0].shape
        if len(shape) <= axis or isinstance(shape[axis], int):
            if getattr(options, name) is not None:
                raise fixed_side(name)
            continue
        if getattr(options, name) is not None:
            continue
        overlap = manifest.settings.get("overlap") if manifest.task == "restoration" else None
        if overlap is None:
            raise UsageError(
                f"--{name} is missing: the graph of bundle {bundle.path} takes images of any size and needs the whole "
                f"image, an engine takes a range of sizes; give --height MIN,OPT,MAX and --width MIN,OPT,MAX, as in "
                "64,512,1024, or --tile N for images of up to N x N pixels"
            )
        golden = getattr(manifest.preprocessing, name)
        longest = sides.fit(max(longest_part(overlap), golden))
        sizes: Range = (min(sides.fit(_SMALLEST_SIDE), golden), longest, longest)
        options = replace(options, height=sizes) if name == "height" else replace(options, width=sizes)
    for name in SIDES.values():
        _check_sides(bundle, name, options)
    return options


def _check_sides(bundle: Bundle, name: str, options: BuildOptions) -> None:
    """Check that the golden inputs fit, and that the largest parts are larger than what they overlap by."""
    sizes: Range | None = getattr(options, name)
    if sizes is None:
        return
    overlap, golden = bundle.manifest.settings.get("overlap"), getattr(bundle.manifest.preprocessing, name)
    shown = ",".join(map(str, sizes))
    if not sizes[0] <= golden <= sizes[2]:
        raise UsageError(
            f"--{name} is {shown}; accepted: a range with {golden}, the {name} of the bundle's golden inputs, on which "
            "the engine is compared"
        )
    sides = Sides.of(bundle.manifest.settings)
    fitting = tuple(map(sides.fit, sizes))
    if fitting != sizes:
        raise UsageError(
            f"--{name} is {shown}; this network takes {sides.smallest} pixels or more, in multiples of "
            f"{sides.multiple}; accepted: {','.join(map(str, fitting))}"
        )
    if isinstance(overlap, int) and sizes[2] <= 2 * overlap:
        raise UsageError(
            f"--{name} is {shown}; the receptive field of this network has a radius of {overlap} pixels, so that "
            f"larger images cannot be cut into such parts; accepted: a MAX of {2 * overlap + 1} or more"
        )


def _target(config: BuildEngineConfig) -> Target:
    """Return the target to check for: RTX, the TensorRT that is installed, else the newest that krl knows."""
    from krl_deploy.rules.targets import RTX, target_here

    if config.target == "rtx":
        return RTX
    try:
        return target_here(tensorrt_library().version)
    except NoTensorRTError:
        return target_here(None)
