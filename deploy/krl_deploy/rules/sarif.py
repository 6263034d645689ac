"""A check as a SARIF 2.1.0 log, which code hosts and editors show beside the files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from krl_runtime._version import __version__

from .findings import SEVERITIES, Finding
from .run import CheckedFile
from .targets import Target

__all__ = ["as_sarif"]

_SCHEMA: Final = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/os/schemas/sarif-schema-2.1.0.json"
_START: Final = {"startLine": 1}  # code hosts ask for a line, and an ONNX file has none


def as_sarif(checked: Iterable[CheckedFile], target: Target) -> dict[str, Any]:
    """Return the findings as plain JSON types, in the form of SARIF 2.1.0.

    Each finding is one result, with the file as its physical location, and the node or tensor as its logical one.

    Args:
        checked: Results of a check.
        target: The target that they were checked for.
    """
    pairs = [(item, finding) for item in checked for finding in item.findings]
    rules: dict[str, list[Finding]] = {}
    for _, finding in pairs:
        rules.setdefault(finding.rule, []).append(finding)
    order = {rule: index for index, rule in enumerate(rules)}
    return {
        "$schema": _SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "krl-deploy check",
                        "semanticVersion": __version__,
                        "rules": [_rule(name, findings) for name, findings in rules.items()],
                    }
                },
                "columnKind": "unicodeCodePoints",
                "properties": {"target": target.name},
                "results": [_result(item, finding, order[finding.rule]) for item, finding in pairs],
            }
        ],
    }


def _rule(name: str, findings: list[Finding]) -> dict[str, Any]:
    worst = min((finding.severity for finding in findings), key=SEVERITIES.index)
    remedies = list(dict.fromkeys(finding.do for finding in findings))
    sources = list(dict.fromkeys(finding.source for finding in findings))
    return {
        "id": name,
        "shortDescription": {"text": name.replace("/", ": ").replace("-", " ")},
        "help": {"text": "; ".join(remedies)},
        "defaultConfiguration": {"level": worst},
        "properties": {"sources": sources},
    }


def _result(item: CheckedFile, finding: Finding, index: int) -> dict[str, Any]:
    where: dict[str, Any] = {
        "physicalLocation": {"artifactLocation": {"uri": _uri(item.file)}, "region": _START},
    }
    if finding.node:
        kind = "function" if finding.op else "variable"
        where["logicalLocations"] = [{"name": finding.node, "fullyQualifiedName": finding.node, "kind": kind}]
    place = ": ".join(part for part in (finding.op, finding.node) if part) or "the file"
    identity = "\n".join((item.file.name, finding.rule, finding.op, finding.node, finding.why))
    return {
        "ruleId": finding.rule,
        "ruleIndex": index,
        "level": finding.severity,
        "message": {"text": f"{place}: {finding.why}. What to do: {finding.do}."},
        "locations": [where],
        "partialFingerprints": {"krl/v1": hashlib.sha256(identity.encode()).hexdigest()},
        "properties": {"operator": finding.op, "source": finding.source, "variant": item.variant},
    }


def _uri(path: Path) -> str:
    """Return a path below the working folder as it stands there, as code hosts want it, and any other whole."""
    whole = path.resolve()
    if whole.is_relative_to(Path.cwd()):
        from urllib.parse import quote

        return quote(whole.relative_to(Path.cwd()).as_posix())
    return whole.as_uri()
