"""Rules of ONNX Runtime's CPU provider: whether it opens the file at all, and whether INT8 is fast there."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import TensorProto

from krl_deploy.graph.files import to_bytes
from krl_deploy.graph.session import count_convolutions, open_cpu, optimized_graph
from krl_runtime.errors import BackendError, ModelError

from .findings import Finding, Rule
from .view import View

__all__ = ["check_on_cpu"]

_MEASURED = "measured with ONNX Runtime 1.31 on an x86 processor with VNNI"
_FORM = "take the CPU's graph that krl-deploy quantize writes (model.int8.cpu.onnx)"

_OPENS = Rule("error", "cpu/opens", "look at what ONNX Runtime says of it", "ONNX Runtime on this machine")
_SIGNED = Rule("warning", "cpu/int8-activations", _FORM, _MEASURED)
_HALF = Rule("warning", "cpu/fp16-scales", _FORM, _MEASURED)
_FLOAT = Rule("warning", "cpu/float-convolutions", _FORM, "ONNX Runtime's optimized graph on this machine")


def check_on_cpu(model: onnx.ModelProto, view: View | None) -> Iterator[Finding]:
    """Yield what keeps a model from running, or from running fast, on ONNX Runtime's CPU provider.

    Args:
        model: The model.
        view: The same to look at; ``None`` if it has control flow.
    """
    data = to_bytes(model)
    try:
        open_cpu(data)
    except (BackendError, ModelError) as error:
        yield _OPENS.at("", "", f"ONNX Runtime does not open it: {error}")
        return
    quantizers = [node for node in view.nodes if node.op_type == "QuantizeLinear"] if view is not None else []
    if view is None or not quantizers:
        return
    for node in quantizers:
        if view.rooted(node.input[0]):
            continue
        if view.dtype(node.output[0]) == TensorProto.INT8:
            why = "its values are int8: INT8 runs at 0.3 to 1.3 times the speed of FP32, with uint8 at up to 3.4"
            yield _SIGNED.at(node.name, node.op_type, why)
        if view.dtype(node.input[0]) == TensorProto.FLOAT16:
            why = "it quantizes FP16, which ONNX Runtime does not fuse: up to 9 times slower than FP32"
            yield _HALF.at(node.name, node.op_type, why)
    counts = count_convolutions(optimized_graph(data))
    if counts["float_convolutions"]:
        total = sum(counts.values())
        why = f"{counts['float_convolutions']} of {total} convolutions stay in floating point"
        yield _FLOAT.at("", "", why)
