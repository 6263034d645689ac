"""Measuring one variant of a model against another: outputs, accuracy and speed."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from krl_deploy.data.arrays import Inputs, batches, feed, length, side_by_side
from krl_runtime.backends.onnxruntime import EXACT_INT8
from krl_runtime.device.timing import interleaved
from krl_runtime.errors import BackendError, DataError, ModelError, require
from krl_runtime.evaluation.predictions import PredictionTally
from krl_runtime.processor import cpu_count, int8_instructions, processor_name

__all__ = ["compare", "interleaved_latency", "machine", "outputs_of"]

_BATCH = 8  # images in a run: larger batches are no faster on a CPU, and their activations take memory


def outputs_of(session: Any, inputs: Inputs, *, batch: int = _BATCH) -> npt.NDArray[np.float32]:
    """Run a session.

    Args:
        session: A session of ONNX Runtime.
        inputs: Inputs of the model ``[N, ...]``.
        batch: Inputs in one call, if the graph's batch is open.

    Returns:
        Its output, ``[N, ...]``: logits, or images. Those of several heads are side by side, ``[N, all classes]``, in
        the order of the graph; see ``apart``.

    Raises:
        ModelError: An output is not a finite number.
        BackendError: ONNX Runtime failed.
    """
    fixed = session.get_inputs()[0].shape[0]
    try:
        parts = [side_by_side(session.run(None, feed(session, part))) for part in batches(inputs, fixed, batch)]
    except Exception as error:  # ONNX Runtime's own types share no base class but this one
        raise BackendError(f"ONNX Runtime failed: {' '.join(str(error).split())}") from error
    outputs: npt.NDArray[np.float32] = np.concatenate(parts)[: length(inputs)]
    return _finite(outputs)


def _outputs(session: Any, inputs: Inputs) -> npt.NDArray[np.float32]:
    return _finite(session(inputs)) if callable(session) else outputs_of(session, inputs)


def _finite(outputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    if not np.isfinite(outputs).all():
        raise ModelError("the network's outputs have numbers that are not finite")
    return outputs


def compare(
    sessions: Mapping[str, Any],
    batches: Iterable[tuple[Inputs, npt.NDArray[Any] | None]],
    tally: Callable[[], Any] = PredictionTally,
) -> tuple[int, dict[str, Any]]:
    """Run several variants of a model over the same inputs.

    Args:
        sessions: By name; the first one is the reference. A function from inputs to outputs ``[N, ...]`` stands for a
            model that is not run by ONNX Runtime alone.
        batches: Inputs ``[N, ...]`` and their truth; see ``krl_deploy.evaluation.Batch``.
        tally: Makes the tally of one variant.

    Returns:
        The number of inputs, and a score for each session.

    Raises:
        DataError: There is no input.
        ModelError: An output is not a finite number.
    """
    tallies = {name: tally() for name in sessions}
    count = 0
    for inputs, truth in batches:
        count += length(inputs)
        outputs = {name: _outputs(session, inputs) for name, session in sessions.items()}
        reference = next(iter(outputs.values()))
        for name, values in outputs.items():
            tallies[name].add(values, reference, truth)
    if not count:
        raise DataError("no image is left to measure on: none of the files can be decoded")
    return count, {name: each.score() for name, each in tallies.items()}


def interleaved_latency(
    sessions: Mapping[str, Any], inputs: Inputs, *, rounds: int = 15, block_seconds: float = 0.03
) -> dict[str, float]:
    """Measure the time of one call. All sessions take turns, so that other load on the machine slows them alike.

    Args:
        sessions: By name.
        inputs: One batch ``[N, ...]``.
        rounds: Blocks of calls for each session, in random order in each round.
        block_seconds: Smallest length of a block.

    Returns:
        Milliseconds of one call for each session, the median over blocks.
    """
    given = {name: feed(session, inputs) for name, session in sessions.items()}
    calls = {name: partial(session.run, None, given[name]) for name, session in sessions.items()}
    blocks = interleaved(calls, rounds=rounds, block_seconds=block_seconds)
    return {name: median(times) for name, times in blocks.items()}


def machine() -> dict[str, Any]:
    """Return the facts about this machine that a measured time or INT8 accuracy depends on.

    ``int8_instructions`` is ``None`` if they are not known. ``exact_int8`` is whether sessions on the CPU add INT8
    products up in 32 bits on every processor.
    """
    instructions = int8_instructions()
    ort = require("onnxruntime", extra="cpu", purpose="measuring")
    return {
        "processor": processor_name(),
        "cores": cpu_count(),
        "int8_instructions": None if instructions is None else list(instructions),
        "exact_int8": EXACT_INT8[1] == "1",
        "system": f"{platform.system()}-{platform.machine()}".lower(),
        "onnxruntime": ort.__version__,
    }
