from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import pytest

from _helpers.bundles import TinyNet, write_bundle
from krl_runtime import BackendError, Bundle, MissingExtraError, Preprocessing, load
from krl_runtime.backends.openvino import open_openvino
from krl_runtime.device.doctor import doctor
from krl_runtime.device.selftest import selftest

IMAGE = np.full((12, 10, 3), 99, np.uint8)


@pytest.fixture
def installed() -> None:
    pytest.importorskip("openvino")


def test_it_is_chosen_only_when_asked_for(installed, bundle: Bundle):
    assert load(bundle.path).backend.name == "onnxruntime-cpu"
    assert "openvino" not in load(bundle.path).backend.reason
    for arguments in ({"backend": "openvino"}, {"require": "openvino"}):
        model = load(bundle.path, **arguments)
        assert model.backend.name == "openvino"
        assert model.backend.reason.startswith("openvino runs variant fp32 (the bundle names no default for cpu)")
    asked = load(bundle.path, backend="openvino").backend.skipped
    assert asked == dict.fromkeys(("tensorrt", "tensorrt-rtx", "cuda"), "backend openvino was asked for")


@pytest.mark.parametrize("threads", [None, 1, 2])
def test_it_computes_what_numpy_computes(installed, bundle: Bundle, threads: int | None):
    model = load(bundle.path, require="openvino", variant="fp32", threads=threads)
    golden = bundle.golden()
    for count in (1, 3, 6, 1):
        assert np.abs(model.logits(golden["pixels"][:count]) - golden["logits"][:count]).max() < 1e-4


def test_it_runs_the_file_for_tensorrt(installed, bundle: Bundle):
    shift = load(bundle.path, require="openvino", variant="int8").logits(bundle.golden()["pixels"])
    assert np.abs(shift - bundle.golden()["logits"] - 0.01).max() < 1e-3  # see _helpers.bundles.SHIFTS


def test_results_are_the_callers_own(installed, bundle: Bundle):
    model = load(bundle.path, require="openvino")
    pixels = bundle.golden()["pixels"]
    first = model.logits(pixels[:1])
    kept = first.copy()
    model.logits(pixels[1:2])
    assert np.array_equal(first, kept)


def test_threads_get_what_one_gets(installed, bundle: Bundle):
    model = load(bundle.path, require="openvino", threads=1)
    pixels = bundle.golden()["pixels"]
    alone = [model.logits(pixels[i : i + 1 + i % 2]) for i in range(5)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda i: model.logits(pixels[i % 5 : i % 5 + 1 + i % 5 % 2]), range(200)))
    assert all(np.array_equal(values, alone[i % 5]) for i, values in enumerate(together))


def test_a_graph_for_one_image(installed, tmp_path: Path):
    bundle = write_bundle(tmp_path / "a.krl", batch=1)
    model = load(bundle.path, require="openvino")
    assert [answer.label for answer in model([IMAGE, IMAGE])] == [model(IMAGE).label] * 2


def test_closed(installed, bundle: Bundle):
    model = load(bundle.path, require="openvino")
    model.close()
    with pytest.raises(BackendError, match="openvino is closed; load the bundle again"):
        model(IMAGE)


def test_bf16_has_its_own_name_and_less_precision(installed, bundle: Bundle):
    try:
        model = load(bundle.path, require="openvino-bf16")
    except BackendError as error:
        pytest.skip(str(error))
    assert model.backend.name == "openvino-bf16"
    golden = bundle.golden()
    error = np.abs(model.logits(golden["pixels"]) - golden["logits"]).max()
    assert 1e-6 < error < 0.1 * np.abs(golden["logits"]).max()


def test_a_cpu_without_bf16(bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    module = ModuleType("openvino")
    module.Core = lambda: SimpleNamespace(get_property=lambda *_: ["FP32", "INT8"])
    monkeypatch.setitem(sys.modules, "openvino", module)
    with pytest.raises(BackendError, match="this CPU has no BF16 instructions; openvino computes in FP32"):
        open_openvino(bundle, "fp32", bf16=True)


def test_where_it_is_not_installed(bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"needs openvino, which is not installed; .*\[openvino\]"):
        open_openvino(bundle, "fp32")
    model = load(bundle.path, backend="openvino")
    assert model.backend.name == "onnxruntime-cpu"
    assert "openvino (running a model on OpenVINO needs openvino" in model.backend.reason
    with pytest.raises(BackendError, match="cannot run on openvino, which is required"):
        load(bundle.path, require="openvino")


def test_files_that_it_cannot_run(installed, tmp_path: Path):
    broken = write_bundle(tmp_path / "a.krl", contents={"model.fp32.onnx": b"not a graph"})
    with pytest.raises(BackendError, match="cannot open the model: "):
        open_openvino(broken, "fp32")
    other = TinyNet.random(Preprocessing(9, 9), 4).onnx()
    with pytest.raises(BackendError, match=r"has inputs pixels uint8 \[\?, 3, 9, 9\], the manifest says"):
        open_openvino(write_bundle(tmp_path / "b.krl", contents={"model.fp32.onnx": other}), "fp32")
    model = onnx.load_model_from_string(TinyNet.random(Preprocessing(12, 10), 4).onnx())
    outside = tmp_path / "c.onnx"
    onnx.save_model(model, outside, save_as_external_data=True, location="w.bin", size_threshold=0)
    bundle = write_bundle(tmp_path / "c.krl", contents={"model.fp32.onnx": outside})
    with pytest.raises(BackendError, match="keeps weights in other files"):
        open_openvino(bundle, "fp32")


def test_doctor_and_selftest_know_it(installed, bundle: Bundle):
    (finding,) = [item for item in doctor() if item.component == "openvino"]
    assert (finding.state, finding.runs_models) == ("ok", True)
    states = {item.variant: item.state for item in selftest(bundle) if item.kind == "openvino"}
    assert states == dict.fromkeys(("fp32", "fp16", "int8"), "passed")
