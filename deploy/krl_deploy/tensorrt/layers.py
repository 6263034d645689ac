"""Layers of an engine, or of the network that NVIDIA's parser makes: type, precision, reformats, weights and MACs.

On a device TensorRT's engine inspector lists the layers of an engine, as they were fused. Its JSON differs between
TensorRT 10 and 11; both are read. Elsewhere the layers are those of the parsed network, before any fusion.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from krl_deploy.graph.workload import multiply_accumulates
from krl_deploy.rules.view import View
from krl_runtime.backends.tensorrt.calls import attempt, check, refit_engine, tensorrt_logger
from krl_runtime.backends.tensorrt.library import Library
from krl_runtime.cli.tables import table
from krl_runtime.errors import BackendError

if TYPE_CHECKING:
    pass

__all__ = ["EngineLayer", "engine_layers", "layer_table", "network_layers", "totals"]

_ORIGIN = re.compile(r"\[ONNX Layer: (.+?)\]")
_TYPES = (
    ("int8", r"int8"),
    ("fp16", r"fp16|half"),
    ("bf16", r"bf16"),
    ("fp8", r"fp8"),
    ("fp32", r"fp32|float|tf32"),
    ("int32", r"int32"),
    ("int64", r"int64"),
    ("bool", r"bool"),
)
"""Types in the words of the inspector and of the bindings, most telling first: formats of INT8 name FP32 scales."""

_OF_SHAPES = "ONNXTRT_"  # of layers that the parser adds; those of INT64 compute shapes
_NO_WORK = frozenset({"CONSTANT", "SHAPE"})
"""Kinds of layers of a parsed network that an engine does not run."""


@dataclass(frozen=True)
class EngineLayer:
    """One layer.

    Attributes:
        name: Its name.
        kind: Its kind, in the library's words: ``"CONVOLUTION"``, or ``"CaskConvolution"``.
        precision: Type that it computes in, as ``"int8"``; empty if the library does not say.
        output: Type and format of its first output.
        nodes: The ONNX nodes that it was made of; none for one that the library added.
        reformat: Whether it only changes the type or layout of a tensor.
        weights: Number of its weights.
        macs: Multiply-accumulates for one input of the network; ``None`` if a shape is not known.
    """

    name: str
    kind: str
    precision: str
    output: str
    nodes: tuple[str, ...]
    reformat: bool
    weights: int
    macs: int | None


class _Work:
    """Weights and multiply-accumulates of ONNX nodes, by name."""

    def __init__(self, model: onnx.ModelProto) -> None:
        view = View(model)
        self.weights: dict[str, int] = {}
        self.macs: dict[str, int | None] = {}
        for item in view.weighted:
            sizes = [view.graph.shape(name) or () for name in item.node.input[1:3]]
            count = sum(int(np.prod([int(size) for size in shape])) for shape in sizes if shape)
            macs, output = multiply_accumulates(view.graph, item), item.node.output[0]
            for name in (item.node.name, output, f"node_of_{output}"):  # the parser names nodes without a name so
                self.weights[name], self.macs[name] = count, macs

    def of(self, nodes: Iterable[str]) -> tuple[int, int | None]:
        """Return the weights and multiply-accumulates of nodes."""
        known = [name for name in nodes if name in self.macs]
        counts = [self.macs[name] for name in known]
        total = None if None in counts else sum(count or 0 for count in counts)
        return sum(self.weights[name] for name in known), total


def engine_layers(
    library: Library, plan: bytes, model: bytes, *, label: str, stripped: bool = False
) -> list[EngineLayer]:
    """Return the layers of an engine, on the device that runs it.

    Args:
        library: The library that built it.
        plan: The engine. It is code: only from a source that is trusted.
        model: The ONNX file that it was built from.
        label: Name of the engine in messages.
        stripped: Whether its weights were left out.

    Raises:
        BackendError: The library does not load it, or says nothing of its layers.
    """
    if TYPE_CHECKING:
        import tensorrt as trt
    trt = library.module
    with attempt(f"inspecting engine {label}"):
        engine = check(trt.Runtime(tensorrt_logger(library)).deserialize_cuda_engine(plan), "TensorRT does not load it")
        if stripped:
            refit_engine(library, engine, model)
        inspector = check(engine.create_engine_inspector(), "it has no inspector")
        text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    try:
        found = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise BackendError(f"inspecting engine {label}: {library.title} gives no JSON with layers: {error}") from error
    work = _Work(onnx.load_model_from_string(model))
    return [_of_inspector(item, work) for item in found]


def _of_inspector(item: Any, work: _Work) -> EngineLayer:
    """Return a layer from the inspector's JSON: a name alone, or an object."""
    facts: Mapping[str, Any] = {"Name": item} if isinstance(item, str) else item
    name = str(facts.get("Name", ""))
    kind = str(facts.get("LayerType", ""))
    outputs = [_format_of(tensor) for tensor in facts.get("Outputs", ())]
    weights = facts.get("Weights")
    stored = weights.get("Type", "") if isinstance(weights, Mapping) else ""
    origins = tuple(dict.fromkeys(_ORIGIN.findall(str(facts.get("Metadata", "")))))
    nodes = origins or tuple(part.strip() for part in name.split(" + "))
    count, macs = work.of(nodes)
    return EngineLayer(
        name=name,
        kind=kind,
        precision=_type_in(stored) or _type_in(outputs[0] if outputs else ""),
        output=outputs[0] if outputs else "",
        nodes=origins,
        reformat="reformat" in f"{kind} {facts.get('ParameterType', '')} {name}".lower(),
        weights=count,
        macs=macs,
    )


def _format_of(tensor: Mapping[str, Any]) -> str:
    """Return the format of a tensor: one field in TensorRT 10, two in 11."""
    parts = (tensor.get(key) for key in ("Format/Datatype", "Datatype", "DataType", "Format"))
    return " ".join(str(part) for part in parts if part)


def _type_in(words: str) -> str:
    lower = words.lower()
    return next((name for name, pattern in _TYPES if re.search(pattern, lower)), "")


def network_layers(found: Sequence[Mapping[str, Any]], model: bytes) -> list[EngineLayer]:
    """Return the layers of a parsed network, without constants and the arithmetic of shapes.

    Args:
        found: Kind, name, types and origin of each layer; see ``ask_process``.
        model: The ONNX file.
    """
    work = _Work(onnx.load_model_from_string(model))
    layers = []
    for item in found:
        if item["kind"] in _NO_WORK or (item["type"] == "INT64" and item["name"].startswith(_OF_SHAPES)):
            continue
        nodes = tuple(dict.fromkeys(_ORIGIN.findall(item["metadata"])))
        main = item["kind"] not in ("QUANTIZE", "DEQUANTIZE", "CAST", "SHUFFLE", "ELEMENTWISE")
        count, macs = work.of(nodes) if main else (0, 0)
        precision = "int8" if item["int8"] and macs != 0 else _type_in(item["type"])
        reformat = item["kind"] in ("CAST", "SHUFFLE")
        layers.append(EngineLayer(item["name"], item["kind"], precision, item["type"], nodes, reformat, count, macs))
    return layers


def totals(layers: Sequence[EngineLayer]) -> dict[str, Any]:
    """Return the sums over layers as plain JSON types: how many, reformats, weights, and MACs by precision."""
    macs: dict[str, int] = {}
    for layer in layers:
        if layer.macs:
            macs[layer.precision or "not known"] = macs.get(layer.precision or "not known", 0) + layer.macs
    return {
        "layers": len(layers),
        "reformats": sum(layer.reformat for layer in layers),
        "weights": sum(layer.weights for layer in layers),
        "macs": macs,
        "unknown_macs": sum(layer.macs is None for layer in layers),
    }


def layer_table(layers: Sequence[EngineLayer]) -> str:
    """Return layers and their sums for people."""
    rows = [
        (
            layer.name,
            layer.kind,
            layer.precision,
            layer.output,
            "reformat" if layer.reformat else "",
            f"{layer.weights:,}" if layer.weights else "",
            "?" if layer.macs is None else f"{layer.macs:,}" if layer.macs else "",
        )
        for layer in layers
    ]
    sums = totals(layers)
    counted = [f"{count:,} in {name}" for name, count in sorted(sums["macs"].items())]
    unknown = sums["unknown_macs"]
    macs = (
        ", ".join([*counted, *([f"not known of {unknown} layers, whose sizes are open"] if unknown else [])]) or "none"
    )
    shown = table(("layer", "kind", "precision", "output", "", "weights", "MACs"), rows)
    return (
        f"{shown}\n\n{sums['layers']} layers, {sums['reformats']} reformats, {sums['weights']:,} weights; MACs: {macs}"
    )
