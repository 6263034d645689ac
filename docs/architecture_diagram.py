"""Write the diagrams of docs/architecture.md from the real import graph.

Usage: python docs/architecture_diagram.py [--check]

An arrow means "imports"; one that follows from others by transitivity is left out. --check writes nothing and exits
with 1 if the page is not what the import graph says.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import grimp

PAGE = Path(__file__).with_name("architecture.md")
PACKAGES = ("krl_runtime", "krl_deploy", "krl_train", "krl_compress")


def imports_between(parts: dict[str, str], graph: grimp.ImportGraph) -> dict[str, set[str]]:
    """Return which parts import which, given the part of each module."""
    found: dict[str, set[str]] = {part: set() for part in parts.values()}
    for module, part in parts.items():
        for imported in graph.find_modules_directly_imported_by(module):
            if parts.get(imported, part) != part:
                found[part].add(parts[imported])
    return found


def reduced(imports: dict[str, set[str]]) -> dict[str, set[str]]:
    """Leave out each arrow that a longer way stands for; ``imports`` has no cycle."""

    def reach(part: str) -> set[str]:
        return {part}.union(*(reach(target) for target in imports[part]))

    return {
        part: {target for target in targets if not any(target in reach(other) for other in targets - {target})}
        for part, targets in imports.items()
    }


def flowchart(imports: dict[str, set[str]]) -> str:
    """Return a Mermaid flowchart, the parts that import others on top."""
    boxes = [f'  _{part}["{part}"]' for part in sorted(imports)]  # "graph" alone is a word of Mermaid
    arrows = [f"  _{part} --> _{target}" for part in sorted(imports) for target in sorted(imports[part])]
    return "\n".join(("```mermaid", "flowchart TD", *boxes, *arrows, "```"))


def diagrams() -> dict[str, str]:
    """Return the flowchart of the packages, and that of each package's layers, by name."""
    graph = grimp.build_graph(*PACKAGES, cache_dir=None, exclude_type_checking_imports=False)
    drawn = {"packages": flowchart(reduced(imports_between({m: m.split(".")[0] for m in graph.modules}, graph)))}
    for package in PACKAGES:
        layers = {
            module: module.split(".")[1]
            for module in graph.modules
            if module.startswith(f"{package}.") and module.split(".")[1] not in ("__main__", "_version")
        }
        drawn[package] = flowchart(reduced(imports_between(layers, graph)))
    return drawn


def updated(text: str) -> str:
    """Return the page with its diagrams drawn anew."""
    for name, drawn in diagrams().items():
        block = rf"(<!-- diagram: {name} -->\n).*?(<!-- end -->)"
        text, count = re.subn(block, lambda match, new=drawn: f"{match[1]}{new}\n{match[2]}", text, flags=re.DOTALL)
        if count != 1:
            raise SystemExit(f"{PAGE}: the markers of diagram {name!r} stand there {count} times; wanted: once")
    return text


if __name__ == "__main__":
    before = PAGE.read_text("utf-8")
    after = updated(before)
    if "--check" in sys.argv[1:]:
        sys.exit(before != after)
    PAGE.write_text(after, "utf-8")
