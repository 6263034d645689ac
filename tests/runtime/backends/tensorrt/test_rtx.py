"""The backend ``tensorrt-rtx`` on a fake whose calls are bound to the signatures of the real bindings."""

import logging
import os
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from _helpers.bundles import TinyNet, add_engines, write_bundle
from _helpers.fake_cuda import GPU_NAME
from _helpers.fake_tensorrt import install_fakes
from _helpers.tensorrt_bindings import RTX
from krl_runtime import load
from krl_runtime.backends.cuda import Gpu
from krl_runtime.backends.tensorrt.backend import TensorRTBackend
from krl_runtime.backends.tensorrt.engines import mismatch, open_engine
from krl_runtime.backends.tensorrt.library import Library
from krl_runtime.backends.tensorrt.rtx import cache_file
from krl_runtime.bundle import Engine
from krl_runtime.errors import BackendError
from krl_runtime.images.preprocessing import Preprocessing

SPEC = Preprocessing(12, 10)
NET = TinyNet.random(SPEC, 4)
PROFILE = {"pixels": [[batch, *SPEC.shape] for batch in (1, 4, 8)]}


@pytest.fixture
def rtx(pytestconfig, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return install_fakes(RTX, pytestconfig, monkeypatch)


def engine_of(rtx, bundle, **changes):
    file = bundle.manifest.variants["fp32"].file
    engine = Engine(
        "engines/a.engine", "fp32", bundle.manifest.files[file].sha256, rtx.version, (), "", "", ((1, 4, 8),),
        library="tensorrt-rtx",
    )  # fmt: skip
    return replace(engine, **changes)


@pytest.fixture
def bundle(rtx, tmp_path):
    """A bundle with an engine of TensorRT-RTX and no other."""
    made = write_bundle(tmp_path / "m.krl")
    plan = rtx.plan(made.read("model.fp32.onnx"), [PROFILE])
    return add_engines(made, {"engines/a.engine": plan}, {"a": engine_of(rtx, made)})


def test_it_comes_after_tensorrt_and_before_cuda(rtx, bundle):
    with load(bundle.path) as model:
        assert model.backend.name == "tensorrt-rtx"
        assert list(model.backend.skipped) == ["tensorrt"]
        images = list(bundle.golden()["pixels"].transpose(0, 2, 3, 1))
        assert [result.index for result in model(images)] == bundle.golden()["logits"].argmax(1).tolist()
    assert rtx.cuda.leaks() == {"memory": 0, "streams": 0, "graphs": 0}


def test_the_library_captures_its_own_cuda_graphs(rtx, bundle):
    backend = open_engine(bundle, "fp32", "tensorrt-rtx")
    pixels = bundle.golden()["pixels"][:2]
    for _ in range(4):
        backend.run({"pixels": pixels})
    assert rtx.cuda.calls["cudaStreamBeginCapture"] == 0
    (given,) = rtx.contexts
    strategy = given["runtime_config"].cuda_graph_strategy
    assert strategy == rtx.module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE


def test_kernels_are_kept_for_the_next_start(rtx, bundle):
    sha256 = bundle.manifest.files["engines/a.engine"].sha256
    path = cache_file(sha256, rtx.library, GPU_NAME)
    assert not path.exists()
    open_engine(bundle, "fp32", "tensorrt-rtx").close()
    assert path.read_bytes() == b"kernels of " + rtx.version.encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert rtx.calls["IRuntimeCache.deserialize"] == 0
    written = path.stat().st_mtime_ns
    open_engine(bundle, "fp32", "tensorrt-rtx").close()
    assert rtx.calls["IRuntimeCache.deserialize"] == 1
    assert path.stat().st_mtime_ns == written  # nothing new was compiled


@pytest.mark.parametrize("fault", ["other", "writable", "huge", "folder"])
def test_a_cache_that_cannot_be_used_is_made_again(rtx, bundle, fault, caplog, monkeypatch):
    path = cache_file(bundle.manifest.files["engines/a.engine"].sha256, rtx.library, GPU_NAME)
    path.parent.mkdir(parents=True)
    if fault == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"of another driver" if fault == "other" else b"kernels")
        path.chmod(0o666 if fault == "writable" else 0o600)
    if fault == "huge":
        monkeypatch.setattr("krl_runtime.backends.tensorrt.rtx._MAX_CACHE_BYTES", 3)
    with caplog.at_level(logging.INFO, "krl"):
        backend = open_engine(bundle, "fp32", "tensorrt-rtx")
    golden = bundle.golden()
    np.testing.assert_allclose(backend.run({"pixels": golden["pixels"]})["logits"], golden["logits"], atol=1e-4)
    backend.close()
    if fault == "folder":
        assert "cannot be" in caplog.text
    else:
        assert path.read_bytes() == b"kernels of " + rtx.version.encode()
        assert {"other": "does not fit", "writable": "others may write it", "huge": "too large"}[fault] in caplog.text


def test_a_full_disk_costs_time_alone(rtx, bundle, monkeypatch, caplog):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("krl_runtime.backends.tensorrt.rtx.write_atomic", full)
    with caplog.at_level(logging.INFO, "krl"):
        open_engine(bundle, "fp32", "tensorrt-rtx").close()
    assert caplog.text.count("cannot be kept") == 1


def test_the_cache_belongs_to_engine_library_and_gpu():
    library = Library("tensorrt-rtx", None, "1.7.1")
    paths = {
        cache_file("a" * 64, library, "RTX 4090"),
        cache_file("b" * 64, library, "RTX 4090"),
        cache_file("a" * 64, replace(library, version="1.8.0"), "RTX 4090"),
        cache_file("a" * 64, library, "RTX 5090"),
    }
    assert len(paths) == 4
    assert all(path.parent.parts[-2:] == ("krl", "tensorrt-rtx") for path in paths)


def test_the_cache_folder_is_the_home_folders_without_xdg(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    path = cache_file("a" * 64, Library("tensorrt-rtx", None, "1.7.1"), "../../etc/passwd")
    assert path.parent == Path.home() / ".cache" / "krl" / "tensorrt-rtx"
    assert os.sep not in path.name


def test_a_user_without_a_home_has_no_cache(monkeypatch):
    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    assert cache_file("a" * 64, Library("tensorrt-rtx", None, "1.7.1"), "RTX 4090") is None


@pytest.mark.parametrize(
    ("capabilities", "version", "gpu", "fits"),
    [
        ((), "1.7.1", "8.6", True),
        ((), "1.7.1", "12.0", True),
        ((), "1.7.1", "7.5", False),
        (("7.5",), "1.7.1", "7.5", True),
        (("8.6", "8.9"), "1.7.1", "8.9", True),
        (("8.6", "8.9"), "1.7.1", "12.0", False),
        ((), "1.7.2", "8.9", False),
    ],
)
def test_which_engines_run_where(capabilities, version, gpu, fits):
    engine = Engine("e", "fp16", "h", "1.7.1", capabilities, "", "", ((1, 1, 1),), library="tensorrt-rtx")
    cause = mismatch(engine, Library("tensorrt-rtx", None, version), Gpu("RTX", gpu, 1, 1), "h")
    shown = ", ".join(f"sm_{name.replace('.', '')}" for name in capabilities) or "sm_86 and later"
    sm = gpu.replace(".", "")
    expected = f"engine built by TensorRT-RTX 1.7.1 for {shown}, this is {version} on sm_{sm}"
    assert cause == (None if fits else expected)


def test_the_engine_that_is_for_the_fewest_gpus_is_taken(rtx, bundle):
    plan = bundle.read("engines/a.engine")
    engines = {
        name: engine_of(rtx, bundle, file=f"engines/{name}.engine", compute_capabilities=capabilities)
        for name, capabilities in {"any": (), "two": ("8.9", "9.0"), "one": ("9.0",), "other": ("8.6",)}.items()
    }
    changed = add_engines(bundle, {engine.file: plan for engine in engines.values()}, engines)
    assert open_engine(changed, "fp32", "tensorrt-rtx")._label == "one"


def test_without_an_engine_or_the_library_the_message_says_what_to_do(rtx, bundle, tmp_path):
    with pytest.raises(BackendError, match=r"no TensorRT-RTX engine of variant int8; run: .* --target rtx$"):
        open_engine(bundle, "int8", "tensorrt-rtx")
    other = write_bundle(tmp_path / "other.krl")
    with pytest.raises(BackendError, match=r"cannot run on tensorrt-rtx.*build-engine --target rtx adds one"):
        load(other.path, require="tensorrt-rtx")


def test_an_engine_of_tensorrt_is_not_one_of_rtx(rtx, bundle):
    plan = b"ftrt" + bundle.read("engines/a.engine")[4:]
    with pytest.raises(BackendError, match="it is damaged, or not a TensorRT engine"):
        TensorRTBackend(rtx.library, plan, label="a")
