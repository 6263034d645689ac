"""``krl-runtime info``: a bundle's content for people. All of it stands in ``krl-runtime info --json``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from krl_runtime.attributes import AttributeInput
from krl_runtime.bundle import Bundle, Manifest
from krl_runtime.bundle.further_inputs import INPUTS, inputs_of
from krl_runtime.bundle.heads import HEADS, further_heads
from krl_runtime.images.descriptors import DescriptorInput

from .tables import table

__all__ = ["describe"]

_LABELS = 8  # class names that are shown; --json has all
_WIDTH = 160  # columns of a line; --json has everything uncut

# Where a figure stands in a piece of evidence, and how people read it.
_FIGURES = (
    ("parameters", "{:,} parameters"),
    ("macs", "{:,} MACs"),
    ("top1", "top-1 {:.2%}"),
    ("map", "mAP {:.2%}"),
    ("recall_at_1", "recall@1 {:.2%}"),
    ("drop_points", "drop of {:.2f} points of top-1"),
    ("map_drop_points", "drop of {:.2f} points of mAP"),
    ("recall_drop_points", "drop of {:.2f} points of recall@1"),
    ("drop_db", "drop of {:.3f} dB of PSNR"),
    ("speedup", "{:.2f} times FP32's speed on the CPU that measured it"),
    ("parity.max_abs_error", "largest error of an output {:.2g} against the reference"),
    ("seconds", "built in {} s"),
    ("images.count", "measured on {} images"),
    ("count", "measured on {} images"),
)


# The score of a variant: the first of these that it has.
_SCORES = (
    ("top1", "{} {:.2%}"),
    ("map", "{} {:.2%}"),
    ("recall_at_1", "{} {:.2%}"),
    ("agreement", "{} agrees {:.1%}"),
    ("psnr", "{} {:.2f} dB"),
    ("psnr_to_fp32", "{} {:.1f} dB to fp32"),
)


def describe(bundle: Bundle) -> str:
    """Return tables of a bundle's content, its variants and its engines; evidence is cut to the main figures."""
    manifest = bundle.manifest
    parts = [table(("field", "value"), _fields(manifest)), _variants(manifest)]
    if bundle.engines:
        rows = [
            (
                engine.variant,
                f"{engine.library} {engine.version}",
                engine.gpu or "any",
                ", ".join(engine.compute_capabilities) or "8.6 and later",
                engine.platform or "any",
                ", ".join("..".join(map(str, sizes)) for sizes in engine.profiles),
            )
            for engine in bundle.engines.values()
        ]
        header = ("engine of", "built by", "GPU", "compute capability", "platform", "batch min..best..max")
        parts.append(table(header, rows))
    return "\n\n".join(parts)


def _fields(manifest: Manifest) -> Iterator[tuple[str, str]]:
    settings = [
        f"{key}: {_scalars(value) if isinstance(value, Mapping) else value}"
        for key, value in manifest.settings.items()
        if key not in (HEADS, INPUTS)
    ]
    yield "name", manifest.name
    yield "task", manifest.task
    yield "input", "; ".join(f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in manifest.inputs)
    yield "output", "; ".join(f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in manifest.outputs)
    yield "preprocessing", _scalars(manifest.preprocessing.to_dict())
    if manifest.labels:
        yield "labels", f"{len(manifest.labels)}: {_names(manifest.labels)}"
    try:
        for head in further_heads(manifest):
            yield f"labels of {head.name}", f"{len(head.labels)}: {_names(head.labels)}"
    except ValueError as error:
        yield HEADS, f"not usable: {error}"
    yield from _inputs(manifest)
    if settings:
        yield "settings", _cut("; ".join(settings))
    yield "defaults", ", ".join(f"{kind}: {name}" for kind, name in manifest.default_variants.items()) or "fp32"
    for key, value in manifest.evidence.items():
        yield f"evidence {key}", _cut(_figures(value))
    yield "source", _cut(_scalars(manifest.source))
    yield "files", f"{len(manifest.files)}, every SHA-256 checked"


def _inputs(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield what a sample has beside its image: by name what is accepted."""
    try:
        inputs = inputs_of(manifest)
    except ValueError as error:
        yield INPUTS, f"not usable: {error}"
        return
    for each in inputs:
        if isinstance(each, AttributeInput):
            yield from ((f"attribute {column.name}", column.expected) for column in each.columns)
        elif isinstance(each, DescriptorInput):
            yield "descriptors", ", ".join(descriptor.name for descriptor in each.descriptors)
        else:
            yield f"image {each.name}", "an image, with the same preprocessing"


def _names(labels: Sequence[str]) -> str:
    return ", ".join(labels[:_LABELS]) + (" …" if len(labels) > _LABELS else "")


def _variants(manifest: Manifest) -> str:
    rows = [
        (
            name,
            variant.file,
            manifest.files[variant.file].size,
            variant.cpu_file,
            f"{variant.tolerance:.3g}",
            f"{variant.psnr:.1f} dB" if variant.psnr is not None else f"{variant.agreement:.3g}",
        )
        for name, variant in manifest.variants.items()
    ]
    return table(("variant", "file", "bytes", "file for CPUs", "tolerance", "agreement"), rows)


def _figures(evidence: Any) -> str:
    """Return the main figures of one piece of evidence in a line; it was written by whoever made the bundle."""
    if not isinstance(evidence, Mapping):
        return str(evidence)
    found = [form.format(value) for path, form in _FIGURES if _is_number(value := _look_up(evidence, path))]
    found += _scores(evidence.get("scores"))
    nested = [f"{key}: {_figures(value)}" for key, value in evidence.items() if isinstance(value, Mapping)]
    return "; ".join(found) or _scalars(evidence) or "; ".join(nested)


def _scores(scores: Any) -> Iterator[str]:
    """Yield each form's accuracy; without labels, or true images, how like the reference it answers."""
    for name, score in scores.items() if isinstance(scores, Mapping) else ():
        found = (form.format(name, value) for key, form in _SCORES if _is_number(value := _look_up(score, key)))
        yield from islice(found, 1)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _look_up(values: Any, path: str) -> Any:
    for key in path.split("."):
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def _scalars(values: Mapping[str, Any]) -> str:
    """Return those items that are one word or number, or a short list of them."""
    plain = (str, int, float)
    return ", ".join(
        f"{key} {value}"
        for key, value in values.items()
        if isinstance(value, plain) or (isinstance(value, list) and all(isinstance(item, plain) for item in value))
    )


def _cut(line: str) -> str:
    return line if len(line) <= _WIDTH else line[: _WIDTH - 2] + " …"
