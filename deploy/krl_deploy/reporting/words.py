"""Numbers and facts in words, alike in every section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["figures", "machine_of", "megabytes", "milliseconds", "number", "points", "share"]

_SHARES = {"top1": "top-1", "map": "mAP", "recall_at_1": "recall@1", "coverage": "coverage"}
_DECIBELS = {"psnr": "PSNR", "psnr_to_fp32": "PSNR to FP32"}
_NUMBERS = {"fid": "FID", "kid": "KID", "ssim": "SSIM", "energy": "energy distance"}


def share(value: float, error: float | None = None) -> str:
    """Return a share, 0 to 1, in percent, with its standard error if it is known."""
    return f"{value:.2%}".replace("%", " %") + ("" if error is None else f" ± {100 * error:.2f}")


def points(value: float | None, error: float | None = None, unit: str = "points") -> str:
    """Return a drop in points or dB."""
    if value is None:
        return ""
    return f"{value:.2f}" + ("" if error is None else f" ± {error:.2f}") + ("" if unit == "points" else f" {unit}")


def milliseconds(value: float | None) -> str:
    """Return a time."""
    return "" if value is None else f"{value:.3f}"


def megabytes(value: float | None) -> str:
    """Return a size in MiB."""
    return "" if value is None else f"{value / 2**20:.2f}"


def number(value: object) -> str:
    """Return a number, rounded to four digits and with separators, or any other value as text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def figures(metrics: Mapping[str, Any]) -> list[str]:
    """Return the figures of a network in words, those of its task first, and then its work."""
    found = [
        f"{title} {share(metrics[name], metrics.get(f'{name}_standard_error'))}"
        for name, title in _SHARES.items()
        if _is_number(metrics.get(name))
    ]
    found += [f"{title} {metrics[name]:.2f} dB" for name, title in _DECIBELS.items() if _is_number(metrics.get(name))]
    found += [f"{title} {metrics[name]:.4g}" for name, title in _NUMBERS.items() if _is_number(metrics.get(name))]
    work = {"parameters": "parameters", "macs": "multiply-accumulates"}
    return found + [f"{metrics[name]:,} {title}" for name, title in work.items() if _is_number(metrics.get(name))]


def machine_of(facts: Mapping[str, Any], versions: Mapping[str, Any] | None = None) -> str:
    """Return a machine in one line: the board or processor, its GPUs, and versions of what ran there.

    Args:
        facts: As ``krl_runtime.backends.tuning.device``, ``machine_facts`` or the evidence of ``quantize`` has them.
        versions: Of libraries, by name.
    """
    cores = facts.get("cpus", facts.get("cores"))
    parts = [
        str(facts.get("name") or ""),
        str(facts.get("board") or facts.get("processor") or facts.get("system") or ""),
        f"{cores} CPUs" if cores else "",
        ", ".join(map(str, facts.get("gpus") or ())),
        f"power mode {facts['power_mode']}" if facts.get("power_mode") else "",
    ]
    named = versions if versions is not None else facts.get("libraries") or {}
    if "onnxruntime" in facts:
        named = {**named, "onnxruntime": facts["onnxruntime"]}
    parts += [f"{name} {version}" for name, version in named.items()]
    return ", ".join(part for part in parts if part) or "machine not recorded"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
