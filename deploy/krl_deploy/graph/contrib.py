"""Operators of ONNX Runtime's own domain, ``com.microsoft``, in standard ones.

Its optimizer writes them, and so do its tools for transformers. krl's passes, TensorRT and OpenVINO know the standard
operators alone. Those that have no exact counterpart stay, and are named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from math import pi, sqrt
from typing import Any, Final

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper

from krl_runtime.errors import ModelError

from .edit import GraphEditor, attribute
from .files import opset_of
from .operators import INTEGER, QDQ

__all__ = ["check_standard", "foreign_operators", "to_standard"]

_DOMAIN: Final = "com.microsoft"
_LEAST_OPSET: Final = 18  # LayerNormalization is from 17, ReduceMean with its axes as an input from 18
_EIGHT_BITS: Final = frozenset({TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32})


def foreign_operators(model: onnx.ModelProto) -> dict[str, int]:
    """Count the operators of other domains than ONNX's, by domain and name."""
    nodes = [node for node in model.graph.node if node.domain not in ("", "ai.onnx")]
    return dict(Counter(f"{node.domain}.{node.op_type}" for node in nodes))


def check_standard(model: onnx.ModelProto, what: str) -> None:
    """Refuse a model with operators of other domains.

    Args:
        model: The model.
        what: The operation that needs standard operators, for the message.

    Raises:
        ModelError: It has some; the message names them.
    """
    found = foreign_operators(model)
    integer = sorted(INTEGER & {node.op_type for node in model.graph.node})
    if found and integer:
        raise ModelError(
            f"{what} needs a model in floating point; this one is quantized already, and computes on integers "
            f"({', '.join(integer)}); start from the float model"
        )
    if found:
        shown = ", ".join(f"{count} {name}" for name, count in sorted(found.items()))
        raise ModelError(
            f"{what} needs standard ONNX operators alone; the model has {shown}; export it again without these; if "
            "ONNX Runtime's optimizer wrote them, import the file that it was given"
        )


def to_standard(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """Return a model with standard operators in place of those of ``com.microsoft``, and a list of the changes.

    Those without an exact counterpart stay.
    """
    if opset_of(model) < _LEAST_OPSET or not foreign_operators(model):
        return model, []
    done: Counter[str] = Counter()
    while True:  # types and shapes behind a rewritten node are known in the next pass
        graph = GraphEditor(model)
        rewritten = [node for node in graph.nodes if node.domain == _DOMAIN and _rewrite(graph, node)]
        if not rewritten:
            break
        done.update(node.op_type for node in rewritten)
        graph.remove([node for node in rewritten if node.domain == _DOMAIN])
        model = graph.close()
    if not foreign_operators(model):
        kept = [item for item in model.opset_import if item.domain in ("", "ai.onnx")]
        del model.opset_import[:]
        model.opset_import.extend(kept)
    names = ", ".join(f"{count} {name}" for name, count in sorted(done.items()))
    return model, [f"operators of {_DOMAIN} became standard ones: {names}"] if done else []


def _rewrite(graph: GraphEditor, node: NodeProto) -> bool:
    """Add the standard operators for a node, or make it one; return whether that was possible."""
    if node.op_type in QDQ:
        stored = node.input[2] if len(node.input) > 2 and node.input[2] else node.input[0]
        if graph.dtype(stored) not in _EIGHT_BITS:
            return False
        node.domain = ""
        return True
    write = _WRITERS.get(node.op_type)
    dtype = graph.dtype(node.input[0])
    if write is None or not dtype:
        return False
    return write(_Writer(graph, node, np.dtype(helper.tensor_dtype_to_np_dtype(dtype))))


class _Writer:
    """Writes the nodes that stand for one node."""

    def __init__(self, graph: GraphEditor, node: NodeProto, dtype: np.dtype[Any]) -> None:
        self.graph, self.node, self._dtype = graph, node, dtype

    def input(self, index: int) -> str:
        """Return an input's name, empty if it is left out."""
        return str(self.node.input[index]) if len(self.node.input) > index else ""

    def value(self, name: str, default: Any) -> Any:
        """Return an attribute's value."""
        return attribute(self.node, name, default)

    def number(self, value: float) -> str:
        """Return a constant of the node's type."""
        return self.graph.add_constant(f"{self.node.output[0]}_constant", np.asarray(value, self._dtype))

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Return the output of a new node."""
        return self.graph.add(op, inputs, f"{self.node.output[0]}_part", **attributes)

    def end(self, tensor: str, index: int = 0) -> bool:
        """Let a tensor be an output of the node; ``clean`` drops the ``Identity``."""
        self.graph.add_for("Identity", [tensor], self.node.output[index])
        return True

    def kept(self, *dropped: str) -> dict[str, Any]:
        """Return the attributes but for some."""
        given = {item.name: helper.get_attribute_value(item) for item in self.node.attribute}
        return {name: value for name, value in given.items() if name not in dropped}

    def sum(self, *inputs: str) -> str:
        """Return the sum of the inputs that are given."""
        total, *others = (name for name in inputs if name)
        for other in others:
            total = self.add("Add", total, other)
        return total


def _activated(write: _Writer, tensor: str, kind: str, parameters: Sequence[float]) -> str | None:
    """Return the tensor behind a fused activation; ``None`` if that is not known."""
    if kind in ("Relu", "Sigmoid", "Tanh", ""):
        return write.add(kind, tensor) if kind else tensor
    if kind == "LeakyRelu":
        return write.add(kind, tensor, alpha=parameters[0] if parameters else 0.01)  # ONNX's default
    if kind == "Clip" and len(parameters) == 2:
        return write.add(kind, tensor, *(write.number(value) for value in parameters))
    if kind == "HardSigmoid" and len(parameters) == 2:
        return write.add(kind, tensor, alpha=parameters[0], beta=parameters[1])
    return None


def _conv(write: _Writer) -> bool:
    kind = write.value("activation", b"").decode()
    made = write.add("Conv", *write.node.input[:3], **write.kept("activation", "activation_params"))
    total = write.sum(made, write.input(3))
    made_last = _activated(write, total, kind, write.value("activation_params", []))
    return made_last is not None and write.end(made_last)


def _gemm(write: _Writer) -> bool:
    kind = write.value("activation", b"").decode()
    names = [f"activation_{name}" for name in ("alpha", "beta", "gamma")]
    parameters = [write.value(name, None) for name in names[:2] if write.value(name, None) is not None]
    made = write.add("Gemm", *write.node.input, **write.kept("activation", *names))
    last = None if kind == "Clip" else _activated(write, made, kind, parameters)
    return last is not None and write.end(last)


def _matmul(write: _Writer) -> bool:
    if write.value("transBatchA", 0) or write.value("transBatchB", 0):
        return False
    factors = []
    for index, name in enumerate(("transA", "transB")):
        tensor = write.input(index)
        if write.value(name, 0):
            shape = write.graph.shape(tensor)
            if shape is None or len(shape) < 2:
                return False
            order = list(range(len(shape)))
            tensor = write.add("Transpose", tensor, perm=[*order[:-2], order[-1], order[-2]])
        factors.append(tensor)
    made = write.add("MatMul", *factors)
    alpha = write.value("alpha", 1.0)
    return write.end(made if alpha == 1.0 else write.add("Mul", made, write.number(alpha)))


def _gelu(write: _Writer) -> bool:
    """Write x * (1 + erf(x / sqrt(2))) / 2."""
    x = write.sum(write.input(0), write.input(1))
    erf = write.add("Erf", write.add("Div", x, write.number(sqrt(2))))
    return write.end(write.add("Mul", write.add("Mul", x, write.add("Add", erf, write.number(1))), write.number(0.5)))


def _fast_gelu(write: _Writer) -> bool:
    """Write x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x ** 3))) / 2."""
    x = write.sum(write.input(0), write.input(1))
    cube = write.add("Mul", write.add("Mul", x, x), x)
    inner = write.add("Add", x, write.add("Mul", cube, write.number(0.044715)))
    tanh = write.add("Tanh", write.add("Mul", inner, write.number(sqrt(2 / pi))))
    return write.end(write.add("Mul", write.add("Mul", x, write.add("Add", tanh, write.number(1))), write.number(0.5)))


def _quick_gelu(write: _Writer) -> bool:
    x = write.input(0)
    scaled = write.add("Mul", x, write.number(write.value("alpha", 1.702)))  # ONNX Runtime's default
    return write.end(write.add("Mul", x, write.add("Sigmoid", scaled)))


def _bias_add(write: _Writer) -> bool:
    return write.end(write.sum(*write.node.input[:3]))


def _skip_norm(write: _Writer) -> bool:
    total = write.sum(write.input(0), write.input(1), write.input(4))
    made = write.add(
        "LayerNormalization",
        *(name for name in (total, write.input(2), write.input(3)) if name),
        axis=-1,
        epsilon=write.value("epsilon", 1e-12),  # ONNX Runtime's default
    )
    return _with_sum(write, made, total)


def _skip_rms_norm(write: _Writer) -> bool:
    """Write x / sqrt(mean(x ** 2) + epsilon) * scale for the sum x."""
    total = write.sum(write.input(0), write.input(1), write.input(3))
    axes = write.graph.add_constant(f"{write.node.output[0]}_axes", np.array([-1], np.int64))
    mean = write.add("ReduceMean", write.add("Mul", total, total), axes, keepdims=1)
    root = write.add("Sqrt", write.add("Add", mean, write.number(write.value("epsilon", 1e-6))))  # its default
    return _with_sum(write, write.add("Mul", write.add("Div", total, root), write.input(2)), total)


def _with_sum(write: _Writer, made: str, total: str) -> bool:
    """End a node whose fourth output is the sum that it normalizes; the mean and the deviation are not written."""
    if any(write.node.output[1:3]):
        return False
    if len(write.node.output) > 3 and write.node.output[3]:
        write.end(total, 3)
    return write.end(made)


_WRITERS: Final[dict[str, Callable[[_Writer], bool]]] = {
    "BiasAdd": _bias_add,
    "BiasGelu": _gelu,
    "FastGelu": _fast_gelu,
    "FusedConv": _conv,
    "FusedGemm": _gemm,
    "FusedMatMul": _matmul,
    "Gelu": _gelu,
    "QuickGelu": _quick_gelu,
    "SkipLayerNormalization": _skip_norm,
    "SkipSimplifiedLayerNormalization": _skip_rms_norm,
    "TransposeMatMul": _matmul,
}
