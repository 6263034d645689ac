"""The command ``krl-runtime evaluate``: accuracy on real data, of each variant on each backend of this device."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krl_runtime.backends.select import ALL_KINDS
from krl_runtime.errors import CheckFailedError
from krl_runtime.evaluation.predictions import drop_cell

from .arguments import (
    PROG,
    add_bundle,
    add_command,
    add_on_bad_image,
    add_threads,
    add_trust,
    open_bundle,
    points,
    positive,
)
from .commandline import next_command, print_json
from .tables import table

if TYPE_CHECKING:
    from krl_runtime.device.evaluate import Evaluation, Row

__all__ = ["add_evaluate"]

_SHOWN = 20  # classes or images of a table that fit a screen
_CONFUSED = 5  # pairs of classes below it


def add_evaluate(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands, "evaluate", _evaluate, "measure accuracy on real images, of every variant and backend here"
    )
    add_bundle(parser)
    parser.add_argument(
        "data",
        type=Path,
        nargs="?",
        metavar="FOLDER",
        help="images, in folders CLASS/ or val/CLASS/, or a list LIST.csv; a generator has none",
    )
    parser.add_argument(
        "--split",
        choices=("auto", "train", "val", "all"),
        default="auto",
        help="auto (default): val of a folder that has it, else all images",
    )
    parser.add_argument(
        "--limit", type=positive, metavar="N", help="images at most, as many of each class (default: all)"
    )
    parser.add_argument("--variant", nargs="+", default=[], metavar="NAME", help="variants beside fp32 (default: all)")
    parser.add_argument(
        "--backend", nargs="+", default=[], choices=ALL_KINDS, help="backends (default: all that are here)"
    )
    parser.add_argument(
        "--max-drop",
        type=points,
        metavar="P",
        help="fail where a variant loses more than this against fp32, in points of top-1 or recall@1, or dB of PSNR",
    )
    add_on_bad_image(parser, "nothing is measured")
    add_threads(parser)
    add_trust(parser)


def _evaluate(arguments: argparse.Namespace) -> None:
    from krl_runtime.device.evaluate import evaluate

    bundle = open_bundle(arguments)
    found = evaluate(
        bundle,
        arguments.data,
        split=arguments.split,
        limit=arguments.limit,
        variants=arguments.variant,
        backends=arguments.backend,
        threads=arguments.threads,
        on_bad_image=arguments.on_bad_image,
    )
    faults = [] if arguments.max_drop is None else found.faults(arguments.max_drop)
    if arguments.json:
        print_json({**found.to_dict(), "max_drop": arguments.max_drop, "faults": faults})
    else:
        print(_text(found))
    if faults:
        raise CheckFailedError(f"--max-drop {arguments.max_drop:g} is not kept: {'; '.join(faults)}")
    next_command(f"{PROG} tune {bundle.path}")


def _text(found: Evaluation) -> str:
    first = next(row for row in found.rows if row.state == "measured")
    what = "" if found.task == "generation" else f"{first.metrics['count']} images of "
    lines = [f"{found.bundle} on {what}{found.data}"]
    if found.remark:
        lines.append(f"note: {found.remark}")
    lines += ["", _rows_table([row for row in found.rows if row.state != "unavailable"], found)]
    absent = {row.kind: row.cause.partition("; ")[0] for row in found.rows if row.state == "unavailable"}
    if absent:
        lines.append(f"not here: {', '.join(f'{kind} ({cause})' for kind, cause in absent.items())}")
    if "labels" in first.metrics:
        lines += ["", _labels_table(found)]
    if "recall" in first.metrics:
        lines += ["", _recall_table(found), *_confusions(found)]
    if "images" in first.metrics:
        lines += ["", _images_table(found)]
    return "\n".join(lines)


def _rows_table(rows: Sequence[Row], found: Evaluation) -> str:
    """Return a line for each variant on each backend, without the columns that nothing has."""
    columns: dict[str, Callable[[Row], str | None]] = {
        "top-1": lambda row: _share(row, "top1"),
        "recall@1": lambda row: _share(row, "recall_at_1"),
        "recall@5": lambda row: _share(row, "recall_at_5"),
        "MAP@R": lambda row: _number(row, "map_at_r", "{:.3f}"),
        "mAP": lambda row: _share(row, "map"),
        "F1 macro": lambda row: _number(row, "f1_macro", "{:.3f}"),
        "top-5": lambda row: _number(row, "top5", "{:.2%}"),
        "none of these": lambda row: _number(row, "refused", "{:.2%}"),
        "top-1 of the rest": lambda row: _number(row, "top1_of_known", "{:.2%}"),
        "PSNR in dB": lambda row: _number(row, "psnr", "{:.3f}"),
        "SSIM": lambda row: _number(row, "ssim", "{:.4f}"),
        f"drop in {found.unit}": lambda row: _drop(found, row),
        "agreement": lambda row: _number(row, "agreement", "{:.2%}"),
        "dB to fp32": lambda row: _number(row, "psnr_to_fp32", "{:.1f}"),
        "ms": lambda row: None if row.latency_ms is None else f"{row.latency_ms:.3f}",
        "MiB": lambda row: None if row.size_bytes is None else f"{row.size_bytes / 2**20:.2f}",
        "remark": lambda row: row.cause.partition("; ")[0],
    }
    cells = {name: [cell(row) for row in rows] for name, cell in columns.items()}
    kept = {name: values for name, values in cells.items() if any(values)}
    lines = [(row.variant, row.kind, *(values[number] for values in kept.values())) for number, row in enumerate(rows)]
    return table(("variant", "backend", *kept), lines)


def _share(row: Row, name: str) -> str | None:
    if name not in row.metrics:
        return None
    return f"{row.metrics[name]:.2%} ± {100 * row.metrics[f'{name}_standard_error']:.2f}"


def _number(row: Row, name: str, shown: str) -> str | None:
    value = row.metrics.get(name)
    return None if value is None else shown.format(value)


def _drop(found: Evaluation, row: Row) -> str | None:
    error = None if f"{row.variant} on {row.kind}" == found.reference else row.metrics.get("drop_standard_error")
    return drop_cell(row.metrics.get("drop"), error, 2 if found.unit == "points" else 3)


def _recall_table(found: Evaluation) -> str:
    """Return the recall of each class, one column for each row that was measured; the largest drops come first."""
    rows = [row for row in found.rows if row.state == "measured"]
    first = rows[0].metrics["recall"]
    lowest = {label: min(row.metrics["recall"][label] for row in rows) for label in first}
    labels = sorted(first, key=lambda label: (lowest[label] - first[label], first[label]))
    cells = [(label, *(f"{row.metrics['recall'][label]:.1%}" for row in rows)) for label in labels[:_SHOWN]]
    text = table(("recall of class", *(f"{row.variant} {row.kind}" for row in rows)), cells)
    return text + (f"\nand {len(labels) - _SHOWN} classes with smaller drops" if len(labels) > _SHOWN else "")


def _labels_table(found: Evaluation) -> str:
    """Return the F1 of each label, one column for each row that was measured, the lowest first."""
    rows = [row for row in found.rows if row.state == "measured"]
    first = rows[0].metrics["labels"]
    known = sorted((label for label in first if first[label]["images"]), key=lambda label: first[label]["f1"])
    cells = [
        (label, first[label]["images"], *(f"{row.metrics['labels'][label]['f1']:.1%}" for row in rows))
        for label in known[:_SHOWN]
    ]
    text = table(("F1 of label", "images", *(f"{row.variant} {row.kind}" for row in rows)), cells)
    return text + (f"\nand {len(known) - _SHOWN} labels with a higher F1" if len(known) > _SHOWN else "")


def _confusions(found: Evaluation) -> Sequence[str]:
    """Return the classes that the first row takes for each other most often."""
    row = next(row for row in found.rows if row.state == "measured")
    labels = found.labels
    pairs = [
        (count, labels[true], labels[predicted])
        for true, counts in enumerate(row.metrics["confusion"])
        for predicted, count in enumerate(counts)
        if true != predicted and count
    ]
    worst = sorted(pairs, reverse=True)[:_CONFUSED]
    if not worst:
        return ()
    shown = ", ".join(f"{true} as {predicted} ({count})" for count, true, predicted in worst)
    return ("", f"most often confused by {row.variant} on {row.kind}: {shown}")


def _images_table(found: Evaluation) -> str:
    """Return the PSNR of each image, one column for each row that was measured."""
    rows = [row for row in found.rows if row.state == "measured"]
    names = [image["name"] for image in rows[0].metrics["images"]]
    cells = [
        (name, *(f"{row.metrics['images'][number]['psnr']:.3f}" for row in rows))
        for number, name in enumerate(names[:_SHOWN])
    ]
    text = table(("PSNR in dB of image", *(f"{row.variant} {row.kind}" for row in rows)), cells)
    return text + (f"\nand {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
