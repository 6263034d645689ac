"""Results of the commands of ``krl-deploy``, as its Python API returns them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from krl_runtime.verbs import Result

__all__ = [
    "BoardResult",
    "BundleResult",
    "CheckResult",
    "CompareResult",
    "EngineResult",
    "InspectResult",
    "OnResult",
    "PackageResult",
    "ReportResult",
    "SignResult",
    "VariantResult",
]


@dataclass(frozen=True)
class BundleResult(Result):
    """A bundle that was made; ``details`` has parity, accuracy and sizes.

    Attributes:
        bundle: Its folder.
    """

    bundle: Path


@dataclass(frozen=True)
class VariantResult(Result):
    """A variant that was added to a bundle; ``details`` has scores, latency and what stayed in floating point.

    Attributes:
        bundle: The bundle's folder.
    """

    bundle: Path

    @property
    def scores(self) -> Mapping[str, Mapping[str, Any]]:
        """Return the scores of FP32 and of the variant, by the name of the file that was measured."""
        scores: Mapping[str, Mapping[str, Any]] = self.details["scores"]
        return scores


@dataclass(frozen=True)
class EngineResult(Result):
    """An engine, or the reason why there is none; ``details`` has its file, size, layers and parity.

    Attributes:
        model: The bundle or ONNX file.
        engine: Key of the engine in the bundle, or its file; ``None`` where none was built.
    """

    model: Path
    engine: str | None


@dataclass(frozen=True)
class InspectResult(Result):
    """Engines, and how they were built.

    Attributes:
        model: The engine's file, or the bundle.
        engines: By key or file name.
    """

    model: Path
    engines: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class CheckResult(Result):
    """Findings on a model for a target; ``details`` has them for each file and node.

    Attributes:
        model: The ONNX file or bundle.
        counts: Number of findings of each severity; with ``fix``, of those that remain.
        sarif: The findings in the form of SARIF 2.1.0.
    """

    model: Path
    counts: Mapping[str, int]
    sarif: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def ready(self) -> bool:
        """Whether there is no error."""
        return not self.counts["error"]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain JSON types, without ``sarif``, which is the same in another form."""
        found = super().to_dict()
        del found["sarif"]
        return found


@dataclass(frozen=True)
class CompareResult(Result):
    """Two variants compared; ``details`` has the differences of outputs and layers.

    Attributes:
        bundle: The bundle's folder.
        first_wrong: Name of the first layer that is wrong by itself; ``None`` if there is none, or layers were not
            compared.
        below: Number of layers with too little SNR, wrong by themselves or not.
    """

    bundle: Path
    first_wrong: str | None
    below: int


@dataclass(frozen=True)
class PackageResult(Result):
    """A model repository for another server; see ``to_dict``."""


@dataclass(frozen=True)
class ReportResult(Result):
    """A page that was written; ``details`` has its sections, and what is absent.

    Attributes:
        report: Its file.
    """

    report: Path


@dataclass(frozen=True)
class SignResult(Result):
    """A signed bundle; ``details`` has the public key and the engines; see ``to_dict``."""


@dataclass(frozen=True)
class BoardResult(Result):
    """Boards, or what one of them has; see ``to_dict``."""


@dataclass(frozen=True)
class OnResult(Result):
    """The end of a command on a board.

    Attributes:
        exit_code: The command's own: 0 done, 1 a check whose result is no, 2 bad input.
        output: Its standard output, if it was captured.
        files: Files of this machine that are new or changed.
        copied: Bytes that were sent to the board.
    """

    exit_code: int
    output: str
    files: tuple[Path, ...]
    copied: int
