"""Measuring one form of a model against another: logits, answers, accuracy, speed, and what ran in which precision."""

from __future__ import annotations

import os
import platform
import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from krl_runtime.backends.onnxruntime import open_session
from krl_runtime.commandline import progress
from krl_runtime.errors import BackendError, DataError, ModelError, require
from krl_runtime.pictures import OnBadImage, Picture, decode
from krl_runtime.preprocess import Preprocessing

from .calibration.collect import batches

__all__ = [
    "Score",
    "against_golden",
    "compare",
    "count_convolutions",
    "decoded",
    "interleaved_latency",
    "logits_of",
    "machine",
    "open_cpu",
    "optimised_graph",
]

_FLOAT_CONVOLUTIONS = ("Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose")
_INT8_CONVOLUTIONS = ("QLinearConv", "ConvInteger")
_CHUNK = 256
_BATCH = 8


@dataclass(frozen=True)
class Score:
    """One variant on a set of pictures.

    Attributes:
        top1: Share of right answers, 0 to 1; ``None`` without labels.
        agreement: Share of pictures, 0 to 1, with the reference's answer.
        max_error: Largest absolute difference of a logit from the reference's.
    """

    top1: float | None
    agreement: float
    max_error: float


def logits_of(session: Any, pixels: npt.NDArray[Any], *, batch: int = _BATCH) -> npt.NDArray[np.float32]:
    """Run a session over pictures.

    Args:
        session: Of ONNX Runtime, with one input and the logits as its first output.
        pixels: ``[N, C, H, W]``, of the type of the input.
        batch: Pictures in one call, where the graph leaves that open.

    Returns:
        Logits ``[N, classes]``.

    Raises:
        ModelError: A logit is not a finite number.
        BackendError: ONNX Runtime failed.
    """
    input_ = session.get_inputs()[0]
    try:
        parts = [session.run(None, {input_.name: part})[0] for part in batches(pixels, input_.shape[0], batch)]
    except Exception as error:  # ONNX Runtime's own types share no base class but this one
        raise BackendError(f"ONNX Runtime failed: {' '.join(str(error).split())}") from error
    logits: npt.NDArray[np.float32] = np.concatenate(parts)[: len(pixels)]
    if not np.isfinite(logits).all():
        raise ModelError("the network answers with logits that are not finite numbers")
    return logits


def against_golden(
    sessions: Iterable[Any], pixels: npt.NDArray[np.uint8], expected: npt.NDArray[np.float32]
) -> tuple[float, float]:
    """Replay the golden inputs in several forms of a variant.

    Returns:
        The largest error of a logit and the smallest share, 0 to 1, of the golden answers, over all forms.

    Raises:
        ModelError: A logit is not a finite number.
    """
    logits = [logits_of(session, pixels) for session in sessions]
    error = max(float(np.abs(values - expected).max()) for values in logits)
    return error, min(float((values.argmax(1) == expected.argmax(1)).mean()) for values in logits)


def decoded(
    pictures: Sequence[Picture], preprocessing: Preprocessing, *, on_bad: OnBadImage
) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]]:
    """Yield pictures and their labels, a few hundred at a time, so that any number of them can be measured on.

    Raises:
        DataError: A picture cannot be decoded and ``on_bad`` is ``"refuse"``.
    """
    chunks = [pictures[start : start + _CHUNK] for start in range(0, len(pictures), _CHUNK)]
    for chunk in progress(chunks, "measuring accuracy"):
        try:
            pixels, used = decode(chunk, preprocessing, on_bad=on_bad, description=None)
        except DataError:
            if on_bad == "refuse":
                raise
            continue  # nothing in this chunk was readable, which has been logged
        yield pixels, np.array([picture.label for picture in used])


def compare(
    sessions: Mapping[str, Any], batches: Iterable[tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]]
) -> tuple[int, dict[str, Score]]:
    """Run several forms of a model over the same pictures.

    Args:
        sessions: By name; the first one is the reference.
        batches: Pictures ``[N, C, H, W]`` and the indices of their classes, -1 where they are not known.

    Returns:
        The number of pictures, and a score for each session.

    Raises:
        DataError: There is no picture.
        ModelError: A logit is not a finite number.
    """
    right, same, error = (dict.fromkeys(sessions, 0.0) for _ in range(3))
    count, labelled = 0, True
    for pixels, labels in batches:
        count += len(pixels)
        labelled = labelled and bool((labels >= 0).all())
        logits = {name: logits_of(session, pixels) for name, session in sessions.items()}
        reference = next(iter(logits.values()))
        for name, values in logits.items():
            answers = values.argmax(axis=1)
            right[name] += float((answers == labels).sum())
            same[name] += float((answers == reference.argmax(axis=1)).sum())
            error[name] = max(error[name], float(np.abs(values - reference).max()))
    if not count:
        raise DataError("no picture is left to measure on: none of the files can be decoded")
    return count, {
        name: Score(right[name] / count if labelled else None, same[name] / count, error[name]) for name in sessions
    }


def interleaved_latency(
    sessions: Mapping[str, Any], pixels: npt.NDArray[np.uint8], *, rounds: int = 15, block_seconds: float = 0.03
) -> dict[str, float]:
    """Measure the time of one call, all sessions in turn so that whatever else the machine does hits all of them.

    Args:
        sessions: By name.
        pixels: One batch ``[N, C, H, W]``.
        rounds: Blocks of calls for each session, in random order in each round.
        block_seconds: Length of a block at least.

    Returns:
        For each session the median over blocks of the milliseconds that one call takes.
    """
    blocks: dict[str, list[float]] = {name: [] for name in sessions}
    names = list(sessions)
    order = random.Random(0)  # noqa: S311  an order, not a secret
    for session in sessions.values():
        session.run(None, {session.get_inputs()[0].name: pixels})
    for _ in progress(range(rounds), "measuring latency"):
        order.shuffle(names)
        for name in names:
            run, inputs = sessions[name].run, {sessions[name].get_inputs()[0].name: pixels}
            run(None, inputs)
            calls, start = 0, time.perf_counter()
            while (spent := time.perf_counter() - start) < block_seconds or not calls:
                run(None, inputs)
                calls += 1
            blocks[name].append(spent / calls * 1e3)
    return {name: median(values) for name, values in blocks.items()}


def optimised_graph(model: bytes) -> onnx.ModelProto:
    """Return what ONNX Runtime's CPU provider makes of a model on this machine before it runs it."""
    ort = require("onnxruntime", extra="cpu", purpose="looking at the optimised graph")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    with TemporaryDirectory() as folder:
        path = Path(folder, "optimised.onnx")
        options.optimized_model_filepath = str(path)
        ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return onnx.load(path)


def count_convolutions(optimised: onnx.ModelProto) -> dict[str, int]:
    """Count the convolutions of an optimised graph: those in INT8, and those that were left in floating point."""
    # ONNX Runtime writes batch normalisation that stands alone as a depthwise convolution of its own.
    nodes = [node for node in optimised.graph.node if not node.name.endswith("_bn_nchwc")]
    counts = Counter(node.op_type for node in nodes)
    return {
        "int8_convolutions": sum(counts[name] for name in _INT8_CONVOLUTIONS),
        "float_convolutions": sum(counts[name] for name in _FLOAT_CONVOLUTIONS),
    }


def machine() -> dict[str, Any]:
    """Return what a measured time depends on."""
    ort = require("onnxruntime", extra="cpu", purpose="measuring")
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()}-{platform.machine()}".lower(),
        "onnxruntime": ort.__version__,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def open_cpu(model: bytes) -> Any:
    """Open a model on ONNX Runtime's CPU provider, as the runtime does."""
    return open_session(model, cuda=False)
