"""Running a graph on ONNX Runtime's CPU provider, and counting what its optimizer made of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy.typing as npt
import onnx

from krl_runtime.backends.onnxruntime import EXACT_INT8, WRONG_OPTIMIZERS, open_session
from krl_runtime.errors import BackendError, require

from .operators import FLOAT_CONVOLUTIONS, INTEGER_CONVOLUTIONS

__all__ = ["count_convolutions", "open_cpu", "optimized_graph", "run_as_written"]


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


def run_as_written(
    model: bytes, feeds: Sequence[Mapping[str, npt.NDArray[Any]]], *, threads: int = 1
) -> list[list[npt.NDArray[Any]]]:
    """Run a model without ONNX Runtime's optimizer, and return its outputs for each of the inputs.

    Raises:
        BackendError: ONNX Runtime cannot open or run it.
    """
    ort = require("onnxruntime", extra="cpu", purpose="comparing two graphs")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry(*EXACT_INT8)
    try:
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return [session.run(None, dict(feed)) for feed in feeds]
    except Exception as error:  # ONNX Runtime's own types share no base class but this one
        raise BackendError(f"ONNX Runtime failed: {' '.join(str(error).split())}") from error
