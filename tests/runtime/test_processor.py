from __future__ import annotations

import os
from pathlib import Path

import pytest

from krl_runtime import processor


def test_only_the_cpus_that_this_process_may_use_count(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processor, "_quota", lambda: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 7}, raising=False)
    assert processor.cpu_count() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert processor.cpu_count() == 1


@pytest.mark.parametrize(
    ("membership", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),  # a container of Docker with --cpus 1.5
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/system.slice/a.service\n", {"system.slice/a.service/cpu.max": "200000 100000"}, 2.0),
        (  # Kubernetes: the pod grants less than the container asks for
            "0::/kubepods/pod1/c1\n",
            {
                "kubepods/pod1/c1/cpu.max": "400000 100000",
                "kubepods/pod1/cpu.max": "300000 100000",
                "cpu.max": "max 100000",
            },
            3.0,
        ),
        ("0::/../../other\n", {"cpu.max": "100000 100000"}, 1.0),
        (  # version 1
            "4:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc\n",
            {"cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "250000", "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000"},
            2.5,
        ),
        ("4:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("4:cpu:/a\n", {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 0.5),
        ("1:name=systemd:/a\n", {"a/cpu.max": "100000 100000"}, None),
        ("", {}, None),
        ("nonsense\n0::\n", {"cpu.max": "a b c"}, None),
        ("0::/\n", {"cpu.max": "100000 0"}, None),
    ],
)
def test_the_quota_of_a_container(tmp_path: Path, membership: str, files: dict[str, str], quota: float | None):
    (tmp_path / "cgroup").write_text(membership)
    for name, text in files.items():
        path = tmp_path / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert processor._quota(tmp_path / "fs", tmp_path / "cgroup") == quota


@pytest.mark.parametrize(("quota", "cpus"), [(None, 4), (0.2, 1), (1.0, 1), (1.5, 2), (16.0, 4)])
def test_a_quota_limits_the_cpus(monkeypatch: pytest.MonkeyPatch, quota: float | None, cpus: int):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(processor, "_quota", lambda: quota)
    assert processor.cpu_count() == cpus
    assert processor.limited_cpus() == (None if cpus == 4 else cpus)


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


COMMON = "fpu vme de pse tsc msr sse sse2 ssse3 sse4_1 sse4_2 avx f16c fma avx2 bmi2"
X86 = (
    "processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: {model}\nflags\t\t: {flags}\nbugs\t: x\n"
)
ARM = "processor\t: 0\nBogoMIPS\t: 62.50\nFeatures\t: {flags}\nCPU implementer\t: 0x41\nCPU part\t: {part}\n"
CPUS = {
    "Skylake-X": (
        X86.format(vendor="GenuineIntel", family=6, model=85, flags=f"{COMMON} avx512f avx512dq avx512bw avx512vl"),
        (),
    ),
    "Zen 2": (X86.format(vendor="AuthenticAMD", family=23, model=49, flags=f"{COMMON} sha_ni umip"), ()),
    "Haswell": (X86.format(vendor="GenuineIntel", family=6, model=60, flags=COMMON), ()),
    "Ice Lake": (
        X86.format(vendor="GenuineIntel", family=6, model=106, flags=f"{COMMON} avx512f avx512_vnni avx512_bitalg"),
        ("avx512_vnni",),
    ),
    "Alder Lake": (
        X86.format(vendor="GenuineIntel", family=6, model=151, flags=f"{COMMON} avx_vnni serialize"),
        ("avx_vnni",),
    ),
    "Arrow Lake": (
        X86.format(vendor="GenuineIntel", family=6, model=198, flags=f"{COMMON} avx_vnni avx_vnni_int8"),
        ("avx_vnni", "avx_vnni_int8"),
    ),
    "Sapphire Rapids": (
        X86.format(
            vendor="GenuineIntel",
            family=6,
            model=143,
            flags=f"{COMMON} avx_vnni avx512_bf16 avx512_vnni amx_bf16 amx_tile amx_int8",
        ),
        ("avx512_vnni", "avx_vnni", "amx_int8"),
    ),
    "Cortex-A57": (ARM.format(flags="fp asimd evtstrm aes pmull sha1 sha2 crc32", part="0xd07"), ()),
    "Cortex-A78": (ARM.format(flags="fp asimd asimdhp lrcpc dcpop asimddp", part="0xd41"), ("asimddp",)),
    "Neoverse V2": (ARM.format(flags="fp asimd asimddp sve svei8mm i8mm bf16", part="0xd4f"), ("asimddp", "i8mm")),
}


@pytest.mark.parametrize("name", CPUS)
@pytest.mark.parametrize("count", [1, 64])
def test_the_instructions_for_int8(name: str, count: int, monkeypatch: pytest.MonkeyPatch):
    text, expected = CPUS[name]
    monkeypatch.setattr(processor, "read_start", lambda path: "\n".join([text] * count)[:4096])
    assert processor.int8_instructions() == expected
    assert processor.int8_sums_saturate() == (name in ("Skylake-X", "Zen 2", "Haswell"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "processor\t: 0\nisa\t: rv64imafdcv\n",  # RISC-V
        "system type\t: generic-loongson\nFeatures\t: cpucfg lam ual fpu lsx lasx\n",
        "cpu\t: POWER9\nrevision\t: 2.2\n",
        ("cpu family\t: 6\nflags\t: " + "x" * 4096)[:4096],  # cut off: what follows is not known
    ],
)
def test_instructions_that_are_not_known_are_not_guessed(text: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processor, "read_start", lambda path: text)
    assert processor.int8_instructions() is None
    assert processor.int8_sums_saturate() is None


def test_the_start_of_a_file(tmp_path: Path):
    (tmp_path / "long").write_text("x" * 10_000)
    assert len(processor.read_start(tmp_path / "long")) == 4096
    assert processor.read_start(tmp_path / "missing") == ""
