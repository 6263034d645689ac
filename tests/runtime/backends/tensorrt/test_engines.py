"""Which engine of a bundle is opened, and why not the others."""

from dataclasses import replace

import numpy as np
import pytest

from _helpers.bundles import add_engines, write_bundle
from _helpers.fake_cuda import GPU_NAME
from _helpers.fake_tensorrt import faked
from _helpers.tensorrt_bindings import GENERATIONS
from krl_runtime.backends.cuda import Gpu, platform_key
from krl_runtime.backends.select import select_backend
from krl_runtime.backends.tensorrt.engines import mismatch, open_engine
from krl_runtime.backends.tensorrt.library import Library
from krl_runtime.bundle import Engine
from krl_runtime.errors import BackendError, BundleError
from krl_runtime.images.preprocessing import Preprocessing

SPEC = Preprocessing(12, 10)


trt = faked(*GENERATIONS)
newest = faked(GENERATIONS[-1])


def shapes(*batches):
    return {"pixels": [[batch, *SPEC.shape] for batch in batches]}


def bundle_with(tmp_path, trt, *engines, **changes):
    """A bundle with engines that differ from a fitting one in the given fields."""
    bundle = write_bundle(tmp_path / "m.krl", variants=("fp32", "int8"))
    file = bundle.manifest.variants["int8"].file
    fitting = Engine(
        file="engines/0.engine",
        variant="int8",
        onnx_sha256=bundle.manifest.files[file].sha256,
        version=trt.version,
        compute_capabilities=("9.0",),
        gpu=GPU_NAME,
        platform=platform_key(),
        profiles=((1, 4, 8),),
    )
    made = {f"e{i}": replace(fitting, file=f"engines/{i}.engine", **item) for i, item in enumerate(engines)}
    onnx_bytes = bundle.read(file)
    plans = {
        engine.file: trt.plan(onnx_bytes, [shapes(*sizes) for sizes in engine.profiles], engine.stripped)
        for engine in made.values()
    }
    return add_engines(bundle, plans, made)


def test_open_engine_runs_the_one_that_fits(tmp_path, trt):
    bundle = bundle_with(
        tmp_path, trt, {"compute_capabilities": ("8.7",)}, {}, {"profiles": ((1, 1, 1),)}, {"gpu": "Other"}
    )
    backend = open_engine(bundle, "int8")
    golden = bundle.golden()
    result = backend.run({"pixels": golden["pixels"]})
    np.testing.assert_allclose(result["logits"], golden["logits"] + 0.01, atol=1e-4)  # the file of variant int8
    assert backend._label == "e1"
    selected = select_backend(bundle, variant="int8")
    assert selected.name == "tensorrt"
    assert "tensorrt runs variant int8" in selected.reason


def test_an_engine_of_another_gpu_of_the_same_kind_runs_with_a_warning(tmp_path, newest, caplog):
    open_engine(bundle_with(tmp_path, newest, {"gpu": "Other GPU"}), "int8").close()
    assert f"built on a Other GPU; on this {GPU_NAME} it may be slower" in caplog.text


def test_a_stripped_engine_takes_its_weights_from_the_bundle(tmp_path, trt):
    bundle = bundle_with(tmp_path, trt, {"stripped": True})
    golden = bundle.golden()
    result = open_engine(bundle, "int8").run({"pixels": golden["pixels"]})
    np.testing.assert_allclose(result["logits"], golden["logits"] + 0.01, atol=1e-4)


def test_each_engine_that_does_not_fit_has_its_sentence(tmp_path, newest):
    bundle = bundle_with(
        tmp_path,
        newest,
        {"version": "10.3.0", "compute_capabilities": ("8.7",)},
        {"platform": "linux-riscv"},
        {"onnx_sha256": "0" * 64},
    )
    with pytest.raises(BackendError) as caught:
        open_engine(bundle, "int8")
    message = str(caught.value)
    assert f"engine built by TensorRT 10.3.0 for sm_87, this is {newest.version} on sm_90" in message
    assert f"engine built for linux-riscv, this is {platform_key()}" in message
    assert "engines/2.engine was built from an older ONNX file of variant int8" in message
    assert f"krl-deploy build-engine {bundle.path} --precision int8" in message
    with pytest.raises(BackendError, match="the bundle has no TensorRT engine of variant fp32"):
        open_engine(bundle, "fp32")


def test_a_changed_engine_is_not_given_to_tensorrt(tmp_path, newest):
    bundle = bundle_with(tmp_path, newest, {})
    (bundle.path / "engines" / "0.engine").write_bytes(b"ftrt" + bytes(100))
    with pytest.raises(BundleError, match="is damaged or was changed"):
        open_engine(bundle, "int8")
    assert newest.calls["Runtime.deserialize_cuda_engine"] == 0


ENGINE = Engine("e", "int8", "h", "10.16.1.11", ("8.6",), "RTX", platform_key(), ((1, 1, 1),))


@pytest.mark.parametrize(
    ("changes", "version", "capability", "fits"),
    [
        ({}, "10.16.1.11", "8.6", True),
        ({}, "10.16.1.12", "8.6", False),
        ({}, "10.16.1.11", "8.9", False),
        ({"version_compatible": True}, "10.17.0", "8.6", True),
        ({"version_compatible": True}, "10.15.9", "8.6", False),
        ({"version_compatible": True}, "11.4.0.106", "8.6", True),
        ({}, "11.4.0.106", "8.6", False),
        ({"version_compatible": True}, "12.0.0", "8.6", False),
        ({"hardware_compatibility": "ampere-plus"}, "10.16.1.11", "12.0", True),
        ({"hardware_compatibility": "ampere-plus"}, "10.16.1.11", "7.5", False),
        ({"hardware_compatibility": "same-compute-capability"}, "10.16.1.11", "8.9", False),
    ],
)
def test_which_engines_run_where(changes, version, capability, fits):
    cause = mismatch(replace(ENGINE, **changes), Library("tensorrt", None, version), Gpu("RTX", capability, 1, 1), "h")
    sm = capability.replace(".", "")
    assert cause == (None if fits else f"engine built by TensorRT 10.16.1.11 for sm_86, this is {version} on sm_{sm}")
