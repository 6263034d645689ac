from __future__ import annotations

import os
from pathlib import Path

import pytest

from krl_runtime import processor


def test_only_the_cpus_that_this_process_may_use_count(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 7}, raising=False)
    assert processor.cpu_count() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert processor.cpu_count() == 1


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("model name\t: Xeon\ncpu family\t: 6\nmodel\t: 85\n\nmodel name\t: other\n", "Xeon 6 85"),
        ("CPU implementer\t: 0x41\nCPU part\t: 0xd42\n", "0x41 0xd42"),
    ],
)
def test_the_first_cpu_gives_the_name(text: str, name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processor, "read_start", lambda path: text)
    assert processor.processor_name() == name


def test_the_start_of_a_file(tmp_path: Path):
    (tmp_path / "long").write_text("x" * 10_000)
    assert len(processor.read_start(tmp_path / "long")) == 4096
    assert processor.read_start(tmp_path / "missing") == ""
