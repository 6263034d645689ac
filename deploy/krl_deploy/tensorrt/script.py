"""The same engine by hand: the lines for ``trtexec``, which TensorRT's packages (not pip's) bring."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from krl_runtime.bundle import TensorSpec
from krl_runtime.device.platforms import jetpacks_with

from . import api
from .builder import BuildOptions

__all__ = ["trtexec_line", "trtexec_script"]

_COMPATIBILITY = {"ampere-plus": "ampere+", "same-compute-capability": "sameComputeCapability"}


def trtexec_line(major: int, onnx: str, engine: str, inputs: Sequence[TensorSpec], options: BuildOptions) -> str:
    """Return one shell command that builds what ``build-engine`` builds.

    Options as in NVIDIA/TensorRT, ``samples/common/sampleOptions.cpp``. A time limit has no equivalent.

    Args:
        major: TensorRT's major version.
        onnx: Path of the ONNX file.
        engine: Path of the engine to write.
        inputs: The graph's inputs.
        options: How to build.
    """
    words = ["trtexec", f"--onnx={onnx}", f"--saveEngine={engine}", *api.trtexec_typing(major)]
    dynamic = [spec for spec in inputs if spec.shape[0] == "batch"]
    for kind, batch in zip(("min", "opt", "max"), options.profile, strict=True):
        shapes = [f"{spec.name}:{'x'.join(map(str, (batch, *spec.shape[1:])))}" for spec in dynamic]
        words += [f"--{kind}Shapes={','.join(shapes)}"] if shapes else []
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
    return shlex.join([*words, "--skipInference"])


def trtexec_script(onnx: str, engine: str, inputs: Sequence[TensorSpec], options: BuildOptions) -> str:
    """Return a shell script that takes ``10`` or ``11`` and builds the engine with that TensorRT."""
    cases = []
    for major in api.GENERATIONS:
        jetpacks = "; ".join(jetpack.name for jetpack in jetpacks_with(major))
        cases.append(
            f"{major}) # TensorRT {major}.x{f' ({jetpacks})' if jetpacks else ''}\n"
            f"  exec {trtexec_line(major, onnx, engine, inputs, options)} ;;\n"
        )
    usage = '*) echo "usage: sh $0 10|11   (the major version of TensorRT on this device)" >&2; exit 2 ;;\n'
    return f'#!/bin/sh\n# Run it in the folder that has the ONNX file.\ncase "$1" in\n{"".join(cases)}{usage}esac\n'
