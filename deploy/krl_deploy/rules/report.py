"""How a check is shown: a table for people, worst first and grouped, and one object for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from krl_runtime.cli.tables import table

from .findings import SEVERITIES, Finding, Verdict
from .run import CheckedFile
from .targets import Target

__all__ = ["as_dict", "as_text", "counts", "grouped", "named"]

_SHOWN_NODES = 3  # for each rule; --json has all
_SHOWN_RULES = 60  # rows of the table; --json has all


def counts(checked: Iterable[CheckedFile]) -> dict[str, int]:
    """Return the number of findings of each severity."""
    number = Counter(finding.severity for item in checked for finding in item.findings)
    return {severity: number[severity] for severity in SEVERITIES}


def as_dict(checked: list[CheckedFile], target: Target, unknown: list[str]) -> dict[str, Any]:
    """Return everything as plain JSON types."""
    files = [
        {
            "file": item.file.name,
            "variant": item.variant or None,
            "quantized": item.quantized,
            "counts": counts([item]),
            "findings": [asdict(finding) for finding in item.findings],
            "parser": None if item.parser is None else asdict(item.parser),
        }
        for item in checked
    ]
    shown = {
        "name": target.name,
        "tensorrt": ".".join(map(str, target.tensorrt)) or None,
        "boards": list(target.boards),
    }
    return {"target": shown, "counts": counts(checked), "files": files, "unknown": unknown}


def grouped(findings: Iterable[Finding]) -> Iterator[tuple[Finding, list[str]]]:
    """Yield each distinct finding with the nodes that it is about, in the given order."""
    groups: dict[tuple[str, str, str, str], tuple[Finding, list[str]]] = {}
    for finding in findings:
        key = (finding.severity, finding.rule, finding.op, finding.why)
        groups.setdefault(key, (finding, []))[1].append(finding.node)
    yield from groups.values()


def as_text(checked: list[CheckedFile], target: Target, unknown: list[str]) -> str:
    """Return the report for people: a table for each file, what to do, and open questions."""
    parts = [_file(item, target) for item in checked]
    parts.append("\n".join([f"Not known before it runs on {target.name}:", *(f"  - {line}" for line in unknown)]))
    return "\n\n".join(parts)


def _file(item: CheckedFile, target: Target) -> str:
    name = f"{item.file.name} ({item.variant})" if item.variant else item.file.name
    number = counts([item])
    said = ", ".join(f"{count} {severity}{'' if count == 1 else 's'}" for severity, count in number.items() if count)
    title = f"{name} for {target.title}: {said or 'no findings'}"
    title += "" if item.parser is None else f"\n{_parser(item.parser)}"
    groups = list(grouped(item.findings))
    if not groups:
        return title
    rows = [(found.severity, found.rule, named(found, nodes), found.why) for found, nodes in groups[:_SHOWN_RULES]]
    more = [f"… and {len(groups) - _SHOWN_RULES} more; --json has them all"] if len(groups) > _SHOWN_RULES else []
    advice = {found.rule: f"  {found.rule}: {found.do} [{found.source}]" for found, _ in reversed(groups)}
    lines = [title, table(("", "rule", "node", "why"), rows), *more, "What to do, and where it comes from:"]
    return "\n".join([*lines, *reversed(advice.values())])


def _parser(verdict: Verdict) -> str:
    """Return a verdict of NVIDIA's parser as one line."""
    builder = {None: "", True: "; the builder takes it", False: "; the builder does not take it"}[verdict.built]
    takes = "takes the file" if verdict.parsed else "does not take the file"
    seconds = "" if verdict.seconds is None else f" ({verdict.seconds:.1f} s)"
    return f"parser of {verdict.title}: {takes}{builder}{seconds}" + (f"\n  {verdict.note}" if verdict.note else "")


def named(finding: Finding, nodes: list[str]) -> str:
    """Return the nodes as ``Conv: conv1, conv2, conv3 and 5 more``."""
    named = [node for node in nodes if node]
    shown = ", ".join(named[:_SHOWN_NODES])
    if len(named) > _SHOWN_NODES:
        shown += f" and {len(named) - _SHOWN_NODES} more"
    return ": ".join(part for part in (finding.op, shown) if part) or "the file"
