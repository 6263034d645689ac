"""``check --fix``: the rewrites that remove findings, each kept only if that is shown.

A rewrite is kept if findings are gone, no worse ones are new, and ONNX Runtime gives the same outputs for random
inputs. It is tried on its own, on what the rewrites before it left.
"""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper

from krl_deploy.graph.bounds import check_bounds
from krl_deploy.graph.files import read_model, to_bytes
from krl_deploy.graph.session import run_as_written
from krl_runtime.cli.tables import table
from krl_runtime.errors import BackendError, KrlError, ModelError, UsageError
from krl_runtime.files import atomic_path
from krl_runtime.progress import progress

from .findings import Finding
from .rewrites import REWRITES, Rewrite
from .run import findings_of
from .targets import Target

__all__ = ["Fixed", "Kept", "Repair", "difference", "fix", "fix_file"]

_SEEDS: Final = 2  # one input may agree by chance
_SIZES: Final = ((2, 32), (1, 32), (1, 64), (1, 224))
"""For inputs of open sizes: the first axis and the others; the first that the model runs with are taken."""
_TOLERANCE: Final = 1e-5  # of the largest value of an output: rounding of FP32 in another order
_LONGEST: Final = 60  # characters of an attribute in a diff
_TOLERANCE_FP16: Final = 2e-3  # of the largest value: two units in the last place of FP16


@dataclass(frozen=True)
class Kept:
    """A rewrite that was done.

    Attributes:
        what: What it did, for people.
        gone: Findings that it removed.
        error: Largest difference of an output, as a share of that output's largest value; 0.0 where it is exact.
    """

    what: str
    gone: tuple[Finding, ...]
    error: float


@dataclass(frozen=True)
class Fixed:
    """A model, and what was done to it.

    Attributes:
        model: The rewritten model, or the given one.
        kept: What was done.
        left: What was tried and not done, with the reason.
    """

    model: onnx.ModelProto
    kept: tuple[Kept, ...] = ()
    left: tuple[str, ...] = field(default=())


def fix(model: onnx.ModelProto, target: Target) -> Fixed:
    """Return a model with the findings removed that a rewrite removes safely.

    Args:
        model: As ``read_model`` returns it.
        target: The target that it is checked for.

    Raises:
        ModelError: The graph's shapes contradict each other.
    """
    if any(item.HasField("g") or item.graphs for node in model.graph.node for item in node.attribute):
        return Fixed(model, left=("nothing was tried: the graph has control flow, which no rewrite follows",))
    kept: list[Kept] = []
    left: list[str] = []
    for rewrite in progress(REWRITES, "fixing"):
        before = findings_of(model, target)
        named = {finding.node for finding in before if finding.rule in rewrite.rules}
        if not named:
            continue
        try:
            candidate = rewrite.apply(model, named)
            if candidate is None:
                continue
            gone = _gone(before, findings_of(candidate, target), rewrite)
            if gone:
                kept.append(Kept(rewrite.what, gone, _error(model, candidate)))
                model = candidate
        except (KrlError, RuntimeError, ValueError) as error:  # onnx's converter raises the latter two
            left.append(f"{rewrite.what}: {' '.join(str(error).split())[:300]}")
    return Fixed(model, tuple(kept), tuple(left))


def _gone(before: Sequence[Finding], after: Sequence[Finding], rewrite: Rewrite) -> tuple[Finding, ...]:
    """Return the findings of the rewrite's rules that are gone; none if the model is no better.

    It is better with fewer errors, none of them new, or with fewer warnings, nothing new.
    """
    old, new = _counted(before), _counted(after)
    lost, come = old - new, new - old
    worst = "error" if any(severity == "error" for severity, *_ in lost) else "warning"
    if any(severity == "error" or severity == worst for severity, *_ in come):
        return ()
    found = []
    for item in before:
        key = (item.severity, item.rule, item.op, item.why)
        if lost[key] and item.rule in rewrite.rules:
            lost[key] -= 1
            found.append(item)
    return tuple(found)


def _counted(findings: Iterable[Finding]) -> Counter[tuple[str, str, str, str]]:
    return Counter((item.severity, item.rule, item.op, item.why) for item in findings)


def _error(model: onnx.ModelProto, candidate: onnx.ModelProto) -> float:
    """Return the largest difference of the outputs of two models.

    Raises:
        BackendError: ONNX Runtime runs one of them with no sizes.
        ModelError: The outputs differ.
    """
    first = to_bytes(model)
    reason = ""
    for sizes in _SIZES:
        feeds = [_feed(model, sizes, seed) for seed in range(_SEEDS)]
        try:
            check_bounds(model, {name: value.shape for name, value in feeds[0].items()})
            expected = run_as_written(first, feeds)
        except (BackendError, ModelError) as error:
            reason = str(error)
            continue
        return _compared(expected, run_as_written(to_bytes(candidate), feeds))
    raise BackendError(f"the outputs cannot be compared: {reason}")


def _compared(expected: list[list[npt.NDArray[Any]]], got: list[list[npt.NDArray[Any]]]) -> float:
    """Return the largest difference, as a share of the largest value of its output.

    Raises:
        ModelError: It is more than rounding.
    """
    worst = 0.0
    for one, other in zip(
        (each for run in expected for each in run), (each for run in got for each in run), strict=True
    ):
        if one.shape != other.shape or one.dtype != other.dtype:
            raise ModelError(f"an output became {other.dtype}{list(other.shape)} from {one.dtype}{list(one.shape)}")
        if one.dtype.kind != "f":
            if not np.array_equal(one, other):
                raise ModelError("an output of integers is not the same")
            continue
        finite = np.isfinite(one)
        if not np.array_equal(finite, np.isfinite(other)):
            raise ModelError("an output has other infinite values")
        reference, given = one[finite].astype(np.float64), other[finite].astype(np.float64)
        scale = np.abs(reference).max(initial=0.0) or 1.0
        share = float(np.abs(reference - given).max(initial=0.0) / scale)
        if share > (_TOLERANCE_FP16 if one.dtype == np.float16 else _TOLERANCE):
            raise ModelError(f"an output differs by {share:.1e} of its largest value")
        worst = max(worst, share)
    return worst


def _feed(model: onnx.ModelProto, sizes: tuple[int, int], seed: int) -> dict[str, npt.NDArray[Any]]:
    """Return random inputs: real numbers around 0, pixels, and integers that are indices of almost anything."""
    rng = np.random.default_rng(seed)
    feeds: dict[str, npt.NDArray[Any]] = {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        shape = [
            dim.dim_value if dim.HasField("dim_value") else sizes[axis > 0] for axis, dim in enumerate(kind.shape.dim)
        ]
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
        if kind.elem_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16):
            feeds[value.name] = np.asarray(rng.normal(size=shape)).astype(dtype)
        else:
            feeds[value.name] = np.asarray(rng.integers(0, 256 if dtype == np.uint8 else 2, shape)).astype(dtype)
    return feeds


@dataclass(frozen=True)
class Repair:
    """Fixes of a file, done or possible.

    Attributes:
        fixed: The fixes.
        out: The file that was written; ``None`` where none was asked for.
        diff: The changes line by line; ``None`` where they were not asked for.
    """

    fixed: Fixed
    out: Path | None
    diff: str | None

    @property
    def text(self) -> str:
        """Return it for people."""
        verb = "fixed" if self.out else "can be fixed"
        rows = [
            (", ".join(sorted({item.rule for item in kept.gone})), str(len(kept.gone)), kept.what, f"{kept.error:.1e}")
            for kept in self.fixed.kept
        ]
        lines = [table((verb, "findings", "how", "largest error"), rows)] if rows else [f"nothing {verb}"]
        lines += [f"left as it is: {line}" for line in self.fixed.left]
        lines += [f"written: {self.out}"] if self.out else []
        return "\n".join(lines) + (f"\n\n{self.diff}" if self.diff else "")

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON types."""
        done = [
            {"what": kept.what, "error": kept.error, "findings": [asdict(item) for item in kept.gone]}
            for kept in self.fixed.kept
        ]
        out = None if self.out is None else str(self.out)
        return {"out": out, "done": done, "left": list(self.fixed.left), "diff": self.diff}


def fix_file(path: Path, target: Target, out: Path | None, *, show: bool) -> Repair:
    """Fix a file, and write the result.

    Args:
        path: The ONNX file.
        target: The target that it is checked for.
        out: The file to write, also if nothing was to fix; ``None`` to write none.
        show: Whether to return the changes line by line.

    Raises:
        UsageError: A bundle was given, or ``out`` exists.
        ModelError: The file cannot be read as an ONNX model.
    """
    if path.is_dir():
        raise UsageError(f"--fix and --diff are for ONNX files, and {path} is a folder; krl-deploy makes bundles anew")
    if out is not None and out.exists():
        raise UsageError(f"--fix {out} exists already; give the name of a new file")
    model = read_model(path, beside=True)
    fixed = fix(model, target)
    if out is not None:
        with atomic_path(out) as temporary:
            temporary.write_bytes(to_bytes(fixed.model))
    return Repair(fixed, out, difference(model, fixed.model) if show else None)


def difference(before: onnx.ModelProto, after: onnx.ModelProto) -> str:
    """Return the changes between two models as a unified diff, one line for each node and constant."""
    given, fixed = list(_lines(before)), list(_lines(after))
    return "\n".join(difflib.unified_diff(given, fixed, "given", "fixed", lineterm="", n=1))


def _lines(model: onnx.ModelProto) -> Iterator[str]:
    for item in sorted(model.opset_import, key=lambda item: item.domain):
        yield f"opset {item.domain or 'ai.onnx'} {item.version}"
    for value in model.graph.input:
        yield f"input {value.name}"
    for tensor in sorted(model.graph.initializer, key=lambda tensor: tensor.name):
        yield _constant(tensor)
    for node in model.graph.node:
        yield _node(node)
    for value in model.graph.output:
        yield f"output {value.name}"


def _constant(tensor: TensorProto) -> str:
    kind = TensorProto.DataType.Name(tensor.data_type).lower()
    digest = hashlib.sha256(onnx.numpy_helper.to_array(tensor).tobytes()).hexdigest()[:8]
    return f"constant {tensor.name}: {kind}{list(tensor.dims)} ({digest})"


def _node(node: NodeProto) -> str:
    given = [f"{item.name}={_value(item)}" for item in sorted(node.attribute, key=lambda item: item.name)]
    domain = f"{node.domain}." if node.domain else ""
    return f"{', '.join(node.output)} = {domain}{node.op_type}({', '.join([*node.input, *given])})"


def _value(item: onnx.AttributeProto) -> str:
    if item.HasField("t"):
        return _constant(item.t)
    value = helper.get_attribute_value(item)
    return str(value.decode(errors="replace") if isinstance(value, bytes) else value)[:_LONGEST]
