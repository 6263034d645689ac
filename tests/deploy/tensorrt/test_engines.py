"""``build-engine`` on fakes of TensorRT 10.3, 10.16 and 11.4 whose calls are bound to the real signatures."""

import json
import logging
import os
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from _helpers.bundles import SHIFTS, TinyNet, npz, write_bundle
from _helpers.fake_cuda import GPU_NAME
from _helpers.fake_tensorrt import faked, install_fakes
from _helpers.image_nets import LABELS_CONDITION, smooth, write_generator, write_restorer
from _helpers.tensorrt_bindings import GENERATIONS
from krl_deploy.cli import build_engine, inspect_engine
from krl_deploy.precision.emit_fp16 import to_fp16
from krl_deploy.tensorrt.config import BuildEngineConfig, InspectEngineConfig
from krl_runtime import Generator, Restorer, load
from krl_runtime.backends.cuda import platform_key
from krl_runtime.backends.tensorrt.engines import open_engine
from krl_runtime.bundle import Bundle, Variant
from krl_runtime.device.selftest import selftest
from krl_runtime.errors import BackendError, BundleError, CheckFailedError, KrlError, ModelError, UsageError
from krl_runtime.files import sha256_bytes, sha256_file
from krl_runtime.images.preprocessing import Preprocessing
from krl_runtime.pipelines.restorer import longest_part

NO_LEAKS = {"memory": 0, "streams": 0, "graphs": 0}


trt = faked(*GENERATIONS)
newest = faked(GENERATIONS[-1])


@pytest.fixture
def half(tmp_path):
    """A bundle whose FP16 variant computes in FP16."""
    fp32 = TinyNet.random(Preprocessing(12, 10), 4).onnx(SHIFTS["model.fp16.onnx"])
    fp16 = to_fp16(onnx.load_model_from_string(fp32), {}).model.SerializeToString()
    return write_bundle(tmp_path / "half.krl", variants=("fp32", "fp16"), contents={"model.fp16.onnx": fp16})


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "tiny.krl", variants=("fp32", "fp16", "int8"))


def tree(bundle):
    return {str(path.relative_to(bundle.path)): sha256_file(path) for path in bundle.path.rglob("*") if path.is_file()}


def config(model, precision="int8", **changes):
    return BuildEngineConfig(getattr(model, "path", model), precision=precision, **{"profile": ("1,4,8",), **changes})


def key_of(trt, bundle, rest="b1-4-8", precision="int8"):
    onnx = sha256_file(bundle.path / f"model.{precision}.onnx")
    return f"{precision}-trt{trt.version}-sm90-{platform_key()}-{rest}-{onnx[:8]}"


def test_an_engine_is_built_checked_and_registered(trt, bundle, capsys):
    assert build_engine(config(bundle)) is None
    built = Bundle.open(bundle.path)
    built.verify()
    key = key_of(trt, bundle)
    assert list(built.manifest.engines) == [key]
    engine = built.manifest.engines[key]
    onnx = built.file("model.int8.onnx")
    assert engine.file == f"engines/{key}.engine"
    assert (engine.variant, engine.onnx_sha256, engine.version) == ("int8", sha256_file(onnx), trt.version)
    assert (engine.compute_capabilities, engine.gpu, engine.platform) == (("9.0",), GPU_NAME, platform_key())
    assert engine.library == "tensorrt"
    assert engine.profiles == ((1, 4, 8),)
    # The bytes are those that TensorRT gave, and nothing else.
    expected = trt.plan(onnx.read_bytes(), [{"pixels": [[n, 3, 12, 10] for n in (1, 4, 8)]}])
    assert built.read(engine.file) == expected
    evidence = built.manifest.evidence["engines"][key]
    assert evidence["parity"]["inputs"] == 6
    assert evidence["parity"]["max_error"] == pytest.approx(0.01, abs=1e-3)  # what the int8 file adds to the logits
    assert evidence["parity"]["agreement"] == 1.0
    # Strongly typed: asked for on 10, the only kind on 11. No precision flag on either.
    assert trt.network_flags == (2 if trt.version.startswith("10") else 0)
    assert trt.set_flags == []
    assert trt.cuda.leaks() == NO_LEAKS
    assert key in capsys.readouterr().out
    golden = built.golden()
    with load(built.path, variant="int8", require="tensorrt") as model:
        assert model.backend.name == "tensorrt"
        images = list(golden["pixels"].transpose(0, 2, 3, 1))
        assert [answer.index for answer in model(images)] == golden["logits"].argmax(1).tolist()


def test_a_restorer_of_one_size_runs_on_its_engine(trt, tmp_path):
    bundle = write_restorer(tmp_path / "parts.krl", size=(24, 20))
    assert build_engine(config(bundle, "fp32", profile=("1,1,1",))) is None
    image = smooth(61, 47, 3)
    with load(bundle.path, Restorer, require="tensorrt") as engine, load(bundle.path, Restorer, backend="cpu") as cpu:
        made = engine(image).pixels
        assert made.shape == (122, 94, 3)
        assert np.abs(made.astype(int) - cpu(image).pixels).max() <= 1
    assert trt.cuda.leaks() == NO_LEAKS


def test_an_engine_for_a_range_of_sizes_restores_images_of_any_size(trt, tmp_path):
    """Without sizes the engine is for the parts that images are cut into; smaller and larger images run as well."""
    bundle = write_restorer(tmp_path / "open.krl")
    longest = longest_part(bundle.manifest.settings["overlap"])
    assert build_engine(config(bundle, "fp32", profile=("1,1,1",))) is None
    (engine,) = Bundle.open(bundle.path).manifest.engines.values()
    assert engine.height == engine.width == (16, longest, longest)
    with load(bundle.path, Restorer, require="tensorrt") as model, load(bundle.path, Restorer, backend="cpu") as cpu:
        for height, width in ((61, 47), (5, 300), (700, 40)):
            image = smooth(height, width, 3)
            difference = np.abs(model(image).pixels.astype(int) - cpu(image).pixels)
            inner = difference[: 2 * height - 24, : 2 * width - 24] if min(height, width) < 16 else difference
            assert inner.size == 0 or inner.max() <= 1  # beside the padded rows nothing differs
    assert trt.cuda.leaks() == NO_LEAKS


def test_an_engine_for_small_sizes_gets_images_in_small_parts(trt, tmp_path):
    bundle = write_restorer(tmp_path / "open.krl")
    assert build_engine(config(bundle, "fp32", profile=("1,1,1",), height="16,48,64", width="20,40,40")) is None
    key = next(iter(Bundle.open(bundle.path).manifest.engines))
    assert "-h16-48-64-w20-40-40-" in key
    image = smooth(150, 97, 3)
    with load(bundle.path, Restorer, require="tensorrt") as model, load(bundle.path, Restorer, backend="cpu") as cpu:
        assert model.backend.image_sizes == ((16, 64), (20, 40))
        assert np.abs(model(image).pixels.astype(int) - cpu(image).pixels).max() <= 1
        with pytest.raises(BackendError, match=r"has height 65, the engine takes 16 to 64; .*--height MIN,OPT,MAX"):
            model.backend.run({"pixels": np.zeros((1, 1, 65, 40), np.uint8)})


def test_sizes_that_cannot_be_are_refused(newest, tmp_path, bundle):
    restorer = write_restorer(tmp_path / "open.krl")
    wide = write_restorer(tmp_path / "wide.krl", overlap=30)
    with pytest.raises(UsageError, match=r"--height is 1,40,60; the receptive field of this network has a radius of"):
        build_engine(config(wide, "fp32", profile=("1,1,1",), height="1,40,60"))
    with pytest.raises(UsageError, match=r"--width is 64,64,64; accepted: a range with 20, the width of the bundle's"):
        build_engine(config(restorer, "fp32", profile=("1,1,1",), width="64,64,64"))
    with pytest.raises(UsageError, match=r"--height is for graphs that take images of any height; this one is fixed"):
        build_engine(config(bundle, height="16,16,16"))
    with pytest.raises(UsageError, match=r"--compute-capability is for --target rtx"):
        build_engine(config(bundle, compute_capability=("8.6",)))
    onnx = restorer.path / "model.fp32.onnx"
    with pytest.raises(UsageError, match=r"--height is missing: input 'pixels' takes images of any height"):
        build_engine(config(onnx, None, profile=("1,1,1",)))


def test_a_network_that_needs_the_whole_image_says_how_large_it_may_be(newest, tmp_path):
    bundle = write_restorer(tmp_path / "whole.krl", overlap=None)
    with pytest.raises(UsageError, match=r"--height is missing: .* needs the whole image.*--height MIN,OPT,MAX"):
        build_engine(config(bundle, "fp32", profile=("1,1,1",)))
    build_engine(config(bundle, "fp32", profile=("1,1,1",), height="16,32,64", width="16,32,64"))
    with load(bundle.path, Restorer, require="tensorrt") as model:
        assert model(smooth(64, 20, 3)).pixels.shape == (128, 40, 3)
        with pytest.raises(BackendError, match=r"side of 65 pixels does not fit the engine, which takes at most 64"):
            model(smooth(65, 20, 3))


def test_a_generator_with_labels_runs_on_its_engine(trt, tmp_path):
    bundle = write_generator(tmp_path / "gan.krl", condition=LABELS_CONDITION)
    assert build_engine(config(bundle, "fp32", profile=("1,4,8",))) is None
    with load(bundle.path, Generator, require="tensorrt") as engine, load(bundle.path, Generator, backend="cpu") as cpu:
        made, wanted = (model.generate(11, seed=3, condition="dog") for model in (engine, cpu))
    assert max(np.abs(a.pixels.astype(int) - b.pixels).max() for a, b in zip(made, wanted, strict=True)) <= 1
    assert trt.cuda.leaks() == NO_LEAKS


def test_the_other_files_of_the_bundle_stay_as_they_were(newest, bundle):
    before = tree(bundle)
    build_engine(config(bundle))
    after = tree(bundle)
    assert {name for name in after if after[name] != before.get(name)} == {
        "manifest.json",
        "timing.cache",
        f"engines/{key_of(newest, bundle)}.engine",
    }
    assert set(before) <= set(after)


def test_several_engines_and_a_second_build_of_one(newest, bundle):
    build_engine(config(bundle))
    build_engine(config(bundle, "fp32", profile=("1,1,1",)))
    build_engine(config(bundle))
    built = Bundle.open(bundle.path)
    assert set(built.manifest.engines) == {key_of(newest, bundle), key_of(newest, bundle, "b1-1-1", "fp32")}
    assert set(built.manifest.evidence["engines"]) == set(built.manifest.engines)
    built.verify()


def test_the_timing_cache_is_kept_and_one_of_another_device_is_set_aside(newest, bundle, caplog):
    seen = []
    original = newest._IBuilderConfig_create_timing_cache

    def create(this, serialized_timing_cache):
        seen.append(bytes(serialized_timing_cache))
        return original(this, serialized_timing_cache)

    newest._IBuilderConfig_create_timing_cache = create
    build_engine(config(bundle))
    build_engine(config(bundle, "fp32"))
    assert seen == [b"", b"timings of 11.4.0.106"]
    assert "timing cache" not in caplog.text
    Bundle.open(bundle.path).update({"timing.cache": b"timings of 10.3.0"})
    seen.clear()
    build_engine(config(bundle, "fp16"))
    assert seen == [b"timings of 10.3.0", b""]
    assert "the timing cache is of another GPU or TensorRT; a new one is started" in caplog.text
    assert Bundle.open(bundle.path).read("timing.cache") == b"timings of 11.4.0.106"


@pytest.mark.parametrize("difference", [1.0, float("nan")])
def test_an_engine_that_answers_wrongly_is_not_kept(trt, bundle, difference):
    before = tree(bundle)
    trt.wrong_answer = difference
    with pytest.raises(CheckFailedError, match=r"was not kept: .* on 6 golden inputs, the largest error .* 0\.05"):
        build_engine(config(bundle))
    assert tree(bundle) == before
    assert trt.cuda.leaks() == NO_LEAKS


def test_every_batch_of_the_profile_is_checked(newest, tmp_path):
    """Wrong in the largest batch alone: seen all the same."""
    bundle = write_bundle(tmp_path / "b.krl", variants=("fp32",), golden=3)
    original = newest._compute

    def compute(context, shapes):
        newest.wrong_answer = 1.0 if shapes["pixels"][0] == 8 else 0.0
        original(context, shapes)

    newest._compute = compute
    with pytest.raises(CheckFailedError, match="in batches of 8, on 3 golden inputs, the largest error 1 is above"):
        build_engine(config(bundle, "fp32", profile=("1,4,8",)))
    build_engine(config(bundle, "fp32", profile=("1,4,7",)))


def faults(fake):
    for key in sorted(fake.calls):
        returns = fake.returns(key)
        if key.startswith("ILogger"):
            continue
        if returns == "bool" and key != "IBuilderConfig.can_run_on_DLA":  # where False is an answer
            yield key, False
        if fake.is_class(returns):
            yield key, None
        yield key, RuntimeError("out of order")


def test_every_failing_call_is_an_error_with_its_cause_and_changes_nothing(trt, pytestconfig, half, tmp_path):
    trt.dla_cores, trt.not_on_dla = 1, ("logits",)
    options = {"dla_core": 0, "profile": ("2,2,2",), "strip_weights": True, "precision": "fp16"}
    bundle = Bundle.open(shutil.copytree(half.path, tmp_path / "copy.krl"))
    build_engine(config(half, **options))
    before = tree(bundle)
    found = list(faults(trt))
    assert {("OnnxParser.parse", False), ("Builder.build_serialized_network", None)} <= set(found)
    generation = next(item for item in GENERATIONS if trt.version.startswith(item.name))
    for key, outcome in found:
        with pytest.MonkeyPatch.context() as patch:
            fake = install_fakes(generation, pytestconfig, patch)
            fake.dla_cores = 1
            fake.fail[key] = outcome
            fake.say[key] = ["Error Code 10: (Could not find any implementation for node {ForeignNode[a...b]}.)"]
            with pytest.raises(KrlError, match=r"TensorRT has no implementation for node \{ForeignNode\[a\.\.\.b\]\}"):
                build_engine(config(bundle, **options))
            assert tree(bundle) == before, key
            assert fake.cuda.leaks() == NO_LEAKS, key


@pytest.mark.parametrize(
    ("said", "meaning"),
    [
        ("Error Code 1: Cuda Runtime (out of memory)", "the GPU ran out of memory"),
        ("Requested amount of GPU memory (1073741824 bytes) could not be allocated.", "the GPU ran out of memory"),
        ("Target GPU SM 72 is not supported by this TensorRT release.", r"does not support this GPU \(sm_72\)"),
        ("Something new", "Something new"),
    ],
)
def test_a_build_that_gives_nothing_tells_the_reason_from_the_log(newest, bundle, said, meaning):
    newest.fail["Builder.build_serialized_network"] = None
    newest.say["Builder.build_serialized_network"] = [said]
    with pytest.raises(BackendError, match=f"building the engine: TensorRT could not do it.*{meaning}"):
        build_engine(config(bundle))


def test_the_parsers_errors_name_node_and_operator(trt, bundle):
    trt.parser_errors = [("/head/NonZero", "NonZero", "no importer"), ("", "", "assertion failed")]
    with pytest.raises(ModelError) as caught:
        build_engine(config(bundle))
    assert f"TensorRT {trt.version} does not take this ONNX file" in str(caught.value)
    assert "\n  node '/head/NonZero' (NonZero): no importer\n  assertion failed" in str(caught.value)


def test_ctrl_c_stops_the_build(trt, bundle):
    before, steps = tree(bundle), []

    def interrupt(step):
        steps.append(step)
        if step == 1:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)

    trt.on_step = interrupt
    # A background job of a script inherits that SIGINT is ignored; this test is of one in the foreground.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            build_engine(config(bundle))
    finally:
        signal.signal(signal.SIGINT, inherited)
    assert steps == [0, 1]
    assert tree(bundle) == before


def test_a_time_limit_stops_the_build(trt, bundle):
    steps = []

    def slow(step):
        steps.append(step)
        time.sleep(0.1)

    trt.on_step = slow
    with pytest.raises(BackendError, match=r"not built: it took longer than the 0\.15 seconds of --time-limit"):
        build_engine(config(bundle, time_limit=0.15))
    assert len(steps) < 4


def test_options_reach_the_builder_and_the_key(trt, bundle):
    limits = []
    trt._IBuilderConfig_set_memory_pool_limit = lambda this, pool, pool_size: limits.append((pool.name, pool_size))
    configs = []
    original = trt._Builder_build_serialized_network

    def build(this, network, config):
        configs.append(config.s.values)
        return original(this, network, config)

    trt._Builder_build_serialized_network = build
    build_engine(
        config(bundle, version_compatible=True, hardware_compatibility="ampere-plus", refit=True, strip_weights=True,
               workspace_mb=64, optimization_level=5)
    )  # fmt: skip
    assert trt.set_flags == ["VERSION_COMPATIBLE", "REFIT", "STRIP_PLAN"]
    assert limits == [("WORKSPACE", 64 << 20)]
    assert configs[0]["builder_optimization_level"] == 5
    assert configs[0]["hardware_compatibility_level"].name == "AMPERE_PLUS"
    built = Bundle.open(bundle.path)
    key = key_of(trt, bundle, "b1-4-8-vc-ampere-plus-refit-stripped")
    engine = built.manifest.engines[key]
    assert (engine.version_compatible, engine.hardware_compatibility, engine.stripped) == (True, "ampere-plus", True)
    golden = built.golden()
    result = open_engine(built, "int8").run({"pixels": golden["pixels"]})
    np.testing.assert_allclose(result["logits"], golden["logits"] + 0.01, atol=1e-3)


def test_the_workspace_is_what_the_gpu_has_free_at_most(newest, bundle, caplog):
    limits = []
    newest._IBuilderConfig_set_memory_pool_limit = lambda this, pool, pool_size: limits.append(pool_size)
    build_engine(config(bundle))
    build_engine(config(bundle, workspace_mb=1 << 20))
    assert limits == [2**30, 2**30]
    assert "workspace: 1024 MiB of the 1048576 asked for" in caplog.text
    newest.cuda.integrated = True  # as on a Jetson: the CPU shares the memory
    build_engine(config(bundle))
    assert limits[2:] == [2**29]


def test_a_hardware_compatibility_that_this_tensorrt_lacks_is_refused(trt, bundle):
    asked = config(bundle, hardware_compatibility="same-compute-capability")
    if trt.version == "10.3.0":
        with pytest.raises(
            UsageError, match=r"10\.3\.0 does not know --hardware-compatibility same-compute-capability"
        ):
            build_engine(asked)
    else:
        build_engine(asked)
        assert key_of(trt, bundle, "b1-4-8-same-compute-capability") in Bundle.open(bundle.path).manifest.engines


def test_dla_reports_what_runs_on_the_gpu(trt, half, caplog):
    options = {"precision": "fp16", "dla_core": 1, "profile": ("2,2,2",)}
    with pytest.raises(UsageError, match="--dla-core is 1, but this machine and TensorRT offer 0 DLA cores"):
        build_engine(config(half, **options))
    trt.dla_cores, trt.not_on_dla = 2, ("Cast_float", "Gemm_logits")
    trt.set_flags.clear()
    build_engine(config(half, **options))
    assert "layers are not for the DLA and run on the GPU: Cast_float, Gemm_logits" in caplog.text
    assert trt.set_flags == ["GPU_FALLBACK"]
    built = Bundle.open(half.path)
    key = key_of(trt, half, "b2-2-2-dla1", "fp16")
    assert built.manifest.engines[key].dla_core == 1
    assert built.manifest.evidence["engines"][key]["layers_on_gpu"] == ["Cast_float", "Gemm_logits"]


def test_dla_refuses_what_it_does_not_have(newest, half, tmp_path):
    """FP32 would run on the GPU alone, and INT8 has to be everywhere."""
    newest.dla_cores = 2
    options = {"dla_core": 0, "profile": "1,1,1"}
    with pytest.raises(UsageError, match=r"this model is in FP32, which the DLA does not have.*--precision fp16"):
        build_engine(config(half, "fp32", **options))
    parts = tmp_path / "parts.onnx"
    onnx.save(quantized_chain(everywhere=False), parts)
    with pytest.raises(UsageError, match=r"quantized in part.*: first \(Conv\), relu \(Relu\) are in floating"):
        build_engine(config(parts, None, **options))
    whole = tmp_path / "whole.onnx"
    onnx.save(quantized_chain(everywhere=True), whole)
    assert build_engine(config(whole, None, **options)) is None


def quantized_chain(everywhere):
    """Two convolutions with a ReLU between them; INT8 everywhere, or not at the ReLU's input and the end."""
    constants = {"s": np.float32(0.1), "z": np.int8(0), "w": np.ones((16, 16, 3, 3), np.int8)}
    constants |= {"ws": np.full(16, 0.01, np.float32), "wz": np.zeros(16, np.int8)}
    nodes = []

    def node(op, inputs, output, **attributes):
        nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def pair(name):
        return node("DequantizeLinear", [node("QuantizeLinear", [name, "s", "z"], f"{name}_q"), "s", "z"], f"{name}_dq")

    weight = node("DequantizeLinear", ["w", "ws", "wz"], "w_dq", axis=0)
    first = node("Conv", [pair("x"), weight], "first", pads=[1] * 4)
    relu = node("Relu", [pair(first) if everywhere else first], "relu")
    last = node("Conv", [pair(relu), weight], "last", pads=[1] * 4)
    result = pair(last) if everywhere else last
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "chain", [value("x", 1, [1, 16, 8, 8])], [value(result, 1, [1, 16, 8, 8])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_tf32_and_sparsity_reach_the_builder(trt, bundle, tmp_path, caplog):
    cleared = []
    trt._IBuilderConfig_clear_flag = lambda this, flag: cleared.append(flag.name)
    build_engine(config(bundle, tf32=False, sparse_weights=True))
    assert (cleared, trt.set_flags) == (["TF32"], ["SPARSE_WEIGHTS"])
    assert "--sparse-weights: 0 of 2 layers have weights with 2:4 sparsity; the option does nothing" in caplog.text
    built = Bundle.open(bundle.path)
    assert built.manifest.engines[key_of(trt, bundle, "b1-4-8-notf32-sparse")].tf32 is False
    weight = np.random.default_rng(0).normal(size=(8, 16, 3, 3)).astype(np.float32)
    weight.reshape(8, 4, 4, 9)[:, :, 1:3] = 0
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")], "g",
        [helper.make_tensor_value_info("x", 1, [1, 16, 8, 8])], [helper.make_tensor_value_info("y", 1, [1, 8, 6, 6])],
        [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), tmp_path / "s.onnx")
    build_engine(config(tmp_path / "s.onnx", None, profile="1,1,1", sparse_weights=True))
    assert json.loads((tmp_path / "s.engine.json").read_text())["sparse_layers"] == ["conv"]


def test_an_engine_with_several_profiles(trt, bundle):
    """Each batch runs in the profile with the closest limit; all sizes of all profiles are compared."""
    ran = []
    original = trt._IExecutionContext_set_optimization_profile_async
    trt._IExecutionContext_set_optimization_profile_async = lambda this, profile_index, stream_handle: (
        ran.append(profile_index),
        original(this, profile_index, stream_handle),
    )[1]
    build_engine(config(bundle, profile=("1,1,1", "2,4,6")))
    assert set(ran) == {0, 1}
    built = Bundle.open(bundle.path)
    engine = built.manifest.engines[key_of(trt, bundle, "b1-1-1-b2-4-6")]
    assert (engine.profiles, engine.batches) == (((1, 1, 1), (2, 4, 6)), (1, 6))
    golden = built.golden()
    backend = open_engine(built, "int8")
    for count in (1, 3, 6):
        result = backend.run({"pixels": golden["pixels"][:count]})
        np.testing.assert_allclose(result["logits"], golden["logits"][:count] + 0.01, atol=1e-3)
    with pytest.raises(UsageError, match=r"--profile has 2 ranges, and the command by hand builds one"):
        build_engine(config(bundle, profile=("1,1,1", "2,4,6"), emit_script=bundle.path.parent / "s.sh"))


def test_fp32_may_differ_by_tf32_where_it_multiplies_in_it(newest, tmp_path):
    """The limits in TF32 are wider, and hold only for engines that may use it."""
    fp32 = Variant("fp32", "model.fp32.onnx", tolerance=1e-4, tf32={"tolerance": 0.05, "agreement": 0.9})
    bundle = write_bundle(tmp_path / "tf32.krl", **{"variants": ("fp32",)})
    bundle.update({}, variants={"fp32": fp32})
    newest.wrong_answer = 0.01
    build_engine(config(bundle, "fp32"))
    built = Bundle.open(bundle.path)
    (replayed,) = selftest(built, require="tensorrt")
    assert (replayed.state, replayed.tolerance) == ("passed", 0.05)
    exact = {key: replace(engine, tf32=False) for key, engine in built.manifest.engines.items()}
    (replayed,) = selftest(built.update({}, engines=exact), require="tensorrt")
    assert (replayed.state, replayed.tolerance) == ("failed", 1e-4)
    with pytest.raises(CheckFailedError, match=r"the largest error 0\.01 is above the tolerance 0\.0001"):
        build_engine(config(bundle, "fp32", tf32=False))
    newest.wrong_answer = 0.06
    with pytest.raises(CheckFailedError, match=r"is above the tolerance 0\.05"):
        build_engine(config(bundle, "fp32"))


def test_errors_of_the_check_can_be_ignored_and_are_recorded(newest, tmp_path, caplog):
    graph = helper.make_graph(
        [helper.make_node("LpPool", ["x"], ["y"], name="pool", kernel_shape=[2, 2], p=3)], "g",
        [helper.make_tensor_value_info("x", 1, [1, 16, 8, 8])], [helper.make_tensor_value_info("y", 1, [1, 16, 7, 7])],
    )  # fmt: skip
    file = tmp_path / "odd.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), file)
    with pytest.raises(ModelError, match=r"--ignore-errors tries the build nevertheless, and records them"):
        build_engine(config(file, None, profile="1,1,1"))
    build_engine(config(file, None, profile="1,1,1", ignore_errors=True))
    (line,) = json.loads((tmp_path / "odd.engine.json").read_text())["ignored_errors"]
    assert "pool" in line
    assert "error ignored, as asked" in caplog.text


def test_a_graph_with_a_fixed_batch_takes_that_one_alone(newest, tmp_path):
    bundle = write_bundle(tmp_path / "fixed.krl", batch=1)
    with pytest.raises(
        UsageError, match=r"'pixels' has a fixed batch of 1, --profile is 1,4,8; accepted: --profile 1,1"
    ):
        build_engine(config(bundle, "fp32"))
    build_engine(config(bundle, "fp32", profile=("1,1,1",)))
    assert newest.calls["IBuilderConfig.add_optimization_profile"] == 0


def test_a_bundle_that_changes_during_the_build_is_left_alone(newest, bundle):
    def change(step):
        if step == 2:
            int8 = bundle.manifest.variants["int8"]
            content = bundle.read("model.fp16.onnx")
            Bundle.open(bundle.path).update(
                {"model.int8.onnx": content}, variants={**bundle.manifest.variants, "int8": int8}
            )

    newest.on_step = change
    with pytest.raises(CheckFailedError, match=r"variant int8 of .* was changed during the build; build it again"):
        build_engine(config(bundle))
    assert not Bundle.open(bundle.path).manifest.engines


def test_without_golden_inputs_nothing_is_built(newest, tmp_path):
    bundle = write_bundle(tmp_path / "none.krl", golden=0)
    with pytest.raises(BundleError, match="has no golden inputs; export it again with real data"):
        build_engine(config(bundle, "fp32"))
    assert newest.calls["Builder.build_serialized_network"] == 0
    odd = write_bundle(tmp_path / "odd.krl", contents={"golden.npz": npz(pixels=np.zeros((2, 3, 5, 5), np.uint8))})
    with pytest.raises(BundleError, match="golden file"):
        build_engine(config(odd, "fp32"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": None}, r"--precision is missing; bundle .* has: fp16, fp32, int8"),
        ({"profile": ("8,4,1",)}, r"--profile is 8,4,1; accepted: 1 <= MIN <= OPT <= MAX"),
        ({"profile": ("0,1,1",)}, "--profile is 0,1,1"),
        ({"profile": ("8",)}, "--profile is '8'; accepted: MIN,OPT,MAX, as in 1,8,32"),
        ({"profile": ("a,b,c",)}, "--profile is 'a,b,c'"),
        ({"optimization_level": 6}, "--optimization-level is 6; accepted: 0 to 5"),
        ({"workspace_mb": 0}, "--workspace-mb is too small"),
        ({"time_limit": 0.0}, "--time-limit is 0; accepted: seconds"),
        ({"dla_core": -1, "profile": ("1,1,1",)}, "--dla-core is -1"),
        ({"dla_core": 0}, "--dla-core needs one fixed batch, as in --profile 4,4,4"),
        ({"output": Path("x.engine")}, "--output is for ONNX files"),
    ],
)
def test_wrong_options_are_refused_before_anything_happens(bundle, changes, message):
    before = tree(bundle)
    with pytest.raises(UsageError, match=message):
        build_engine(config(bundle, **changes))
    assert tree(bundle) == before


def test_a_missing_variant_names_the_command_that_makes_it(tmp_path):
    bundle = write_bundle(tmp_path / "m.krl")
    for precision, command in (("int8", "krl-deploy quantize"), ("fp16", "krl-deploy fp16")):
        with pytest.raises(UsageError, match=rf"has no variant {precision} \(it has: fp32\); make it with: {command}"):
            build_engine(config(bundle, precision))


# ONNX files


def test_an_onnx_file_becomes_an_engine_with_a_description_beside_it(trt, bundle, tmp_path, capsys, caplog):
    onnx = bundle.path / "model.fp16.onnx"
    target = tmp_path / "out" / "net.engine"
    build_engine(config(onnx, None, output=target, json=True))
    printed = json.loads(capsys.readouterr().out)
    description = json.loads((tmp_path / "out" / "net.engine.json").read_bytes())
    assert printed["engine"] == str(target)
    assert target.read_bytes().startswith(b"ftrt")
    assert description["sha256"] == sha256_bytes(target.read_bytes())
    assert description["onnx_sha256"] == sha256_file(onnx)
    assert (description["version"], description["gpu"], description["parity"]) == (trt.version, GPU_NAME, None)
    assert "its outputs were not checked" in caplog.text
    inspect_engine(InspectEngineConfig(target, json=True))
    shown = json.loads(capsys.readouterr().out)["engines"]["net.engine"]
    assert (shown["profiles"], shown["version"]) == ([[1, 4, 8]], trt.version)
    with pytest.raises(UsageError, match="--precision is for bundles"):
        build_engine(config(onnx, "fp16"))


def test_an_engine_that_does_not_load_is_not_written(newest, bundle, tmp_path):
    newest.fail["Runtime.deserialize_cuda_engine"] = None
    with pytest.raises(BackendError, match=r"loading engine net\.engine"):
        build_engine(config(bundle.path / "model.fp32.onnx", None, output=tmp_path / "net.engine"))
    assert not list(tmp_path.glob("net*"))


# Looking at engines


def test_engines_are_shown_without_tensorrt(trt, bundle, capsys, monkeypatch):
    build_engine(config(bundle))
    capsys.readouterr()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    inspect_engine(InspectEngineConfig(bundle.path, json=True))
    shown = json.loads(capsys.readouterr().out)
    entry = shown["engines"][key_of(trt, bundle)]
    numbers = [int(part) for part in trt.version.split(".")]
    assert entry["plan_version"] == ".".join(map(str, [*numbers, *[0] * (4 - len(numbers))]))
    assert entry["bytes"] == (bundle.path / entry["file"]).stat().st_size
    inspect_engine(InspectEngineConfig(bundle.path / entry["file"]))
    assert entry["plan_version"] in capsys.readouterr().out


def test_a_description_of_another_engine_is_not_believed(tmp_path, capsys, caplog):
    engine = tmp_path / "a.engine"
    engine.write_bytes(b"ftrt" + bytes(20) + bytes([10, 3, 0, 30]) + b"rest")
    (tmp_path / "a.engine.json").write_text(json.dumps({"sha256": "0" * 64, "gpu": "wrong"}))
    inspect_engine(InspectEngineConfig(engine, json=True))
    entry = json.loads(capsys.readouterr().out)["engines"]["a.engine"]
    assert entry["version"] == "10.3.0.30"
    assert "gpu" not in entry
    assert "does not belong to this engine" in caplog.text


def test_a_bundle_without_engines_says_so(bundle, capsys):
    inspect_engine(InspectEngineConfig(bundle.path))
    assert "has no engines" in capsys.readouterr().out


def test_the_log_of_tensorrt_is_not_logged_twice(newest, bundle, caplog):
    newest.say["Builder.build_serialized_network"] = ["Error Code 1: Cuda Runtime (out of memory)"]
    newest.fail["Builder.build_serialized_network"] = None
    with caplog.at_level(logging.INFO, "krl"), pytest.raises(BackendError, match="out of memory"):
        build_engine(config(bundle))
    assert "out of memory" not in caplog.text


def test_the_configuration_is_a_frozen_record():
    assert replace(BuildEngineConfig(Path("m.krl")), profile=("1,2,3",)).options().profiles == ((1, 2, 3),)
