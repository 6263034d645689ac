"""Power mode, clocks and temperature of a board: without them a latency says little.

Read from the kernel's files (``/sys/class/thermal``, ``cpufreq``, ``devfreq``) and, on a Jetson, from ``nvpmodel``.
Containers and many desktop machines tell nothing, or a part.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["board_state"]

_SECONDS = 5  # NVIDIA's tools take less than one; a hanging one must not hang a benchmark


def board_state(root: Path = Path("/")) -> dict[str, Any]:
    """Return the state of this board.

    Args:
        root: Root of the file system.

    Returns:
        Plain JSON types. A key is left out if the board does not have its value.

        * ``power_mode``: the name that ``nvpmodel`` prints.
        * ``temperatures_c``: degrees Celsius by the sensor's name; the hottest of sensors with the same name.
        * ``clocks_mhz``: ``current``, ``maximum`` and ``governor`` of each CPU cluster and GPU that scales its clock.
    """
    found = {
        "power_mode": _power_mode(),
        "temperatures_c": _temperatures(root / "sys/class/thermal"),
        "clocks_mhz": {
            **dict(
                _clocks(root / "sys/devices/system/cpu/cpufreq", "policy*", "scaling_cur_freq", "scaling_max_freq", 1e3)
            ),
            **dict(_clocks(root / "sys/class/devfreq", "*gpu*", "cur_freq", "max_freq", 1e6)),
        },
    }
    return {key: value for key, value in found.items() if value}


def _power_mode() -> str | None:
    program = shutil.which("nvpmodel")
    if program is None:
        return None
    try:
        output = subprocess.run(
            [program, "-q"], capture_output=True, text=True, timeout=_SECONDS, errors="replace"
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    mode = re.search(r"NV Power Mode:\s*(\S+)", output)
    return mode.group(1) if mode else None


def _temperatures(folder: Path) -> dict[str, float]:
    found: dict[str, float] = {}
    for zone in sorted(folder.glob("thermal_zone*")):
        millidegrees = _number(zone / "temp")
        if millidegrees is not None and millidegrees > -100_000:  # a sensor that is off tells absurd cold
            name = _text(zone / "type") or zone.name
            found[name] = max(millidegrees / 1000, found.get(name, -273.15))
    return found


def _clocks(
    folder: Path, pattern: str, current: str, maximum: str, unit: float
) -> Iterator[tuple[str, dict[str, Any]]]:
    for device in sorted(folder.glob(pattern)):
        now, most = _number(device / current), _number(device / maximum)
        if now is not None and most is not None:
            governor = _text(device / "scaling_governor") or _text(device / "governor")
            yield device.name, {"current": now / unit, "maximum": most / unit, "governor": governor}


def _text(file: Path) -> str | None:
    try:
        return file.read_text(errors="replace").strip() or None
    except OSError:  # not there, or a sensor that is off
        return None


def _number(file: Path) -> int | None:
    text = _text(file)
    return int(text) if text is not None and re.fullmatch(r"-?[0-9]+", text) else None
