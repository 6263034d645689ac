"""Rules of inputs, shapes and element types."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import NodeProto, TensorProto

from krl_deploy.graph.edit import attribute
from krl_deploy.graph.operators import QDQ, QUANTIZED

from .findings import Finding, Rule
from .operators import CHANGELOG, OPERATORS_MD, RTX_REFUSES, TYPES
from .targets import Target
from .view import View, type_name

__all__ = ["check_inputs", "check_types", "check_values"]

_DATA_DEPENDENT = frozenset({"NonMaxSuppression", "NonZero"})
_TAKEN = frozenset(
    [
        "DOUBLE",
        "FLOAT",
        "FLOAT16",
        "BFLOAT16",
        "INT32",
        "INT64",
        "INT8",
        "INT4",
        "UINT8",
        "BOOL",
        "FLOAT8E4M3FN",
        "FLOAT4E2M1",
    ]
)
_QUANTIZED_ALONE = frozenset(["INT4", "FLOAT8E4M3FN", "FLOAT4E2M1"])

_BATCH = Rule(
    "warning",
    "shapes/inputs",
    "export the model with fixed sizes behind one batch; for others build with trtexec and --minShapes, --maxShapes",
    "a limit of krl: build-engine's optimization profiles are over one batch and the sides of images",
)
_SIDES = Rule(
    "note",
    "shapes/inputs",
    "give build-engine the sizes, as in --height 64,512,1024 --width 64,512,1024; a restorer's bundle has its own",
    "krl-deploy build-engine makes one optimization profile, over the batch and the sides of images",
)
_SIZES = Rule(
    "note",
    "shapes/data-dependent",
    "end the graph before it, and do that part outside",
    "Torch-TensorRT's documentation: a CUDA graph cannot be captured where shapes depend on values",
)
_UINT8 = Rule(
    "error",
    "types/uint8",
    "cast the pixels to float first, as krl-deploy export and import do",
    "onnx/onnx-tensorrt: docs/operators.md; NVIDIA/TensorRT: NvInferRuntimeBase.h, DataType::kUINT8",
)
_UINT8_SHAPE = Rule(
    "warning",
    "types/uint8",
    "take the shape behind the Cast, as krl-deploy export does",
    "NVIDIA/TensorRT: NvInfer.h, IShapeLayer (any type), against the operator documentation of 10.7, Shape",
)
_UINT8_CAST = Rule(
    "warning",
    "types/uint8",
    "cast the pixels to float first, as krl-deploy export and import do",
    "onnx/onnx-tensorrt: docs/operators.md; NVIDIA's parser, TensorRT-RTX 1.7.1",
)
_INT8 = Rule(
    "warning",
    "types/int8",
    "let DequantizeLinear follow QuantizeLinear at once, as in the Q/DQ model that krl-deploy quantize writes",
    "onnx/onnx-tensorrt: docs/operators.md: INT8 is available through quantization alone; TensorRT-RTX 1.7.1 builds it",
)
_FOREIGN = Rule("error", "types/supported", "cast it, or export the model in other types", OPERATORS_MD)
_LISTED = Rule("warning", "types/supported", "cast its input to a type that is listed", f"{OPERATORS_MD}; {CHANGELOG}")
_PRODUCT = Rule(
    "error", "types/supported", "cast its factors to float", f"{OPERATORS_MD}; NVIDIA's parser, TensorRT-RTX 1.7.1"
)
_REFUSED = Rule(
    "error", "types/supported", "cast its input to a type that is listed", "NVIDIA's parser, TensorRT-RTX 1.7.1"
)
_CONSTANT = Rule(
    "error",
    "types/int8",
    "let DequantizeLinear read it at once",
    f"{OPERATORS_MD}: INT8 is available through quantization alone; NVIDIA's builder, TensorRT-RTX 1.7.1",
)
_DOUBLE = Rule("warning", "types/double", "export the model in float32", OPERATORS_MD)


def check_inputs(view: View) -> Iterator[Finding]:
    """Yield the findings of inputs that krl cannot feed, and of shapes that depend on values."""
    batches = {}
    for name in view.graph.inputs:
        shape = view.graph.shape(name) or ()
        sides = shape[2:] if len(shape) == 4 else ()
        if shape and any(isinstance(size, str) for size in sides) and isinstance(shape[1], int):
            yield _SIDES.at(name, "", f"input {name!r} takes images of any size; an engine takes a range of them")
        elif not shape or any(isinstance(size, str) for size in shape[1:]):
            named = ["batch" if isinstance(size, str) and axis == 0 else size for axis, size in enumerate(shape)]
            shown = ", ".join(map(str, named))
            yield _BATCH.at(
                name,
                "",
                f"input {name!r} has shape [{shown}]; accepted: a batch, and height and width of images, that vary",
            )
        if shape:
            batches[name] = "batch" if isinstance(shape[0], str) else shape[0]
    if len(set(batches.values())) > 1:
        shown = ", ".join(f"{name} {size}" for name, size in batches.items())
        yield _BATCH.at("", "", f"the inputs have different batches: {shown}")
    for node in view.nodes:
        if node.op_type in _DATA_DEPENDENT:
            yield _SIZES.at(node.name, node.op_type, "the shape of its output depends on values")


def check_values(model: onnx.ModelProto) -> Iterator[Finding]:
    """Yield a finding for each input or output of the graph that is no tensor."""
    for value in (*model.graph.input, *model.graph.output):
        kind = value.type.WhichOneof("value")
        if kind not in (None, "tensor_type"):
            shown = str(kind).removesuffix("_type")
            yield _FOREIGN.at(value.name, "", f"it is of the type {shown}; TensorRT has tensors alone")


def check_types(view: View, target: Target) -> Iterator[Finding]:
    """Yield a finding for each input, and each node that computes, in a type that this TensorRT does not take there."""
    for tensor in view.graph.inputs:
        name = type_name(view.dtype(tensor)) if view.dtype(tensor) else ""
        if name and name not in _TAKEN and not any(tensor in node.input[:2] for node in view.consumers[tensor]):
            yield _FOREIGN.at(tensor, "", f"the input is {name}, which TensorRT does not have")
    for node in view.nodes:
        index = 1 if node.op_type == "Where" else 0
        dtype = view.dtype(node.input[index]) if len(node.input) > index and node.input[index] else 0
        if dtype and node.op_type not in QDQ:  # those have rules of their own
            yield from _check_type(view, node, dtype, target)
            yield from _check_constants(view, node)
        if node.op_type in ("Cast", "CastLike"):
            yield from _check_cast(view, node, dtype)


def _check_constants(view: View, node: NodeProto) -> Iterator[Finding]:
    """Yield a finding for quantized constants that nothing dequantizes. Integer operators have a rule of their own."""
    if node.op_type in QUANTIZED:
        return
    names = node.input[:1] if node.op_type in ("Clip", "Pad") else node.input  # the limits of these are no tensors
    if any(name in view.graph.constants and view.dtype(name) == TensorProto.INT8 for name in names):
        yield _CONSTANT.at(node.name, node.op_type, "it reads an INT8 constant, which DequantizeLinear alone may")


def _check_cast(view: View, node: NodeProto, dtype: int) -> Iterator[Finding]:
    """Yield a finding for a cast to a type that TensorRT does not have there."""
    wanted = view.dtype(node.output[0]) if node.op_type == "CastLike" else int(attribute(node, "to", 0))
    if not wanted:
        return
    name = type_name(wanted)
    if wanted == TensorProto.UINT8 and (node.op_type == "CastLike" or node.output[0] not in view.graph.outputs):
        yield _UINT8.at(node.name, node.op_type, "it makes UINT8, which TensorRT has at inputs and outputs alone")
    elif name in _QUANTIZED_ALONE:
        yield _FOREIGN.at(
            node.name, node.op_type, f"it casts to {name}, which TensorRT takes from QuantizeLinear alone"
        )
    elif name not in _TAKEN:
        yield _FOREIGN.at(node.name, node.op_type, f"it casts to {name}, which TensorRT does not have")
    elif dtype == TensorProto.UINT8 and wanted not in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8):
        why = f"UINT8 is cast to {name}; FLOAT and FLOAT16 are documented, TensorRT-RTX 1.7.1 takes others"
        yield _UINT8_CAST.at(node.name, node.op_type, why)


def _check_type(view: View, node: NodeProto, dtype: int, target: Target) -> Iterator[Finding]:
    name, kind = type_name(dtype), node.op_type
    listed = TYPES.get(kind)
    if kind == "Pow" and target.tensorrt >= (10, 12) and listed is not None:
        listed = listed | {"INT32", "INT64"}
    if name not in _TAKEN:
        yield _FOREIGN.at(node.name, kind, f"it computes in {name}, which TensorRT does not have")
    elif target.rtx and name in RTX_REFUSES.get(kind, ()):
        yield _REFUSED.at(node.name, kind, f"it computes in {name}, which TensorRT-RTX refuses for it")
    elif name == "DOUBLE":
        yield _DOUBLE.at(node.name, kind, "it computes in DOUBLE, which TensorRT turns into FLOAT")
    elif listed is None or name in listed:
        return
    elif kind in ("Gemm", "MatMul") and name in ("INT32", "INT64"):
        yield _PRODUCT.at(node.name, kind, f"it multiplies {name}, which TensorRT does not")
    elif name == "UINT8" and kind in ("Dropout", "Identity"):
        return  # nothing is left of them
    elif name == "UINT8" and kind in ("Shape", "Size"):
        yield _UINT8_SHAPE.at(node.name, kind, "it reads UINT8; NVIDIA's documents disagree on whether it may")
    elif name == "UINT8":
        yield _UINT8.at(node.name, kind, "it computes in UINT8, which TensorRT has at inputs and outputs alone")
    elif name == "INT8":
        why = "it computes on INT8 values between QuantizeLinear and DequantizeLinear, which is not documented"
        yield _INT8.at(node.name, kind, why)
    elif not view.rooted(node.input[0]):
        shown = ", ".join(sorted(listed))
        yield _LISTED.at(node.name, kind, f"it computes in {name}; listed are {shown}")
