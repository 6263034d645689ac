"""Which classes a classifier takes for each other, and the recall of each class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from krl_runtime.bundle import Bundle
from krl_runtime.bundle.output_kind import is_multi_label, output_kind

from .blocks import Block, Section, Table
from .gather import Document, Material
from .plots import heat_map

__all__ = ["confusions_section"]

_MOST_CLASSES = 100  # of a matrix: more are thinner than a pixel on a phone; the table of pairs has what matters
_MOST_PAIRS = 15  # pairs of classes in the table: what a person reads


def confusions_section(bundle: Bundle, found: Material) -> Section:
    """Return confusion matrices of the reference and of the lowest precision, and the recall of each class."""
    name = bundle.path.name
    title = f"Confusions of {name}"
    if bundle.manifest.task != "classification":
        return Section(title, [])
    current = [item for item in found.about(bundle, "evaluate") if item.values["manifest"] == bundle.manifest.digest]
    blocks = [block for item in current[-1:] for block in found.attempt(item, _of_evaluation, bundle)]
    if not blocks and not is_multi_label(output_kind(bundle.manifest.settings)):
        found.notes.missing(f"confusion matrix of {name}", f"krl-runtime evaluate {name} DATA")
        blocks = list(_of_manifest(bundle))
    return Section(title, blocks)


def _of_evaluation(item: Document, bundle: Bundle, found: Material) -> Iterator[Block]:
    values = item.values
    rows = [row for row in values["rows"] if row["state"] == "measured" and "confusion" in row["metrics"]]
    if not rows:
        return
    order = ("fp32", "fp16", "int8")
    lowest = max(rows, key=lambda row: order.index(bundle.manifest.variants[row["variant"]].precision))
    labels = list(values["labels"])
    for row in [rows[0]] if lowest is rows[0] else [rows[0], lowest]:
        shown = f"{row['variant']} on {row['kind']}"
        if len(labels) <= _MOST_CLASSES:
            correct, count = row["metrics"]["correct"], row["metrics"]["count"]
            label = f"confusion matrix of {shown}: {correct} of {count} images of {values['data']} on the diagonal"
            yield heat_map(label, labels, row["metrics"]["confusion"])
    command = f"krl-runtime evaluate {bundle.path.name}"
    yield _pairs(rows[0], labels, command)
    yield _recalls({f"{row['variant']} {row['kind']}": row["metrics"]["recall"] for row in rows}, command)


def _pairs(row: Mapping[str, Any], labels: Sequence[str], command: str) -> Table:
    pairs = [
        (count, labels[true], labels[predicted])
        for true, counts in enumerate(row["metrics"]["confusion"])
        for predicted, count in enumerate(counts)
        if true != predicted and count
    ]
    rows = [(true, predicted, str(count)) for count, true, predicted in sorted(pairs, reverse=True)[:_MOST_PAIRS]]
    caption = f"Classes that {row['variant']} on {row['kind']} confuses most often"
    return Table(caption, ("true class", "predicted", "images"), rows, command, folded=True)


def _recalls(recalls: Mapping[str, Mapping[str, float | None]], command: str) -> Table:
    names = list(next(iter(recalls.values())))
    first, *others = recalls.values()

    def drop(name: str) -> float:
        values = [first.get(name), *(each.get(name) for each in others)]
        known = [value for value in values if value is not None]
        return (known[0] - min(known)) if known else 0.0

    names.sort(key=lambda name: -drop(name))
    cells = [[_percent(each.get(name)) for each in recalls.values()] for name in names]
    rows = [(name, *values) for name, values in zip(names, cells, strict=True)]
    return Table("Recall of each class, largest drops first", ("class", *recalls), rows, command, folded=True)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _of_manifest(bundle: Bundle) -> Iterator[Block]:
    """Yield the recalls that quantize or fp16 measured."""
    for key, command in (("int8", "quantize"), ("fp16", "fp16")):
        recall = (bundle.manifest.evidence.get(key) or {}).get("recall")
        if not isinstance(recall, Mapping) or not recall:
            continue
        files = [name for name in next(iter(recall.values())) if name != "images"]
        yield _recalls(
            {file: {name: each.get(file) for name, each in recall.items()} for file in files},
            f"krl-deploy {command} {bundle.path.name}",
        )
        return
