"""Running a graph on ONNX Runtime's CPU provider, and counting what its optimizer made of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx

from krl_runtime.backends.onnxruntime import EXACT_INT8, WRONG_OPTIMIZERS, open_session
from krl_runtime.errors import require

from .operators import FLOAT_CONVOLUTIONS, INTEGER_CONVOLUTIONS

__all__ = ["count_convolutions", "open_cpu", "optimized_graph"]


def optimized_graph(model: bytes) -> onnx.ModelProto:
    """Return the graph that ONNX Runtime's CPU provider makes of a model on this machine before it runs it."""
    ort = require("onnxruntime", extra="cpu", purpose="looking at the optimized graph")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry(*EXACT_INT8)
    with TemporaryDirectory() as folder:
        path = Path(folder, "optimized.onnx")
        options.optimized_model_filepath = str(path)
        ort.InferenceSession(model, options, providers=["CPUExecutionProvider"], disabled_optimizers=WRONG_OPTIMIZERS)
        return onnx.load(path)


def count_convolutions(optimized: onnx.ModelProto) -> dict[str, int]:
    """Count the convolutions of an optimized graph: those in INT8, and those that were left in floating point."""
    # ONNX Runtime writes batch normalization that stands alone as a depthwise convolution of its own.
    nodes = [node for node in optimized.graph.node if not node.name.endswith("_bn_nchwc")]
    counts = Counter(node.op_type for node in nodes)
    return {
        "int8_convolutions": sum(counts[name] for name in INTEGER_CONVOLUTIONS),
        "float_convolutions": sum(counts[name] for name in FLOAT_CONVOLUTIONS),
    }


def open_cpu(model: bytes) -> Any:
    """Open a model on ONNX Runtime's CPU provider, as the runtime does."""
    return open_session(model, cuda=False)
