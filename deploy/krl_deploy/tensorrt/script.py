"""The same engine by hand: lines for ``trtexec`` and ``tensorrt_rtx``, which NVIDIA's packages (not pip's) bring."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from krl_runtime.bundle import TensorSpec
from krl_runtime.device.platforms import jetpacks_with
from krl_runtime.errors import UsageError

from . import api
from .options import BuildOptions, Range

__all__ = ["build_lines", "build_script", "rtx_line", "trtexec_line"]

_COMPATIBILITY = {"ampere-plus": "ampere+", "same-compute-capability": "sameComputeCapability"}


def trtexec_line(major: int, onnx: str, engine: str, inputs: Sequence[TensorSpec], options: BuildOptions) -> str:
    """Return one shell command that builds what ``build-engine`` builds.

    Options as in NVIDIA/TensorRT, ``samples/common/sampleOptions.cpp``. A time limit has no equivalent, and of several
    optimization profiles how they are written is not known.

    Args:
        major: TensorRT's major version.
        onnx: Path of the ONNX file.
        engine: Path of the engine to write.
        inputs: The graph's inputs.
        options: How to build.
    """
    words = ["trtexec", f"--onnx={onnx}", f"--saveEngine={engine}", *api.trtexec_typing(major)]
    words += _shapes(inputs, options)
    if options.workspace_bytes is not None:
        words.append(f"--memPoolSize=workspace:{options.workspace_bytes >> 20}M")
    # Not timing.cache: in a bundle that one is krl's, and its hash stands in the manifest.
    words += [f"--builderOptimizationLevel={options.optimization_level}", "--timingCacheFile=trtexec.cache"]
    words += [] if options.dla_core is None else [f"--useDLACore={options.dla_core}", "--allowGPUFallback"]
    words += ["--versionCompatible"] if options.version_compatible else []
    level = _COMPATIBILITY.get(options.hardware_compatibility)
    words += [f"--hardwareCompatibilityLevel={level}"] if level else []
    words += ["--refit"] if options.refit else []
    words += ["--stripWeights"] if options.strip_weights else []
    words += [] if options.tf32 else ["--noTF32"]
    words += ["--sparsity=enable"] if options.sparse_weights else []
    return shlex.join([*words, "--skipInference"])


def rtx_line(onnx: str, engine: str, inputs: Sequence[TensorSpec], options: BuildOptions) -> str:
    """Return one shell command that builds what ``build-engine --target rtx`` builds.

    Options as in NVIDIA's documentation of TensorRT-RTX: "CPU-Only AOT and TensorRT-RTX Engines", "Best Practices".

    Args:
        onnx: Path of the ONNX file.
        engine: Path of the engine to write.
        inputs: The graph's inputs.
        options: How to build.
    """
    words = ["tensorrt_rtx", f"--onnx={onnx}", f"--saveEngine={engine}", *_shapes(inputs, options)]
    if options.compute_capabilities:
        numbers = ",".join(name.replace(".", "") for name in options.compute_capabilities)
        words.append(f"--computeCapabilities={numbers}")
    words += ["--refit"] if options.refit or options.strip_weights else []
    words += ["--stripWeights"] if options.strip_weights else []
    return shlex.join([*words, "--skipInference"])


def build_lines(onnx: str, engine: str, inputs: Sequence[TensorSpec], options: BuildOptions) -> dict[str, str]:
    """Return the command for each generation: under ``"10"`` and ``"11"`` of TensorRT, under ``"rtx"`` of RTX."""
    lines = {str(major): trtexec_line(major, onnx, engine, inputs, options) for major in api.GENERATIONS}
    return {**lines, "rtx": rtx_line(onnx, engine, inputs, options)}


def build_script(onnx: str, engine: str, inputs: Sequence[TensorSpec], options: BuildOptions) -> str:
    """Return a shell script that takes ``10``, ``11`` or ``rtx`` and builds the engine with that library."""
    cases = []
    for name, line in build_lines(onnx, engine, inputs, options).items():
        jetpacks = "; ".join(jetpack.name for jetpack in jetpacks_with(int(name))) if name != "rtx" else ""
        title = "TensorRT-RTX, for desktop GPUs" if name == "rtx" else f"TensorRT {name}.x"
        cases.append(f"{name}) # {title}{f' ({jetpacks})' if jetpacks else ''}\n  exec {line} ;;\n")
    usage = '*) echo "usage: sh $0 10|11|rtx   (the TensorRT to build with)" >&2; exit 2 ;;\n'
    return f'#!/bin/sh\n# Run it in the folder that has the ONNX file.\ncase "$1" in\n{"".join(cases)}{usage}esac\n'


def _shapes(inputs: Sequence[TensorSpec], options: BuildOptions) -> list[str]:
    """Return the options of the optimization profile; a graph with fixed sizes needs none."""
    dynamic = [spec for spec in inputs if any(isinstance(size, str) for size in spec.shape)]
    words = []
    if len(options.profiles) > 1:
        shown = ",".join(map(str, options.profiles[0]))
        raise UsageError(
            f"--profile has {len(options.profiles)} ranges, and the command by hand builds one; give one, as in "
            f"--profile {shown}"
        )
    for index, kind in enumerate(("min", "opt", "max")):
        shapes = [f"{spec.name}:{'x'.join(map(str, _sizes(spec, options, index)))}" for spec in dynamic]
        words += [f"--{kind}Shapes={','.join(shapes)}"] if shapes else []
    return words


def _sizes(spec: TensorSpec, options: BuildOptions, index: int) -> list[int]:
    """Return a shape of the profile. Sides that are open and not given are the caller's fault."""
    ranges: tuple[Range | None, ...] = (options.profiles[0], None, options.height, options.width)
    return [
        size if isinstance(size, int) else (ranges[axis] or options.profiles[0])[index]
        for axis, size in enumerate(spec.shape)
    ]
