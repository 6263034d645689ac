"""``krl-deploy report``: from a bundle or folder to the page."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from krl_runtime.bundle import Bundle
from krl_runtime.bundle.names import MANIFEST
from krl_runtime.errors import require
from krl_runtime.files import write_atomic

from .blocks import Section, Table, Text
from .config import ReportConfig
from .confusions import confusions_section
from .devices import devices_section
from .family import family_section
from .findings import findings_section
from .gather import Material, gather
from .layers import layers_section
from .page import render
from .samples import samples_section
from .tradeoffs import tradeoffs_section

__all__ = ["report"]

_log = logging.getLogger("krl")

_LARGEST_PAGE = 6_000_000  # bytes, of which plotly has 4.8 million: a page that any mail program attaches


def report(config: ReportConfig) -> dict[str, Any]:
    """Write the page, and return what is on it as plain JSON types.

    Raises:
        UsageError: There is nothing to report.
        MissingExtraError: A library of the extra ``report`` is not installed.
        KrlError: A bundle, the images or the file cannot be used.
    """
    for library in ("jinja2", "plotly"):
        require(library, extra="report", purpose="writing a report")
    found = gather(config.path)
    sections = [section for section in _sections(found, config) if section.blocks]
    page = render(config.title or found.name, sections, found)
    if len(page) > _LARGEST_PAGE:
        _log.warning("the page has %.1f MB; show fewer images with --samples", len(page) / 1e6)
    write_atomic(config.out, page)
    return {
        "report": str(config.out),
        "bytes": len(page),
        "bundles": [str(bundle.path) for bundle in found.bundles],
        "runs": [str(run.path) for run in found.runs],
        "sections": [section.title for section in sections],
        "absent": [{"what": item.what, "command": item.command} for item in found.notes.absent],
        "skipped": [{"file": file, "reason": reason} for file, reason in found.notes.skipped],
    }


def _sections(found: Material, config: ReportConfig) -> list[Section]:
    made = [family_section(found), tradeoffs_section(found)]
    for bundle in found.bundles:
        made.append(samples_section(bundle, found, config))
        for section in (confusions_section, layers_section, findings_section, devices_section):
            made += found.guarded(partial(_alone, section, bundle, found), bundle.path / MANIFEST, "evidence")
    return [*made, _sources(found), _absent(found)]


def _alone(section: Callable[[Bundle, Material], Section], bundle: Bundle, found: Material) -> list[Section]:
    return [section(bundle, found)]


def _sources(found: Material) -> Section:
    """Return the sources of all numbers: command, machine and file."""
    rows = [(item.what, item.command, item.where, found.shown(item.file)) for item in found.notes.sources]
    columns = ("numbers", "command", "measured on", "file")
    return Section("Where each number comes from", [Table("Sources", columns, rows)] if rows else [])


def _absent(found: Material) -> Section:
    """Return the missing measurements with their commands, and the files that could not be used."""
    absent = [(item.what, item.command) for item in found.notes.absent]
    blocks: list[Text | Table] = []
    if absent:
        blocks.append(Table("Not measured, with the command that does it", ("what", "command"), absent))
    if found.notes.skipped:
        skipped = [(found.shown(file), reason) for file, reason in found.notes.skipped]
        blocks.append(Table("Files that were not used", ("file", "reason"), skipped))
    return Section("Not measured", blocks)
