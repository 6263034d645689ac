"""How good ``krl-deploy check`` is: its errors against the verdict of NVIDIA's own parser and builder, rule by rule.

Each graph is checked by krl's rules, and shown to the parser and the builder of TensorRT-RTX, in a process of its own.
Verdicts are kept in a file, so that a changed rule is judged again in seconds.

A graph is *refused* if the parser or builder refuses it or crashes. It is *called wrong* if krl finds an error, or
cannot read it. Precision is the share of the graphs called wrong that are refused. Recall is the share of the refused
graphs that are called wrong. Five kinds are counted apart, since they say nothing about the rules or cannot be judged:

- invalid files: ONNX's strict checker refuses them
- gaps of TensorRT-RTX: operators of TensorRT's plugins, and attention without a kernel
- errors that are limits of krl's one optimization profile
- errors about results: the engine would be built, and compute something other than the file specifies
- graphs that are parsed, and have more than the batch open, so that the builder is not asked
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
from _peers import machine
from _scorecard_graphs import GROUPS, Graph, graphs

from krl_deploy.graph.normal_form import type_outputs
from krl_deploy.rules.findings import Finding
from krl_deploy.rules.run import check_file
from krl_deploy.rules.targets import RTX, parse_target
from krl_deploy.tensorrt.ask import ask
from krl_runtime.cli.bars import progress_bar
from krl_runtime.errors import BackendError, KrlError
from krl_runtime.progress import progress, show_with

OWN_LIMITS = frozenset({"shapes/inputs"})
"""Errors that are limits of krl's one optimization profile, and say nothing about TensorRT."""
RESULTS = frozenset(
    {
        "bugs/grid-sample",
        "qdq/mlp",
        "qdq/pair",
        "qdq/per-channel-activation",
        "qdq/projection",
        "qdq/weight-axis",
    }
)
"""Errors about what an engine computes, or what krl's runtime does with it. No parser can confirm them."""
OLD = "tensorrt-10.3"
"""The oldest target, whose further rules are counted apart: no parser of it runs here."""
GAPS = re.compile(r"[Pp]lugin (?:creator .*)?(?:was )?not found|plugin != nullptr|MyelinCheckException|implementation")
"""Words of a refusal that TensorRT itself, with its plugins and kernels, need not share."""

UNREADABLE = "not readable"
_SECONDS = 120.0  # for one graph; the largest of the networks take 3


@dataclass(frozen=True)
class Judged:
    """A graph with both verdicts."""

    graph: Graph
    refused: bool
    words: str
    node: str
    asked: bool
    valid: bool
    errors: tuple[Finding, ...]
    only_old: frozenset[str]
    unreadable: str

    @property
    def counted(self) -> bool:
        """Whether it says something about the rules."""
        return self.valid and self.asked and not self.gap

    @property
    def gap(self) -> bool:
        """Whether TensorRT-RTX alone may refuse it."""
        return self.refused and GAPS.search(self.words) is not None

    @property
    def rules(self) -> frozenset[str]:
        """Rules of the errors that a parser can confirm."""
        found = {item.rule for item in self.errors} - OWN_LIMITS - RESULTS
        return frozenset(found | ({UNREADABLE} if self.unreadable else set()))

    @property
    def beyond(self) -> frozenset[str]:
        """Rules of the errors that no parser can confirm."""
        return frozenset({item.rule for item in self.errors} & (OWN_LIMITS | RESULTS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*", help="with further ONNX files")
    parser.add_argument("--groups", nargs="*", choices=GROUPS, default=list(GROUPS), help="graphs that are made here")
    parser.add_argument("--verdicts", type=Path, required=True, help="file that keeps NVIDIA's verdicts")
    parser.add_argument("--jobs", type=int, default=2, help="processes of the parser at a time (default: 2)")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    parser.add_argument("--markdown", type=Path, help="write the tables to this file")
    parser.add_argument("--page", type=Path, help="put the scores between the marks of this page, docs/check.md")
    arguments = parser.parse_args()
    show_with(progress_bar)
    found = list(progress(graphs(arguments.groups, arguments.folders), "making graphs"))
    verdicts = asked(found, arguments.verdicts, arguments.jobs)
    judged = [judge(graph, verdicts[graph.sha256]) for graph in progress(found, "krl's rules")]
    text = page(judged, next(iter(verdicts.values()))["parser"])
    print(text)
    if arguments.markdown:
        arguments.markdown.write_text(text + "\n", encoding="utf-8")
    if arguments.page:
        put_into(arguments.page, short_tables(judged, next(iter(verdicts.values()))["parser"]))
    if arguments.json:
        shown = {"machine": machine(), "target": RTX.name, "graphs": [described(item) for item in judged]}
        shown |= {"scores": scores(judged), "rules": by_rule(judged), "old": dict(old(judged))}
        arguments.json.write_text(json.dumps(shown, indent=1) + "\n", encoding="utf-8")


def asked(found: Sequence[Graph], path: Path, jobs: int) -> dict[str, dict[str, Any]]:
    """Return NVIDIA's verdicts by the hash of the graph, asking about those that the file lacks."""
    known: dict[str, dict[str, Any]] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    missing = {graph.sha256: graph for graph in found if "built" not in known.get(graph.sha256, {})}
    with TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:

        def one(graph: Graph) -> tuple[str, dict[str, Any]]:
            file = Path(folder, f"{graph.sha256}.onnx")
            file.write_bytes(graph.data)
            verdict = asked_about(file)
            file.unlink()
            return graph.sha256, verdict

        try:
            for key, verdict in progress(pool.map(one, missing.values()), "NVIDIA's parser", len(missing)):
                known[key] = verdict
        finally:
            path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    return known


def asked_about(file: Path) -> dict[str, Any]:
    try:
        verdict, faults = ask(file, RTX, _SECONDS)
    except (BackendError, KrlError) as error:
        return {"parser": "", "refused": False, "built": None, "words": str(error), "node": ""}
    return {
        "parser": verdict.title,
        "refused": not verdict.parsed or verdict.built is False,
        "built": verdict.built,
        "words": "; ".join(item.why for item in faults),
        "node": next((item.node for item in faults if item.node), ""),
    }


def judge(graph: Graph, verdict: dict[str, Any]) -> Judged:
    errors: tuple[Finding, ...] = ()
    older: frozenset[str] = frozenset()
    unreadable = ""
    with TemporaryDirectory() as folder:
        file = Path(folder, "model.onnx")
        file.write_bytes(graph.data)
        try:
            errors = tuple(item for item in check_file(file, RTX).findings if item.severity == "error")
            further = (item for item in check_file(file, parse_target(OLD)).findings if item.severity == "error")
            same = {(item.rule, item.node) for item in errors}
            older = frozenset(item.rule for item in further if (item.rule, item.node) not in same)
        except KrlError as error:
            unreadable = str(error)
    refused = bool(verdict["refused"])
    asked = refused or verdict["built"] is True
    valid = is_valid(graph.data)
    return Judged(graph, refused, verdict["words"], verdict["node"], asked, valid, errors, older, unreadable)


def is_valid(data: bytes) -> bool:
    """Return whether ONNX's strict checker takes a file. That the shape of an output is not declared is no fault."""
    try:
        model = onnx.load_model_from_string(data)
        type_outputs(model)
        onnx.checker.check_model(model, full_check=True)
    except Exception:  # the checker and protobuf raise several kinds
        return False
    return True


_Part = Callable[[Judged], bool]
PARTS: dict[str, _Part] = {
    "all graphs": lambda item: True,
    "counted": lambda item: item.counted,
    "counted, rules were written with them": lambda item: item.counted and not item.graph.held_out,
    "counted, held out": lambda item: item.counted and item.graph.held_out,
    "invalid files": lambda item: not item.valid,
    "RTX's gaps": lambda item: item.valid and item.gap,
    "builder not asked": lambda item: item.valid and not item.asked,
}


def score(items: Iterable[Judged]) -> dict[str, Any]:
    items = list(items)
    called, refused = [item for item in items if item.rules], [item for item in items if item.refused]
    both = sum(item.refused for item in called)
    return {
        "graphs": len(items),
        "refused": len(refused),
        "called wrong": len(called),
        "both": both,
        "precision": round(both / len(called), 3) if called else None,
        "recall": round(both / len(refused), 3) if refused else None,
    }


def scores(judged: Sequence[Judged]) -> dict[str, dict[str, Any]]:
    rows = {name: score(filter(part, judged)) for name, part in PARTS.items()}
    for group in dict.fromkeys(item.graph.group for item in judged):
        rows[f"group: {group}"] = score(item for item in judged if item.graph.group == group and item.counted)
    return rows


def by_rule(judged: Sequence[Judged]) -> dict[str, dict[str, Any]]:
    """Return for each rule how often it was right, and what share of the refused graphs it finds, in both sets."""
    rows = {}
    for rule in sorted({rule for item in judged for rule in item.rules}):
        row: dict[str, Any] = {}
        for title, held_out in (("", False), ("held out: ", True)):
            members = [item for item in judged if item.counted and item.graph.held_out == held_out]
            named = [item for item in members if rule in item.rules]
            right, refused = sum(item.refused for item in named), sum(item.refused for item in members)
            row |= {
                f"{title}right": f"{right} of {len(named)}",
                f"{title}precision": round(right / len(named), 2) if named else None,
                f"{title}recall": round(right / refused, 3) if refused and named else None,
            }
        rows[rule] = row | {
            "in invalid files": sum(rule in item.rules for item in judged if not item.valid),
            "in gaps": sum(rule in item.rules for item in judged if item.valid and item.gap),
        }
    return rows


def old(judged: Iterable[Judged]) -> Counter[str]:
    """Return the number of graphs with further errors for the oldest TensorRT, by rule."""
    return Counter(rule for item in judged for rule in item.only_old)


def page(judged: Sequence[Judged], parser: str) -> str:
    """Return the tables as Markdown."""
    whole = [item for item in judged if item.counted]
    beyond = Counter(rule for item in judged for rule in item.beyond)
    parts = [
        f"{len(judged)} graphs, judged by {parser}; held out: {sum(item.graph.held_out for item in judged)}.",
        markdown(scores(judged), "part"),
        "By rule, on the counted graphs:",
        markdown(by_rule(judged), "rule"),
        "Errors that no parser can confirm (krl's profile, results), by graphs:",
        markdown({rule: {"graphs": count} for rule, count in beyond.most_common()}, "rule"),
        f"Further errors for {OLD}, which no parser here can confirm, by graphs:",
        markdown({rule: {"graphs": count} for rule, count in old(judged).most_common()}, "rule"),
        "Misses, by NVIDIA's words:",
        bullets(item for item in whole if item.refused and not item.rules),
        "False errors:",
        bullets(item for item in whole if item.rules and not item.refused),
    ]
    return "\n\n".join(parts)


MARKS = ("<!-- scorecard: begin -->", "<!-- scorecard: end -->")


def short_tables(judged: Sequence[Judged], parser: str) -> str:
    """Return the scores, and those of each rule, as Markdown."""
    older = {rule: {"graphs": count} for rule, count in old(judged).most_common()}
    return "\n\n".join(
        (
            f"{len(judged)} graphs, judged by {parser}; held out: {sum(item.graph.held_out for item in judged)}.",
            markdown(scores(judged), "part"),
            "By rule, on the counted graphs: errors that are right, precision, and share of the refused graphs found:",
            markdown(by_rule(judged), "rule"),
            f"Further errors for {OLD} alone, which no parser here can confirm:",
            markdown(older, "rule"),
        )
    )


def put_into(page: Path, text: str) -> None:
    """Replace what stands between the marks of a page."""
    before, _, rest = page.read_text("utf-8").partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    page.write_text(f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{after}", encoding="utf-8")


def markdown(rows: dict[str, dict[str, Any]], first: str) -> str:
    if not rows:
        return "none"
    columns = list(next(iter(rows.values())))
    lines = [f"| {first} | {' | '.join(columns)} |", f"|{'---|' * (len(columns) + 1)}"]
    for name, row in rows.items():
        shown = ["" if value is None else str(value) for value in row.values()]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(lines)


def bullets(items: Iterable[Judged]) -> str:
    """Return one line for each reason, with the graphs; none of those held out, lest a rule is written for one."""
    by_reason: dict[str, list[Judged]] = defaultdict(list)
    for item in items:
        if not item.graph.held_out:
            by_reason[reason(item)].append(item)
    lines = []
    for why, members in sorted(by_reason.items(), key=lambda entry: -len(entry[1])):
        named = [item.graph.name for item in members]
        shown = ", ".join([*named[:6], *(["…"] if len(named) > 6 else [])])
        lines.append(f"- {why} ({shown})")
    return "\n".join(lines) or "none"


def reason(item: Judged) -> str:
    if item.refused:
        return re.sub(r"\d+", "N", item.words)[:160]
    return ", ".join(sorted(item.rules)) + (f": {item.unreadable[:120]}" if item.unreadable else "")


def described(item: Judged) -> dict[str, Any]:
    return {
        "group": item.graph.group,
        "name": item.graph.name,
        "sha256": item.graph.sha256,
        "held_out": item.graph.held_out,
        "valid": item.valid,
        "refused": item.refused,
        "words": item.words,
        "node": item.node,
        "gap": item.gap,
        "asked": item.asked,
        "rules": sorted(item.rules),
        "beyond": sorted(item.beyond),
        "only_old": sorted(item.only_old),
        "why": [f"{error.rule} at {error.node}: {error.why}" for error in item.errors] or item.unreadable,
    }


if __name__ == "__main__":
    main()
