"""Graphs for ``scorecard.py``: planted faults, krl's networks, ONNX's own tests, exports of torch, and given folders.

Two groups are *held out*, since no rule was written with them: further tests of the same operators, and mutants.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import onnx
from _scorecard_edited import edited
from _scorecard_mutants import mutants
from _scorecard_planted import PLANTED

_TESTS = Path(__file__).parents[2] / "tests"
sys.path.insert(0, str(_TESTS))

__all__ = ["GROUPS", "Graph", "graphs"]

GROUPS = {
    "tests": "graphs of krl's tests of the rules",
    "networks": "krl's networks in FP32, FP16 and INT8",
    "planted": "one operator, used well or badly, in a small network",
    "onnx operators": "tests of single operators by the ONNX project",
    "onnx networks": "networks and converted graphs of the ONNX project, opset 3 to 9",
    "torch": "layers and functions of torch through its exporters",
    "edited": "those tests of single operators, each with one random edit",
    "first mutants": "networks with one random change each",
    "further onnx operators": "held out: up to four further tests of each operator",
    "mutants": "held out: the same of another seed",
}
"""Groups of graphs that are made by code, with a description."""

_OF_ONE_OPERATOR = 4  # so that the 93 tests of Attention do not outweigh everything else
_SMALL = 2**20  # bytes of a network to change: larger ones take longer to build, and break in the same ways
_LARGEST = 40 * 2**20  # bytes of a file: the weights say nothing about the rules
_HELD_OUT = ("further onnx operators", "mutants")
_EDITS = 800
_MUTANTS = 240  # thirty of each kind of change


@dataclass(frozen=True)
class Graph:
    """A model to judge."""

    group: str
    name: str
    data: bytes

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def held_out(self) -> bool:
        """Whether no rule was written with it."""
        return self.group in _HELD_OUT


def graphs(chosen: Sequence[str], folders: Sequence[Path]) -> Iterator[Graph]:
    """Yield the graphs of the groups, each different file once, and the files of folders, a group for each folder."""
    seen: set[str] = set()
    for group in chosen:
        for name, model in _MAKERS[group]():
            graph = Graph(group, name, model if isinstance(model, bytes) else model.SerializeToString())
            if graph.sha256 not in seen:
                seen.add(graph.sha256)
                yield graph
    for folder in folders:
        for path in sorted(folder.glob("*.onnx")):
            yield Graph(folder.name, path.stem, path.read_bytes())


_Models = Iterator[tuple[str, onnx.ModelProto | bytes]]


def _of_tests() -> _Models:
    from _helpers.planted import edited

    def of(name: str) -> Any:
        spec = importlib.util.spec_from_file_location(name, _TESTS / "deploy" / "rules" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    planted, operators = of("test_planted_parser"), of("test_operators_parser")
    for name, (base, plant, *_) in planted.PLANTED.items():
        yield name, edited(base, plant)
    for name, (plant, *_) in planted.ACCEPTED.items():
        yield name, edited(planted.FULL, plant)
    for name, (base, plant, *_) in planted.WARNED.items():
        yield name, edited(base, plant)
    for name, (wrong, right) in operators.CONFIRMED.items():
        yield name, wrong
        yield f"{name}, mended", right
    yield from {**operators.POLICY, **operators.TAKEN}.items()


def _networks() -> _Models:
    from _helpers.zoo import ZOO
    from krl_deploy.precision.emit_cpu import to_cpu
    from krl_deploy.precision.emit_fp16 import to_fp16
    from krl_deploy.precision.emit_tensorrt import to_tensorrt
    from krl_deploy.precision.weights import Rounding

    ranges: dict[str, tuple[float, float]] = defaultdict(lambda: (-1.0, 1.0))
    for case in ZOO:
        model = case.make()
        exact = to_tensorrt(model, ranges, rounding=Rounding(fp16=True)).model
        yield f"{case.name}, FP32", model
        yield f"{case.name}, FP16", to_fp16(model, {}).model
        yield f"{case.name}, INT8 in FP32", to_tensorrt(model, ranges).model
        yield f"{case.name}, INT8 in FP16", to_fp16(exact, {}, around_int8=True).model
        yield f"{case.name}, INT8 for a CPU", to_cpu(model, ranges).model


def _planted() -> _Models:
    for name, make in PLANTED.items():
        yield name, make()


def _onnx_operators(first: int = 0) -> _Models:
    """Yield four tests of each operator of the ONNX project, in the oldest opset that means the same."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the tests compute expected values with overflows
        cases = [case for case in collect_testcases(None) if "_expanded" not in case.name]
    by_operator: dict[str, list[tuple[str, onnx.ModelProto]]] = defaultdict(list)
    for case in cases:
        domains = {item.domain for item in case.model.opset_import}
        if domains == {""}:
            by_operator[case.model.graph.node[0].op_type].append((case.name, case.model))
    for found in by_operator.values():
        found.sort(key=lambda item: hashlib.sha256(item[0].encode()).digest())
        for name, model in found[first : first + _OF_ONE_OPERATOR]:
            yield name, _in_its_opset(model)


def _in_its_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    newest = model.opset_import[0].version
    kinds = {node.op_type for node in model.graph.node}
    if not any(item.HasField("g") for node in model.graph.node for item in node.attribute):
        model.opset_import[0].version = max(onnx.defs.get_schema(kind, newest, "").since_version for kind in kinds)
    return model


def _onnx_networks() -> _Models:
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data"
    for path in sorted(folder.rglob("*.onnx")):
        if path.stat().st_size < _LARGEST:
            yield path.parent.name if path.stem == "model" else path.stem, path.read_bytes()


def _of_torch() -> _Models:
    from _scorecard_torch import EXPORTS

    for name, make in EXPORTS.items():
        target = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                make(target)
            except Exception as error:  # an exporter lacks some operators in some opsets, and has no class for it
                print(f"torch does not export {name}: {str(error).splitlines()[0][:100]}", file=sys.stderr)
                continue
        yield name, target.getvalue()


def _edited() -> _Models:
    yield from edited([name for name, _ in _onnx_operators()], _EDITS)


def _mutants(seed: int) -> _Models:
    small = [(name, model) for name, model in _networks() if model.ByteSize() < _SMALL and "for a CPU" not in name]
    yield from mutants(small, _MUTANTS, seed)


_MAKERS: dict[str, Callable[[], _Models]] = {
    "tests": _of_tests,
    "networks": _networks,
    "planted": _planted,
    "onnx operators": _onnx_operators,
    "onnx networks": _onnx_networks,
    "torch": _of_torch,
    "edited": _edited,
    "first mutants": partial(_mutants, 1),
    "further onnx operators": lambda: _onnx_operators(_OF_ONE_OPERATOR),
    "mutants": partial(_mutants, 20261128),
}
