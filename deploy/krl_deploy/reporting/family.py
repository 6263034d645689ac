"""The family tree: teacher, student, bundle, variants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from krl_runtime.bundle import Bundle

from .blocks import Node, Section, Text, Tree
from .gather import Material, RunFile
from .words import figures, megabytes

__all__ = ["family_section"]

_LONGEST_NOTE = 12  # digits of a hash that tell runs apart


def family_section(found: Material) -> Section:
    """Return the tree of all runs and bundles, from teachers to variants."""
    runs = {run.sha256: run for run in found.runs if run.sha256}
    bundles = [*found.bundles, *found.relatives]
    parent = {sha256: next((each for each in run.parents if each in runs), None) for sha256, run in runs.items()}
    roots = [_run(run, runs, parent, bundles) for sha256, run in runs.items() if parent[sha256] is None]
    alone = [bundle for bundle in bundles if bundle.manifest.source.get("weights_sha256") not in runs]
    roots += [_bundle(bundle) for bundle in alone]
    for bundle in alone:
        if bundle.manifest.source.get("kind") == "run":
            found.notes.missing(
                f"the run of {bundle.path.name}, with its training and its teacher",
                "krl-deploy report FOLDER, of a folder that has both",
            )
    for run in found.runs:
        if not run.sha256:
            found.notes.skipped.append((str(run.path), "the run is not finished; continue it with --resume"))
    unknown = [
        f"{run.path.name} comes from a run that is not here, {', '.join(each[:_LONGEST_NOTE] for each in run.parents)}"
        for sha256, run in runs.items()
        if run.parents and parent[sha256] is None
    ]
    return Section("Family", [Tree(roots), *([Text(f"{'; '.join(unknown)}.")] if unknown else [])])


def _run(run: RunFile, runs: dict[str, RunFile], parent: dict[str, str | None], bundles: list[Bundle]) -> Node:
    made = [each for each in bundles if each.manifest.source.get("weights_sha256") == run.sha256]
    derived = [runs[sha256] for sha256, of in parent.items() if of == run.sha256]
    children = [*(_bundle(each) for each in made), *(_run(each, runs, parent, bundles) for each in derived)]
    values, model = run.values, run.values.get("model") or {}
    command = str(values.get("command", ""))
    data = values.get("data") or {}
    facts = [
        str(model.get("name", values.get("task", ""))),
        *figures(values.get("metrics") or {}),
        *([f"data {Path(data['source']).name}"] if isinstance(data.get("source"), str) else []),
        *(f"starts from {runs[each].path.name}" for each in run.parents[1:] if each in runs),
        f"made by {command}",
    ]
    return Node(_role(command, derived), run.path.name, facts, tuple(children))


def _role(command: str, derived: list[RunFile]) -> str:
    if any("distill" in str(each.values.get("command")) for each in derived):
        return "teacher"
    if "baseline" in command:
        return "baseline"
    return next((role for word, role in _ROLES.items() if word in command), "run")


_ROLES = {"distill": "student", "mutual": "student", "prune": "pruned network", "joint": "joint network"}
"""Role of a run by a word of the command that made it."""


def _bundle(bundle: Bundle) -> Node:
    manifest = bundle.manifest
    facts = [manifest.task, f"made by {_origin(manifest.source)}"]
    names = sorted(manifest.variants, key=lambda name: (name != "fp32", name))  # the reference first
    if bundle.is_kept:
        facts.append("kept as shipped: signed, or not writable")
    return Node("bundle", bundle.path.name, facts, tuple(_variant(bundle, name) for name in names))


def _origin(source: Any) -> str:
    if source.get("kind") == "run":
        return "krl-deploy export"
    return f"krl-deploy import of {source.get('file', 'an ONNX file')}"


def _variant(bundle: Bundle, name: str) -> Node:
    manifest, variant = bundle.manifest, bundle.manifest.variants[name]
    sizes = [f"{file} {megabytes(manifest.files[file].size)} MiB" for file in variant.files]
    defaults = [f"default on {kind}" for kind, chosen in manifest.default_variants.items() if chosen == name]
    engines = [
        Node("engine", key, [f"{engine.library} {engine.version}", engine.gpu or "any RTX GPU"])
        for key, engine in bundle.engines.items()
        if engine.variant == name
    ]
    return Node("variant", name, [*sizes, *defaults], tuple(engines))
