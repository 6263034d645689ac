from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from _helpers.bundles import write_bundle
from _helpers.fakes import fake_gpu_runtime
from krl_runtime import BackendError, Bundle, BundleError, UsageError, load
from krl_runtime.backends.onnxruntime import open_cpu
from krl_runtime.backends.select import KINDS, choose_variant, select_backend
from krl_runtime.backends.tensorrt import engines as tensorrt_engines
from krl_runtime.bundle import Engine

NO_ENGINE = "the bundle has no TensorRT engine; krl-deploy build-engine adds one on the device"
NO_RTX_ENGINE = "the bundle has no TensorRT-RTX engine; krl-deploy build-engine --target rtx adds one"
IMAGE = np.full((12, 10, 3), 99, np.uint8)
ENGINE = Engine("k.engine", "fp32", "0" * 64, "10.3.0.30", ("8.7",), "Orin", "linux-aarch64", ((1, 4, 8),))


class FakeEngine:
    """Stands where a TensorRT backend would."""

    image_sizes = None

    def __init__(self, bundle: Bundle, variant: str, library: str, device: int) -> None:
        self.name = library
        self._cpu = open_cpu(bundle, variant)

    def run(self, inputs: dict) -> dict:
        return self._cpu.run(inputs)

    def close(self) -> None:
        self._cpu.close()


@pytest.fixture
def with_engine(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A bundle with INT8 engines, on a machine whose TensorRT and TensorRT-RTX run them."""
    monkeypatch.setattr(tensorrt_engines, "open_engine", FakeEngine)
    both = {name: replace(ENGINE, variant="int8", library=name) for name in ("tensorrt", "tensorrt-rtx")}
    return bundle.update({"k.engine": b"plan"}, engines=both)


def test_the_cpu_is_chosen_here_and_the_reason_names_the_others(bundle: Bundle, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "krl"):
        model = load(bundle.path)
    assert model.backend.name == "onnxruntime-cpu"
    assert model.backend.variant == "fp32"
    assert model.backend.skipped.keys() == {"tensorrt", "tensorrt-rtx", "cuda"}
    assert model.backend.reason.startswith(
        "onnxruntime-cpu runs variant fp32 (the bundle names no default for cpu); skipped: "
        f"tensorrt ({NO_ENGINE}), tensorrt-rtx ({NO_RTX_ENGINE}), cuda (the onnxruntime "
    )
    assert "has no CUDA provider; on a machine with an NVIDIA GPU replace it" in model.backend.reason
    (line,) = [record for record in caplog.records if record.name == "krl"]
    assert line.levelno == logging.INFO
    assert line.getMessage() == "tiny: onnxruntime-cpu runs variant fp32 (the bundle names no default for cpu)"


@pytest.mark.parametrize(
    ("require", "message"),
    [("tensorrt", NO_ENGINE), ("tensorrt-rtx", NO_RTX_ENGINE), ("cuda", "that is installed has no CUDA provider")],
)
def test_what_is_required_and_not_here_raises_with_the_cause(bundle: Bundle, require: str, message: str):
    with pytest.raises(BackendError, match=f"cannot run on {require}, which is required: ") as caught:
        load(bundle.path, require=require)
    assert message in str(caught.value)


def test_an_engine_for_another_machine_is_skipped_with_the_cause(bundle: Bundle):
    bundle = bundle.update({"k.engine": b"plan"}, engines={"k": ENGINE})
    model = load(bundle.path)
    assert model.backend.name == "onnxruntime-cpu"
    assert "no TensorRT engine" not in model.backend.skipped["tensorrt"]
    assert model.backend.skipped["tensorrt"]
    with pytest.raises(BackendError, match="cannot run on tensorrt, which is required"):
        load(bundle.path, require="tensorrt")


def test_tensorrt_comes_first(with_engine: Bundle):
    model = load(with_engine.path)
    assert model.backend.name == "tensorrt"
    assert model.backend.reason == "tensorrt runs variant int8 (the variant that has an engine)"
    assert model.backend.skipped == {}
    assert model(IMAGE).label in model.labels


def test_require_and_backend(with_engine: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake_gpu_runtime(monkeypatch, tmp_path)
    names = {
        "tensorrt": "tensorrt",
        "tensorrt-rtx": "tensorrt-rtx",
        "cuda": "onnxruntime-cuda",
        "cpu": "onnxruntime-cpu",
    }
    for kind in KINDS:
        assert load(with_engine.path, require=kind).backend.name == names[kind]
        assert load(with_engine.path, backend=kind).backend.name == names[kind]
        assert load(with_engine.path, backend=kind, require=kind).backend.name == names[kind]
    assert load(with_engine.path, backend="auto").backend.name == "tensorrt"
    reason = load(with_engine.path, variant="fp16", require="cuda").backend.reason
    assert reason.endswith(
        "(as asked); skipped: tensorrt (cuda alone was asked for), tensorrt-rtx (cuda alone was asked for)"
    )
    assert "cuda (backend cpu was asked for)" in load(with_engine.path, backend="cpu").backend.reason


def test_backend_says_where_to_begin_and_goes_on_from_there(bundle: Bundle):
    model = load(bundle.path, backend="cuda")
    assert model.backend.name == "onnxruntime-cpu"
    assert model.backend.skipped["tensorrt"] == "backend cuda was asked for"
    assert "has no CUDA provider" in model.backend.skipped["cuda"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"backend": "gpu"},
            "backend is 'gpu'; accepted: auto, tensorrt, tensorrt-rtx, cuda, openvino-bf16, openvino, cpu",
        ),
        (
            {"require": "auto"},
            "require is 'auto'; accepted: tensorrt, tensorrt-rtx, cuda, openvino-bf16, openvino, cpu",
        ),
        ({"backend": "cpu", "require": "cuda"}, "backend is 'cpu' but require is 'cuda'; give one of them"),
        (
            {"variant": "int4"},
            "has no variant 'int4'; it has: fp16, fp32, int8; krl-deploy fp16 and krl-deploy quantize",
        ),
        ({"threads": 0}, "threads is 0; accepted: 1 or more"),
    ],
)
def test_arguments_are_checked(bundle: Bundle, arguments: dict, message: str):
    with pytest.raises(UsageError) as caught:
        load(bundle.path, **arguments)
    assert message in str(caught.value)


def test_without_onnxruntime_no_backend_is_left(bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match="no backend can run bundle") as caught:
        load(bundle.path)
    message = str(caught.value)
    assert f"tensorrt ({NO_ENGINE})" in message
    assert "[gpu]'), cpu (running a model on ONNX Runtime needs onnxruntime, which is not installed" in message
    assert "[cpu]'); run krl-runtime doctor" in message
    assert message.endswith("run krl-runtime doctor to check this machine")


def test_a_damaged_file_is_no_reason_to_fall_back(with_engine: Bundle, monkeypatch: pytest.MonkeyPatch):
    def open_engine(bundle: Bundle, variant: str, library: str, device: int) -> None:
        bundle.file("k.engine")

    monkeypatch.setattr(tensorrt_engines, "open_engine", open_engine)
    (with_engine.path / "k.engine").write_bytes(b"plot")
    with pytest.raises(BundleError, match=r"k\.engine is damaged or was changed"):
        load(with_engine.path)


# Variants.


@pytest.mark.parametrize(
    ("defaults", "engines", "expected"),
    [
        ({}, (), {"tensorrt": "fp32", "tensorrt-rtx": "fp32", "cuda": "fp32", "cpu": "fp32"}),
        ({"cpu": "int8"}, (), {"tensorrt": "fp32", "tensorrt-rtx": "fp32", "cuda": "fp32", "cpu": "int8"}),
        ({"cuda": "fp16"}, ("int8",), {"tensorrt": "fp16", "tensorrt-rtx": "fp16", "cuda": "fp16", "cpu": "fp32"}),
        ({}, ("int8", "fp16"), {"tensorrt": "fp16", "tensorrt-rtx": "fp32", "cuda": "fp32", "cpu": "fp32"}),
        ({}, ("int8", "fp32"), {"tensorrt": "fp32", "tensorrt-rtx": "fp32", "cuda": "fp32", "cpu": "fp32"}),
    ],
)
def test_variant_that_each_kind_runs(bundle: Bundle, defaults: dict, engines: tuple, expected: dict):
    bundle = bundle.update(
        {f"{name}.engine": b"plan" for name in engines},
        engines={name: replace(ENGINE, file=f"{name}.engine", variant=name) for name in engines},
        default_variants=defaults,
    )
    assert {kind: choose_variant(bundle, kind)[0] for kind in KINDS} == expected


def test_the_bundles_default_is_run_and_named(tmp_path: Path):
    bundle = write_bundle(tmp_path / "a.krl", variants=("fp32", "int8"), default_variants={"cpu": "int8"})
    model = load(bundle.path)
    assert model.backend.variant == "int8"
    assert model.backend.reason.startswith("onnxruntime-cpu runs variant int8 (the bundle's default on cpu)")
    model = load(bundle.path, variant="fp32")
    assert model.backend.reason.startswith("onnxruntime-cpu runs variant fp32 (as asked)")


def test_each_kind_runs_the_file_made_for_it(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The files differ by what they add to every logit."""
    fake_gpu_runtime(monkeypatch, tmp_path)
    pixels = bundle.golden()["pixels"]
    golden = bundle.golden()["logits"]
    for kind, variant, shift in [
        ("cpu", "fp32", 0), ("cpu", "fp16", 0.002), ("cpu", "int8", 0.02), ("cuda", "int8", 0.01), ("cuda", "fp32", 0)
    ]:  # fmt: skip
        model = load(bundle.path, variant=variant, require=kind)
        assert np.abs(model.logits(pixels) - golden - shift).max() < 1e-5, (kind, variant)


# The selection itself is a backend.


def test_selection_runs_and_closes(bundle: Bundle):
    selected = select_backend(bundle, threads=1)
    pixels = bundle.golden()["pixels"]
    assert np.abs(selected.run({"pixels": pixels})["logits"] - bundle.golden()["logits"]).max() < 1e-5
    selected.close()
    with pytest.raises(BackendError, match="onnxruntime-cpu is closed"):
        selected.run({"pixels": pixels})
