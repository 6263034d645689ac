"""Known wrong outputs and failures of single versions of TensorRT, and questions that no file can settle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

from onnx import NodeProto, TensorProto

from krl_deploy.graph.edit import attribute

from .attention import attention_products
from .findings import Finding, Rule
from .operators import Version
from .targets import Target
from .view import View

__all__ = ["check_known_bugs", "unknown_without_gpu"]

_PARITY = "keep the parity check of build-engine on real golden inputs, and compare the accuracy on the device"


@dataclass(frozen=True)
class _Bug:
    """A reported bug.

    Attributes:
        rule: Its severity, name, remedy and source.
        why: The effect.
        where: Whether a target is concerned.
        nodes: The nodes that are.
    """

    rule: Rule
    why: str
    where: Callable[[Target], bool]
    nodes: Callable[[View], Iterator[NodeProto]]


def _within(*versions: Version) -> Callable[[Target], bool]:
    return lambda target: target.tensorrt[:2] in versions


def _attention(view: View) -> Iterator[NodeProto]:
    return (applied for _, applied in attention_products(view))


def _half_attention(view: View) -> Iterator[NodeProto]:
    return (applied for applied in _attention(view) if view.is_half(applied))


def _first_pair(view: View) -> Iterator[NodeProto]:
    """Yield one node for the whole file, since the affected Q/DQ pairs are not known."""
    quantized = (node for node in view.nodes if node.op_type == "DequantizeLinear" and not view.rooted(node.input[0]))
    return islice(quantized, 1)


def _renamed_modes(view: View) -> Iterator[NodeProto]:
    """Yield samplers with the mode names of opset 20. Without a name the parser uses the right mode."""
    for node in view.nodes:
        if node.op_type == "GridSample" and attribute(node, "mode", b"") in (b"linear", b"cubic"):
            yield node


def _transposed(view: View) -> Iterator[NodeProto]:
    return (item.node for item in view.weighted if item.node.op_type == "ConvTranspose" and view.is_int8(item.node))


def _strided_shortcuts(view: View) -> Iterator[NodeProto]:
    """Yield FP16 additions to an activated convolution whose other input is also a part of a concatenation."""
    for node in view.nodes:
        if node.op_type != "Add" or view.dtype(node.output[0]) != TensorProto.FLOAT16:
            continue
        for name in node.input:
            others = [reader for reader in view.consumers[name] if reader is not node]
            if any(reader.op_type == "Concat" for reader in others) and not view.rooted(name):
                yield node
                break


_SAMPLER = Rule(
    "error", "bugs/grid-sample", "export it in opset 16 to 19", "onnx/onnx-tensorrt #1060, NVIDIA/TensorRT #4646"
)

_BUGS = (
    _Bug(
        _SAMPLER,
        "from opset 20 on TensorRT takes the nearest value in every mode (seen on 10.13 and 11.1)",
        lambda target: target.tensorrt < (11, 2),
        _renamed_modes,
    ),
    _Bug(
        replace(_SAMPLER, severity="warning"),
        "from opset 20 on TensorRT up to 11.1 took the nearest value in every mode; later ones are not known",
        lambda target: target.tensorrt >= (11, 2),
        _renamed_modes,
    ),
    _Bug(
        Rule(
            "warning",
            "bugs/transformer-10.3",
            f"use TensorRT 10.5 or later; else {_PARITY}",
            "NVIDIA/TensorRT #4723, #4419, #4742",
        ),
        "TensorRT 10.3 and 10.4 gave wrong outputs for vision transformers: in FP16, and with sizes that vary",
        _within((10, 3), (10, 4)),
        _attention,
    ),
    _Bug(
        Rule("warning", "bugs/attention-sm120", f"build that one in FP32; else {_PARITY}", "NVIDIA/TensorRT #4837"),
        "fused attention in FP16 and BF16 gave wrong outputs on GPUs of compute capability 12.0",
        lambda target: _within((10, 16))(target) and not target.boards,
        _half_attention,
    ),
    _Bug(
        Rule(
            "warning",
            "bugs/int8-orin",
            "try the build on the board; if it fails, build from the FP16 variant",
            "NVIDIA/TensorRT #4832 (10.16.2.10)",
        ),
        "on Orin a quantized ONNX file did not build (Could not infer output types: dequantize); on Thor it did",
        lambda target: _within((10, 16))(target) and any("Orin" in board for board in target.boards),
        _first_pair,
    ),
    _Bug(
        Rule("warning", "bugs/strided-shortcut", f"build with TensorRT 11.1; else {_PARITY}", "NVIDIA/TensorRT #4854"),
        "TensorRT 11.2 read the wrong values of a shortcut that is also a part of a concatenation, in FP16",
        _within((11, 2)),
        _strided_shortcuts,
    ),
    _Bug(
        Rule(
            "warning",
            "bugs/int8-deconvolution",
            f"keep transposed convolutions in FP16; else {_PARITY}",
            "NVIDIA/TensorRT #4366 (10.x), #1694 and #2380 (8.x: scales along the input channels alone)",
        ),
        "transposed convolutions in INT8 were wrong with scales of the output channels, or before an activation",
        lambda _: True,
        _transposed,
    ),
)


def check_known_bugs(view: View, target: Target) -> Iterator[Finding]:
    """Yield the findings of known bugs of this target."""
    for bug in _BUGS:
        if bug.where(target):
            for node in bug.nodes(view):
                yield bug.rule.at(node.name, node.op_type, bug.why)


def unknown_without_gpu(target: Target, *, quantized: bool, built: bool = False) -> list[str]:
    """Return the questions that only the target itself can settle.

    Args:
        target: The target.
        quantized: Whether a file is quantized.
        built: Whether the target's own parser and builder took every file.
    """
    if not target.tensorrt:
        known = ["the latency on the device's processor: krl-runtime bench measures it there"]
        if quantized:
            known.append(
                "whether its processor saturates uint8 times int8 (x86 without VNNI): krl-runtime selftest shows it"
            )
        return known
    parser = "whether TensorRT's parser takes every node with these attributes, and its builder finds an implementation"
    unknown = [
        *(() if built else (parser,)),
        "whether the engine's outputs are right: build-engine compares them with the golden inputs",
        "latency, memory and power; how much TensorRT fuses",
        "whether values beyond the calibration images overflow FP16",
    ]
    if quantized:
        unknown += [
            "the accuracy of INT8 on the device: its kernels round otherwise than ONNX Runtime",
            "whether INT8 is faster than FP16: it was slower for some nets (NVIDIA/TensorRT #3197)",
        ]
    if not target.boards or any("Orin" in board for board in target.boards):
        unknown.append("which layers a DLA core takes: build-engine --dla-core lists those that it does not")
    return unknown
