from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from krl_runtime.device.telemetry import board_state


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture(autouse=True)
def nvpmodel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A program of that name, or none."""

    def install(script: str | None) -> None:
        program = tmp_path / "nvpmodel"
        if script is not None:
            program.write_text(f"#!/bin/sh\n{script}\n")
            program.chmod(0o755)
        monkeypatch.setattr(shutil, "which", lambda name: str(program) if script is not None else None)

    install(None)
    return install


def test_a_machine_that_tells_nothing(tmp_path: Path):
    assert board_state(tmp_path) == {}


def test_a_jetson(tmp_path: Path, nvpmodel):
    nvpmodel('test "$1" = -q && printf "NV Power Mode: MODE_30W\\n2\\n"')
    thermal, cpu, gpu = "sys/class/thermal", "sys/devices/system/cpu/cpufreq", "sys/class/devfreq/17000000.gpu"
    write(
        tmp_path,
        {
            f"{thermal}/thermal_zone0/type": "cpu-thermal\n",
            f"{thermal}/thermal_zone0/temp": "51843\n",
            f"{thermal}/thermal_zone1/type": "cv0-thermal\n",
            f"{thermal}/thermal_zone1/temp": "-256000\n",  # off
            f"{thermal}/thermal_zone2/type": "gpu-thermal\n",
            f"{thermal}/thermal_zone2/temp": "\n",
            f"{thermal}/thermal_zone3/temp": "-1500\n",
            f"{thermal}/thermal_zone4/type": "cpu-thermal\n",
            f"{thermal}/thermal_zone4/temp": "49000\n",
            f"{cpu}/policy0/scaling_cur_freq": "729600\n",
            f"{cpu}/policy0/scaling_max_freq": "1728000\n",
            f"{cpu}/policy0/scaling_governor": "schedutil\n",
            f"{cpu}/policy4/scaling_cur_freq": "1728000\n",
            f"{gpu}/cur_freq": "306000000\n",
            f"{gpu}/max_freq": "624750000\n",
            f"{gpu}/governor": "nvhost_podgov\n",
        },
    )
    assert board_state(tmp_path) == {
        "power_mode": "MODE_30W",
        "temperatures_c": {"cpu-thermal": 51.843, "thermal_zone3": -1.5},
        "clocks_mhz": {
            "policy0": {"current": 729.6, "maximum": 1728.0, "governor": "schedutil"},
            "17000000.gpu": {"current": 306.0, "maximum": 624.75, "governor": "nvhost_podgov"},
        },
    }


@pytest.mark.parametrize("script", ["exit 1", "echo nothing known", "printf '\\377'", "kill -9 $$"])
def test_an_nvpmodel_that_does_not_tell(tmp_path: Path, nvpmodel, script):
    nvpmodel(script)
    assert board_state(tmp_path) == {}


def test_an_nvpmodel_that_cannot_be_run(tmp_path: Path, nvpmodel, monkeypatch):
    nvpmodel("sleep 20")
    monkeypatch.setattr("krl_runtime.device.telemetry._SECONDS", 0.1)
    assert board_state(tmp_path) == {}
    (tmp_path / "nvpmodel").chmod(0o644)
    assert board_state(tmp_path) == {}
