"""The benchmark that compares krl's INT8 with other tools: its figures, and its rows for tools that fail."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from krl_deploy.evaluation.comparison import PredictionTally

FOLDER = Path(__file__).parents[2] / "benchmarks" / "deploy"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the benchmarks set it
    monkeypatch.syspath_prepend(FOLDER)
    before = set(sys.modules)
    import int8_peers

    yield int8_peers
    for name in {"int8_peers", "_peers", "_common"} - before:
        sys.modules.pop(name, None)


def tallied(benchmark: ModuleType, batches: list[tuple[list[list[float]], list[list[float]]]]) -> tuple[Any, float]:
    tally = benchmark.SignalTally(PredictionTally())
    for outputs, reference in batches:
        truth = np.zeros(len(outputs), np.int64)
        tally.add(np.array(outputs, np.float32), np.array(reference, np.float32), truth)
    return tally.score()


@pytest.mark.parametrize("error", [0.5, 0.05, 0.005])
def test_signal_to_noise_follows_the_size_of_the_error(benchmark: ModuleType, error: float):
    reference = [[3.0, -4.0], [0.0, 5.0]]
    outputs = [[3.0, -4.0 + error], [error, 5.0]]
    _, snr = tallied(benchmark, [(outputs, reference)])
    assert snr == pytest.approx(10 * np.log10(50 / (2 * error**2)), abs=1e-4)


def test_power_is_summed_over_all_images_and_not_averaged_over_batches(benchmark: ModuleType):
    batches = [([[10.0, 0.0]], [[10.0, 0.0]]), ([[2.0, 1.0], [0.0, 2.0]], [[1.0, 1.0], [0.0, 1.0]])]
    score, snr = tallied(benchmark, batches)
    assert snr == pytest.approx(10 * np.log10(103 / 2), abs=1e-6)
    assert score.agreement == 1.0


def test_equal_outputs_have_no_noise(benchmark: ModuleType):
    _, snr = tallied(benchmark, [([[1.0, 2.0]], [[1.0, 2.0]])])
    assert snr == np.inf


def test_agreement_is_with_fp32_and_the_drop_is_of_the_truth(benchmark: ModuleType):
    reference, outputs = (
        [[2.0, 1.0], [2.0, 1.0], [1.0, 2.0], [1.0, 2.0]],
        [[2.0, 1.0], [1.0, 2.0], [2.0, 1.0], [1.0, 2.0]],
    )
    score, _ = tallied(benchmark, [(outputs, reference)])
    assert (score.agreement, score.top1) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("tool", "module"),
    [("NNCF", "nncf"), ("NNCF", "openvino"), ("Model-Optimizer", "modelopt"), ("quantize_static", "onnxruntime")],
)
def test_an_absent_tool_is_named_with_the_reason(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tool: str, module: str
):
    for name in benchmark.MODULES[tool]:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    assert benchmark.why_absent(tool) is None
    for name in benchmark.MODULES[tool]:
        if name.partition(".")[0] == module:
            monkeypatch.setitem(sys.modules, name, None)
    assert benchmark.why_absent(tool).startswith("not installed: ")
    row = {"tool": tool, "settings": "", "skipped": benchmark.why_absent(tool)}
    assert list(benchmark.measure(lambda _: {}, iter([row]))) == [row]
    assert tool in benchmark.line(row)
    assert module in benchmark.line(row)


@pytest.mark.parametrize("error", [RuntimeError("no\n kernel"), ValueError("no kernel"), MemoryError("no kernel")])
def test_a_tool_that_fails_has_its_error_in_its_row(benchmark: ModuleType, error: Exception):
    def fail() -> dict[str, Any]:
        raise error

    rows = [benchmark.Contender("A", "x", fail), benchmark.Contender("B", "y", lambda: {"file": b""})]
    first, second = benchmark.measure(lambda _: {"snr_db": 1.0}, iter(rows))
    assert first == {"tool": "A", "settings": "x", "error": f"{type(error).__name__}: no kernel"}
    assert second.pop("seconds") >= 0
    assert second == {"tool": "B", "settings": "y", "file": "file", "snr_db": 1.0}
