"""Latency profiles: what is measured into them, and the files and machines that are refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from _helpers.bundles import write_bundle
from _helpers.image_nets import write_generator, write_restorer
from krl_runtime import Bundle, DataError, Preprocessing, UsageError, record
from krl_runtime.cli import main
from krl_runtime.device.profiles import Profile, ProfileEntry, machine_facts
from krl_runtime.files import dump_digested, sha256_file

MODEL = {"name": "resnet8", "num_classes": 4, "in_channels": 3, "arguments": {"pruned": {"stem": {"out_channels": 9}}}}
QUICK: dict[str, Any] = {"warmup": 0, "iterations": 2, "threads": 1}
TIMES = {"p50": 1.0, "p95": 2.0, "p99": 3, "mean": 1.5}
MACHINE = {
    "name": "orin",
    "system": "linux-aarch64",
    "processor": "Cortex-A78AE",
    "cpus": 6,
    "board": "NVIDIA Jetson Orin Nano",
    "gpus": [],
    "gpu": 0,
    "libraries": {"onnxruntime": "1.23.0"},
    "threads": 1,
    "power_mode": "MODE_15W",
}


def entry(**changes: Any) -> ProfileEntry:
    values: dict[str, Any] = {
        "bundle": "flowers",
        "task": "classification",
        "variant": "fp32",
        "precision": "fp32",
        "backend": "onnxruntime-cpu",
        "batch": 1,
        "shape": (3, 12, 10),
        "sha256": "0" * 64,
        "file_bytes": 10,
        "iterations": 3,
        "latency_ms": TIMES,
        "pipeline_ms": TIMES,
        "network": MODEL,
        "preprocessing": Preprocessing(12, 10),
    }
    return ProfileEntry(**{**values, **changes})


def values_of(path: Path) -> dict[str, Any]:
    return json.loads(path.read_bytes())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "orin.json"
    Profile(MACHINE, (entry(),)).write(path)
    return path


def test_every_variant_is_recorded_with_what_makes_the_network_again(bundle: Bundle, tmp_path: Path):
    bundle = bundle.update({}, source={"kind": "run", "model": MODEL})
    made = record([bundle.path], tmp_path / "here.json", batch=2, **QUICK)
    profile = Profile.read(tmp_path / "here.json")
    assert profile.machine == machine_facts(1)
    assert (profile.name, made.machine) == (machine_facts()["name"],) * 2
    assert [item.variant for item in profile.entries] == ["fp16", "fp32", "int8"]
    files = ["model.fp16.onnx", "model.fp32.onnx", "model.int8.cpu.onnx"]  # what ONNX Runtime's CPU provider runs
    assert [item.sha256 for item in profile.entries] == [sha256_file(bundle.path / name) for name in files]
    assert [item.file_bytes for item in profile.entries] == [(bundle.path / name).stat().st_size for name in files]
    for item in profile.entries:
        assert (item.bundle, item.task, item.backend) == ("tiny", "classification", "onnxruntime-cpu")
        assert (item.batch, item.shape, item.iterations) == (2, (3, 12, 10), 2)
        assert item.network == MODEL
        assert item.preprocessing == bundle.manifest.preprocessing
    assert made.to_dict()["entries"] == [item.to_dict() for item in profile.entries]


def test_the_network_alone_and_the_whole_pipeline_are_timed(bundle: Bundle, tmp_path: Path, monkeypatch):
    """A clock that a run of the network moves by 2 s, and a decoded image by 5 s."""
    from krl_runtime.backends.onnxruntime import OnnxRuntimeBackend

    now = 0.0
    run, prepare = OnnxRuntimeBackend.run, Preprocessing.__call__

    def slow_run(self, inputs):
        nonlocal now
        now += 2
        return run(self, inputs)

    def slow_prepare(self, *args, **options):
        nonlocal now
        now += 5
        return prepare(self, *args, **options)

    monkeypatch.setattr(OnnxRuntimeBackend, "run", slow_run)
    monkeypatch.setattr(Preprocessing, "__call__", slow_prepare)
    for module in ("bench", "recording"):
        monkeypatch.setattr(f"krl_runtime.device.{module}.perf_counter", lambda: now)
    record([bundle.path], tmp_path / "p.json", variant="fp32", **QUICK)
    (found,) = Profile.read(tmp_path / "p.json").entries
    assert set(found.latency_ms.values()) == {2000}
    assert set(found.pipeline_ms.values()) == {7000}


def test_a_bundle_that_is_measured_again_replaces_its_entry(tmp_path: Path):
    file = tmp_path / "p.json"
    first = write_bundle(tmp_path / "a.krl")
    second = write_bundle(tmp_path / "b.krl", preprocessing=Preprocessing(8, 8))
    record([first.path, second.path], file, **QUICK)
    write_bundle(tmp_path / "new" / "a.krl", seed=3)
    record([tmp_path / "new" / "a.krl"], file, **QUICK)
    entries = {item.bundle: item for item in Profile.read(file).entries}
    assert set(entries) == {"a", "b"}
    assert entries["a"].sha256 == sha256_file(tmp_path / "new" / "a.krl" / "model.fp32.onnx")
    record([first.path], file, batch=3, **QUICK)
    assert sorted(item.key for item in Profile.read(file).entries) == [
        ("a", "fp32", "onnxruntime-cpu", 1),
        ("a", "fp32", "onnxruntime-cpu", 3),
        ("b", "fp32", "onnxruntime-cpu", 1),
    ]
    with pytest.raises(UsageError, match=r"bundles: \['a.krl'\] given; accepted: one or more, each name once"):
        record([first.path, tmp_path / "new" / "a.krl"], file, **QUICK)


@pytest.mark.parametrize(("write", "shape"), [(write_generator, (8,)), (write_restorer, (1, 24, 20))])
def test_other_tasks_are_recorded_too(tmp_path: Path, write, shape):
    bundle = write(tmp_path / "a.krl")
    (golden,) = (bundle.golden()[spec.name] for spec in bundle.manifest.inputs)
    record([bundle.path], tmp_path / "p.json", **QUICK)
    (found,) = Profile.read(tmp_path / "p.json").entries
    assert (found.task, found.network, found.shape) == (bundle.manifest.task, None, golden.shape[1:])


def test_a_variant_that_does_not_run_is_skipped_with_its_reason(tmp_path: Path, caplog):
    bundle = write_bundle(tmp_path / "a.krl", variants=("fp32", "fp16"), contents={"model.fp16.onnx": b"no model"})
    made = record([bundle.path], tmp_path / "p.json", **QUICK)
    assert [item.variant for item in Profile.read(tmp_path / "p.json").entries] == ["fp32"]
    assert list(made.skipped) == ["a fp16"]
    assert "variant fp16 is skipped" in caplog.text


@pytest.mark.parametrize(
    ("fact", "value"),
    [
        ("processor", "Cortex-A76"),
        ("gpus", ["NVIDIA H100"]),
        ("libraries", {"onnxruntime": "1.20.0"}),
        ("threads", None),
        ("power_mode", "MAXN"),
    ],
)
def test_another_machine_is_refused_and_its_profile_stays(tmp_path: Path, monkeypatch, file, capsys, fact, value):
    bundle, before = write_bundle(tmp_path / "a.krl"), file.read_bytes()
    monkeypatch.setattr("krl_runtime.device.recording.machine_facts", lambda *_: {**MACHINE, fact: value})
    assert main(["bench", str(bundle.path), "--profile", str(file)]) == 2
    error = capsys.readouterr().err
    assert f"{fact} {MACHINE[fact]!r} was recorded, {value!r} is here" in error
    assert "another machine (orin)" in error
    assert "give another file to --profile" in error
    assert file.read_bytes() == before


def test_the_name_of_the_host_does_not_matter(tmp_path: Path, monkeypatch, file):
    monkeypatch.setattr("krl_runtime.device.recording.machine_facts", lambda *_: {**MACHINE, "name": "container-7"})
    record([write_bundle(tmp_path / "a.krl").path], file, **QUICK)
    profile = Profile.read(file)
    assert (profile.name, len(profile.entries)) == ("orin", 2)


def changed(values: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return values with another one at a place as ``entries.0.batch``."""
    *parents, last = path.split(".")
    place: Any = values
    for name in parents:
        place = place[int(name) if name.isdigit() else name]
    place[last] = value
    return values


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("kind", "krl run"),
        ("schema_version", 2),
        ("machine.cpus", 0),
        ("machine.name", ""),
        ("machine.threads", True),
        ("machine.gpus", "none"),
        ("machine.libraries", {"onnxruntime": 1}),
        ("machine.more", 1),
        ("entries", {}),
        ("entries.0.batch", 1.5),
        ("entries.0.batch", -(10**400)),
        ("entries.0.shape", []),
        ("entries.0.shape", [3, -1, 2]),
        ("entries.0.sha256", "abc"),
        ("entries.0.file_bytes", -1),
        ("entries.0.latency_ms.p50", 0),
        ("entries.0.latency_ms.p50", -2.0),
        ("entries.0.latency_ms.p50", "1"),
        ("entries.0.latency_ms.p50", 10**400),
        ("entries.0.pipeline_ms.p42", 1.0),
        ("entries.0.network.name", None),
        ("entries.0.network.arguments", []),
        ("entries.0.network.more", 1),
        ("entries.0.preprocessing.height", 0),
        ("entries.0.preprocessing", None),
        ("entries.0.more", 1),
    ],
)
def test_values_that_no_profile_has_are_refused(file: Path, path, value):
    file.write_bytes(dump_digested(changed(values_of(file), path, value)))
    with pytest.raises(DataError, match=r"orin.json is not a usable latency profile: .*give another file to --profile"):
        Profile.read(file)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(file: Path, number: str):
    file.write_bytes(file.read_bytes().replace(b'"p50": 1.0', f'"p50": {number}'.encode()))
    assert number.encode() in file.read_bytes()
    with pytest.raises(DataError, match="not a usable latency profile"):
        Profile.read(file)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"null", b"[" * 100_000, b"\xff", b'{"kind": 1}'])
def test_other_files_are_refused_by_the_command(tmp_path: Path, capsys, content):
    file = tmp_path / "p.json"
    file.write_bytes(content)
    bundle = write_bundle(tmp_path / "a.krl")
    assert main(["bench", str(bundle.path), "--profile", str(file)]) == 2
    assert "p.json is not a usable latency profile" in capsys.readouterr().err
    assert file.read_bytes() == content
    assert main(["bench", str(bundle.path), "--profile", str(tmp_path)]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_a_changed_a_doubled_and_a_huge_file_are_refused(file: Path, tmp_path: Path):
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b'"p50": 1.0', b'"p50": 0.5'))
    with pytest.raises(DataError, match="was changed after krl wrote it"):
        Profile.read(file)
    Profile(MACHINE, (entry(), entry(sha256="1" * 64))).write(file)
    with pytest.raises(DataError, match="two entries have the same bundle"):
        Profile.read(file)
    file.write_bytes(whole + b" " * (16 << 20))
    with pytest.raises(DataError, match="has more than 16777216 bytes"):
        Profile.read(file)


def test_entries_are_checked_in_python_as_well():
    with pytest.raises(UsageError, match=r"entry: latency_ms is .*nan.*; accepted: p50, p95, p99, mean, each a finite"):
        entry(latency_ms={**TIMES, "p50": math.nan})
    with pytest.raises(UsageError, match=r"machine has .*; accepted: name, system"):
        Profile({})
    assert Profile(MACHINE).with_entry(entry()).with_entry(replace(entry(), batch=2)).entries[1].batch == 2


def test_the_command_prints_a_table_or_json(tmp_path: Path, capsys, bundle: Bundle):
    other = write_bundle(tmp_path / "other.krl")
    file = tmp_path / "p.json"
    flags = ["--profile", str(file), "--iterations", "2", "--warmup", "0", "--threads", "1"]
    assert main(["bench", str(bundle.path), str(other.path), *flags]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[:2] for row in rows[2:6]] == [["tiny", "fp16"], ["tiny", "fp32"], ["tiny", "int8"], ["other", "fp32"]]
    assert main(["bench", str(other.path), *flags, "--variant", "fp32", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["profile"], [item["bundle"] for item in values["entries"]]) == (str(file), ["other"])
    assert main(["bench", str(bundle.path), str(other.path)]) == 2
    assert "2 bundles were given; accepted: one, or several with --profile FILE" in capsys.readouterr().err
