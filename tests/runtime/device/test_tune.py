from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from _helpers.bundles import VARIANTS, write_bundle
from krl_runtime import BackendError, Bundle, BundleError, UsageError, load
from krl_runtime.backends import select, tuning
from krl_runtime.backends.onnxruntime import open_cpu
from krl_runtime.backends.tuning import Measurement, Tuning, read_tuning, tuning_file
from krl_runtime.cli import main
from krl_runtime.device import tune as module
from krl_runtime.device.tune import lost, tune

IMAGE = np.full((12, 10, 3), 99, np.uint8)
MEASURED = {
    "fp16": {"scores": {"fp32": {"top1": 0.9}, "fp16": {"top1": 0.899}, "fp16.rounded": {"top1": 0.85}}},
    "int8": {"scores": {"fp32": {"top1": 0.9}, "int8": {"top1": 0.8}, "int8.cpu": {"top1": 0.895}}},
}


@pytest.fixture
def measured(bundle: Bundle) -> Bundle:
    return bundle.update({}, evidence=MEASURED)


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str, int | None], float]:
    """Milliseconds that are said to have been measured, by kind, variant and threads; 9 for all others."""
    table: dict[tuple[str, str, int | None], float] = {}

    def time(_: Bundle, candidate: Any, *rest: object) -> list[float]:
        found = candidate.measurement
        return [table.get((found.kind, found.variant, found.threads), 9.0)]

    monkeypatch.setattr(module, "_time", time)
    monkeypatch.setattr(module, "ALL_KINDS", ("tensorrt", "cuda", "cpu"))
    return table


def rows(found: Tuning) -> list[tuple]:
    return [(item.kind, item.variant, item.threads) for item in found.measurements if not item.cause]


def test_the_fastest_is_kept_and_load_uses_it(measured: Bundle, times: dict):
    times["cpu", "int8", 2] = 3.0
    before = {path: path.read_bytes() for path in measured.path.rglob("*") if path.is_file()}
    found = tune(measured, threads=(1, 2))
    assert rows(found)[0] == ("cpu", "int8", 2)
    assert {path: path.read_bytes() for path in measured.path.rglob("*") if path.is_file()} == before
    assert tuning_file(measured).parent == measured.path.with_name("tiny.krl.device") / "tune"
    assert read_tuning(measured) == found
    model = load(measured.path)
    assert (model.backend.name, model.backend.variant) == ("onnxruntime-cpu", "int8")
    assert model.backend.reason.startswith(
        "onnxruntime-cpu runs variant int8 (measured best on this device by krl-runtime tune: 3 ms with 2 threads); "
        "skipped: tensorrt (the bundle has no TensorRT engine"
    )
    assert load(measured.path, backend="auto").backend.variant == "int8"
    model(IMAGE)


def test_what_was_asked_for_comes_before_the_tuning(measured: Bundle, times: dict):
    times["cpu", "int8", 1] = 3.0
    tune(measured, threads=(1,))
    assert load(measured.path, variant="fp16").backend.variant == "fp16"
    for arguments in ({"backend": "cpu"}, {"require": "cpu"}):
        assert "the bundle names no default for cpu" in load(measured.path, **arguments).backend.reason


@pytest.mark.parametrize("threads", [None, 1, 2, 3])
def test_threads_never_change_the_choice(
    measured: Bundle, times: dict, threads: int | None, monkeypatch: pytest.MonkeyPatch
):
    times.update({("cpu", "int8", 2): 3.0, ("cpu", "fp16", 1): 5.0})
    tune(measured, threads=(1, 2))
    opened = []
    real = select.open_backend

    def spy(kind: str, bundle: Bundle, variant: str, count: int | None = None, device: int = 0) -> Any:
        opened.append((kind, variant, count))
        return real(kind, bundle, variant, count)  # type: ignore[arg-type]

    monkeypatch.setattr(select, "open_backend", spy)
    load(measured.path, threads=threads).close()
    assert opened == [("cpu", "int8", threads or 2)]


def test_threads_do_not_leave_a_gpu(measured: Bundle, times: dict, monkeypatch: pytest.MonkeyPatch):
    """A tuning that chose an engine stays with it, whatever ``threads`` says of the CPU; ``serve`` always says it."""
    real, asked = select.open_backend, []

    def fake(kind: str, bundle: Bundle, variant: str, count: int | None = None, device: int = 0) -> Any:
        asked.append(kind)
        return real("cpu", bundle, variant, count)

    for place in (select, module):
        monkeypatch.setattr(place, "open_backend", fake)
    times["tensorrt", "int8", None] = 0.5
    tune(measured, threads=(1,), max_drop=20)
    asked.clear()
    load(measured.path, threads=1).close()
    assert asked == ["tensorrt"]


def test_a_tuning_of_other_libraries_is_not_used(measured: Bundle, times: dict, monkeypatch: pytest.MonkeyPatch):
    times["cpu", "int8", 1] = 3.0
    tune(measured, threads=(1,))
    now = tuning.libraries()
    assert now["onnxruntime"] == onnxruntime.__version__
    monkeypatch.setattr(tuning, "libraries", lambda: {**now, "onnxruntime": "9.9", "openvino": "2030.1"})
    reason = load(measured.path).backend.reason
    assert f"onnxruntime {onnxruntime.__version__} was measured, 9.9 is here" in reason
    assert "openvino absent was measured, 2030.1 is here; run krl-runtime tune again" in reason


def test_one_candidate_is_open_at_a_time(measured: Bundle, monkeypatch: pytest.MonkeyPatch):
    live: list[object] = []
    most = []
    real = select.open_backend

    def counted(kind: str, bundle: Bundle, variant: str, count: int | None = None) -> Any:
        backend, remark = real(kind, bundle, variant, count)  # type: ignore[arg-type]
        close = backend.close
        live.append(backend)
        most.append(len(live))

        def closing() -> None:
            if backend in live:
                live.remove(backend)
            close()

        backend.close = closing  # type: ignore[method-assign]
        return backend, remark

    monkeypatch.setattr(module, "open_backend", counted)
    found = tune(measured, threads=(1, 2, 3), rounds=1, write=False)
    assert sum(item.milliseconds is not None for item in found.measurements) >= 6
    assert max(most) == 1
    assert live == []


def test_a_machine_that_slows_down_evenly_does_not_change_the_order(measured: Bundle, monkeypatch: pytest.MonkeyPatch):
    """Each measurement takes 10 % longer than the one before; there and back, all have the same mean slowdown."""
    speeds = {"fp32": 2.1, "fp16": 2.05, "int8": 2.0}
    slower = iter([1.0, 1.1, 1.2, 1.3, 1.4, 1.5])
    current: list[str] = []
    real = select.open_backend

    def opened(kind: str, bundle: Bundle, variant: str, count: int | None = None) -> Any:
        current[:] = [variant]
        return real(kind, bundle, variant, count)  # type: ignore[arg-type]

    def interleaved(calls: dict, **options: object) -> dict:
        return {name: [speeds[current[0]] * factor for factor in [next(slower)]] for name in calls}

    monkeypatch.setattr(module, "ALL_KINDS", ("cpu",))
    monkeypatch.setattr(module, "open_backend", opened)
    monkeypatch.setattr(module, "interleaved", interleaved)
    found = tune(measured, threads=(1,), write=False)
    made = {item.variant: item.milliseconds for item in found.measurements}
    assert made == pytest.approx({variant: speed * 1.25 for variant, speed in speeds.items()})


def test_a_folder_that_cannot_be_written_does_not_lose_the_table(
    measured: Bundle, times: dict, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    (tmp_path / "blocked").write_text("a file where a folder should be")
    monkeypatch.setenv("KRL_CACHE_DIR", str(tmp_path / "blocked"))
    assert main(["tune", str(measured.path), "--threads", "1", "--rounds", "1"]) == 2
    out, err = capsys.readouterr()
    assert "chosen" in out
    assert "so load will not use this; give --cache-dir DIR" in err
    assert main(["tune", str(measured.path), "--threads", "1", "--cache-dir", str(tmp_path / "cache")]) == 0
    assert "kept in" in capsys.readouterr().out
    assert "measured best on this device" in load(measured.path).backend.reason


def test_among_those_as_fast_the_most_exact_with_the_fewest_threads_wins(measured: Bundle, times: dict):
    times.update({("cpu", "int8", 1): 3.0, ("cpu", "fp32", 2): 3.14, ("cpu", "fp32", 1): 3.15, ("cpu", "fp16", 1): 3.1})
    assert rows(tune(measured, threads=(1, 2)))[:4] == [
        ("cpu", "fp32", 1), ("cpu", "int8", 1), ("cpu", "fp16", 1), ("cpu", "fp32", 2)
    ]  # fmt: skip
    times["cpu", "fp32", 1] = times["cpu", "fp32", 2] = 3.16
    assert rows(tune(measured, threads=(1, 2)))[0] == ("cpu", "fp16", 1)


# Accuracy.


def test_points_lost_by_the_evidence(measured: Bundle):
    manifest = measured.manifest
    assert lost(manifest, "fp32", "cpu") == 0
    assert lost(manifest, "int8", "cpu") == pytest.approx(0.5)
    assert lost(manifest, "int8", "openvino-bf16") == pytest.approx(10)
    assert lost(manifest, "int8", "tensorrt") == pytest.approx(10)
    assert lost(manifest, "fp16", "cpu") == pytest.approx(0.1)
    assert lost(manifest, "fp16", "cuda") == pytest.approx(5)
    unlabeled = {"int8": {"scores": {"fp32": {"top1": None}, "int8": {"top1": None, "agreement": 0.98}}}}
    assert lost(replace(manifest, evidence=unlabeled), "int8", "cpu") == pytest.approx(2)


@pytest.mark.parametrize(
    "evidence", [{}, {"int8": 3}, {"int8": {"scores": []}}, {"int8": {"scores": {"fp32": {}, "int8": 1}}},
                 {"int8": {"scores": {"int8": {"top1": 1}}}}, {"int8": {"scores": {"fp32": {}, "int8": {}}}}],
    ids=str,
)  # fmt: skip
def test_without_evidence_nothing_is_known(bundle: Bundle, evidence: dict):
    assert lost(replace(bundle.manifest, evidence=evidence), "int8", "cpu") is None


def test_variants_that_lose_too_much_or_have_no_evidence_are_not_tried(bundle: Bundle, times: dict):
    times["cpu", "int8", 1] = times["cpu", "fp16", 1] = 1.0
    found = tune(bundle.update({}, evidence={"int8": MEASURED["int8"]}), max_drop=0.4, threads=(1,), write=False)
    assert rows(found) == [("cpu", "fp32", 1)]
    causes = {item.variant: item.cause for item in found.measurements if item.kind == "cpu"}
    assert causes["fp16"] == "the bundle has no accuracy evidence for variant fp16"
    assert causes["int8"] == "variant int8 drops by 0.50 points by the bundle's evidence, accepted: 0.4"
    assert read_tuning(bundle) is None


def test_golden_inputs_have_to_come_out_within_the_tolerance(tmp_path: Path, times: dict):
    bundle = write_bundle(tmp_path / "a.krl", variants=("fp32", "int8"), evidence=MEASURED)
    strict = replace(VARIANTS["int8"], tolerance=0.001)
    bundle = bundle.update({}, variants={**bundle.manifest.variants, "int8": strict})
    times["cpu", "int8", 1] = 1.0
    found = tune(bundle, threads=(1,))
    assert rows(found) == [("cpu", "fp32", 1)]
    (int8,) = [item for item in found.measurements if (item.kind, item.variant) == ("cpu", "int8")]
    assert int8.cause == "the largest error 0.02 is above the tolerance 0.001"


@pytest.mark.parametrize(
    ("error", "flipped", "cause"),
    [
        (0.03, 0, ""),
        (10.0, 0, "the largest error 10 is above the tolerance"),
        (0.0, 6, "top-1 agrees on 0.0% of the golden inputs, required: 66.7%"),
    ],
)
def test_bf16_is_held_to_limits_of_its_own(
    tmp_path: Path, times: dict, monkeypatch: pytest.MonkeyPatch, error: float, flipped: int, cause: str
):
    """A backend that is off by 0.03 is beyond FP32's tolerance, and within what BF16 rounds."""
    bundle = write_bundle(tmp_path / "a.krl", variants=("fp32",), evidence=MEASURED)

    class Rounded:
        name = "openvino-bf16"

        def __init__(self) -> None:
            self._exact = open_cpu(bundle, "fp32")

        def run(self, inputs: dict) -> dict:
            logits = self._exact.run(inputs)["logits"] + np.float32(error)
            logits[:flipped] = np.roll(logits[:flipped], 1, axis=1)  # the largest one is another class's
            return {"logits": logits}

        def close(self) -> None:
            self._exact.close()

    real = select.open_backend
    monkeypatch.setattr(module, "ALL_KINDS", ("openvino-bf16", "cpu"))
    for where in (module, select):
        monkeypatch.setattr(
            where, "open_backend", lambda kind, *rest: (Rounded(), "") if "bf16" in kind else real(kind, *rest)
        )
    times["openvino-bf16", "fp32", 1] = 1.0
    found = tune(bundle, threads=(1,))
    assert (rows(found)[0][0] == "openvino-bf16") == (not cause)
    (bf16,) = [item for item in found.measurements if item.kind == "openvino-bf16"]
    assert cause in bf16.cause
    assert load(bundle.path).backend.name == ("onnxruntime-cpu" if cause else "openvino-bf16")


# Files that cannot be used.


@pytest.fixture
def tuned(measured: Bundle, times: dict) -> Bundle:
    times["cpu", "int8", 1] = 3.0
    tune(measured, threads=(1,))
    return measured


def reason(bundle: Bundle) -> str:
    model = load(bundle.path)
    assert model.backend.variant == "fp32"
    return model.backend.reason


def test_another_state_of_the_bundle(tuned: Bundle):
    tuned.update({}, name="renamed")
    assert "is of another state of the bundle; run krl-runtime tune again" in reason(tuned)


@pytest.mark.parametrize("damage", [b"", b"{}", b"[1]", b"\xff", b"[" * 100_000, b"null"], ids=lambda b: str(b[:8]))
def test_a_damaged_file(tuned: Bundle, damage: bytes):
    tuning_file(tuned).write_bytes(damage)
    assert "is damaged (" in reason(tuned)


def test_a_flipped_byte_and_another_version(tuned: Bundle):
    file = tuning_file(tuned)
    text = file.read_text()
    file.write_text(text.replace('"int8"', '"fp16"'))
    assert "its digest differs" in reason(tuned)
    file.write_text(text.replace('"schema_version": 3', '"schema_version": 1'))
    assert "schema version 1, this krl reads 3" in reason(tuned)
    file.write_text(text + " " * (1 << 20))
    assert "it has more than 1048576 bytes" in reason(tuned)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"kind": "abacus"}, "names int8 on abacus, which this krl-runtime does not know"),
        ({"variant": "int4"}, "names int4 on cpu, which this krl-runtime does not know"),
        ({"threads": 0}, "which this krl-runtime does not know"),
        ({"threads": "many"}, "is damaged (threads is 'many')"),
        ({"kind": "cuda"}, "whose choice cuda cannot be opened: the onnxruntime"),
    ],
)
def test_a_forged_file_is_skipped(tuned: Bundle, changes: dict, cause: str):
    found = read_tuning(tuned)
    assert found is not None
    forged = replace(found.measurements[0], **changes)
    replace(found, measurements=(forged,)).write(tuning_file(tuned))
    assert cause in reason(tuned)


def test_another_device_has_another_file(tuned: Bundle, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tuning, "cpu_count", lambda: 1234)
    assert read_tuning(tuned) is None
    assert "tuning" not in reason(tuned)
    assert "-1234-" in tuning_file(tuned).name


def test_a_bundle_that_is_named_otherwise_is_the_same(tuned: Bundle, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tuned.path)
    assert read_tuning(Bundle.open(".")) == read_tuning(tuned)


def test_without_a_tuning_the_device_is_not_looked_at(bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tuning, "device", None)
    assert read_tuning(bundle) is None


def test_the_device_is_identified_by_board_gpus_and_processor(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tuning, "read_start", lambda path: {"model": "NVIDIA Jetson Orin\0"}.get(path.name, ""))
    assert tuning.device()["board"] == "NVIDIA Jetson Orin"
    assert "nvidia-jetson-orin" in tuning.device_key()


# The command, and real measurements.


def test_the_command(measured: Bundle, capsys: pytest.CaptureFixture[str]):
    arguments = ["tune", str(measured.path), "--rounds", "1", "--threads", "1", "--max-drop", "0.2"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "chosen" in out
    assert "variant int8 drops by 0.50 points" in out
    assert f"kept in {tuning_file(measured)}" in out
    assert main([*arguments, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    best = values["measurements"][0]
    assert values["file"] == str(tuning_file(measured))
    assert values["manifest"] == measured.manifest.digest
    assert 0 < best["milliseconds"] < 1000
    assert "measured best on this device" in load(measured.path).backend.reason


@pytest.mark.parametrize("text", ["-1", "nan", "x", "101"])
def test_max_drop_is_checked(text: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["tune", "a.krl", f"--max-drop={text}"])
    assert "accepted: 0 to 100" in capsys.readouterr().err


def test_bad_arguments_and_bundles(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UsageError, match="rounds 0"):
        tune(bundle, rounds=0)
    with pytest.raises(BundleError, match="has no golden inputs"):
        tune(write_bundle(tmp_path / "a.krl", golden=0))
    monkeypatch.setattr(module, "ALL_KINDS", ("tensorrt",))
    with pytest.raises(
        BackendError, match=r"nothing can run bundle .* here: tensorrt \(the bundle has no TensorRT engine"
    ):
        tune(bundle)


def test_best():
    found = Tuning("", {}, {}, 1, (Measurement("cpu", "a", 1, 1.0, cause="bad"), Measurement("cpu", "b", 2, 2.0)))
    assert found.best() == found.measurements[1]
