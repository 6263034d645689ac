"""The page: one file with its styles, scripts and images, and no request to any host.

A policy in the page allows its own two scripts by their hashes, and nothing from elsewhere: text of a manifest or a
result cannot become a script.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib import resources
from typing import Any

from krl_runtime._version import __version__
from krl_runtime.bundle.signature import is_signed

from .blocks import Plot, Section
from .gather import Material

__all__ = ["render"]

_DIGITS = 12  # of a digest: enough to tell bundles apart


def render(title: str, sections: Sequence[Section], found: Material) -> bytes:
    """Return the page as UTF-8.

    Args:
        title: Its title.
        sections: Those that have blocks.
        found: What they were made from.
    """
    import jinja2
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    plots = [block for section in sections for block in section.blocks if isinstance(block, Plot)]
    scripts = [_inlined(script) for script in ([get_plotlyjs()] if plots else []) + [_file("report.js")]]
    page = environment.get_template("report.html").render(
        title=title,
        sections=sections,
        bundles=[_bundle(bundle) for bundle in found.bundles],
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
        style=_file("report.css"),
        scripts=scripts,
        policy=_policy(scripts),
        plots=_json([asdict(plot) for plot in plots]),
        number={id(plot): index for index, plot in enumerate(plots)},
        id=id,
    )
    return page.encode()


def _bundle(bundle: Any) -> dict[str, Any]:
    manifest = bundle.manifest
    signed = "signed" if is_signed(bundle.path) else "not signed"
    facts = f"{manifest.task}, {', '.join(manifest.variants)}, manifest {manifest.digest[:_DIGITS]}, {signed}"
    return {"name": bundle.path.name, "facts": facts}


def _file(name: str) -> str:
    return resources.files(__package__).joinpath("templates").joinpath(name).read_text("utf-8")


def _inlined(script: str) -> str:
    """Return a script as it may stand in a page: without its end tag, and with the line ends that browsers hash."""
    return script.replace("\r\n", "\n").replace("\r", "\n").replace("</script", "<\\/script")


def _policy(scripts: Sequence[str]) -> str:
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    return f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src {allowed}"


def _json(values: Any) -> str:
    """Return JSON that no browser takes for the end of a script; numbers that JSON does not have are left out."""
    return json.dumps(_finite(values), ensure_ascii=True, allow_nan=False).replace("<", "\\u003c")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and value - value != 0 else value
