"""The CPUs of this machine: the number for this process, and their name."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cpu_count", "processor_name", "read_start"]

_ENOUGH = 4096  # characters of a system file: /proc/cpuinfo is long, and slow to make, with many CPUs


def cpu_count() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_name() -> str:
    """Return the model of the first CPU; virtual ones that hide it differ by family and model number."""
    lines = read_start(Path("/proc/cpuinfo")).partition("\n\n")[0].splitlines()
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    known = {key.strip(): value.strip() for key, value in values.items()}
    parts = [known.get(key, "") for key in ("model name", "cpu family", "model", "CPU implementer", "CPU part")]
    name = " ".join(part for part in parts if part)
    if not name:
        import platform

        name = platform.processor()
    return name


def read_start(path: Path) -> str:
    """Return the first 4096 characters of one of the system's text files, empty if it cannot be read."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(_ENOUGH)
    except OSError:
        return ""
