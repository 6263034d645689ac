"""The CPUs of this machine: the number for this process, their name, and their instructions for INT8."""

from __future__ import annotations

import math
import os
from pathlib import Path, PurePosixPath

__all__ = [
    "cpu_count",
    "int8_instructions",
    "int8_sums_saturate",
    "limited_cpus",
    "processor_name",
    "read_start",
]

_CPUINFO = Path("/proc/cpuinfo")
_CGROUPS, _MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_ENOUGH = 4096  # characters of a system file: /proc/cpuinfo is long, and slow to make, with many CPUs
# Names of the Linux kernel for what adds up products of 8-bit numbers in 32 bits (arch/x86 cpufeatures.h, arm64
# hwcap.h). By the key of their line, with a key that this architecture alone has.
_INT8_FLAGS = {
    "flags": ("cpu family", ("avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8")),
    "Features": ("CPU implementer", ("asimddp", "i8mm")),
}


def cpu_count() -> int:
    """Return the number of CPUs that this process may use: by its affinity, and by the quota of its container."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def limited_cpus() -> int | None:
    """Return ``cpu_count()`` where that is less than the machine has; ``None`` where nothing limits this process."""
    allowed = cpu_count()
    return allowed if allowed < (os.cpu_count() or 1) else None


def _quota(root: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> float | None:
    """Return how many CPUs the control groups of this process grant, the least of all levels; ``None`` for no limit.

    Args:
        root: Where the groups are mounted.
        membership: The kernel's list of the groups of this process.
    """
    found = []
    for line in read_start(membership).splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        # In a container the mount often begins at the process's own group, whatever the path says.
        levels = [PurePosixPath(path), *PurePosixPath(path).parents, PurePosixPath("/")]
        tops = [root / "cpu", root / "cpu,cpuacct"] if controllers else [root, root / "unified"]
        for top in tops:
            for level in levels:
                folder = top / str(level).lstrip("/")
                found.append(_share(folder))
    known = [share for share in found if share is not None]
    return min(known, default=None)


def _share(folder: Path) -> float | None:
    """Return the quota of one control group in CPUs, of version 2 (``cpu.max``) or 1; ``None`` for no limit."""
    words = read_start(folder / "cpu.max").split()
    if not words:
        words = [read_start(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    try:
        quota, period = (int(word) for word in words)
    except ValueError:  # "max", or no such file
        return None
    return quota / period if quota > 0 and period > 0 else None


def processor_name() -> str:
    """Return the model of the first CPU; virtual ones that hide it differ by family and model number."""
    known = _first_cpu()
    parts = [known.get(key, "") for key in ("model name", "cpu family", "model", "CPU implementer", "CPU part")]
    name = " ".join(part for part in parts if part)
    if not name:
        import platform

        name = platform.processor()
    return name


def int8_instructions() -> tuple[str, ...] | None:
    """Return the names of the first CPU's instructions for INT8, as Linux gives them; ``None`` if they are not known.

    On x86 these are VNNI, AVX-VNNI and AMX, on ARM the dot product (``asimddp``) and matrix product (``i8mm``).
    """
    known = _first_cpu()
    for key, (identity, names) in _INT8_FLAGS.items():
        if key in known and identity in known:
            return tuple(name for name in names if name in known[key].split())
    return None


def int8_sums_saturate() -> bool | None:
    """Return whether plain INT8 kernels would saturate in 16 bits: on x86 without such instructions.

    ``None`` means that it is not known.
    """
    instructions = int8_instructions()
    return None if instructions is None else "flags" in _first_cpu() and not instructions


def _first_cpu() -> dict[str, str]:
    """Return the lines on the first CPU by their keys; one that may be cut off is left out."""
    text = read_start(_CPUINFO)
    first, end, _ = text.partition("\n\n")
    lines = first.splitlines()[: -1 if not end and len(text) == _ENOUGH else None]
    return {key.strip(): value.strip() for key, colon, value in (line.partition(":") for line in lines) if colon}


def read_start(path: Path) -> str:
    """Return the first 4096 characters of one of the system's text files, empty if it cannot be read."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(_ENOUGH)
    except OSError:
        return ""
