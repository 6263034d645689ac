"""Latencies predicted from profiles: known coefficients are found again, and other machines are refused."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from krl_compress.searching.counting import Workload, workload
from krl_compress.searching.prediction import LEAST_ENTRIES, LatencyModel, from_profile, require_machine
from krl_runtime import DataError, Preprocessing, UsageError
from krl_runtime.device.profiles import Profile, ProfileEntry, machine_facts
from krl_train.models import ModelSpec

TRUE = (
    0.01,
    2e-8,
    7e-8,
    3e-8,
    1e-8,
    4e-9,
)  # of a layer; a dense, grouped and linear MAC; bytes of weights, activations
CONSTANT = 0.25
SIZE = Preprocessing(16, 16)
NAMES = ("resnet8", "resnet14", "resnet20", "wrn-10-1", "wrn-16-2", "dscnn-0.25", "dscnn-0.5", "dscnn-1", "cifar-vgg8")
NAMES += ("resnet8x4", "cifar-mobilenetv2")


def time_of(work: Workload, scale: float = 1.0) -> float:
    return scale * (CONSTANT + float(np.dot(TRUE, list(asdict(work).values()))))


def works(count: int) -> list[Workload]:
    rng = np.random.default_rng(3)
    return [
        Workload(*(int(rng.integers(1, most)) for most in (100, 10**8, 10**7, 10**6, 10**7, 10**7)))
        for _ in range(count)
    ]


def entry(name: str, **changes: Any) -> ProfileEntry:
    """Return an entry of a network whose latency is the known sum."""
    spec = ModelSpec(name, 10, 3)
    preprocessing = changes.get("preprocessing", SIZE)
    time = time_of(workload(spec.build(preprocessing), preprocessing.shape))
    values: dict[str, Any] = {
        "bundle": f"{name}-{preprocessing.height}",
        "task": "classification",
        "variant": "fp32",
        "precision": "fp32",
        "backend": "onnxruntime-cpu",
        "batch": 1,
        "shape": preprocessing.shape,
        "sha256": "0" * 64,
        "file_bytes": 10,
        "iterations": 3,
        "latency_ms": {"p50": time, "p95": 2 * time, "p99": 3 * time, "mean": 1.5 * time},
        "pipeline_ms": dict.fromkeys(("p50", "p95", "p99", "mean"), 99.0),
        "network": asdict(spec),
        "preprocessing": preprocessing,
    }
    return ProfileEntry(**{**values, **changes})


@pytest.fixture(scope="module")
def entries() -> tuple[ProfileEntry, ...]:
    return tuple(entry(name) for name in NAMES)


@pytest.fixture
def file(tmp_path: Path, entries) -> Path:
    path = tmp_path / "orin.json"
    Profile({**machine_facts(1), "name": "orin"}, entries).write(path)
    return path


def test_known_coefficients_are_found_again():
    seen, unseen = works(12)[:11], works(12)[11]
    model = LatencyModel.fit([(work, time_of(work)) for work in seen])
    assert list(model.coefficients.values()) == pytest.approx(TRUE, rel=1e-3)
    assert model.constant == pytest.approx(CONSTANT, rel=1e-2)
    assert model.predict(unseen) == pytest.approx(time_of(unseen), rel=1e-4)
    assert (model.entries, model.largest_error) == (11, pytest.approx(0, abs=1e-3))


def test_the_error_is_that_of_networks_that_the_fit_has_not_seen():
    samples = [(work, time_of(work)) for work in works(40)]
    work, time = samples[5]
    samples[5] = (work, 3 * time)
    model = LatencyModel.fit(samples)
    # Left out, it is predicted from the others, which are exact: a third of what was measured.
    assert model.largest_error >= 0.66
    assert 0 < model.median_error < 0.3


def test_no_coefficient_is_negative():
    model = LatencyModel.fit([(work, 5.0 - work.layers / 50) for work in works(20)])
    assert min(*model.coefficients.values(), model.constant) >= 0
    assert model.coefficients["layers"] == 0


def test_relative_errors_count_and_not_milliseconds():
    """One network of a second beside small ones, off by a factor: the small ones keep their accuracy."""
    few = [Workload(layers, 0, 0, 0, 0, 0) for layers in (1, 2, 3, 4, 5, 6, 7, 8, 9)]
    samples = [(work, float(work.layers)) for work in few] + [(Workload(1000, 0, 0, 0, 0, 0), 500.0)]
    model = LatencyModel.fit(samples)
    # Least squares of milliseconds would take 0.5 for a layer; of relative errors nine networks outweigh one.
    assert model.predict(few[4]) == pytest.approx(5.0, rel=0.2)


def test_too_few_entries(tmp_path: Path, entries):
    with pytest.raises(UsageError, match=rf"needs {LEAST_ENTRIES} measured networks at least, .* there are 2; record"):
        LatencyModel.fit([(work, 1.0) for work in works(2)])
    Profile(machine_facts(1), entries[:3]).write(tmp_path / "p.json")
    with pytest.raises(UsageError, match=r"p.json, fp32 on onnxruntime-cpu: .* there are 3; .*krl-runtime bench"):
        from_profile(tmp_path / "p.json", precision="fp32")


def test_a_network_that_was_not_measured_is_predicted_and_one_that_was_is_not(file: Path):
    predictor = from_profile(file, precision="fp32")
    measured = predictor.latency(ModelSpec("resnet20", 10, 3), SIZE)
    assert (measured.measured, measured.reason) == (True, "measured on orin (resnet20-16)")
    assert measured.milliseconds == next(
        item.latency_ms["p50"] for item in predictor.entries if item.bundle == "resnet20-16"
    )
    for spec, size in (
        (ModelSpec("resnet32", 10, 3), SIZE),
        (ModelSpec("resnet20", 10, 3), Preprocessing(16, 8)),
        (ModelSpec("resnet20", 4, 3), SIZE),
    ):
        found = predictor.latency(spec, size)
        assert not found.measured
        assert found.milliseconds == pytest.approx(time_of(workload(spec.build(size), size.shape)), rel=0.05)
        assert "predicted from 11 networks measured on orin, errors of" in found.reason


def test_a_network_beyond_the_measured_ones_is_named(file: Path):
    predictor = from_profile(file, precision="fp32")
    assert "it has more" not in predictor.latency(ModelSpec("resnet14", 4, 3), SIZE).reason
    assert "it has more dense_macs, " not in predictor.latency(ModelSpec("resnet14", 4, 3), SIZE).reason
    reason = predictor.latency(ModelSpec("resnet110", 10, 3), SIZE).reason
    assert "; it has more layers" in reason


def test_precision_backend_and_batch_are_kept_apart(tmp_path: Path, entries):
    slow = dict.fromkeys(("p50", "p95", "p99", "mean"), 1000.0)
    others = tuple(replace(item, precision="int8", variant="int8") for item in entries)
    batched = tuple(replace(item, batch=2, latency_ms=slow) for item in entries)
    file = tmp_path / "p.json"
    Profile(machine_facts(1), (*entries, *others, *batched)).write(file)
    assert from_profile(file, precision="int8").backend == "onnxruntime-cpu"
    assert from_profile(file, precision="fp32").entries == entries
    with pytest.raises(UsageError, match=r"fp16 on a backend that is not named .*: fp32 on onnxruntime-cpu, int8 on"):
        from_profile(file, precision="fp16")
    other = tuple(replace(item, backend="openvino", latency_ms=slow) for item in entries)
    Profile(machine_facts(1), (*entries, *other)).write(file)
    with pytest.raises(UsageError, match="a backend that is not named was asked for; it has"):
        from_profile(file, precision="fp32")
    assert from_profile(file, precision="fp32", backend="openvino").model.constant > 900


def test_entries_that_cannot_be_made_again_are_skipped_and_code_is_never_imported(tmp_path: Path, entries, caplog):
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    odd = (
        replace(entries[0], bundle="imported", network=None),
        replace(entries[0], bundle="own", network={**entries[0].network, "name": "evil:Net"}),
        replace(entries[0], bundle="unknown", network={**entries[0].network, "name": "resnet9000000x"}),
        replace(entries[0], bundle="cut", network={**entries[0].network, "arguments": {"pruned": {"no": {"a": 1}}}}),
        replace(entries[0], bundle="odd", network={**entries[0].network, "arguments": {"pruned": 3}}),
        replace(entries[0], bundle="sr", task="restoration"),
    )
    file = tmp_path / "p.json"
    Profile(machine_facts(1), (*entries, *odd)).write(file)
    predictor = from_profile(file, precision="fp32")
    assert predictor.model.entries == len(entries)
    for item in odd:
        assert f"{item.bundle} is skipped: " in caplog.text


def test_the_float_network_counts_of_one_that_was_trained_as_its_int8_graph(tmp_path: Path, entries):
    quantized = tuple(replace(item, network={**item.network, "arguments": {"quantize": "int8"}}) for item in entries)
    Profile(machine_facts(1), entries).write(tmp_path / "a.json")
    Profile(machine_facts(1), quantized).write(tmp_path / "b.json")
    plain, same = (from_profile(tmp_path / name, precision="fp32").model for name in ("a.json", "b.json"))
    assert plain == same


def test_a_profile_of_another_machine_has_to_be_named(file: Path):
    here = machine_facts(1)
    profile = Profile.read(file)
    require_machine(profile)  # its facts are this machine's, and containers change names
    other = {**here, "processor": "another", "name": "desk"}
    with pytest.raises(UsageError, match=r"recorded on orin, and this is desk: processor .*; name orin if"):
        require_machine(profile, machine=other)
    require_machine(profile, "orin", other)
    with pytest.raises(UsageError, match="was recorded on orin, and thor was named"):
        require_machine(profile, "thor", here)


def test_a_damaged_profile(tmp_path: Path):
    (tmp_path / "p.json").write_text("{}")
    with pytest.raises(DataError, match="not a usable latency profile"):
        from_profile(tmp_path / "p.json", precision="fp32")
