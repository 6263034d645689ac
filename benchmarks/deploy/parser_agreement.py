"""Agreement of ``krl-deploy check`` with NVIDIA's own parser and builder, on a folder of ONNX files.

Each file is checked by krl's rules, and shown to the installed parser and builder in a process of its own. A file
counts as refused if the parser or the builder refuses it or crashes, and as called wrong if krl finds an error or
cannot read it. Precision is the share of the files that krl calls wrong that NVIDIA refuses. Recall is the share of
the refused files that krl calls wrong. Both depend on the folder: files from the edges of the rules give lower figures
than those of a converter.

TensorRT-RTX has gaps of its own, such as an attention without a kernel for its sizes, which count as misses here.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _peers import machine

from krl_deploy.rules.findings import Finding
from krl_deploy.rules.run import check_file
from krl_deploy.rules.targets import Target, parse_target
from krl_deploy.tensorrt.ask import TIME_LIMIT, ask
from krl_runtime.cli.tables import table
from krl_runtime.errors import KrlError

OWN_LIMITS = ("shapes/inputs",)
"""Errors that are limits of krl's one optimization profile, and say nothing about TensorRT."""


@dataclass(frozen=True)
class Case:
    """Both verdicts on one file."""

    name: str
    refused: bool
    theirs: tuple[Finding, ...]
    errors: tuple[Finding, ...]
    unreadable: str
    parser: str

    def called_wrong(self, without: Sequence[str]) -> bool:
        """Return whether krl calls the file wrong by other rules than these."""
        return bool(self.unreadable) or any(item.rule not in without for item in self.errors)

    @property
    def same_node(self) -> bool:
        """Whether krl and NVIDIA name the same node."""
        return bool({item.node for item in self.theirs if item.node} & {item.node for item in self.errors})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("folder", type=Path, help="with ONNX files")
    parser.add_argument("--target", default="rtx", help="whose rules and parser to compare")
    parser.add_argument("--time-limit", type=float, default=TIME_LIMIT, help="seconds for each file")
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    arguments = parser.parse_args()
    target = parse_target(arguments.target)
    cases = [compare(path, target, arguments.time_limit) for path in sorted(arguments.folder.glob("*.onnx"))]
    if not cases:
        raise SystemExit(f"{arguments.folder} has no ONNX files")
    rows = {"all errors": score(cases, ()), f"without {', '.join(OWN_LIMITS)}": score(cases, OWN_LIMITS)}
    wrong = [case for case in cases if case.called_wrong(()) != case.refused]
    if arguments.json:
        shown = {"machine": machine(), "parser": cases[0].parser, "target": target.name, "scores": rows}
        print(json.dumps({**shown, "disagreements": [described(case) for case in wrong]}, indent=2))
        return
    print(f"{len(cases)} files, {target.title}, asked: {cases[0].parser}\n")
    print(table(("", *next(iter(rows.values()))), [(name, *map(str, row.values())) for name, row in rows.items()]))
    for title, refused in (("Misses: NVIDIA refuses, krl has no error", True), ("False errors", False)):
        print(f"\n{title}:")
        for case in wrong:
            if case.refused == refused:
                print(f"  {case.name}: {described(case)['why']}")


def compare(path: Path, target: Target, time_limit: float) -> Case:
    verdict, theirs = ask(path, target, time_limit)
    errors: tuple[Finding, ...] = ()
    unreadable = ""
    try:
        errors = tuple(item for item in check_file(path, target).findings if item.severity == "error")
    except KrlError as error:
        unreadable = str(error)
    refused = not verdict.parsed or verdict.built is False
    return Case(path.stem, refused, theirs, errors, unreadable, verdict.title)


def score(cases: Sequence[Case], without: Sequence[str]) -> dict[str, Any]:
    hits = [case for case in cases if case.refused and case.called_wrong(without)]
    called = sum(case.called_wrong(without) for case in cases)
    refused = sum(case.refused for case in cases)
    return {
        "refused": refused,
        "called wrong": called,
        "both": len(hits),
        "precision": round(len(hits) / called, 2) if called else None,
        "recall": round(len(hits) / refused, 2) if refused else None,
        "same node": sum(case.same_node for case in hits),
    }


def described(case: Case) -> dict[str, Any]:
    if case.refused:
        why = "; ".join(item.why for item in case.theirs)
    else:
        why = case.unreadable or "; ".join(f"{item.rule}: {item.why}" for item in case.errors)
    return {"file": case.name, "refused": case.refused, "why": why[:300]}


if __name__ == "__main__":
    main()
